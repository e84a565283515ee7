"""The one place where things run side by side: a bounded fan-out whose results are values, one per item."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from kubeworker.errors import KubeworkerError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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


async def _outcome(item: K, work: Callable[[K], Awaitable[V]], slots: asyncio.Semaphore) -> Outcome[V]:
    async with slots:
        try:
            return Ok(await work(item))
        except KubeworkerError as error:
            return Failed(error)
        except Exception as error:
            # A bug that one node's data brings out must not hide what the others did.
            bug = KubeworkerError(
                f"internal error: {type(error).__name__}: {error}", subject=str(item), hint="please report this"
            )
            bug.__cause__ = error
            return Failed(bug)
