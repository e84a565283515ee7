"""`preflight`: every check of every node before anything is changed, and what to do about those that do not hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.component import Facts
from kubeworker.core.diff import diff
from kubeworker.core.node import joined
from kubeworker.core.preflight.fleet import Fleet
from kubeworker.core.preflight.row import Row, Status
from kubeworker.core.reachability.rows import Matrix
from kubeworker.core.spec import NodeSpec
from kubeworker.errors import ApiError, KubeworkerError
from kubeworker.flow.events import NodeOutcome, Reporter, outcome_of
from kubeworker.flow.plan import Look, checked, fleet_of, observe, with_seen
from kubeworker.flow.reachability import reachability_of
from kubeworker.flow.session import Request, Session, open_look
from kubeworker.io.fleet import Failed, Ok, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChecks:
    """One node's rows, or why there are none."""

    name: str
    rows: tuple[Row, ...] = ()
    error: KubeworkerError | None = None

    @property
    def status(self) -> NodeOutcome:
        """ok, failed or unreachable."""
        if self.error is None and any(row.status == "failed" for row in self.rows):
            return "failed"
        return outcome_of(self.error)

    def as_json(self) -> dict[str, Any]:
        """The node as `preflight --json` prints it."""
        return {
            "name": self.name,
            "status": self.status,
            "checks": [row.as_json() for row in self.rows],
            "error": self.error.as_json() if self.error else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All nodes' checks."""

    nodes: tuple[NodeChecks, ...]
    matrix: Matrix | None = None
    """Who reaches whom, of a small fleet."""

    def count(self, status: Status) -> int:
        """How many rows have it."""
        return sum(row.status == status for node in self.nodes for row in node.rows)

    @property
    def exit_code(self) -> int:
        """1: a check failed, or a node gave no answer that can be read; 4: some are unreachable; else 0."""
        statuses = {node.status for node in self.nodes}
        return 1 if "failed" in statuses else 4 if "unreachable" in statuses else 0

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form."""
        return {
            "ok": self.count("ok"),
            "failed": self.count("failed"),
            "warnings": self.count("warning"),
            "nodes": [node.as_json() for node in self.nodes],
            "reachability": self.matrix.as_json() if self.matrix else None,
        }


async def run(request: Request, report: Reporter, *, api_token: bool = True) -> Preflight:
    """Look at every node, compare them with what cluster.yaml asks for and with each other, and have them try to reach
    each other and the API. Changes nothing on them; of `api_token` see `flow/api_reach`.
    """
    async with open_look(request, report) as session:
        looked = await observe(session, surveyed=True)
        seen = {name: outcome.value.observed for name, outcome in looked.items() if isinstance(outcome, Ok)}
        fleet = fleet_of(session, looked)
        async with asyncio.TaskGroup() as group:
            nodes = group.create_task(_registered(session))
            reaching = group.create_task(reachability_of(session, seen, api_token=api_token))
        registered, reached = nodes.result(), reaching.result()
        return Preflight(
            nodes=tuple(
                _node(session, node, looked[node.name], fleet, registered, reached.rows) for node in session.selected
            ),
            matrix=reached.matrix,
        )


async def _registered(session: Session) -> Mapping[str, NodeStatus]:
    """The cluster's Nodes by name; none where no API answers."""
    if session.kube is None:
        return {}
    try:
        return {node.name: node for node in await session.kube.nodes(session.request.nodes or None)}
    except ApiError:
        return {}


def _node(
    session: Session,
    node: NodeSpec,
    looked: Outcome[Look],
    fleet: Fleet,
    registered: Mapping[str, NodeStatus],
    reached: Sequence[Row],
) -> NodeChecks:
    match looked:
        case Failed(error=error):
            return NodeChecks(name=node.name, error=error)
        case Ok(value=look):
            rows = _rows(session, node, look, fleet, registered)
            return NodeChecks(name=node.name, rows=(*rows, *(row for row in reached if row.node == node.name)))


def _rows(
    session: Session,
    node: NodeSpec,
    look: Look,
    fleet: Fleet,
    registered: Mapping[str, NodeStatus],
) -> tuple[Row, ...]:
    observed = look.observed
    api = registered.get(node.name)
    facts = Facts(
        joined=joined.has_joined(node.name, observed, session.ca, datetime.now(UTC)),
        pod_cidr=api.pod_cidr if api else "",
    )
    state = session.inputs().state(node, with_seen(facts, observed))
    return checked(node, look, state, fleet, diff(state, observed))
