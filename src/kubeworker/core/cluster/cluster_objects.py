"""Kubernetes objects as desired state: RBAC bindings, labels and taints of joined nodes, bootstrap tokens.

Compared with what was read, they give `ObjectAction`s that a plan shows under "cluster" and `Kube.carry_out` executes.
What others put beside ours (further subjects of a binding, further labels) is left alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import yaml

from kubeworker.core.cluster import bootstrap_token, kube_views
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.cluster.kube_views import Document, NodeStatus
from kubeworker.core.spec import ClusterFile, NodeSpec

Verb: TypeAlias = Literal["create", "replace", "recreate", "patch", "apply", "delete"]
ClientCsr: TypeAlias = Literal["guarded", "auto"]

OWNED_RECORD = "kubeworker-owned"
"""ConfigMap in kube-system: by node, JSON of the label keys and taints that this tool set, so that it removes only its
own. Not an annotation of the Node: a node may write those of its own Node, and so could have an operator's quarantine
taint removed by claiming that it was ours."""
RBAC = "rbac.authorization.k8s.io"
AUTO_APPROVE = "auto-approve-csrs-for-group"
NODE_CLIENT = "system:certificates.k8s.io:certificatesigningrequests:nodeclient"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectAction:
    """One change of one Kubernetes object. `recreate` deletes first: a binding's roleRef can't be changed.

    `apply` is server-side apply: the object is made or changed, whoever has set its fields before.
    """

    verb: Verb
    document: Document = field(repr=False)
    """The object; for `patch` a JSON merge patch that holds apiVersion, kind and metadata.name too."""
    reason: str
    diff: str = ""
    """Unified diff of YAML; secrets never appear in it."""
    uid: str = ""
    """metadata.uid of the object that was compared; empty where there was none. `recreate` deletes no other one."""
    again: Callable[[Document | None], ObjectAction | None] | None = field(default=None, repr=False, compare=False)
    """The same decision on the object as it is when somebody was quicker (None: it is gone); None: nothing is left to
    do. Where there is no such decision, the action as it stands is refused or does no harm."""

    @property
    def kind(self) -> str:
        """The plan's word for it: create-object, replace-object, ..."""
        return f"{self.verb}-object"

    @property
    def subject(self) -> str:
        """`ClusterRoleBinding kubelet-bootstrap`, `Secret kube-system/bootstrap-token-abc123`"""
        metadata = self.document["metadata"]
        namespace = metadata.get("namespace")
        return f"{self.document['kind']} {f'{namespace}/' if namespace else ''}{metadata['name']}"


def bindings(cluster: ClusterFile, *, client_csr: ClientCsr) -> tuple[dict[str, Any], ...]:
    """The ClusterRoleBindings that kubelets need to join and renew, under the guide's names.

    `client_csr` is kubelet's setting of that name: auto adds the guide's binding that approves any bootstrap request.
    """
    role = "system:certificates.k8s.io:certificatesigningrequests"
    bootstrappers, nodes = _group("system:bootstrappers"), _group("system:nodes")
    wanted = [
        _binding("kubelet-bootstrap", "system:node-bootstrapper", bootstrappers),
        _binding("node-client-cert-renewal", f"{role}:selfnodeclient", nodes),
        _binding("kube-apiserver:kubelet-apis", "system:kubelet-api-admin", _user(cluster.cluster.kubelet_client_user)),
    ]
    if client_csr == "auto":
        wanted.append(_binding(AUTO_APPROVE, NODE_CLIENT, bootstrappers))
    if cluster.profile == "guide":
        # It approves nothing: kube-controller-manager never handles serving certificates (kubernetes#73356).
        wanted.append(_binding("node-server-cert-renewal", f"{role}:selfnodeserver", nodes))
    return tuple(wanted)


def binding_actions(desired: Iterable[Document], found: Iterable[Document]) -> tuple[ObjectAction, ...]:
    """What makes the found ClusterRoleBindings hold at least the desired ones; further subjects stay."""
    by_name = {each["metadata"]["name"]: each for each in found}
    actions = (_binding_action(want, by_name.get(want["metadata"]["name"])) for want in desired)
    return tuple(action for action in actions if action is not None)


def owned_record(config_map: Document | None) -> dict[str, str]:
    """The record of set labels and taints, by node, from the ConfigMap that holds it (None: there is none yet)."""
    return dict(config_map.get("data") or {}) if config_map is not None else {}


def marks(record: str) -> frozenset[str]:
    """Of a node's part of that record, the keys of the labels, and the taints."""
    labels, taints = _owned(record)
    return frozenset((*labels, *taints))


def node_actions(
    cluster: ClusterFile, found: Iterable[NodeStatus], owned: Mapping[str, str]
) -> tuple[ObjectAction, ...]:
    """What gives joined nodes the labels and taints of cluster.yaml, and removes those it no longer names.

    The record comes last: should a run end before it is written, then the next run finds it out of date and writes it.
    """
    by_name = {each.name: each for each in found}
    joined = tuple((node, by_name[node.name]) for node in cluster.nodes if node.name in by_name)
    changes = (_node_action(want, node, owned.get(want.name, "")) for want, node in joined)
    record = {want.name: _marker(want) or None for want, _ in joined if owned.get(want.name, "") != _marker(want)}
    return (*(change for change in changes if change is not None), *_record_action(record, owned))


def token_actions(
    tokens: bootstrap_token.TokenPlan, created: Iterable[BootstrapToken], cluster: ClusterFile, rejoining: Iterable[str]
) -> tuple[ObjectAction, ...]:
    """Tokens to delete and to create. `created` are the values made for `tokens.create`; no secret is shown."""
    again = frozenset(rejoining)
    deletions = (
        ObjectAction(
            verb="delete",
            document=bootstrap_token.reference(token),
            reason=f"left over from an earlier run; it was {token.node}'s",
        )
        for token in tokens.delete
    )
    creations = (
        ObjectAction(
            verb="create",
            document=bootstrap_token.document(token, profile=cluster.profile),
            reason=f"{token.node} {'joins again' if token.node in again else 'has yet to join'}; "
            f"valid until {token.expires:%Y-%m-%d %H:%M} UTC, deleted once it joined",
        )
        for token in created
    )
    return (*deletions, *creations)


def granting_bindings(
    bindings: Iterable[Document], roles: Iterable[Document], groups: Iterable[str]
) -> tuple[str, ...]:
    """Names of the ClusterRoleBindings that let one of these groups have its client CSRs approved automatically."""
    approving = {role["metadata"]["name"] for role in roles if any(map(_approves, role.get("rules") or ()))}
    wanted = frozenset(groups)
    return tuple(
        sorted(
            each["metadata"]["name"]
            for each in bindings
            if each["roleRef"]["name"] in approving
            and any(
                subject.get("kind") == "Group" and subject["name"] in wanted for subject in each.get("subjects") or ()
            )
        )
    )


def guarded_warning(names: Iterable[str]) -> str:
    """What a plan says when guarded is asked for but the cluster approves every bootstrap request anyway."""
    culprits = ", ".join(names) or "an authorizer other than RBAC"
    return (
        f"client_csr: guarded has no effect: kube-controller-manager approves any bootstrap token's request for any "
        f"node's name because of {culprits}. Remove that ClusterRoleBinding yourself if nothing else needs it "
        f"(kubectl delete clusterrolebinding NAME); it is never removed by this tool."
    )


def _approves(rule: Mapping[str, Any]) -> bool:
    def holds(key: str, *values: str) -> bool:
        return any(value in (rule.get(key) or ()) for value in values)

    resources = ("certificatesigningrequests/nodeclient", "*/nodeclient", "*")
    return (
        holds("apiGroups", "certificates.k8s.io", "*")
        and holds("resources", *resources)
        and holds("verbs", "create", "*")
    )


def _binding(name: str, role: str, subject: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _group(name: str) -> dict[str, str]:
    return {"apiGroup": RBAC, "kind": "Group", "name": name}


def _user(name: str) -> dict[str, str]:
    return {"apiGroup": RBAC, "kind": "User", "name": name}


def _binding_action(want: Document, found: Document | None) -> ObjectAction | None:
    again = partial(_binding_action, want)
    if found is None:
        diff = _diff({}, want)
        return ObjectAction(verb="create", document=want, reason="it does not exist", diff=diff, again=again)
    current = _essence(found)
    if current["roleRef"] != want["roleRef"]:
        return ObjectAction(
            verb="recreate",
            document=want,
            reason=f"it gives the role {current['roleRef'].get('name')}; a binding's role can't be changed in place",
            diff=_diff(current, want),
            uid=found["metadata"]["uid"],
            again=again,
        )
    missing = [subject for subject in want["subjects"] if subject not in current["subjects"]]
    if not missing:
        return None
    wanted = {**want, "subjects": [*current["subjects"], *missing]}
    # The found object with its resourceVersion: a change made meanwhile is a conflict, not lost.
    return ObjectAction(
        verb="replace",
        document={**found, "subjects": wanted["subjects"]},
        reason=f"it does not name {', '.join(subject['name'] for subject in missing)}",
        diff=_diff(current, wanted),
        again=again,
    )


def _essence(binding: Document) -> dict[str, Any]:
    """The parts of a binding that this tool compares, in the form that `_binding` makes."""
    keys = ("apiGroup", "kind", "name", "namespace")
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": binding["metadata"]["name"]},
        "roleRef": {key: binding["roleRef"].get(key, RBAC) for key in keys[:3]},
        "subjects": [{key: each[key] for key in keys if each.get(key)} for each in binding.get("subjects") or ()],
    }


def _node_action(want: NodeSpec, found: NodeStatus, owned: str) -> ObjectAction | None:
    owned_labels, owned_taints = _owned(owned)
    labels: dict[str, str | None] = {
        key: None for key in owned_labels if key not in want.labels and key in found.labels
    }
    labels |= {key: value for key, value in want.labels.items() if found.labels.get(key) != value}
    # A taint is known by key and effect: one with another value is replaced.
    replaced = {_taint_id(taint) for taint in want.taints}
    kept = [
        taint
        for taint in found.taints
        if _taint_id(taint) not in replaced and not (taint in owned_taints and taint not in want.taints)
    ]
    taints = [*kept, *want.taints]
    taints_differ = sorted(map(_taint_key, taints)) != sorted(map(_taint_key, found.taints))
    if not labels and not taints_differ:
        return None
    metadata: dict[str, Any] = {"name": want.name}
    if labels:
        metadata["labels"] = labels
    patch: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
    if taints_differ:
        # Lists are replaced as a whole: the version read goes along, so that another's new taint is not lost.
        metadata["resourceVersion"] = found.resource_version
        patch["spec"] = {"taints": [_taint(taint) for taint in taints]}
    return ObjectAction(
        verb="patch",
        document=patch,
        reason="labels or taints differ from cluster.yaml",
        diff=_diff(
            {"labels": {key: found.labels[key] for key in labels if key in found.labels}, "taints": list(found.taints)},
            {"labels": {key: value for key, value in labels.items() if value is not None}, "taints": taints},
        ),
        again=lambda now: _node_action(want, kube_views.node(now), owned) if now is not None else None,
    )


def _record_action(record: Mapping[str, str | None], owned: Mapping[str, str]) -> tuple[ObjectAction, ...]:
    if not record:
        return ()
    document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": OWNED_RECORD, "namespace": "kube-system"},
        "data": record,
    }
    old = {node: owned[node] for node in record if node in owned}
    new = {node: text for node, text in record.items() if text is not None}
    reason = "records which labels and taints are this tool's to remove"
    return (ObjectAction(verb="patch", document=document, reason=reason, diff=_diff(old, new)),)


def _owned(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        owned = json.loads(text or "{}")
        return tuple(map(str, owned.get("labels", ()))), tuple(map(str, owned.get("taints", ())))
    except (ValueError, AttributeError, TypeError):
        # Edited by hand into nonsense: then nothing is known to be ours, and nothing is removed.
        return (), ()


def _taint_key(text: str) -> tuple[str, ...]:
    taint = _taint(text)
    return taint["key"], taint["effect"], taint.get("value", "")


def _marker(want: NodeSpec) -> str:
    owned = {"labels": sorted(want.labels), "taints": sorted(want.taints)}
    return json.dumps(owned, separators=(",", ":")) if any(owned.values()) else ""


def _taint_id(text: str) -> tuple[str, str]:
    left, _, effect = text.rpartition(":")
    return left.partition("=")[0], effect


def _taint(text: str) -> dict[str, str]:
    left, _, effect = text.rpartition(":")
    key, _, value = left.partition("=")
    return {"key": key, "effect": effect} | ({"value": value} if value else {})


def _diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    def lines(document: Mapping[str, Any]) -> list[str]:
        return yaml.safe_dump(dict(document), sort_keys=True).splitlines() if document else []

    return "\n".join(difflib.unified_diff(lines(old), lines(new), "found", "desired", lineterm=""))
