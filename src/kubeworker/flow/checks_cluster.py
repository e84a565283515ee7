"""verify's checks that the Kubernetes API takes part in: the Node, its certificate requests, and a real pod on it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from kubeworker.core import durations
from kubeworker.core.certificates import csr, issuing
from kubeworker.core.certificates.csr import CLIENT_SIGNER, NODE_USER, SERVING_SIGNER, CsrView
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.model import Check, ClusterCheck, ProxyReaches, ServingCertificate
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.core.verify import objects as verify_objects
from kubeworker.core.verify.checks import Verdict, failed, passed
from kubeworker.core.verify.objects import NAMESPACE, Run
from kubeworker.errors import ApiError
from kubeworker.flow.checks_http import SETTLE_SECONDS, Identity, host_port, peer_certificate, proxy_reaches
from kubeworker.flow.polling import settled
from kubeworker.io.https import NoAnswer
from kubeworker.io.kube import Kube
from kubeworker.io.node import Node
from kubeworker.io.pod_exec import pod_exec

POD_SECONDS = 15.0
"""How long each step of the pod may take on its way to run; pulling a small image fits."""

KUBELET_SIGNERS = (CLIENT_SIGNER, SERVING_SIGNER)

Value = TypeVar("Value")


class Shared(Generic[Value]):
    """One answer of the API for all nodes, read again at most once a second: calls don't grow with the fleet."""

    def __init__(self, read: Callable[[], Awaitable[Value]]) -> None:
        """Nothing is read before the first `get`."""
        self._read = read
        self._lock = asyncio.Lock()
        self._value: Value | None = None
        self._at = float("-inf")

    async def get(self) -> Value:
        """An answer that is less than a second old."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._value is None or now - self._at >= 1:
                self._value = await self._read()
                self._at = now
            return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """What the API says of all nodes."""

    nodes: Mapping[str, NodeStatus]
    csrs: tuple[CsrView, ...]
    now: datetime
    """When it was read."""


async def view(kube: Kube) -> ClusterView:
    """Read it."""
    nodes, csrs = await kube.nodes(), await kube.csrs()
    return ClusterView(nodes={node.name: node for node in nodes}, csrs=csrs, now=datetime.now(UTC))


# ---------------------------------------------------------------------------------------------------------------
# The Node and its certificate requests


async def of_node(check: ClusterCheck, cluster: ClusterFile, node: NodeSpec, shared: Shared[ClusterView]) -> Verdict:
    """The verdict of a `node.` check, asked again for a moment while it fails."""

    async def look() -> Verdict:
        return judge_node(check, cluster, node, await shared.get())

    return await settled(look, seconds=SETTLE_SECONDS)


def judge_node(check: ClusterCheck, cluster: ClusterFile, node: NodeSpec, seen: ClusterView) -> Verdict:
    """The verdict of a `node.` check on what the API says."""
    if check.id == "node.csr":
        user = NODE_USER + node.name
        own = (each for each in seen.csrs if each.username == user and each.signer in KUBELET_SIGNERS)
        return _csr(check, own, seen.now)
    status = seen.nodes.get(node.name)
    if status is None:
        return failed(check, f"there is no Node {node.name}" if check.id == "node.registered" else _absent(node))
    match check.id:
        case "node.registered":
            return _registered(check, node, status)
        case "node.version":
            wanted = cluster.versions.kubernetes
            detail = f"kubelet {status.version}"
            return passed(check, detail) if status.version == wanted else failed(check, f"{detail}, expected {wanted}")
        case "node.ready":
            return passed(check, "Ready") if status.ready else failed(check, f"NotReady: {status.reason}")
        case unknown:
            raise ValueError(f"no function for the check {unknown}")


def _absent(node: NodeSpec) -> str:
    return f"not tried: there is no Node {node.name}"


def _registered(check: Check, node: NodeSpec, status: NodeStatus) -> Verdict:
    if status.internal_ip != node.address:
        return failed(check, f"registered with the address {status.internal_ip or '(none)'}, expected {node.address}")
    return passed(check, f"registered with {status.internal_ip}")


def _csr(check: Check, requests: Iterable[CsrView], now: datetime) -> Verdict:
    """Only the newest request for each certificate counts: kubelet asks anew after a restart, and the old one stays.

    The API forgets issued requests after an hour, so none at all is well; whether kubelet has a serving certificate
    is seen at its port.
    """
    newest = issuing.newest(requests)
    trouble = next((text for request in newest if (text := _without_certificate(request, now))), "")
    if trouble:
        return failed(check, trouble)
    return passed(check, ", ".join(f"{request.name} {request.state}" for request in newest) or "no open request")


def _without_certificate(request: CsrView, now: datetime) -> str:
    """Why a request has no certificate; "" where it has one."""
    if request.certificate:
        return ""
    if request.pending:
        return f"{request.name} waits for approval: `kubeworker csr list` says why"
    halted = issuing.halted(request, durations.since(request.decided, now))
    if halted is None:
        return f"{request.name} is {request.state} and has no certificate yet"
    return f"{request.name}: {halted.rule}: {halted.detail}. {halted.hint}"


async def serving_certificate(
    check: ServingCertificate, spec: NodeSpec, node: Node, identity: Identity, shared: Shared[ClusterView]
) -> Verdict:
    """The verdict on the certificate that kubelet shows; asked again for a moment: it may just have got a new one."""

    async def look() -> Verdict:
        shown = await peer_certificate(node, spec.address, check.port, identity)
        return judge_shown(check, spec, shown, (await shared.get()).csrs)

    return await settled(look, seconds=SETTLE_SECONDS)


def judge_shown(
    check: ServingCertificate, node: NodeSpec, shown: bytes | NoAnswer, requests: Iterable[CsrView]
) -> Verdict:
    """The verdict on a certificate (DER) that was shown. What was issued long ago, the API has forgotten."""
    place = host_port(node.address, check.port)
    if isinstance(shown, NoAnswer):
        return failed(check, f"{place}: {shown.reason}")
    issued = issuing.newest_serving((each for each in requests if each.certificate), node.name)
    if issued is None:
        return passed(check, f"{place} shows a certificate of the cluster's CA")
    if not csr.is_certificate_of(issued, shown):
        return failed(check, f"{place} shows another certificate than {issued.name}, the newest of {node.name}")
    return passed(check, f"{place} shows {issued.name}'s")


# ---------------------------------------------------------------------------------------------------------------
# The kubernetes Service


async def service(check: ClusterCheck, cluster: ClusterFile, node: Node, identity: Identity) -> Verdict:
    """The `kubernetes` Service answers on its ClusterIP, as the node sees it.

    Its ClusterIP is always the first address of the service network (kube-apiserver reserves it).
    """
    address = ipaddress.ip_network(cluster.cluster.service_cidr)[1]
    reaches = ProxyReaches(id=check.id, apiserver=host_port(str(address), 443))
    return await proxy_reaches(reaches, node, identity)


# ---------------------------------------------------------------------------------------------------------------
# A pod


async def of_pod(
    checks: tuple[ClusterCheck, ...], kube: Kube, run: Run, node: NodeSpec, image: str
) -> tuple[Verdict, ...]:
    """The verdicts of the `pod.` checks: one pod, made for them and deleted after them."""
    name = run.pod(node.name)
    try:
        trouble = await _started(kube, run, node, image)
        return tuple([await _pod_verdict(check, kube, run, name, trouble) for check in checks])
    finally:
        # Best effort here, so that a large fleet's pods don't pile up; the end of the run makes sure.
        await _quietly(kube.delete("Pod", name, namespace=NAMESPACE, grace_seconds=0))


async def _started(kube: Kube, run: Run, node: NodeSpec, image: str) -> str:
    """Make the pod and wait until it runs; what kept it from that, "" when it runs."""
    name = run.pod(node.name)
    loop = asyncio.get_running_loop()
    end = loop.time() + POD_SECONDS
    known: tuple[str, ...] = ()
    try:
        await kube.create(verify_objects.pod(run, node.name, image))
        while True:
            pod = await kube.pod(name, namespace=NAMESPACE)
            if pod is None:
                return "the pod was deleted by someone else"
            if pod.ready:
                return ""
            if loop.time() > end or verify_objects.will_not_run(pod):
                events = await kube.events(name, namespace=NAMESPACE)
                if not verify_objects.will_not_run(pod) and verify_objects.goes_on(events, known):
                    known, end = events, loop.time() + POD_SECONDS
                    continue
                phase = "not seen by kubelet" if pod.phase == "Pending" and not events else pod.phase
                return "; ".join(filter(None, (f"{image}: {phase}", pod.waiting, *events[-2:])))
            await asyncio.sleep(0.3)
    except ApiError as error:
        return error.message


async def _pod_verdict(check: ClusterCheck, kube: Kube, run: Run, name: str, trouble: str) -> Verdict:
    if trouble:
        return failed(check, trouble if check.id == "pod.run" else "not tried: the pod does not run")
    try:
        match check.id:
            case "pod.run":
                return passed(check, f"{name} runs")
            case "pod.logs":
                text = await kube.logs(name, namespace=NAMESPACE, tail=10)
            case "pod.exec":
                command = ("sh", "-c", f"echo ${verify_objects.MARK_VARIABLE}")
                text, _status = await pod_exec(kube, NAMESPACE, name, command)
            case unknown:
                raise ValueError(f"no function for the check {unknown}")
    except ApiError as error:
        return failed(check, error.message)
    return passed(check, "answers") if run.id in text else failed(check, f"answered {text.strip()[:200]!r}")


async def _quietly(work: Awaitable[object]) -> None:
    try:
        await work
    except ApiError:
        return
