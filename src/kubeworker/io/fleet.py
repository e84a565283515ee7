"""The one place where things run side by side: a bounded fan-out whose results are values, one per item."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from kubeworker.core.limit import Limit
from kubeworker.errors import InternalError, KubeworkerError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Ok(Generic[V]):
    """The work was done."""

    value: V


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed; a node that can't be reached is a Failed whose error is NodeUnreachable."""

    error: KubeworkerError


Outcome: TypeAlias = Ok[V] | Failed


async def fan_out(items: Sequence[K], work: Callable[[K], Awaitable[V]], *, limit: int) -> dict[K, Outcome[V]]:
    """Do `work` on each item, at most `limit` at once; the results stand in the order of the items.

    One item's failure never stops another's work. Cancelling (Ctrl-C) cancels all that runs and waits for it to end.
    """
    slots = asyncio.Semaphore(limit)
    async with asyncio.TaskGroup() as group:
        tasks = {item: group.create_task(_outcome(item, work, slots)) for item in items}
    return {item: task.result() for item, task in tasks.items()}


class Begun(Generic[K, V]):
    """Work that is under way on each item; who needs one item's result waits for that one alone."""

    def __init__(self, items: Sequence[K], work: Callable[[K], Awaitable[V]]) -> None:
        """Start it, on all of them at once; whoever starts it ends it."""
        slots = asyncio.Semaphore(max(len(items), 1))
        self._tasks = {item: asyncio.create_task(_outcome(item, work, slots)) for item in items}

    async def outcome(self, item: K) -> Outcome[V]:
        """The item's, as soon as there is one. Who stops waiting for it does not stop the work."""
        return await asyncio.shield(self._tasks[item])

    def known(self, item: K) -> Outcome[V]:
        """The item's, which somebody has waited for."""
        return self._tasks[item].result()

    async def then(self, items: Sequence[K], work: Callable[[V], Awaitable[W]], *, limit: int) -> dict[K, Outcome[W]]:
        """Do `work` on what came of each item as soon as it is there, on at most `limit` at once."""
        slots = asyncio.Semaphore(limit)

        async def next_(item: K) -> W:
            match await self.outcome(item):
                case Ok(value=value):
                    # Not before: an item that takes long keeps none of the others from their work.
                    async with slots:
                        return await work(value)
                case Failed(error=error):
                    raise error

        return await fan_out(items, next_, limit=max(len(items), 1))

    async def end(self) -> tuple[V, ...]:
        """Cancel what is still under way and wait for its end; what has come of the rest."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        ended = (task.result() for task in self._tasks.values() if not task.cancelled())
        return tuple(outcome.value for outcome in ended if isinstance(outcome, Ok))


async def _outcome(item: K, work: Callable[[K], Awaitable[V]], slots: asyncio.Semaphore) -> Outcome[V]:
    async with slots:
        try:
            return Ok(await work(item))
        except KubeworkerError as error:
            return Failed(error)
        except Exception as error:
            # A bug that one node's data brings out must not hide what the others did.
            bug = InternalError(f"unexpected {type(error).__name__}: {error}", subject=str(item))
            bug.__cause__ = error
            return Failed(bug)


class Slots:
    """Places for what may be under way at once, first come, first served; their number follows what is told of it."""

    def __init__(self, limit: Limit) -> None:
        """Nothing is under way yet."""
        self.limit = limit
        self.gains = 0
        """Successes so far."""
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self._taken >= int(self.limit.allowed)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for a place and hold it."""
        await self._take()
        try:
            yield Slot(self, self.limit.epoch)
        finally:
            self._taken -= 1
            self._wake()

    async def _take(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It was given the place already: the next one gets it.
                self._taken -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._taken < int(self.limit.allowed):
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)

    def learn(self, limit: Limit) -> None:
        """The limit is this from now on; what is under way above it goes on."""
        self.limit = limit
        self._wake()


class Slot:
    """One place that is held."""

    def __init__(self, slots: Slots, epoch: int) -> None:
        self._slots = slots
        self._epoch = epoch

    @property
    def alone(self) -> bool:
        """Whether nothing else is under way: then it is not this run that is too much for the other end."""
        return self._slots._taken <= 1  # noqa: SLF001

    def gained(self) -> None:
        """What holds it went well."""
        self._slots.gains += 1
        self._slots.learn(self._slots.limit.gained())

    def lost(self) -> None:
        """What holds it was turned away for there being too many."""
        self._slots.learn(self._slots.limit.lost(began=self._epoch))
