"""What flows look at of Kubernetes objects, as values read from the API's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]
"""A Kubernetes object as the API's JSON has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A Node."""

    name: str
    uid: str = ""
    ready: bool = False
    """Condition Ready is True."""
    reason: str = ""
    """Why it is not Ready: the condition's message; empty when Ready."""
    heartbeat: str = ""
    """When kubelet last reported that condition (RFC 3339, by the node's clock, whole seconds)."""
    turned: str = ""
    """When it last became what it is (RFC 3339)."""
    version: str = ""
    """kubelet's, without the leading v: 1.33.3"""
    pod_cidr: str = ""
    addresses: tuple[tuple[str, str], ...] = ()
    """(type, address): ("InternalIP", "10.0.0.1")"""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()
    """key=value:Effect, or key:Effect where there is no value."""
    unschedulable: bool = False
    runtime: str = ""
    """containerd://2.1.3"""
    os_image: str = ""
    kernel: str = ""
    resource_version: str = ""

    @property
    def internal_ip(self) -> str:
        """The first InternalIP; empty where there is none."""
        return next((address for kind, address in self.addresses if kind == "InternalIP"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """A Lease: who holds it and when it was last renewed (by the holder's clock)."""

    name: str
    namespace: str
    holder: str
    renewed: datetime | None
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """A Pod."""

    name: str
    namespace: str
    node: str = ""
    phase: str = ""
    """Pending, Running, Succeeded, Failed or Unknown."""
    ip: str = ""
    ready: bool = False
    waiting: str = ""
    """Why its containers wait, or its last container's end: `ErrImagePull: ...`; empty where all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """A Service."""

    name: str
    namespace: str
    cluster_ip: str
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsStatus:
    """One EndpointSlice: the ready addresses behind a Service and their ports."""

    name: str
    namespace: str
    service: str
    addresses: tuple[str, ...]
    ports: tuple[int, ...]


def node(document: Document) -> NodeStatus:
    """A Node object as a value."""
    metadata, status, spec = document["metadata"], document.get("status") or {}, document.get("spec") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    readiness = conditions.get("Ready") or {}
    ready = readiness.get("status") == "True"
    info = status.get("nodeInfo") or {}
    return NodeStatus(
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        ready=ready,
        reason="" if ready else readiness.get("message") or readiness.get("reason") or "kubelet reported no status yet",
        heartbeat=readiness.get("lastHeartbeatTime") or "",
        turned=readiness.get("lastTransitionTime") or "",
        version=(info.get("kubeletVersion") or "").removeprefix("v"),
        pod_cidr=spec.get("podCIDR") or "",
        addresses=tuple((each["type"], each["address"]) for each in status.get("addresses") or ()),
        labels=dict(metadata.get("labels") or {}),
        annotations=dict(metadata.get("annotations") or {}),
        taints=tuple(taint_text(taint) for taint in spec.get("taints") or ()),
        unschedulable=bool(spec.get("unschedulable")),
        runtime=info.get("containerRuntimeVersion") or "",
        os_image=info.get("osImage") or "",
        kernel=info.get("kernelVersion") or "",
        resource_version=metadata.get("resourceVersion") or "",
    )


def taint_text(taint: Mapping[str, Any]) -> str:
    """key=value:Effect, or key:Effect."""
    value = taint.get("value")
    return f"{taint['key']}{f'={value}' if value else ''}:{taint['effect']}"


def lease(document: Document) -> LeaseStatus:
    """A Lease object as a value."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    renewed = spec.get("renewTime")
    return LeaseStatus(
        name=metadata["name"],
        namespace=metadata["namespace"],
        holder=spec.get("holderIdentity") or "",
        renewed=datetime.fromisoformat(renewed) if renewed else None,
        resource_version=metadata.get("resourceVersion") or "",
    )


def pod(document: Document) -> PodStatus:
    """A Pod object as a value."""
    metadata, status = document["metadata"], document.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    return PodStatus(
        name=metadata["name"],
        namespace=metadata["namespace"],
        node=(document.get("spec") or {}).get("nodeName") or "",
        phase=status.get("phase") or "",
        ip=status.get("podIP") or "",
        ready=conditions.get("Ready") == "True",
        waiting=next((text for each in containers if (text := _trouble(each))), status.get("message") or ""),
    )


def _trouble(container: Mapping[str, Any]) -> str:
    state = container.get("state") or {}
    waiting, ended = state.get("waiting"), state.get("terminated")
    if waiting and waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
        return f"{waiting['reason']}: {waiting.get('message') or ''}".rstrip(": ")
    if ended and ended.get("exitCode"):
        return (
            f"{ended.get('reason') or 'Error'}: exit status {ended['exitCode']} {ended.get('message') or ''}".rstrip()
        )
    return ""


def service(document: Document) -> ServiceStatus:
    """A Service object as a value."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    return ServiceStatus(
        name=metadata["name"],
        namespace=metadata["namespace"],
        cluster_ip=spec.get("clusterIP") or "",
        ports=tuple(port["port"] for port in spec.get("ports") or ()),
    )


def endpoints(document: Document) -> EndpointsStatus:
    """An EndpointSlice object as a value. An endpoint whose readiness is unknown counts as ready (its API says so)."""
    metadata = document["metadata"]
    ready = (
        each for each in document.get("endpoints") or () if (each.get("conditions") or {}).get("ready") is not False
    )
    return EndpointsStatus(
        name=metadata["name"],
        namespace=metadata["namespace"],
        service=(metadata.get("labels") or {}).get("kubernetes.io/service-name") or "",
        addresses=tuple(address for each in ready for address in each["addresses"]),
        ports=tuple(port["port"] for port in document.get("ports") or () if port.get("port")),
    )
