"""The cluster's part of `status`: objects that differ and who wrote them, the API servers' list, stuck certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kubeworker.core.api_proxy import apiserver_slices
from kubeworker.core.certificates import issuing
from kubeworker.core.certificates.csr import Approve, Pending
from kubeworker.core.certificates.issuing import Halted
from kubeworker.core.cluster import cluster_objects, kube_views, manifest
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import Document, NodeStatus
from kubeworker.core.cluster.manifest import FIELD_MANAGER, Ref
from kubeworker.core.drift import Drift, last_writer
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiError, CredentialsError
from kubeworker.flow import csr
from kubeworker.flow.csr import Listed
from kubeworker.flow.plan import Plan
from kubeworker.flow.session import Session
from kubeworker.io.kube import Kube
from kubeworker.io.objects import Objects

PATIENCE_SECONDS = 15.0
"""An approver looks every 2 s, kube-controller-manager at once: a request that has waited this long is stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLook:
    """What the API says."""

    nodes: Mapping[str, NodeStatus] | None = None
    """By name; None: it could not be asked, and `trouble` says why."""
    apiserver: str = ""
    """Version of the kube-apiserver that was asked."""
    drifts: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()
    requests: Mapping[str, tuple[Drift, ...]] = field(default_factory=dict)
    """By node, certificate requests that get nowhere."""
    trouble: str = ""


async def look(session: Session, plan: Plan) -> ClusterLook:
    """Ask the API. Changes nothing; where it does not answer, that is what is told."""
    if session.kube is None:
        return ClusterLook(trouble=session.trouble)
    try:
        return await _asked(session.kube, session, plan)
    except* (ApiError, CredentialsError) as errors:
        trouble = str(errors.exceptions[0])
    return ClusterLook(trouble=trouble)


async def _asked(kube: Kube, session: Session, plan: Plan) -> ClusterLook:
    cluster, names = session.cluster, [node.name for node in session.selected]
    async with asyncio.TaskGroup() as group:
        nodes = group.create_task(kube.nodes(session.request.nodes or None))
        version = group.create_task(kube.version())
        slices = group.create_task(kube.endpoints("kubernetes"))
        listed = group.create_task(csr.listing(kube, cluster))
        objects = group.create_task(_objects(kube, session, plan))
    compared = apiserver_slices.compare(cluster.cluster.apiservers, slices.result())
    return ClusterLook(
        nodes={node.name: node for node in nodes.result()},
        apiserver=version.result(),
        drifts=(*objects.result(), *_credentials(plan), *compared.drifts),
        notes=compared.notes,
        requests={name: stuck(listed.result(), name) for name in names},
    )


def stuck(listed: Iterable[Listed], node: str) -> tuple[Drift, ...]:
    """Of the node's newest requests, one for each purpose, those that get nowhere."""
    mine = {each.request.name: each for each in listed if each.request.node == node}
    newest = issuing.newest(each.request for each in mine.values())
    found = (_stuck(mine[request.name]) for request in newest)
    return tuple(drift for drift in found if drift is not None)


def _stuck(listed: Listed) -> Drift | None:
    request, verdict = listed.request, listed.verdict
    match verdict:
        case None:
            return None
        case Halted(rule=rule, detail=detail, hint=hint):
            what, fix = f"{rule}: {detail}", hint
        case _ if listed.age < PATIENCE_SECONDS:
            return None
        case Approve():
            what = "pending though every rule holds: no approver runs"
            fix = "kubeworker csr approve; for good: kubeworker csr approve --watch as a service (docs/certificates.md)"
        case Pending(rule=rule, detail=detail):
            what, fix = f"pending, {rule}: {detail}", "mend what the rule names: kubeworker csr list"
    return Drift(
        kind="request",
        subject=f"{request.name} ({request.signer})",
        what=what,
        who="cluster",
        since=request.created,
        fix=fix,
    )


def _credentials(plan: Plan) -> tuple[Drift, ...]:
    """Certificates that the tool keeps on the control host and would issue anew."""
    due = (("system:kube-proxy", plan.credential), *plan.chart_certificates)
    return tuple(
        Drift(kind="issue-certificate", subject=subject, what=reason, who="input", by="a certificate that is due")
        for subject, reason in due
        if reason
    )


async def _objects(kube: Kube, session: Session, plan: Plan) -> tuple[Drift, ...]:
    todo = (*plan.objects.actions, *plan.charts.actions)
    if not todo:
        return ()
    api = Objects(kube)
    known = await _known(kube, session, plan)
    live = await asyncio.gather(*(api.get(manifest.ref(action.document)) for action in todo))
    return tuple(object_drift(action, found, known) for action, found in zip(todo, live, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What this tool has put into the cluster before, by its own records there."""

    objects: frozenset[Ref] = frozenset()
    marks: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By node, the keys of the labels, and the taints, that it has set."""


async def _known(kube: Kube, session: Session, plan: Plan) -> Known:
    """Objects that were there at the last apply: a chart's by its inventory, the bindings once a node has joined."""
    inventories = await asyncio.gather(
        *(kube.get("ConfigMap", release.chart.record, namespace="kube-system") for release in session.releases)
    )
    found = {which for inventory in inventories for which in manifest.recorded(inventory)}
    if any(node.observed and node.observed.applied and not node.joining for node in plan.nodes):
        documents = (action.document for action in plan.objects.actions)
        found |= {manifest.ref(document) for document in documents if document["kind"] == "ClusterRoleBinding"}
    owned = cluster_objects.owned_record(await kube.owned_record())
    return Known(objects=frozenset(found), marks={name: cluster_objects.marks(text) for name, text in owned.items()})


_NO_TRACE = "the API keeps no record of who did it (the audit log does)"


def object_drift(action: ObjectAction, live: Document | None, known: Known) -> Drift:
    """Who has moved: the last to write what differs, as the API server keeps it (metadata.managedFields)."""
    drift = Drift(kind=action.kind, subject=action.subject, what=action.reason, diff=action.diff)
    document = action.document
    if live is None:
        gone = manifest.ref(document) in known.objects
        return replace(drift, who="cluster", what=f"deleted; {_NO_TRACE}") if gone else _not_applied(drift)
    fields = _fields(action)
    writer = last_writer(live, *fields)
    if writer is not None and writer.manager != FIELD_MANAGER:
        return replace(drift, who="cluster", by=writer.manager, since=writer.when)
    # A field that somebody has removed is nobody's any more.
    if writer is None and fields and _was_ours(document, live, known):
        return replace(drift, who="cluster", what=f"{drift.what}: removed; {_NO_TRACE}")
    return _not_applied(drift)


def _was_ours(document: Document, live: Document, known: Known) -> bool:
    metadata = document["metadata"]
    match document["kind"]:
        case "Node":
            missing = {key for key, value in (metadata.get("labels") or {}).items() if value is not None}
            missing |= _taints(document) - _taints(live)
            return bool(missing) and missing <= known.marks.get(metadata["name"], frozenset())
        case "ClusterRoleBinding":
            return True
        case _:
            return False


def _taints(node: Document) -> set[str]:
    return {kube_views.taint_text(taint) for taint in (node.get("spec") or {}).get("taints") or ()}


def _not_applied(drift: Drift) -> Drift:
    return replace(drift, who="input", by="cluster.yaml or the tool")


def _fields(action: ObjectAction) -> Sequence[tuple[str, ...]]:
    """What an action is about, as managedFields has it; (): the whole object."""
    document = action.document
    match document["kind"]:
        case "ClusterRoleBinding":
            return (("f:roleRef",) if action.verb == "recreate" else ("f:subjects",),)
        case "Node":
            labels = document["metadata"].get("labels") or {}
            taints = [("f:spec", "f:taints")] if "spec" in document else []
            return (*(("f:metadata", "f:labels", f"f:{label}") for label in labels), *taints)
        case "ConfigMap" if action.verb == "patch":
            return tuple(("f:data", f"f:{key}") for key in document.get("data") or {})
        case _:
            return ()


def ready_fault(cluster: ClusterFile, name: str, node: NodeStatus | None, *, joining: bool) -> Drift | None:
    """A Node that is not Ready, or gone, though its machine has joined."""
    if joining or (node is not None and node.ready):
        return None
    if node is None:
        return Drift(
            kind="ready",
            subject=name,
            what="there is no such Node, though the machine has joined",
            who="cluster",
            fix="restart kubelet, which registers anew: systemctl restart kubelet",
        )
    if str(cluster.cni) == "none":
        return None
    return Drift(
        kind="ready",
        subject=name,
        what=f"not Ready: {node.reason}",
        who="cluster",
        since=node.turned,
        fix="kubeworker verify",
    )
