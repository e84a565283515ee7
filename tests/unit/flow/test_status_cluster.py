from typing import Any

import pytest
from tests.unit.samples import cluster

from kubeworker.core.certificates.csr import CLIENT_SIGNER, SERVING_SIGNER, Approve, CsrView, Pending, Verdict
from kubeworker.core.certificates.issuing import Halted
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.cluster.manifest import ref
from kubeworker.flow.csr import Listed
from kubeworker.flow.status_cluster import Known, object_drift, ready_fault, stuck

BINDING: dict[str, Any] = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "kubelet-bootstrap"},
    "subjects": [],
}
NODE: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1", "labels": {"zone": "a"}}}


def live(document: dict[str, Any], *entries: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    fields = [
        {"manager": manager, "operation": "Update", "time": f"2026-01-0{number}T00:00:00Z", "fieldsV1": owned}
        for number, (manager, owned) in enumerate(entries, start=1)
    ]
    return {**document, "metadata": {**document["metadata"], "managedFields": fields}}


def replacing(document: dict[str, Any]) -> ObjectAction:
    return ObjectAction(verb="replace", document=document, reason="it does not name system:bootstrappers", diff="+x")


def test_who_wrote_the_field_last_is_who_has_moved() -> None:
    found = object_drift(
        replacing(BINDING),
        live(BINDING, ("kubeworker", {"f:roleRef": {}}), ("kubectl-edit", {"f:subjects": {}})),
        Known(),
    )
    assert (found.kind, found.subject) == ("replace-object", "ClusterRoleBinding kubelet-bootstrap")
    assert (found.who, found.by, found.since) == ("cluster", "kubectl-edit", "2026-01-02T00:00:00Z")
    assert (found.what, found.diff) == ("it does not name system:bootstrappers", "+x")


def test_what_this_tool_wrote_last_is_not_applied_yet() -> None:
    found = object_drift(replacing(BINDING), live(BINDING, ("kubeworker", {"f:subjects": {}})), Known())
    assert (found.who, found.by) == ("input", "cluster.yaml or the tool")


def test_what_was_removed_is_nobodys() -> None:
    found = object_drift(replacing(BINDING), live(BINDING, ("kubeworker", {"f:roleRef": {}})), Known())
    assert found.who == "cluster"
    assert "removed; the API keeps no record" in found.what


@pytest.mark.parametrize(("known", "who"), [(Known(), "input"), (Known(objects=frozenset({ref(BINDING)})), "cluster")])
def test_an_object_that_is_not_there_was_deleted_if_it_was_ever_made(known: Known, who: str) -> None:
    missing = ObjectAction(verb="create", document=BINDING, reason="it does not exist")
    assert object_drift(missing, None, known).who == who


@pytest.mark.parametrize(
    ("entries", "owned", "who"),
    [
        ([("kubectl-label", {"f:metadata": {"f:labels": {"f:zone": {}}}})], frozenset(), "cluster"),
        ([("kubelet", {"f:status": {}})], frozenset({"zone"}), "cluster"),
        ([("kubelet", {"f:status": {}})], frozenset(), "input"),
    ],
)
def test_a_label_is_somebodys_or_was_ours_or_is_new(entries: list[Any], owned: frozenset[str], who: str) -> None:
    action = ObjectAction(verb="patch", document=NODE, reason="labels or taints differ from cluster.yaml")
    assert object_drift(action, live(NODE, *entries), Known(marks={"w1": owned})).who == who


@pytest.mark.parametrize(("owned", "who"), [(frozenset({"t=x:NoSchedule"}), "cluster"), (frozenset(), "input")])
def test_a_taint_that_was_ours_was_taken_off(owned: frozenset[str], who: str) -> None:
    taints = [{"key": "t", "value": "x", "effect": "NoSchedule"}, {"key": "other", "effect": "NoExecute"}]
    wanted = {**NODE, "metadata": {"name": "w1"}, "spec": {"taints": taints}}
    there = live({**NODE, "spec": {"taints": taints[1:]}}, ("kubelet", {"f:status": {}}))
    action = ObjectAction(verb="patch", document=wanted, reason="labels or taints differ from cluster.yaml")
    assert object_drift(action, there, Known(marks={"w1": owned})).who == who


def listed(
    name: str, verdict: Verdict | Halted | None, *, signer: str = SERVING_SIGNER, age: float = 60.0, created: str = ""
) -> Listed:
    request = CsrView(
        name=name, signer=signer, username="system:node:w1", request=b"", created=created or "2026-01-01T00:00:00Z"
    )
    return Listed(request=request, verdict=verdict, age=age)


@pytest.mark.parametrize(
    ("verdict", "age", "says"),
    [
        (None, 60.0, ""),
        (Approve(), 60.0, "pending though every rule holds: no approver runs"),
        (Approve(), 5.0, ""),
        (Pending(rule="serving.san", detail="10.0.0.9"), 60.0, "pending, serving.san: 10.0.0.9"),
        (Halted(rule="signer.unissued", detail="nobody signs", hint="flags"), 5.0, "signer.unissued: nobody signs"),
    ],
)
def test_a_request_that_gets_nowhere_says_why(verdict: Verdict | Halted | None, age: float, says: str) -> None:
    found = stuck([listed("csr-1", verdict, age=age)], "w1")
    assert [each.what for each in found] == ([says] if says else [])
    assert all(each.since == "2026-01-01T00:00:00Z" and each.fix for each in found)


def test_only_the_newest_request_for_each_purpose_counts() -> None:
    old = listed("csr-old", Pending(rule="serving.san", detail="x"))
    new = listed("csr-new", None, created="2026-01-02T00:00:00Z")
    client = listed("csr-client", Pending(rule="client.renewal", detail="y"), signer=CLIENT_SIGNER)
    assert [each.subject for each in stuck([old, new, client], "w1")] == [f"csr-client ({CLIENT_SIGNER})"]
    assert stuck([old], "w2") == ()


NOT_READY = NodeStatus(
    name="w1", ready=False, reason="the network plugin is not ready", heartbeat="2026-01-01T00:00:00Z"
)


@pytest.mark.parametrize(
    ("node", "cni", "joining", "says"),
    [
        (NodeStatus(name="w1", ready=True), "bridge", False, ""),
        (NOT_READY, "bridge", False, "not Ready: the network plugin is not ready"),
        (NOT_READY, "none", False, ""),
        (None, "none", False, "there is no such Node, though the machine has joined"),
        (None, "bridge", True, ""),
    ],
)
def test_a_node_that_is_not_ready_is_told(node: NodeStatus | None, cni: str, says: str, *, joining: bool) -> None:
    found = ready_fault(cluster().model_copy(update={"cni": cni}), "w1", node, joining=joining)
    assert (found.what if found else "") == says
