"""A chart's objects against the live ones: order, differences, ownership, pruning, and what is never shown."""

from __future__ import annotations

import base64
import copy
import gzip
import json
from typing import Any

import pytest

from kubeworker.core.cluster import manifest
from kubeworker.core.cluster.manifest import Changes, Conflict, Found, Ref, Stale
from kubeworker.errors import InputError

RECORD = "kubeworker-demo"
FIELDS: dict[str, Any] = {"f:data": {"f:a": {}}}


def config_map(name: str = "one", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "kube-system"},
        "data": data or {"a": "1"},
    }


def live(document: dict[str, Any], *, manager: str = "kubeworker", operation: str = "Apply") -> dict[str, Any]:
    """As the API server answers: with its own book-keeping."""
    found = copy.deepcopy(document)
    found["metadata"] |= {
        "uid": "u",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": manager, "operation": operation, "fieldsV1": FIELDS}],
    }
    return found


def changes(
    desired: list[dict[str, Any]],
    found: list[Found],
    *,
    recorded: list[dict[str, Any]] | None = None,
    stale: tuple[Stale, ...] = (),
) -> Changes:
    refs = [manifest.ref(each) for each in (desired if recorded is None else recorded)]
    inventory = live(dict(manifest.record(RECORD, refs))) if refs else None
    return manifest.changes(
        RECORD, desired, {manifest.ref(each): seen for each, seen in zip(desired, found, strict=True)}, inventory, stale
    )


def told(result: Changes) -> list[tuple[str, str]]:
    return [(action.kind, action.subject) for action in result.actions]


def test_what_is_as_it_should_be_is_no_action() -> None:
    want = config_map()
    assert changes([want], [Found(live=live(want), applied=live(want))]).actions == ()


def test_the_api_servers_own_defaults_are_no_difference() -> None:
    want = config_map()
    filled = live(want) | {"immutable": False}
    later = copy.deepcopy(filled)
    later["metadata"] |= {"resourceVersion": "9", "generation": 4}
    assert changes([want], [Found(live=filled, applied=later)]).actions == ()


def test_a_new_object_is_recorded_before_it_is_made() -> None:
    want = config_map()
    result = changes([want], [Found()], recorded=[])
    assert told(result) == [
        ("apply-object", f"ConfigMap kube-system/{RECORD}"),
        ("apply-object", "ConfigMap kube-system/one"),
    ]
    assert result.actions[1].reason == "it does not exist"
    assert "+  a: " in result.actions[1].diff


def test_a_changed_value_is_shown_as_a_diff() -> None:
    before, want = config_map(a="1"), config_map(a="2")
    (action,) = changes([want], [Found(live=live(before), applied=live(want))]).actions
    assert '-  a: "1"\n+  a: "2"' in action.diff
    assert "resourceVersion" not in action.diff


def test_who_has_changed_it_is_named() -> None:
    want, edited = config_map(a="1"), config_map(a="2")
    conflict = Conflict(manager="kubectl-edit", field=".data.a")
    found = Found(live=live(edited), applied=live(want), conflicts=(conflict,))
    (action,) = changes([want], [found]).actions
    assert action.reason == "kubectl-edit changed .data.a: taken back"


def test_an_object_of_somebody_else_is_named_with_its_maker() -> None:
    want = config_map()
    found = Found(live=live(want, manager="helm", operation="Update"), applied=live(want))
    result = changes([want], [found])
    assert result.foreign == ("ConfigMap kube-system/one (helm)",)
    assert result.actions[0].reason == "made by helm; taken over"


def test_a_shared_namespace_is_nobodys() -> None:
    want = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    result = changes([want], [Found(live=live(want, manager="kubectl-create", operation="Update"), applied=live(want))])
    assert result.foreign == ()


def test_what_can_not_be_changed_in_place_is_made_anew() -> None:
    want = config_map(a="2")
    (action,) = changes([want], [Found(live=live(config_map()), immutable="spec.selector")]).actions
    assert (action.kind, action.reason) == ("recreate-object", "it can't be changed in place: spec.selector")


def test_what_the_chart_no_longer_has_is_removed_and_then_struck_off_the_record() -> None:
    kept, old = config_map("kept"), config_map("old")
    result = changes(
        [kept],
        [Found(live=live(kept), applied=live(kept))],
        recorded=[kept, old],
        stale=(Stale(ref=manifest.ref(old), live=live(old)),),
    )
    assert told(result) == [
        ("delete-object", "ConfigMap kube-system/old"),
        ("apply-object", f"ConfigMap kube-system/{RECORD}"),
    ]
    assert manifest.recorded(result.actions[-1].document) == (manifest.ref(kept),)


@pytest.mark.parametrize(
    ("ref", "instances", "manager", "word"),
    [
        (Ref(api_version="v1", kind="ConfigMap", namespace="kube-system", name="x"), 0, "kubectl", "not this tool's"),
        (Ref(api_version="v1", kind="Namespace", namespace="", name="x"), 0, "kubeworker", "remove it yourself"),
        (
            Ref(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition", namespace="", name="x"),
            2,
            "kubeworker",
            "there are 2 objects of its kind",
        ),
    ],
)
def test_what_holds_others_things_or_is_not_ours_is_left_and_named(
    ref: Ref, instances: int, manager: str, word: str
) -> None:
    document = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": {"name": ref.name}}
    seen = Stale(ref=ref, live=live(document, manager=manager), instances=instances)
    result = changes([], [], recorded=[], stale=(seen,))
    assert "delete-object" not in {action.kind for action in result.actions}
    assert word in result.warnings[0]


def test_an_unused_definition_goes() -> None:
    ref = Ref(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition", namespace="", name="x")
    document = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": {"name": ref.name}}
    result = changes([], [], recorded=[document], stale=(Stale(ref=ref, live=live(document)),))
    assert told(result)[0] == ("delete-object", "CustomResourceDefinition x")


def test_a_moved_api_version_is_the_same_object() -> None:
    old = Ref(api_version="policy/v1beta1", kind="PodDisruptionBudget", namespace="a", name="b")
    new = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b", "namespace": "a"}}
    assert manifest.gone([old], [new]) == ()


def test_a_secret_is_shown_as_hashes_wherever_its_values_stand() -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "s",
            "namespace": "kube-system",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "TOPSECRET"},
        },
        "data": {"tls.key": "VE9QU0VDUkVU"},
        "stringData": {"more": "TOPSECRET"},
    }
    (_, action) = changes([secret], [Found()], recorded=[]).actions
    assert "VE9QU0VDUkVU" not in action.diff
    assert "TOPSECRET" not in action.diff
    assert "sha256 " in action.diff


def test_definitions_and_namespaces_come_first_and_the_rest_stays_in_order() -> None:
    kinds = ["ServiceAccount", "DaemonSet", "Namespace", "CustomResourceDefinition"]
    given = [{"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}} for kind in kinds]
    ordered = manifest.documents([None, *given], subject="components.demo")
    assert [each["kind"] for each in ordered] == [
        "CustomResourceDefinition",
        "Namespace",
        "ServiceAccount",
        "DaemonSet",
    ]


@pytest.mark.parametrize(
    ("documents", "word"),
    [
        (["text"], "no Kubernetes object"),
        ([config_map(), config_map()], "twice"),
        ([{**config_map(), "metadata": {"name": "j", "annotations": {"helm.sh/hook": "post-install"}}}], "Helm hook"),
    ],
)
def test_what_can_not_be_applied_is_refused(documents: list[Any], word: str) -> None:
    with pytest.raises(InputError) as caught:
        manifest.documents(documents, subject="components.demo")
    assert word in caught.value.message
    assert caught.value.hint


def test_an_inventory_that_was_edited_by_hand_is_read_as_far_as_it_makes_sense() -> None:
    found = {"data": {"objects": "v1 Namespace x\n\nnonsense\napps/v1 DaemonSet a/b\n"}}
    assert [str(each) for each in manifest.recorded(found)] == ["v1 Namespace x", "apps/v1 DaemonSet a/b"]


def daemon_set(image: str, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "d", "namespace": "kube-system", "annotations": annotations},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
    }


def test_a_change_that_restarts_pods_says_so_and_hides_the_controllers_counting() -> None:
    generation = "deprecated.daemonset.template.generation"
    before = daemon_set("a:1", **{generation: "1"})
    after = daemon_set("a:2", **{generation: "2"})
    (action,) = changes([daemon_set("a:2")], [Found(live=live(before), applied=live(after))]).actions
    assert action.reason.endswith("its pods are replaced, a few at a time")
    assert generation not in action.diff


def test_what_a_helm_release_has_installed_is_read_from_its_newest_record() -> None:
    def record(version: int, manifest_text: str) -> dict[str, Any]:
        packed = gzip.compress(json.dumps({"manifest": manifest_text}).encode())
        release = base64.b64encode(base64.b64encode(packed)).decode()
        return {"metadata": {"name": f"v{version}", "labels": {"version": str(version)}}, "data": {"release": release}}

    old = record(9, "apiVersion: v1\nkind: Service\nmetadata: {name: old, namespace: a}\n")
    new = record(10, "---\n# Source: x\n---\napiVersion: v1\nkind: Service\nmetadata: {name: new, namespace: a}\n")
    assert [str(each) for each in manifest.helm_objects([new, old])] == ["v1 Service a/new"]
    assert manifest.helm_objects([]) == ()
    assert manifest.helm_objects([{"metadata": {"name": "x"}, "data": {"release": "bm9uc2Vuc2U="}}]) == ()
