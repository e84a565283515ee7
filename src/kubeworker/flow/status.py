"""`status`: what of the fleet is not as it was left, who has moved, which certificates are late, what lies ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cryptography import x509

from kubeworker.core import desired, drift, outlook
from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.core.certificates.csr import CLIENT_SIGNER, SERVING_SIGNER
from kubeworker.core.certificates.expiry import Expiry, expiry
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.component import Credentials, Facts
from kubeworker.core.diff import diff
from kubeworker.core.drift import Drift, NodeDrift, moment
from kubeworker.core.model import Certificate, Check, UnitActive
from kubeworker.core.node import running_script
from kubeworker.core.node.running_script import ProxiedServer, Seen
from kubeworker.core.outlook import Prospect, Running
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.core.verify import check_script
from kubeworker.core.verify.check_script import Evidence
from kubeworker.errors import KubeworkerError, NodeUnreachable, PreflightFailed
from kubeworker.flow import credentials, status_cluster
from kubeworker.flow.events import NodeOutcome, Reporter, outcome_of
from kubeworker.flow.plan import NodePlan, asked, make_plan
from kubeworker.flow.session import Request, Session, open_session
from kubeworker.flow.status_cluster import ClusterLook
from kubeworker.io.file_modes import open_to_others
from kubeworker.io.fleet import Failed, Ok, Outcome
from kubeworker.io.node import Node

Rotation: TypeAlias = Literal["works", "stuck", "late", "none"]
"""works: kubelet renews it and is not late. stuck: its request gets nowhere. late: it should have been renewed. none:
it does not renew itself (kube-proxy's is renewed by apply)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """One node."""

    name: str
    ready: str = ""
    """Ready, NotReady, Absent (no such Node), or empty: the API does not answer."""
    kubelet: str = ""
    """Version that the running kubelet reports to the API."""
    runtime: str = ""
    """containerd's version, as kubelet reports it."""
    units: Mapping[str, str] = field(default_factory=dict)
    """systemd's ActiveState by unit."""
    certificates: Mapping[str, Expiry | None] = field(default_factory=dict)
    """How long each lasts, by check id (kubelet.client_cert); None: there is no such certificate."""
    drifts: tuple[Drift, ...] = ()
    """What is not as it should be, and who has moved."""
    notes: tuple[str, ...] = ()
    applied: str = ""
    """When the last apply changed something here (RFC 3339); empty: never, or before nodes kept a record."""
    tool: str = ""
    """Which version did it."""
    running: Running = field(default_factory=Running)
    prospects: tuple[Prospect, ...] = ()
    """What lies ahead of what runs."""
    servers: tuple[ProxiedServer, ...] = ()
    """The API servers, as the node's own API proxy sees them; () where it has no probe."""
    drift: int | None = None
    """Actions that `apply` would carry out on the node; None: it can't be planned."""
    error: KubeworkerError | None = None

    @property
    def status(self) -> NodeOutcome:
        """ok, failed or unreachable."""
        return outcome_of(self.error)

    def rotation(self, name: str) -> Rotation:
        """Whether the certificate of this check id is renewed as it should be."""
        lasts = self.certificates.get(name)
        if lasts is None or not lasts.rotates:
            return "none"
        signer = SERVING_SIGNER if "serving" in name else CLIENT_SIGNER
        if any(each.kind == "request" and signer in each.subject for each in self.drifts):
            return "stuck"
        return "works" if lasts.state == "good" else "late"

    def as_json(self) -> dict[str, Any]:
        """The node as `status --json` prints it."""
        return {
            "name": self.name,
            "status": self.status,
            "ready": self.ready,
            "kubelet": self.kubelet,
            "containerd": self.runtime,
            "units": dict(self.units),
            "certificates": {name: each.days if each else None for name, each in self.certificates.items()},
            "expiry": {
                name: {**each.as_json(), "days": each.days, "rotation": self.rotation(name)} if each else None
                for name, each in self.certificates.items()
            },
            "drift": self.drift,
            "findings": [each.as_json() for each in self.drifts],
            "notes": list(self.notes),
            "applied": {"when": self.applied, "tool": self.tool},
            "running": self.running.as_json(),
            "horizon": [each.as_json() for each in self.prospects],
            "api_proxy": [
                {"address": each.address, "ready": each.ready, "answer": each.answer, "since": moment(each.since)}
                for each in self.servers
            ],
            "error": self.error.as_json() if self.error else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """All of it."""

    nodes: tuple[NodeLine, ...]
    ca: Expiry
    """How long the cluster's CA still lasts."""
    cluster: tuple[Drift, ...] = ()
    """What is not as it should be in the cluster itself."""
    control_host: tuple[Drift, ...] = ()
    """Keys on this host that others may read."""
    notes: tuple[str, ...] = ()
    trouble: str = ""
    """Why the API does not answer; empty where it does."""

    @property
    def exit_code(self) -> int:
        """0 in order; 1 a node could not be looked at; 4 nodes or the API are unreachable; 2 something drifted."""
        statuses = {node.status for node in self.nodes}
        if "failed" in statuses:
            return 1
        if "unreachable" in statuses or self.trouble:
            return 4
        return 2 if self.drifted else 0

    @property
    def drifted(self) -> bool:
        """Whether anything is not as it should be."""
        return bool(self.cluster or self.control_host or any(node.drifts for node in self.nodes))

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form (docs/status.md)."""
        return {
            "drifted": self.drifted,
            "nodes": [node.as_json() for node in self.nodes],
            "cluster": [each.as_json() for each in self.cluster],
            "control_host": [each.as_json() for each in self.control_host],
            "notes": list(self.notes),
            "ca_days": self.ca.days,
            "ca": self.ca.as_json(),
            "trouble": self.trouble,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    evidence: Evidence = field(default_factory=Evidence)
    seen: Seen = field(default_factory=Seen)


async def status(request: Request, report: Reporter, *, against: Mapping[str, str] | None = None) -> FleetStatus:
    """Look at every node and at the API. Changes nothing, also on this host: what it lacks is told and not got.

    `against`: what would lie ahead were these the versions (kubernetes, containerd) in cluster.yaml.
    """
    async with open_session(request, report, read_only=True) as session:
        async with asyncio.TaskGroup() as group:
            planning = group.create_task(make_plan(session))
            looking = group.create_task(_probe(session))
        plan, looked = planning.result(), looking.result()
        cluster = await status_cluster.look(session, plan)
        now = datetime.now(UTC)
        planned = {node.name: node for node in plan.nodes}
        ca = expiry(session.ca.certificate, now, rotates=False)
        return FleetStatus(
            nodes=tuple(
                _line(session, node, planned[node.name], looked[node.name], cluster, against or {}, now)
                for node in session.selected
            ),
            ca=ca,
            cluster=(*cluster.drifts, *_ca_fault(ca)),
            control_host=_open_secrets(request.cluster_file, session.cluster),
            notes=(*_unpinned(session.unpinned), *plan.warnings, *cluster.notes),
            trouble=cluster.trouble,
        )


async def _probe(session: Session) -> Mapping[str, Outcome[_Look]]:
    async def work(connection: Node) -> _Look:
        # One channel for both; the second text ends the shell.
        looks = running_script.script(bin_dir=session.cluster.paths.bin_dir)
        checks = check_script.script(_checks(session, session.cluster.node(connection.name)))
        answer = await asked(connection, f"{looks}\n{checks}", session)
        lines = answer.stdout.splitlines()
        mine = [line for line in lines if line.startswith(running_script.WORD)]
        rest = [line for line in lines if not line.startswith(running_script.WORD)]
        return _Look(evidence=check_script.parse("\n".join(rest)), seen=running_script.parse(mine))

    return await session.on_nodes(work)


def _unpinned(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """What a comparison without the lock file's hashes is worth."""
    if not artifacts:
        return ()
    names = ", ".join(f"{each.name} {each.version}" for each in artifacts)
    held = "held against what the last apply put on each node, not against kubeworker.lock, which does not pin them"
    return (f"{held}: {names} (kubeworker artifacts fetch, or import, pins them; so does apply)",)


def _checks(session: Session, node: NodeSpec) -> tuple[Check, ...]:
    """The units and certificates that `verify` would look at."""
    every = desired.checks(
        session.cluster,
        node,
        registry=session.registry,
        archives=session.archives,
        credentials=Credentials(ca_cert=session.ca.pem),
        facts=Facts(joined=True),
    )
    return tuple(check for check in every if isinstance(check, UnitActive | Certificate))


def _line(
    session: Session,
    node: NodeSpec,
    planned: NodePlan,
    outcome: Outcome[_Look],
    cluster: ClusterLook,
    versions: Mapping[str, str],
    now: datetime,
) -> NodeLine:
    look = outcome.value if isinstance(outcome, Ok) else _Look()
    error = outcome.error if isinstance(outcome, Failed) else planned.error
    api = cluster.nodes.get(node.name) if cluster.nodes is not None else None
    moved = _moved(planned)
    certificates = _certificates(_checks(session, node), look.evidence, now)
    running = _running(look.seen.running, planned, api, cluster)
    faults = [*moved.drifts, *_requirements(planned), *_exposed(look.seen, moved)]
    if not isinstance(error, NodeUnreachable):
        faults += _late(certificates, joining=planned.joining)
        faults += cluster.requests.get(node.name, ())
        ready = status_cluster.ready_fault(session.cluster, node.name, api, joining=planned.joining)
        faults += [ready] if ready and cluster.nodes is not None else []
    return NodeLine(
        name=node.name,
        ready=_ready(api) if cluster.nodes is not None else "",
        kubelet=api.version if api else "",
        runtime=running.containerd,
        units=_units(_checks(session, node), look.evidence),
        certificates=certificates,
        drifts=tuple(faults),
        notes=(
            *moved.notes,
            *planned.warnings,
            *(f"deferred: {each}" for each in planned.deferred),
            *_not_compared(planned.left_out),
            *_left_out(look.seen),
        ),
        applied=moved.when,
        tool=moved.tool,
        running=running,
        prospects=outlook.outlook(outlook.against(running, versions), now.date()),
        servers=look.seen.servers,
        drift=planned.changes if planned.error is None else None,
        # What preflight finds is drift like the rest: the node could be looked at.
        error=None if isinstance(error, PreflightFailed) else error,
    )


def _not_compared(paths: Sequence[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    names = ", ".join(path.rpartition("/")[2] for path in paths)
    return (f"not compared: {names}: neither kubeworker.lock nor a record of an apply here says what they must be",)


def _moved(planned: NodePlan) -> NodeDrift:
    if planned.state is None or planned.observed is None:
        return NodeDrift()
    return drift.judge(planned.state, planned.observed, diff(planned.state, planned.observed))


def _requirements(planned: NodePlan) -> list[Drift]:
    return [
        Drift(kind="requirement", subject=row.id, what=row.message, who="node", fix=row.fix) for row in planned.faults
    ]


def _exposed(seen: Seen, moved: NodeDrift) -> list[Drift]:
    """Keys that others may read, unless the plan sees to them already."""
    told = {each.subject for each in moved.drifts}
    return [
        Drift(
            kind="secret",
            subject=each.path,
            what=f"a key or kubeconfig with mode {each.mode:04o} {each.owner}",
            who="node",
            since=moment(each.changed),
            fix=f"chown root:root {each.path}; chmod 0600 {each.path}",
        )
        for each in seen.secrets
        if each.path not in told
    ]


def _late(certificates: Mapping[str, Expiry | None], *, joining: bool) -> list[Drift]:
    """What is overdue, ended, about to end, or missing on a node that has joined."""
    found = []
    for name, lasts in certificates.items():
        if joining or (lasts is not None and lasts.state == "good"):
            continue
        what, fix = "there is none", "kubeworker csr list"
        if lasts is not None:
            what = {
                "soon": f"ends in {lasts.text}",
                "overdue": f"kubelet has not renewed it in time; {lasts.text} left",
                "expired": f"ended {lasts.ends:%Y-%m-%d %H:%M} UTC",
            }[lasts.state]
            fix = "kubeworker csr list" if lasts.rotates else "kubeworker apply"
        found.append(Drift(kind="certificate", subject=name, what=what, who="cluster", fix=fix))
    return found


def _ca_fault(ca: Expiry) -> tuple[Drift, ...]:
    if ca.state == "good":
        return ()
    fix = "make a new CA and roll it out: every certificate of the cluster hangs on it"
    return (Drift(kind="certificate", subject="the cluster's CA", what=f"{ca.text} left", who="input", fix=fix),)


def _open_secrets(cluster_file: Path, cluster: ClusterFile) -> tuple[Drift, ...]:
    files = (cluster.cluster.ca.key, cluster.cluster.kubeconfig)
    return tuple(
        Drift(
            kind="secret",
            subject=str(each.path),
            what=f"a key or kubeconfig with mode {each.mode:04o}, of user {each.owner}",
            who="node",
            since=moment(each.changed),
            fix=f"chmod 0600 {each.path}",
        )
        for each in open_to_others((credentials.directory(cluster_file), *map(Path, files)))
    )


def _left_out(seen: Seen) -> list[str]:
    return [
        f"its API proxy leaves out {each.address}: {each.answer} since {moment(each.since)}"
        for each in seen.servers
        if not each.ready
    ]


def _running(seen: Running, planned: NodePlan, api: NodeStatus | None, cluster: ClusterLook) -> Running:
    observed = planned.observed
    return replace(
        seen,
        kubernetes=api.version if api else _installed(planned, "kubelet"),
        containerd=api.runtime.rpartition("://")[2] if api else _installed(planned, "containerd"),
        apiserver=cluster.apiserver,
        kernel=observed.kernel if observed else "",
        cgroup=observed.cgroup if observed else 0,
    )


def _installed(planned: NodePlan, name: str) -> str:
    """The version of a binary that lies there as it is asked for; empty where another one does, or nothing tells."""
    if planned.state is None or planned.observed is None:
        return ""
    binaries = (each for stage in planned.state.stages for each in stage.binaries)
    path = f"{planned.state.bin_dir}/{name}"
    found = (each for each in binaries if each.path == path and path not in planned.left_out)
    return next((each.version for each in found if planned.observed.sha256(each.path) == each.blob.sha256), "")


def _units(checks: tuple[Check, ...], seen: Evidence) -> Mapping[str, str]:
    return {
        check.unit: seen.units[check.unit].properties.get("ActiveState", "unknown")
        for check in checks
        if isinstance(check, UnitActive) and check.unit in seen.units
    }


def _certificates(checks: tuple[Check, ...], seen: Evidence, now: datetime) -> Mapping[str, Expiry | None]:
    return {
        check.id: _expiry(seen.certificates[check.path], check, now)
        for check in checks
        if isinstance(check, Certificate) and check.path in seen.certificates
    }


def _ready(node: NodeStatus | None) -> str:
    if node is None:
        return "Absent"
    return "Ready" if node.ready else "NotReady"


def _expiry(pem: bytes, check: Certificate, now: datetime) -> Expiry | None:
    try:
        return expiry(x509.load_pem_x509_certificates(pem)[0], now, rotates=check.rotates)
    except (ValueError, IndexError):
        return None
