"""`plan`: what would change on every node and in the cluster, as the values that `apply` executes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kubeworker.core import actions, desired, drift
from kubeworker.core.actions import StagePlan
from kubeworker.core.component import Facts, Peer
from kubeworker.core.diff import diff, held_back
from kubeworker.core.model import Blob, NodeState
from kubeworker.core.node import joined, probe, pull_script
from kubeworker.core.node.observed import HASHING, Observed, parse
from kubeworker.core.preflight import fleet as preflight_fleet
from kubeworker.core.preflight import requirements
from kubeworker.core.preflight.fleet import Fleet
from kubeworker.core.preflight.row import Row
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.errors import KubeworkerError, NodeError, PreflightFailed
from kubeworker.flow import charts, join
from kubeworker.flow.charts import Agents, ChartsPlan
from kubeworker.flow.events import NodeOutcome, NodeSeen, NodeStarted, Reporter, outcome_of
from kubeworker.flow.join import ClusterPlan as ObjectPlan
from kubeworker.flow.join import ClusterReading
from kubeworker.flow.session import Request, Session, open_session
from kubeworker.io.binary import host_architecture
from kubeworker.io.fleet import Failed, Ok, Outcome
from kubeworker.io.node import Node, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """One node's part: its stages, or why there are none."""

    name: str
    stages: tuple[StagePlan, ...] = ()
    deferred: tuple[str, ...] = ()
    """What follows later in the same run: `path: reason`."""
    warnings: tuple[str, ...] = ()
    state: NodeState | None = field(default=None, repr=False)
    """The desired state that the stages lead to; None where the node could not be looked at."""
    observed: Observed | None = field(default=None, repr=False)
    """What the node showed."""
    left_out: tuple[str, ...] = ()
    """Binaries, by path, that a run which only looks has nothing to hold against."""
    faults: tuple[Row, ...] = ()
    """Why it is not fit for the stages: then there are none, and `error` names them all."""
    joining: bool = False
    mirror: str = ""
    """The URL below which it fetches the artifacts that it lacks; empty: they are sent over SSH."""
    error: KubeworkerError | None = None

    @property
    def status(self) -> NodeOutcome:
        """ok, failed or unreachable, as in the JSON form."""
        return outcome_of(self.error)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The artifacts that it lacks, each once."""
        return tuple(dict.fromkeys(blob for stage in self.stages for blob in stage.blobs))

    @property
    def changes(self) -> int:
        """How many actions."""
        return sum(len(stage.actions) for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """The node as `plan --json` prints it."""
        return {
            "name": self.name,
            "status": self.status,
            "actions": [actions.as_json(action) for stage in self.stages for action in stage.actions],
            "deferred": list(self.deferred),
            "warnings": list(self.warnings),
            "transfer": self._transfer(),
            "error": self.error.as_json() if self.error else None,
        }

    def _transfer(self) -> dict[str, Any] | None:
        """Where the bytes that it lacks come from: `from` is a URL, or "ssh"."""
        if not self.blobs:
            return None
        size = sum(blob.size for blob in self.blobs)
        return {"artifacts": len(self.blobs), "bytes": size, "from": self.mirror or "ssh"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would change. `apply` executes exactly these values."""

    nodes: tuple[NodePlan, ...]
    objects: ObjectPlan = field(default_factory=ObjectPlan)
    charts: ChartsPlan = field(default_factory=ChartsPlan)
    credential: str = ""
    """Why kube-proxy's client certificate is issued or renewed; empty when it is kept."""
    chart_certificates: tuple[tuple[str, str], ...] = ()
    """Certificates that are issued or renewed for charts, each with its reason."""
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> int:
        """Actions on nodes, on the cluster's objects, and the certificate to issue."""
        objects = len(self.objects.actions) + len(self.charts.actions)
        issued = bool(self.credential) + len(self.chart_certificates)
        return sum(node.changes for node in self.nodes) + objects + issued

    @property
    def exit_code(self) -> int:
        """0 nothing to do, 1 a node can't be planned, 2 changes pending, 4 nodes unreachable."""
        statuses = {node.status for node in self.nodes}
        if "failed" in statuses:
            return 1
        if "unreachable" in statuses:
            return 4
        return 2 if self.changes else 0

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form (design.md)."""
        return {
            "changes": self.changes,
            "nodes": [node.as_json() for node in self.nodes],
            "cluster": {"actions": self._cluster_actions()},
            "warnings": list(self.warnings),
        }

    def _cluster_actions(self) -> list[dict[str, str]]:
        shown = [
            {"kind": each.kind, "subject": each.subject, "reason": each.reason, "diff": each.diff}
            for each in (*self.objects.actions, *self.charts.actions)
        ]
        certificates = (("system:kube-proxy", self.credential), *self.chart_certificates)
        shown += [
            {"kind": "issue-certificate", "subject": subject, "reason": reason, "diff": ""}
            for subject, reason in certificates
            if reason
        ]
        return shown


async def plan(request: Request, report: Reporter) -> Plan:
    """Open everything, look, compare, close. Changes nothing."""
    async with open_session(request, report) as session:
        return await make_plan(session)


async def make_plan(session: Session, *, apart: Collection[str] = ()) -> Plan:
    """Look at the nodes and the API at once, and compare with what is wanted.

    Nodes `apart` are not looked at: a run is still at them, or has failed on them. Those that join keep their token.
    """
    selected = tuple(each for each in session.selected if each.name not in apart)
    return await _make_plan(replace(session, selected=selected), apart)


async def _make_plan(session: Session, apart: Collection[str]) -> Plan:
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(observe(session))
        reading = group.create_task(_read(session))
        comparing = group.create_task(_compare(session))
    looked, compared = looking.result(), comparing.result()
    seen = {name: outcome.value.observed for name, outcome in looked.items() if isinstance(outcome, Ok)}
    fleet = fleet_of(session, looked)
    now = datetime.now(UTC)
    joining = [name for name, observed in seen.items() if not joined.has_joined(name, observed, session.ca, now)]
    read = reading.result()
    joining_apart = {token.node for token in read.tokens if token.node in apart} if read else ()
    objects = join.decide(read, session.cluster, [*joining, *joining_apart], now) if read else ObjectPlan()
    known = _known(session, objects)
    nodes = tuple(
        _node_plan(
            session, node, looked[node.name], fleet, known, objects, compared.agents, joining=node.name in joining
        )
        for node in session.selected
    )
    return Plan(
        nodes=nodes,
        objects=objects,
        charts=compared,
        chart_certificates=tuple(
            (f"{release.chart.component} {name}", reason)
            for release in session.releases
            for name, reason in release.credentials.issued.items()
        ),
        credential="" if session.proxy.status == "kept" else session.proxy.reason,
        warnings=(
            *desired.warnings(session.cluster, session.registry),
            *desired.node_warnings(session.cluster, session.registry, objects.nodes),
            *objects.warnings,
            *compared.warnings,
            *((f"{session.trouble}; nodes can't join",) if session.trouble else ()),
        ),
    )


async def _read(session: Session) -> ClusterReading | None:
    """What the API says; None where none answers."""
    if session.kube is None:
        return None
    chosen, part = session.request.nodes, session.request.shard is not None
    return await join.read_cluster(session.kube, session.cluster, chosen or None, part=part, handed=session.handed)


async def _compare(session: Session) -> ChartsPlan:
    """The charts' objects; nothing of them where no API answers."""
    if session.kube is None:
        names = ", ".join(release.chart.component for release in session.releases)
        text = f"no kube-apiserver answers, so the objects of {names} are not compared"
        return ChartsPlan(warnings=(text,) if names else ())
    planned = await charts.plan(session.kube, session.releases, session.tools, session.request.nodes or None)
    left = () if session.handed else await charts.forgotten(session.kube, session.cluster, session.registry)
    lame = charts.not_ready(planned, [node.name for node in session.selected])
    return replace(planned, warnings=(*planned.warnings, *left, *lame))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a node showed, and the control host's clock at that moment (seconds since the epoch)."""

    observed: Observed
    control_time: float


async def observe(session: Session, *, surveyed: bool = False) -> Mapping[str, Outcome[Look]]:
    """One probe, one channel, for each node that can be reached, as soon as it is."""
    specs = {node.name: node for node in session.selected}

    async def work(connection: Node) -> Look:
        name = connection.name
        session.report(NodeStarted(node=name, what="observe"))
        text = probe.script(
            session.inputs().state(specs[name], Facts()), rehash=session.request.rehash, surveyed=surveyed
        )
        began = time.time()
        answer = await asked(connection, text, session)
        observed = parse(name, answer.stdout)
        session.report(NodeSeen(node=name))
        # The node read its clock somewhere between question and answer, which on a busy one are many seconds apart.
        return Look(observed=observed, control_time=min(max(observed.clock, began), time.time()))

    return await session.on_nodes(work)


async def asked(connection: Node, text: str, session: Session) -> Result:
    """What a node answers to a script that only looks. It has `ssh.probe_timeout`, and more once it says it hashes.

    NodeError where something on the node keeps it from its end: the others wait for the plan.
    """
    seconds = session.cluster.ssh.probe_timeout
    clock = asyncio.get_running_loop()
    began = clock.time()
    end = began + seconds
    try:
        async with asyncio.timeout_at(end) as limit:

            def hear(line: str) -> None:
                nonlocal end
                if line == HASHING:
                    end = clock.time() + seconds + _hash_seconds(session)
                    limit.reschedule(end)

            return await connection.run(text, timeout=math.inf, on_line=hear)
    except TimeoutError as error:
        raise NodeError(
            f"looking at it did not end within {round(end - began, 1):g} s",
            subject=connection.name,
            hint="it can be logged in to, and something there hangs: try df, systemctl status and crictl ps on it; "
            f"for one that is only slow set ssh.probe_timeout ({seconds:g} s; hashing has its own time besides)",
        ) from error


def _hash_seconds(session: Session) -> int:
    """How long hashing all artifacts may take besides: the slowest of disks reads 10 MB/s."""
    blobs = (*session.blobs.values(), *(archive.blob for archive in session.archives.values()))
    return round(sum(blob.size for blob in blobs) / 10e6)


def fleet_of(session: Session, looked: Mapping[str, Outcome[Look]]) -> Fleet:
    """What the nodes that could be looked at have in common."""
    looks = {name: outcome.value for name, outcome in looked.items() if isinstance(outcome, Ok)}
    return preflight_fleet.of(
        {name: look.observed for name, look in looks.items()},
        {node.name: node.address for node in session.cluster.nodes},
        [look.observed.clock - look.control_time for look in looks.values()],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the API said of all nodes, sorted once for the whole fleet."""

    pod_cidrs: Mapping[str, str]
    peers: tuple[Peer, ...]


def _node_plan(
    session: Session,
    node: NodeSpec,
    looked: Outcome[Look],
    fleet: Fleet,
    known: _Known,
    objects: ObjectPlan,
    agents: Agents,
    *,
    joining: bool,
) -> NodePlan:
    match looked:
        case Failed(error=error):
            return NodePlan(name=node.name, error=error)
        case Ok(value=look):
            observed = look.observed
    facts = Facts(
        joined=not joining,
        pod_cidr=known.pod_cidrs.get(node.name, ""),
        peers=tuple(peer for peer in known.peers if peer.name != node.name),
        network_ready=node.name in agents.running,
        service_proxy_replaced=agents.replaces_proxy and node.name in agents.ready,
    )
    state = session.inputs(objects.token(node.name)).state(node, with_seen(facts, observed))
    state, left_out = drift.assumed(state, observed) if session.unpinned else (state, ())
    stages = diff(state, observed)
    rows = checked(node, look, state, fleet, stages)
    faults = [row for row in rows if row.status == "failed"]
    return NodePlan(
        name=node.name,
        stages=() if faults else stages,
        deferred=(
            *(f"{each.path}: {each.reason}" for stage in state.stages for each in stage.deferred),
            *held_back(state, observed),
        ),
        warnings=tuple(row.message for row in rows if row.status == "warning"),
        state=state,
        observed=observed,
        left_out=left_out,
        faults=tuple(faults),
        joining=joining,
        mirror=_mirror(session.cluster),
        error=_preflight_failed(node.name, faults) if faults else None,
    )


def with_seen(facts: Facts, observed: Observed) -> Facts:
    """Facts of the cluster, with those that the node itself showed."""
    return replace(
        facts,
        container=observed.container,
        masquerade="iptables" if observed.masquerade == "iptables" else "nft",
        resolv_conf=observed.resolv_conf,
    )


def checked(node: NodeSpec, look: Look, state: NodeState, fleet: Fleet, stages: Sequence[StagePlan]) -> tuple[Row, ...]:
    """Every preflight check that what the node showed can answer."""
    return requirements.preflight(
        state,
        look.observed,
        fleet=fleet,
        address=node.address,
        control_time=look.control_time,
        plans=stages,
        architecture=host_architecture(),
    )


def _preflight_failed(node: str, faults: Sequence[Row]) -> PreflightFailed:
    """One error that names every fault, each with its fix."""
    message = "; ".join(fault.message for fault in faults)
    return PreflightFailed(message, subject=node, hint="\n  ".join(fault.fix for fault in faults))


def _mirror(cluster: ClusterFile) -> str:
    pull = cluster.artifacts.delivery == "pull"
    return pull_script.base_url(cluster.artifacts.mirror or "") if pull else ""


def _known(session: Session, objects: ObjectPlan) -> _Known:
    addresses = {node.name: node.address for node in session.cluster.nodes}
    return _Known(
        pod_cidrs={node.name: node.pod_cidr for node in objects.nodes},
        peers=tuple(
            Peer(name=each.name, address=addresses[each.name], pod_cidr=each.pod_cidr)
            for each in sorted(objects.nodes, key=lambda each: each.name)
            if each.name in addresses and each.pod_cidr
        ),
    )
