"""Have nodes try to reach each other: a probe on each, orders to all at once, and what they say as evidence."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from kubeworker.core.component import Facts
from kubeworker.core.node.observed import Observed
from kubeworker.core.preflight.row import Row
from kubeworker.core.reachability import probe as reach_probe
from kubeworker.core.reachability import rows as reach_rows
from kubeworker.core.reachability import trials
from kubeworker.core.reachability.probe import Listen
from kubeworker.core.reachability.rows import Matrix
from kubeworker.core.reachability.trials import Evidence, Fleet, Member, Try
from kubeworker.core.spec import NodeSpec
from kubeworker.errors import NodeError
from kubeworker.flow.api_reach import reach_api
from kubeworker.flow.events import NodeStarted
from kubeworker.flow.session import Session
from kubeworker.io.node import Node

START_SECONDS = 20
"""Until the probes listen: a slow machine takes seconds to start a few processes."""
SETTLE_SECONDS = 1
"""After the last datagram was sent, for it to arrive."""
PAUSE_SECONDS = 0.05
"""Between two looks at what has come in: of a large fleet that is thousands of lines."""
ROUNDS = 5
"""At most, of the search for the largest packet: 40 sizes each leave one of 64,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """What nodes reach: each other, and the API."""

    rows: tuple[Row, ...]
    matrix: Matrix | None
    """Of a small fleet."""


async def reachability_of(session: Session, seen: Mapping[str, Observed], *, api_token: bool) -> Reachability:
    """Have the nodes that were seen try it. Changes nothing on them; for `api_token` see `reach_api`."""
    for name in seen:
        session.report(NodeStarted(node=name, what="reach"))
    async with asyncio.TaskGroup() as group:
        peers = group.create_task(_reach_peers(session, seen))
        api = group.create_task(reach_api(session, seen, api_token=api_token))
    fleet, evidence = peers.result()
    rows = (*reach_rows.rows(fleet, evidence), *api.result())
    return Reachability(rows=rows, matrix=reach_rows.matrix(fleet, evidence))


async def _reach_peers(session: Session, seen: Mapping[str, Observed]) -> tuple[Fleet, Evidence]:
    inside = [_member(session, node) for node in session.cluster.nodes if node.name in seen]
    chosen = {node.name for node in session.selected}
    others = [node for node in session.cluster.nodes if node.name not in chosen]
    outside = [_member(session, node) for node in trials.spread(others, trials.FULL)]
    return await try_all(trials.fleet(inside, outside), session.connection)


async def try_all(fleet: Fleet, connection: Callable[[str], Node]) -> tuple[Fleet, Evidence]:
    """Start a probe on each node, try in rounds, and end them all, however it comes.

    The fleet comes back without the probes that did not start.
    """
    trial = _Trial(fleet=fleet, connection=connection)
    if not any(fleet.targets):
        return fleet, trial.seen
    listens = trials.listens(fleet)
    async with asyncio.TaskGroup() as group:
        for member in fleet.probed:
            group.create_task(trial.probe(member, listens[member.number]))
        try:
            await trial.conduct()
        finally:
            trial.end()
    return trial.fleet, trial.seen


def _member(session: Session, node: NodeSpec) -> Member:
    state = session.inputs().state(node, Facts())
    return Member(number=0, name=node.name, address=node.address, needs=trials.needs(state))


@dataclass(slots=True, kw_only=True)
class _Trial:
    """One run of all probes. Nothing of it is left on a node whose channel has closed."""

    fleet: Fleet
    connection: Callable[[str], Node]
    seen: Evidence = field(default_factory=Evidence)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    orders: dict[int, asyncio.Queue[bytes]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ending: bool = False

    async def probe(self, member: Member, listen: Sequence[Listen]) -> None:
        """A node's probe, from its start to its end."""
        self.orders[member.number] = asyncio.Queue()
        script = trials.script(self.fleet, member, listen, self.nonce)

        def hear(line: str) -> None:
            with contextlib.suppress(ValueError):  # what it says beside is nothing to go by
                self.seen.add(member.number, reach_probe.parse(line))
            self.news.set()

        try:
            node = self.connection(member.name)
            done = await node.run(script, stdin=self._orders(member), on_line=hear)
            reason = f"its probe ended: {done.stderr.strip() or f'status {done.status}'}"
        except NodeError as error:
            reason = error.message
        if not self.ending:
            self.seen.ended.setdefault(member.number, reason)
        self.news.set()

    async def _orders(self, member: Member) -> AsyncIterator[bytes]:
        while text := await self.orders[member.number].get():
            yield text

    async def conduct(self) -> None:
        """All rounds. Those whose probe does not start are tried as nodes without one."""
        numbers = {member.number for member in self.fleet.probed}
        await self._until(lambda: numbers <= {*self.seen.ready, *self.seen.ended}, START_SECONDS)
        for number in numbers - {*self.seen.ready, *self.seen.ended}:
            self.seen.ended[number] = f"its probe did not start within {START_SECONDS} s"
        self.fleet = self.fleet.without_probe(self.seen.ended)
        tries = trials.tries(self.fleet, self.seen)
        for number in range(1, ROUNDS + 1):
            await self._round(tries, number)
            tries = trials.narrower(tries, self.seen)
            if not tries:
                return

    async def _round(self, tries: Sequence[Try], number: int) -> None:
        texts: dict[int, list[str]] = {}
        for each in tries:
            texts.setdefault(each.asker, []).append(trials.order(self.fleet, each))
        for asker, lines in texts.items():
            self.orders[asker].put_nowait("".join(lines).encode())
        batches = ceil(max(map(len, texts.values()), default=0) / reach_probe.AT_ONCE)
        await self._until(lambda: self.seen.answered(tries, number), batches * reach_probe.LIMIT + START_SECONDS)
        await self._until(lambda: self.seen.arrived(tries), SETTLE_SECONDS)
        self.seen.close(tries)

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not holds():
                    self.news.clear()
                    await self.news.wait()
                    await asyncio.sleep(PAUSE_SECONDS)

    def end(self) -> None:
        """No more orders: the probes end."""
        self.ending = True
        for queue in self.orders.values():
            queue.put_nowait(b"")
