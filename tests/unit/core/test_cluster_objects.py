"""What a plan changes in the cluster: nothing where all is as wanted, and never what others put beside ours."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.cluster import bootstrap_token, cluster_objects, kube_views
from kubeworker.core.cluster.bootstrap_token import BootstrapToken, TokenPlan
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.spec import Cluster, ClusterFile, NodeSpec

RBAC = "rbac.authorization.k8s.io"


def cluster(*nodes: NodeSpec, profile: Literal["default", "guide"] = "default") -> ClusterFile:
    return ClusterFile(
        cluster=Cluster(
            apiservers=("10.1.0.9:6443",),
            cluster_cidr="172.30.0.0/16",
            service_cidr="10.254.0.0/16",
            dns_service_ip="10.254.0.2",
        ),
        profile=profile,
        nodes=nodes or (NodeSpec(name="w1", address="10.1.0.1"),),
    )


# ---------------------------------------------------------------------------------------------------------------
# RBAC

WANTED = cluster_objects.bindings(cluster(), client_csr="guarded")


def as_read(binding: dict[str, Any]) -> dict[str, Any]:
    """The object as the API gives it back: with metadata of its own."""
    metadata = {**binding["metadata"], "uid": "1-2-3", "resourceVersion": "7", "labels": {"team": "x"}}
    return {**binding, "metadata": metadata}


def names(client_csr: cluster_objects.ClientCsr, profile: Literal["default", "guide"]) -> set[str]:
    return {
        each["metadata"]["name"] for each in cluster_objects.bindings(cluster(profile=profile), client_csr=client_csr)
    }


ALWAYS = {"kubelet-bootstrap", "node-client-cert-renewal", "kube-apiserver:kubelet-apis"}


def test_guarded_binds_nothing_that_approves_by_itself() -> None:
    assert names("guarded", "default") == ALWAYS


def test_auto_and_the_guide_add_their_bindings() -> None:
    assert names("auto", "default") == ALWAYS | {"auto-approve-csrs-for-group"}
    assert names("auto", "guide") == ALWAYS | {"auto-approve-csrs-for-group", "node-server-cert-renewal"}
    assert names("guarded", "guide") == ALWAYS | {"node-server-cert-renewal"}


def test_bindings_as_wanted_need_nothing() -> None:
    assert cluster_objects.binding_actions(WANTED, map(as_read, WANTED)) == ()


def test_a_missing_binding_is_created() -> None:
    actions = cluster_objects.binding_actions(WANTED, map(as_read, WANTED[1:]))
    assert [(each.verb, each.subject) for each in actions] == [("create", "ClusterRoleBinding kubelet-bootstrap")]
    assert "+  name: system:node-bootstrapper" in actions[0].diff


def test_other_bindings_are_left_alone() -> None:
    other = {**as_read(WANTED[0]), "metadata": {"name": "somebody-elses"}}
    assert cluster_objects.binding_actions(WANTED, [*map(as_read, WANTED), other]) == ()


def test_a_lost_subject_is_added_and_foreign_ones_stay() -> None:
    foreign = {"apiGroup": RBAC, "kind": "Group", "name": "system:bootstrappers:kubeadm"}
    found = {**as_read(WANTED[0]), "subjects": [foreign]}
    (action,) = cluster_objects.binding_actions(WANTED[:1], [found])
    assert action.verb == "replace"
    assert action.document["subjects"] == [foreign, *WANTED[0]["subjects"]]
    assert action.document["metadata"] == found["metadata"], "its version goes along, so that no change is overwritten"
    assert cluster_objects.binding_actions(WANTED[:1], [action.document]) == ()


def test_a_binding_without_subjects_gets_them() -> None:
    (action,) = cluster_objects.binding_actions(WANTED[:1], [{**as_read(WANTED[0]), "subjects": None}])
    assert action.document["subjects"] == WANTED[0]["subjects"]


def test_another_role_means_making_it_anew() -> None:
    found = {**as_read(WANTED[0]), "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}}
    (action,) = cluster_objects.binding_actions(WANTED[:1], [found])
    assert (action.verb, action.document, action.uid) == ("recreate", WANTED[0], "1-2-3")
    assert "cluster-admin" in action.reason


def test_a_binding_is_decided_on_again_where_somebody_was_quicker() -> None:
    (action,) = cluster_objects.binding_actions(WANTED[:1], [])
    assert action.again is not None
    assert action.again(as_read(WANTED[0])) is None
    now = action.again({**as_read(WANTED[0]), "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": "theirs"}]})
    assert now is not None
    assert (now.verb, [each["name"] for each in now.document["subjects"]]) == (
        "replace",
        ["theirs", "system:bootstrappers"],
    )
    assert now.again is not None
    assert now.again(None) == action


def role(name: str, **rule: list[str]) -> dict[str, Any]:
    good = {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/nodeclient"]}
    return {"metadata": {"name": name}, "rules": [{**good, "verbs": ["create"], **rule}]}


def bound(name: str, role_name: str, kind: str = "Group", subject: str = "system:bootstrappers") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "roleRef": {"name": role_name},
        "subjects": [{"kind": kind, "name": subject}],
    }


@pytest.mark.parametrize(
    ("rule", "approves"),
    [
        ({}, True),
        ({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, True),
        ({"resources": ["*/nodeclient"]}, True),
        ({"resources": ["certificatesigningrequests/selfnodeclient"]}, False),
        ({"resources": ["certificatesigningrequests"]}, False),
        ({"verbs": ["get"]}, False),
        ({"apiGroups": [""]}, False),
    ],
)
def test_bindings_that_approve_by_themselves_are_named(rule: dict[str, list[str]], *, approves: bool) -> None:
    bindings = [
        bound("culprit", "custom"),
        bound("of-others", "custom", subject="system:nodes"),
        bound("of-a-user", "custom", kind="User"),
        bound("harmless", "view"),
        {"metadata": {"name": "empty"}, "roleRef": {"name": "custom"}},
    ]
    roles = [role("custom", **rule), {"metadata": {"name": "view"}, "rules": None}]
    found = cluster_objects.granting_bindings(bindings, roles, ["system:bootstrappers"])
    assert found == (("culprit",) if approves else ())
    assert ("culprit" if approves else "an authorizer other than RBAC") in cluster_objects.guarded_warning(found)


# ---------------------------------------------------------------------------------------------------------------
# Tokens


def test_no_token_secret_is_shown() -> None:
    token = BootstrapToken(id="abcdef", secret="0123456789abcdef", node="w1", expires=datetime(2026, 1, 1, tzinfo=UTC))
    old = replace(token, id="ghijkl", expires=token.expires - timedelta(days=1))
    plan = TokenPlan(create=("w1",), delete=(old,))
    deletion, creation = cluster_objects.token_actions(plan, [token], cluster(), ["w1"])
    assert (deletion.verb, deletion.subject) == ("delete", "Secret kube-system/bootstrap-token-ghijkl")
    assert (creation.verb, creation.subject) == ("create", "Secret kube-system/bootstrap-token-abcdef")
    assert "joins again" in creation.reason
    assert "0123456789abcdef" not in f"{deletion} {creation}"
    assert bootstrap_token.found(creation.document) == token


# ---------------------------------------------------------------------------------------------------------------
# Labels and taints


def carried_out(
    node: NodeStatus, owned: dict[str, str], actions: tuple[ObjectAction, ...]
) -> tuple[NodeStatus, dict[str, str]]:
    """The Node and the record after these merge patches, as the API would have them."""
    for action in actions:
        document = action.document
        if document["kind"] == "ConfigMap":
            owned = {key: value for key, value in {**owned, **document["data"]}.items() if value is not None}
            continue
        labels = {**node.labels, **document["metadata"].get("labels", {})}
        node = replace(node, labels={key: value for key, value in labels.items() if value is not None})
        if "spec" in document:
            node = replace(node, taints=tuple(map(kube_views.taint_text, document["spec"]["taints"])))
    return node, owned


KEYS = st.sampled_from(["a", "b", "c"])
LABELS = st.dictionaries(KEYS, st.sampled_from(["1", "2"]), max_size=3)
EFFECTS = st.sampled_from(["NoSchedule", "NoExecute"])
TAINTS = st.dictionaries(st.tuples(KEYS, EFFECTS), st.sampled_from(["", "=1", "=2"]), max_size=3).map(
    lambda taints: tuple(f"{key}{value}:{effect}" for (key, effect), value in taints.items())
)


def spec(labels: dict[str, str], taints: tuple[str, ...]) -> ClusterFile:
    return cluster(NodeSpec(name="w1", address="10.1.0.1", labels=labels, taints=taints))


@given(LABELS, TAINTS, LABELS, TAINTS, LABELS, TAINTS)
def test_ours_follow_cluster_yaml_and_foreign_ones_stay(
    foreign_labels: dict[str, str],
    foreign_taints: tuple[str, ...],
    first_labels: dict[str, str],
    first_taints: tuple[str, ...],
    labels: dict[str, str],
    taints: tuple[str, ...],
) -> None:
    """Foreign keys have a prefix of their own here: a key in cluster.yaml is taken over, whoever set it."""
    foreign = {f"x/{key}": value for key, value in foreign_labels.items()}
    theirs = tuple(f"x/{taint}" for taint in foreign_taints)
    node, owned = NodeStatus(name="w1", labels=foreign, taints=theirs), dict[str, str]()
    for wanted in (spec(first_labels, first_taints), spec(labels, taints)):
        node, owned = carried_out(node, owned, cluster_objects.node_actions(wanted, [node], owned))
        assert cluster_objects.node_actions(wanted, [node], owned) == (), "a second plan changes nothing"
    assert dict(node.labels) == foreign | labels
    assert set(node.taints) == {*theirs, *taints}


def test_a_label_that_was_there_before_is_not_ours_to_remove() -> None:
    node = NodeStatus(name="w1", labels={"zone": "a"}, taints=("gpu:NoSchedule",))
    assert cluster_objects.node_actions(spec({}, ()), [node], {}) == ()


def test_a_taint_with_another_value_is_replaced_not_doubled() -> None:
    node = NodeStatus(name="w1", taints=("dedicated=a:NoSchedule",), resource_version="7")
    action, _record = cluster_objects.node_actions(spec({}, ("dedicated=b:NoSchedule",)), [node], {})
    assert action.document["spec"]["taints"] == [{"key": "dedicated", "value": "b", "effect": "NoSchedule"}]
    assert action.document["metadata"]["resourceVersion"] == "7"


def test_only_nodes_that_joined_are_looked_at() -> None:
    assert cluster_objects.node_actions(spec({"zone": "a"}, ()), [NodeStatus(name="other")], {}) == ()


@pytest.mark.parametrize("record", ["nonsense", "[]", '"x"', '{"labels": 3}', '{"labels": null}'])
def test_a_record_edited_into_nonsense_removes_nothing(record: str) -> None:
    node = NodeStatus(name="w1", labels={"zone": "a"})
    actions = cluster_objects.node_actions(spec({}, ()), [node], {"w1": record})
    assert [each.document["kind"] for each in actions] == ["ConfigMap"]


def test_the_record_of_a_missing_config_map_is_empty() -> None:
    assert cluster_objects.owned_record(None) == {}
    assert cluster_objects.owned_record({"data": None}) == {}
    assert cluster_objects.owned_record({"data": {"w1": "{}"}}) == {"w1": "{}"}
