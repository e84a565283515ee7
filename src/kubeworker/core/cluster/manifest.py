"""Manifests of a Helm chart as desired state: order, comparison with the live objects, inventory, pruning. Pure.

The API server itself says what an object would become (server-side apply as a dry run), so defaults and admission give
no false differences: this file compares its answer with the live object.
"""

from __future__ import annotations

import base64
import difflib
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml as pyyaml

from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.formats import yaml
from kubeworker.errors import ChartError

FIELD_MANAGER = "kubeworker"
"""Who this tool is to server-side apply (metadata.managedFields)."""

LABEL = "kubeworker.dev/component"

_HOOK = "helm.sh/hook"
_CRD = "CustomResourceDefinition"
_FIRST = (_CRD, "Namespace")
"""What everything else may need; the rest keeps Helm's own install order, in which the chart is rendered."""

_KEPT = frozenset({"Namespace", "PersistentVolumeClaim", "PersistentVolume"})
"""Never pruned: what others have put in them would go too."""

_NOISE = ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink")
_NOISY_ANNOTATIONS = ("deprecated.daemonset.template.generation", "deployment.kubernetes.io/revision")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Ref:
    """Which object: what the inventory records."""

    api_version: str
    kind: str
    namespace: str
    """Empty for objects of the whole cluster."""
    name: str

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """The same for every version of the API group: policy/v1beta1 and policy/v1 name one object."""
        group = self.api_version.rpartition("/")[0]
        return group, self.kind, self.namespace, self.name

    def __str__(self) -> str:
        """As the inventory has it: `apps/v1 DaemonSet kube-system/cilium`."""
        return f"{self.api_version} {self.kind} {f'{self.namespace}/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A field that somebody else has set to another value."""

    manager: str
    """kubectl-edit, helm, ..."""
    field: str
    """.spec.template.spec.nodeSelector"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the API says of one desired object."""

    live: Document | None = None
    applied: Document | None = None
    """What it would become; None where it does not exist, and where it can't be changed in place."""
    conflicts: tuple[Conflict, ...] = ()
    immutable: str = ""
    """Why it can't be changed in place; it is deleted and made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """An object of the inventory that is no longer desired."""

    ref: Ref
    live: Document | None
    instances: int = 0
    """Of a CustomResourceDefinition: how many objects of its kind there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What has to be done to the cluster's objects."""

    actions: tuple[ObjectAction, ...] = ()
    warnings: tuple[str, ...] = ()
    foreign: tuple[str, ...] = field(default=())
    """Objects that something else has made, with its name: `DaemonSet kube-system/cilium (helm)`."""


def ref(document: Document) -> Ref:
    """The reference of an object."""
    metadata = document["metadata"]
    return Ref(
        api_version=document["apiVersion"],
        kind=document["kind"],
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
    )


def documents(rendered: Iterable[Any], *, subject: str) -> tuple[Document, ...]:
    """A chart's objects in the order in which they are applied.

    InputError for what is no object, for an object that stands twice, and for one that only Helm itself would make.
    """
    found: dict[tuple[str, str, str, str], Document] = {}
    for each in rendered:
        if each is None:
            continue
        if not isinstance(each, dict) or not each.get("kind") or not (each.get("metadata") or {}).get("name"):
            raise ChartError("renders something that is no Kubernetes object", subject=subject, hint=_VALUES)
        which = ref(each)
        if hook := ((each["metadata"].get("annotations") or {}).get(_HOOK)):
            raise ChartError(
                f"{which} is a Helm hook ({hook}); hooks are run by Helm's own install only",
                subject=subject,
                hint="choose values that need no hook",
            )
        if which.identity in found:
            raise ChartError(f"renders {which} twice", subject=subject, hint=_VALUES)
        found[which.identity] = each
    return tuple(sorted(found.values(), key=lambda each: _rank(each["kind"])))


_VALUES = "look at the component's `values` in cluster.yaml"


def labelled(document: Document, component: str) -> Document:
    """With the tool's own label: a field of its own in each object, without which server-side apply would not record
    who has made a bare one (a ServiceAccount that is a name only).
    """
    metadata = document["metadata"]
    return {**document, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), LABEL: component}}}


def _rank(kind: str) -> int:
    return _FIRST.index(kind) if kind in _FIRST else len(_FIRST)


def defined_kinds(manifests: Iterable[Document]) -> Mapping[tuple[str, str], tuple[str, bool]]:
    """Kinds that the manifests' own CustomResourceDefinitions define: (apiVersion, kind) -> (plural, namespaced)."""
    found: dict[tuple[str, str], tuple[str, bool]] = {}
    for each in manifests:
        if each["kind"] == _CRD:
            spec = each["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                found[key] = spec["names"]["plural"], spec["scope"] == "Namespaced"
    return found


# ---------------------------------------------------------------------------------------------------------------
# The inventory


def record(name: str, refs: Iterable[Ref]) -> Document:
    """The ConfigMap that says which objects are this tool's to remove; not an annotation of each: it can be lost."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "kube-system"},
        "data": {"objects": "".join(f"{each}\n" for each in sorted(refs))},
    }


def recorded(config_map: Document | None) -> tuple[Ref, ...]:
    """The inventory; () where there is none. A line that is no reference (edited by hand) is nothing of ours."""
    lines = ((config_map or {}).get("data") or {}).get("objects", "").splitlines()
    return tuple(each for line in lines if (each := _parsed(line)) is not None)


_LINE = re.compile(r"(\S+) (\S+) (?:([^\s/]+)/)?([^\s/]+)")


def _parsed(line: str) -> Ref | None:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        return None
    return Ref(api_version=match[1], kind=match[2], namespace=match[3] or "", name=match[4])


def gone(inventory: Iterable[Ref], desired: Iterable[Document]) -> tuple[Ref, ...]:
    """What the inventory has and the chart no longer renders, in the order in which it is removed: users first."""
    wanted = {ref(each).identity for each in desired}
    left = [each for each in inventory if each.identity not in wanted]
    return tuple(sorted(left, key=lambda each: (-_rank(each.kind), each)))


# ---------------------------------------------------------------------------------------------------------------
# Comparison


def changes(
    name: str,
    desired: Sequence[Document],
    found: Mapping[Ref, Found],
    inventory: Document | None,
    stale: Iterable[Stale],
) -> Changes:
    """What makes the live objects the desired ones. `name` is the inventory's ConfigMap.

    The inventory is written before the first new object and again after the last removal, so that a run that dies in
    between leaves nothing that no later run knows of.
    """
    stale = tuple(stale)
    removed = tuple(_prune(each) for each in stale)
    kept_refs = {each.ref for each, action in zip(stale, removed, strict=True) if action is None and _kept(each)}
    wanted = {ref(each) for each in desired} | kept_refs
    before = set(recorded(inventory))
    during = wanted | before
    applied = tuple(action for each in desired if (action := _action(each, found[ref(each)])) is not None)
    actions = [
        *_record(name, inventory, before, during),
        *applied,
        *(action for action in removed if action is not None),
        *_record(name, inventory if before == during else record(name, during), during, wanted),
    ]
    return Changes(
        actions=tuple(actions),
        warnings=tuple(text for each in stale if (text := _left(each))),
        foreign=tuple(_foreign(desired, found)),
    )


def is_ours(live: Document) -> bool:
    """Whether this tool has applied it before."""
    return _own_fields(live) is not None


def _foreign(desired: Iterable[Document], found: Mapping[Ref, Found]) -> Iterator[str]:
    for each in desired:
        live = found[ref(each)].live
        # Namespaces are shared by their nature.
        if live is not None and not is_ours(live) and each["kind"] != "Namespace":
            yield f"{subject(each)} ({makers(live)})"


def helm_objects(secrets: Iterable[Document]) -> tuple[Ref, ...]:
    """What the newest of a Helm release's records (Secrets of type helm.sh/release.v1) has installed.

    Empty where there is none, or none that can be read: nothing is decided by it.
    """
    newest = max(
        secrets, key=lambda each: int((each["metadata"].get("labels") or {}).get("version") or 0), default=None
    )
    if newest is None:
        return ()
    try:
        # The API's base64 around Helm's own, around gzip (helm.sh/helm/v3/pkg/storage/driver/util.go).
        packed = base64.b64decode(base64.b64decode(newest["data"]["release"]))
        rendered = json.loads(gzip.decompress(packed))["manifest"]
        return tuple(ref(each) for each in pyyaml.safe_load_all(rendered) if each)
    except (KeyError, TypeError, ValueError, OSError, EOFError, pyyaml.YAMLError):
        return ()


def makers(live: Document) -> str:
    """Who has written the object's fields: `helm`, `kubectl-client-side-apply`."""
    names = (each.get("manager") or "unknown" for each in _managed(live) if not each.get("subresource"))
    return ", ".join(dict.fromkeys(names)) or "unknown"


def subject(document: Document) -> str:
    """`DaemonSet kube-system/cilium`, as plans have it."""
    return ObjectAction(verb="apply", document=document, reason="").subject


def _record(name: str, found: Document | None, before: set[Ref], after: set[Ref]) -> tuple[ObjectAction, ...]:
    if before == after:
        return ()
    want = record(name, after)
    reason = "records which objects are this tool's to remove"
    uid = found["metadata"].get("uid", "") if found else ""
    return (ObjectAction(verb="apply", document=want, reason=reason, diff=diff(_essence(found or {}), want), uid=uid),)


def _action(want: Document, found: Found) -> ObjectAction | None:
    if found.live is None:
        return ObjectAction(verb="apply", document=want, reason="it does not exist", diff=diff({}, want))
    before, uid = _essence(found.live), found.live["metadata"].get("uid", "")
    if found.immutable or found.applied is None:
        reason = f"it can't be changed in place: {found.immutable}"
        return ObjectAction(verb="recreate", document=want, reason=reason, diff=diff(before, want), uid=uid)
    after = _essence(found.applied)
    same = before == after
    if same and _own_fields(found.live) == _own_fields(found.applied):
        return None
    pods = "; its pods are replaced, a few at a time" if _template(before) != _template(after) else ""
    reason = _reason(found, same=same) + pods
    return ObjectAction(verb="apply", document=want, reason=reason, diff=diff(before, after), uid=uid)


def _template(document: Document) -> Any:
    """What the pods of a DaemonSet or Deployment are made of; None for other kinds."""
    return (document.get("spec") or {}).get("template")


def _reason(found: Found, *, same: bool) -> str:
    assert found.live is not None
    if not is_ours(found.live):
        taken = f"made by {makers(found.live)}; taken over"
        return taken if same else f"{taken}, and it differs"
    if found.conflicts:
        by: dict[str, list[str]] = {}
        for each in found.conflicts:
            by.setdefault(each.manager, []).append(each.field)
        return "; ".join(f"{manager} changed {_listed(fields)}: taken back" for manager, fields in by.items())
    return "its fields become this tool's own" if same else "differs from the chart with these values"


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(fields[:3]) + (f" and {len(fields) - 3} more" if len(fields) > 3 else "")


def _kept(stale: Stale) -> bool:
    """Whether it stays in the inventory though it is no longer desired: it is ours and must not be removed."""
    return stale.live is not None and is_ours(stale.live) and (stale.ref.kind in _KEPT or bool(stale.instances))


def _prune(stale: Stale) -> ObjectAction | None:
    if stale.live is None or not is_ours(stale.live) or _kept(stale):
        return None
    which = stale.ref
    metadata = {"name": which.name} | ({"namespace": which.namespace} if which.namespace else {})
    return ObjectAction(
        verb="delete",
        document={"apiVersion": which.api_version, "kind": which.kind, "metadata": metadata},
        reason="the chart no longer has it with these values",
        diff=diff(_essence(stale.live), {}),
    )


def _left(stale: Stale) -> str:
    if stale.live is None:
        return ""
    if not is_ours(stale.live):
        return f"{stale.ref} is no longer wanted, but not this tool's any more ({makers(stale.live)}): it is left alone"
    if stale.instances:
        return f"{stale.ref} is no longer wanted, but there are {stale.instances} objects of its kind: it is left alone"
    if stale.ref.kind in _KEPT:
        return f"{stale.ref} is no longer wanted; what is in it would go too, so remove it yourself"
    return ""


def _essence(live: Document) -> dict[str, Any]:
    """The object without what the API server, controllers and this tool keep books with."""
    document = {key: value for key, value in live.items() if key != "status"}
    if "metadata" in document:
        document["metadata"] = {key: value for key, value in live["metadata"].items() if key not in _NOISE}
        for field_name, noise in (("annotations", _NOISY_ANNOTATIONS), ("labels", (LABEL,))):
            left = {key: value for key, value in (live["metadata"].get(field_name) or {}).items() if key not in noise}
            document["metadata"].pop(field_name, None)
            document["metadata"] |= {field_name: left} if left else {}
    return document


def _managed(live: Document) -> Sequence[Mapping[str, Any]]:
    return live["metadata"].get("managedFields") or ()


def _own_fields(live: Document) -> Mapping[str, Any] | None:
    for each in _managed(live):
        if each.get("manager") == FIELD_MANAGER and each.get("operation") == "Apply" and not each.get("subresource"):
            fields: Mapping[str, Any] = each.get("fieldsV1") or {}
            return fields
    return None


# ---------------------------------------------------------------------------------------------------------------
# As text


def masked(document: Document, mask: Callable[[Any], str]) -> Document:
    """The object with each value of a Secret replaced by what `mask` makes of it."""
    if document.get("kind") != "Secret":
        return document
    hidden = dict(document)
    for key in ("data", "stringData"):
        if key in document:
            hidden[key] = {name: mask(value) for name, value in (document[key] or {}).items()}
    # What kubectl apply keeps of the whole object would hold them too.
    metadata = dict(document["metadata"])
    if annotations := metadata.get("annotations"):
        last = "kubectl.kubernetes.io/last-applied-configuration"
        metadata["annotations"] = {key: mask(value) if key == last else value for key, value in annotations.items()}
    return {**hidden, "metadata": metadata}


def _hash(value: Any) -> str:
    return f"sha256 {hashlib.sha256(str(value).encode()).hexdigest()[:12]}"


def text(document: Document) -> str:
    """An object as YAML, keys sorted, secrets as hashes."""
    return yaml.dump(_sorted(masked(document, _hash)))


def diff(old: Document, new: Document) -> str:
    """Unified diff of YAML; secrets never appear in it."""

    def lines(document: Document) -> list[str]:
        return text(document).splitlines() if document else []

    return "\n".join(difflib.unified_diff(lines(old), lines(new), "found", "desired", lineterm=""))


def _sorted(value: Any) -> Any:
    """Maps by key: the API answers in alphabetical order, charts have their own."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(each) for each in value]
    return value
