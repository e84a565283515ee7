"""`status`: each node in one line: versions, units, Ready, how long certificates still last, and drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from kubeworker.core import check_script, desired
from kubeworker.core.check_script import Evidence
from kubeworker.core.component import Credentials, Facts
from kubeworker.core.expiry import Expiry, expiry
from kubeworker.core.kube_views import NodeStatus
from kubeworker.core.model import Certificate, Check, UnitActive
from kubeworker.core.spec import NodeSpec
from kubeworker.errors import ApiError, KubeworkerError, NodeUnreachable
from kubeworker.flow.events import Reporter
from kubeworker.flow.plan import NodePlan, make_plan
from kubeworker.flow.session import Request, Session, open_session
from kubeworker.io.fleet import Failed, Ok, Outcome, fan_out

PROBE_SECONDS = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """One node's line."""

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
    drift: int | None = None
    """Actions that `apply` would carry out on the node; None: it can't be planned."""
    error: KubeworkerError | None = None

    @property
    def status(self) -> str:
        """ok, failed or unreachable."""
        match self.error:
            case None:
                return "ok"
            case NodeUnreachable():
                return "unreachable"
            case _:
                return "failed"

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
            "expiry": {name: each.as_json() if each else None for name, each in self.certificates.items()},
            "drift": self.drift,
            "error": self.error.as_json() if self.error else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """All lines."""

    nodes: tuple[NodeLine, ...]
    ca: Expiry
    """How long the cluster's CA still lasts."""
    trouble: str = ""
    """Why the API does not answer; empty where it does."""

    @property
    def exit_code(self) -> int:
        """1: a node could not be looked at; 4: some are unreachable; else 0, whatever their state is."""
        statuses = {node.status for node in self.nodes}
        return 1 if "failed" in statuses else 4 if "unreachable" in statuses else 0

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "nodes": [node.as_json() for node in self.nodes],
            "ca_days": self.ca.days,
            "trouble": self.trouble,
        }


async def status(request: Request, report: Reporter) -> FleetStatus:
    """Look at every node and at the API. Changes nothing."""
    async with open_session(request, report, read_only=True) as session:
        planned = {node.name: node for node in (await make_plan(session)).nodes}
        seen = await _probe(session)
        joined, trouble = await _joined(session)
        now = datetime.now(UTC)
        return FleetStatus(
            nodes=tuple(
                _line(session, node, planned[node.name], seen[node.name], joined, now) for node in session.selected
            ),
            ca=expiry(session.ca.certificate, now, rotates=False),
            trouble=trouble,
        )


async def _joined(session: Session) -> tuple[Mapping[str, NodeStatus] | None, str]:
    """The Nodes by name, or why they can't be known."""
    if session.kube is None:
        return None, session.trouble
    try:
        return {node.name: node for node in await session.kube.nodes(session.request.nodes or None)}, ""
    except ApiError as error:
        return None, error.message


async def _probe(session: Session) -> Mapping[str, Outcome[Evidence]]:
    async def work(name: str) -> Evidence:
        text = check_script.script(_checks(session, session.cluster.node(name)))
        answer = await session.connection(name).run(text, timeout=PROBE_SECONDS)
        return check_script.parse(answer.stdout)

    names = tuple(node.name for node in session.selected)
    return await fan_out(names, work, limit=session.cluster.ssh.concurrency)


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
    outcome: Outcome[Evidence],
    joined: Mapping[str, NodeStatus] | None,
    now: datetime,
) -> NodeLine:
    api = joined.get(node.name) if joined is not None else None
    seen = outcome.value if isinstance(outcome, Ok) else Evidence()
    checks = _checks(session, node)
    return NodeLine(
        name=node.name,
        ready=_ready(api) if joined is not None else "",
        kubelet=api.version if api else "",
        runtime=api.runtime.rpartition("://")[2] if api else "",
        units={
            check.unit: seen.units[check.unit].properties.get("ActiveState", "unknown")
            for check in checks
            if isinstance(check, UnitActive) and check.unit in seen.units
        },
        certificates={
            check.id: _expiry(seen.certificates[check.path], check, now)
            for check in checks
            if isinstance(check, Certificate) and check.path in seen.certificates
        },
        drift=planned.changes if planned.error is None else None,
        error=outcome.error if isinstance(outcome, Failed) else planned.error,
    )


def _ready(node: NodeStatus | None) -> str:
    if node is None:
        return "Absent"
    return "Ready" if node.ready else "NotReady"


def _expiry(pem: bytes, check: Certificate, now: datetime) -> Expiry | None:
    try:
        return expiry(x509.load_pem_x509_certificates(pem)[0], now, rotates=check.rotates)
    except (ValueError, IndexError):
        return None
