"""`verify`: prove on the live cluster that every node works, check by check.

All nodes at once, all checks of a node at once; a check that fails costs no other one its verdict.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cryptography import x509

from kubeworker.core import desired
from kubeworker.core.component import Archive, Credentials, Facts, Peer
from kubeworker.core.model import (
    AgentCommand,
    AgentKnowsPods,
    AgentReady,
    Check,
    ClusterCheck,
    Http,
    MirrorPull,
    ProxyReaches,
    ServingCertificate,
    Traffic,
    VirtualServers,
)
from kubeworker.core.nearest import nearest
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.core.verify import check_script
from kubeworker.core.verify.checks import LOCAL, LocalCheck, NodeReport, Verdict, VerifyReport, failed, judge
from kubeworker.core.verify.objects import KINDS, TRAFFIC_KINDS, Run, default_image
from kubeworker.errors import ApiError, NodeUnreachable, UsageError
from kubeworker.flow import checks_cluster, checks_http, checks_ipvs, checks_mirrors
from kubeworker.flow.checks_cluster import ClusterView, Shared
from kubeworker.flow.checks_ipvs import ServicesView
from kubeworker.flow.checks_network import AgentsView, TrafficRun, agent_command, agent_knows_pods, agent_ready, traffic
from kubeworker.flow.credentials import load_ca_certificate
from kubeworker.flow.events import CheckDone, NodeDone, NodeStarted, Reporter, silent
from kubeworker.flow.session import select
from kubeworker.flow.verify_access import Access, connected, granted
from kubeworker.io import node as ssh
from kubeworker.io import oci_archive
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.fleet import Failed, Ok, fan_out
from kubeworker.io.https import tls_context
from kubeworker.io.kube import Kube
from kubeworker.io.node import Node

PROBE_SECONDS = 45.0
"""How long the probe script may take: its commands stop after 20 s."""

Work: TypeAlias = Callable[[Node], Awaitable[tuple[Verdict, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator asked for."""

    nodes: tuple[str, ...] = ()
    """Only these; () means all."""
    checks: tuple[str, ...] = ()
    """Only checks whose id begins with one of these; () means all."""
    image: str = ""
    """For the pods; it needs `sh`. Default: the first preloaded image that is no pause image."""
    deep: bool = False
    """Pull an image through each registry's mirrors too: seconds, and requests to the outside, for each node."""
    accept_new_host_keys: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What the checks of all nodes share in one run."""

    cluster: ClusterFile
    registry: desired.Registry
    archives: Mapping[str, Archive]
    ca: bytes = field(repr=False)
    run: Run
    image: str
    kube: Kube | ApiError
    access: Access
    view: Shared[ClusterView]
    services: Shared[ServicesView]
    agents: AgentsView | None
    """None: no API."""
    traffic: TrafficRun | None
    """None: no API, or nobody asks."""
    peers: tuple[Peer, ...]
    deep: bool
    accept_new_host_keys: bool
    jump_hosts: ssh.JumpHosts
    only: tuple[str, ...] = ()
    """Ids of the checks to make begin with one of these; (): all."""


async def verify(
    cluster: ClusterFile, registry: desired.Registry, options: Options, report: Reporter = silent
) -> VerifyReport:
    """Make every check on every node asked for.

    Raises InputError (an unknown node; a CA, kubeconfig or archive that can't be used); all else is in the report.
    """
    nodes = _chosen(cluster, options.nodes)
    ca = load_ca_certificate(cluster, now=datetime.now(UTC)).pem
    archives = _archives(cluster, registry)
    run = Run(id=secrets.token_hex(4))
    files = cluster.cluster
    connect = partial(Kube.connect, Path(files.kubeconfig), files.apiservers, Path(files.ca.cert))
    async with (
        connected(connect) as kube,
        granted(kube, run, tls_context(ca), _kinds(cluster)) as access,
        aclosing(ssh.JumpHosts()) as jump_hosts,
    ):
        view = Shared(partial(_view, kube))
        peers = await _peers(cluster, view)
        image = options.image or default_image(name for each in archives.values() for name in each.references)
        session = _Session(
            cluster=cluster,
            registry=registry,
            archives=archives,
            ca=ca,
            run=run,
            image=image,
            kube=kube,
            access=access,
            view=view,
            services=Shared(partial(_services, kube)),
            agents=AgentsView(kube) if isinstance(kube, Kube) else None,
            traffic=TrafficRun(kube, run, image, _talking(nodes, peers)) if isinstance(kube, Kube) else None,
            peers=peers,
            deep=options.deep,
            accept_new_host_keys=options.accept_new_host_keys,
            jump_hosts=jump_hosts,
            only=options.checks,
        )
        _some_checks(session, nodes)
        names = tuple(node.name for node in nodes)
        outcomes = await fan_out(names, partial(_verify_node, session, report), limit=cluster.ssh.concurrency)
    return VerifyReport(nodes=tuple(_report(session, node, outcomes[node.name]) for node in nodes))


def _chosen(cluster: ClusterFile, names: tuple[str, ...]) -> tuple[NodeSpec, ...]:
    return select(cluster, names)


def _archives(cluster: ClusterFile, registry: desired.Registry) -> dict[str, Archive]:
    store = BlobStore.default()
    return {path: oci_archive.read(Path(path), store) for path in desired.archives(cluster, registry)}


def _kinds(cluster: ClusterFile) -> tuple[str, ...]:
    """What a run may make in this cluster, in the order in which it is removed."""
    return (*KINDS, *TRAFFIC_KINDS) if cluster.cni == "cilium" else KINDS


def _talking(nodes: tuple[NodeSpec, ...], peers: tuple[Peer, ...]) -> tuple[str, ...]:
    """The nodes whose pods talk to each other: those asked for, and of a single one's peers one more."""
    names = tuple(node.name for node in nodes)
    others = tuple(peer.name for peer in peers if peer.name not in names)
    return names if len(names) > 1 else (*names, *others[:1])


def _api(kube: Kube | ApiError) -> Kube:
    """The API; where none answers, why: what asks it is not tried then."""
    if isinstance(kube, ApiError):
        raise kube
    return kube


async def _view(kube: Kube | ApiError) -> ClusterView:
    return await checks_cluster.view(_api(kube))


async def _services(kube: Kube | ApiError) -> ServicesView:
    return await checks_ipvs.services(_api(kube))


async def _peers(cluster: ClusterFile, view: Shared[ClusterView]) -> tuple[Peer, ...]:
    """The nodes that have a pod network; () while the API does not answer."""
    try:
        seen = (await view.get()).nodes
    except ApiError:
        return ()
    return tuple(
        Peer(name=node.name, address=node.address, pod_cidr=seen[node.name].pod_cidr)
        for node in cluster.nodes
        if node.name in seen
    )


def _checks(session: _Session, node: NodeSpec) -> tuple[Check, ...]:
    """Every check of one node that was asked for, in the order of its components."""
    every = desired.checks(
        session.cluster,
        node,
        registry=session.registry,
        archives=session.archives,
        credentials=Credentials(ca_cert=session.ca),
        facts=Facts(
            joined=True,
            pod_cidr=next((peer.pod_cidr for peer in session.peers if peer.name == node.name), ""),
            peers=tuple(peer for peer in session.peers if peer.name != node.name),
        ),
    )
    asked = (check for check in every if session.deep or not isinstance(check, MirrorPull))
    return tuple(check for check in asked if not session.only or check.id.startswith(session.only))


def _some_checks(session: _Session, nodes: tuple[NodeSpec, ...]) -> None:
    """A mistyped id must not pass for a success."""
    ids = {check.id for node in nodes for check in _checks(session, node)}
    for prefix in session.only:
        if not any(check_id.startswith(prefix) for check_id in ids):
            close = nearest(prefix, ids)
            groups = ", ".join(sorted({check_id.partition(".")[0] for check_id in ids}))
            hint = f"did you mean {close[0]}?" if close else f"their ids begin with {groups}"
            raise UsageError(f"no check of these nodes begins with {prefix!r}", subject="--check", hint=hint)


# ---------------------------------------------------------------------------------------------------------------
# One node


async def _verify_node(session: _Session, report: Reporter, name: str) -> tuple[Verdict, ...]:
    """Every verdict on one node. Raises NodeUnreachable."""
    spec = session.cluster.node(name)
    started = time.monotonic()
    checks = _checks(session, spec)
    report(NodeStarted(node=name, what="verify", steps=len(checks)))
    groups = dict(_groups(session, spec, checks))
    try:
        node = await ssh.connect(
            spec,
            session.cluster.ssh,
            accept_new_host_keys=session.accept_new_host_keys,
            jump_hosts=session.jump_hosts,
        )
    except NodeUnreachable as error:
        report(NodeDone(node=name, status="unreachable", detail=error.message))
        raise
    verdicts: dict[str, Verdict] = {}

    def tell(made: tuple[Verdict, ...]) -> None:
        verdicts.update({verdict.id: verdict for verdict in made})
        for verdict in made:
            report(CheckDone(node=name, id=verdict.id, status=verdict.status, detail=verdict.detail))

    async def make(group: tuple[Check, ...]) -> None:
        tell(await groups[group](node))

    try:
        outcomes = await fan_out(tuple(groups), make, limit=max(len(groups), 1))
    finally:
        await node.close()
    for group, outcome in outcomes.items():
        if isinstance(outcome, Failed):
            tell(tuple(failed(check, f"not tried: {outcome.error.message}") for check in group))
    ordered = tuple(verdicts[check.id] for check in checks)
    bad = sum(verdict.status == "failed" for verdict in ordered)
    detail = f"{bad} of {len(ordered)} checks failed" if bad else f"{len(ordered)} checks passed"
    report(NodeDone(node=name, status="failed" if bad else "ok", detail=detail, seconds=time.monotonic() - started))
    return ordered


def _groups(session: _Session, spec: NodeSpec, checks: tuple[Check, ...]) -> Iterator[tuple[tuple[Check, ...], Work]]:
    """The checks that are made together, and how: one probe script, one pod, everything else on its own."""
    local = tuple(check for check in checks if isinstance(check, LOCAL))
    pods = tuple(check for check in checks if isinstance(check, ClusterCheck) and check.id.startswith("pod."))
    talks = tuple(check for check in checks if isinstance(check, Traffic))
    pulls = tuple(check for check in checks if isinstance(check, MirrorPull))
    if local:
        yield local, partial(_probe, session, local)
    if talks:
        yield talks, partial(_traffic, session, spec, talks)
    if pulls:
        yield pulls, partial(checks_mirrors.pulls, pulls)
    if pods:
        yield pods, partial(_pod, session, spec, pods)
    for check in checks:
        match check:
            case Http():
                yield (check,), partial(_http, session, check)
            case ProxyReaches():
                yield (check,), partial(_reaches, session, check)
            case ServingCertificate():
                yield (check,), partial(_serving, session, spec, check)
            case VirtualServers():
                yield (check,), partial(_virtual_servers, session, spec, check)
            case ClusterCheck(id="service.kubernetes"):
                yield (check,), partial(_service, session, check)
            case AgentReady() | AgentCommand() | AgentKnowsPods():
                yield (check,), partial(_agent, session, spec, check)
            case ClusterCheck() if check not in pods:
                yield (check,), partial(_cluster, session, spec, check)
            case _:
                pass


async def _probe(session: _Session, checks: tuple[LocalCheck, ...], node: Node) -> tuple[Verdict, ...]:
    answer = await node.run(check_script.script(checks), timeout=PROBE_SECONDS)
    if answer.status != 0:
        return tuple(failed(check, f"not tried: the probe failed: {answer.stderr.strip()[-300:]}") for check in checks)
    seen = check_script.parse(answer.stdout)
    ca = x509.load_pem_x509_certificate(session.ca)
    now = datetime.now(UTC)
    return tuple(judge(check, seen, ca=ca, now=now) for check in checks)


async def _http(session: _Session, check: Http, node: Node) -> tuple[Verdict, ...]:
    identities = session.access.identities(check.caller)
    if not identities:
        return (failed(check, f"not tried: {session.access.missing}"),)
    return (await checks_http.http(check, node, identities),)


async def _reaches(session: _Session, check: ProxyReaches, node: Node) -> tuple[Verdict, ...]:
    return (await checks_http.proxy_reaches(check, node, session.access.anonymous),)


async def _serving(session: _Session, spec: NodeSpec, check: ServingCertificate, node: Node) -> tuple[Verdict, ...]:
    identity = session.access.anonymous
    return (await checks_cluster.serving_certificate(check, spec, node, identity, session.view),)


async def _service(session: _Session, check: ClusterCheck, node: Node) -> tuple[Verdict, ...]:
    return (await checks_cluster.service(check, session.cluster, node, session.access.anonymous),)


async def _virtual_servers(session: _Session, spec: NodeSpec, check: VirtualServers, node: Node) -> tuple[Verdict, ...]:
    return (await checks_ipvs.virtual_servers(check, spec.name, node, session.view, session.services),)


async def _agent(
    session: _Session, spec: NodeSpec, check: AgentReady | AgentCommand | AgentKnowsPods, _node: Node
) -> tuple[Verdict, ...]:
    kube = _api(session.kube)
    assert session.agents is not None
    match check:
        case AgentReady():
            return (await agent_ready(check, spec.name, session.agents),)
        case AgentCommand():
            return (await agent_command(check, spec.name, kube, session.agents),)
        case AgentKnowsPods():
            return (await agent_knows_pods(check, spec.name, kube, session.agents),)


async def _traffic(session: _Session, spec: NodeSpec, checks: tuple[Traffic, ...], node: Node) -> tuple[Verdict, ...]:
    _api(session.kube)
    assert session.traffic is not None
    return await traffic(checks, spec.name, node, session.traffic, session.run.id)


async def _cluster(session: _Session, spec: NodeSpec, check: ClusterCheck, _node: Node) -> tuple[Verdict, ...]:
    return (await checks_cluster.of_node(check, session.cluster, spec, session.view),)


async def _pod(session: _Session, spec: NodeSpec, checks: tuple[ClusterCheck, ...], _node: Node) -> tuple[Verdict, ...]:
    return await checks_cluster.of_pod(checks, _api(session.kube), session.run, spec, session.image)


def _report(session: _Session, node: NodeSpec, outcome: Ok[tuple[Verdict, ...]] | Failed) -> NodeReport:
    match outcome:
        case Ok(value=verdicts):
            return NodeReport(name=node.name, checks=verdicts)
        case Failed(error=error):
            unreachable = isinstance(error, NodeUnreachable)
            why = f"unreachable: {error.message}" if unreachable else f"not tried: {error.message}"
            checks = tuple(failed(check, why) for check in _checks(session, node))
            return NodeReport(name=node.name, checks=checks, unreachable=unreachable)
