"""Which nodes are worked on, and which of them the others went on without: nobody waits for one that hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from kubeworker.flow.polling import POLL_SECONDS

PATIENCE = 3.0
"""Seconds that nodes whose work is done wait for those that are still at it, after the last of them was done."""


@dataclass(kw_only=True)
class Pace:
    """The state of a run in this respect."""

    going: Callable[[], Collection[str]]
    """Nodes that nothing has stopped yet."""
    patience: float = PATIENCE
    poll: float = POLL_SECONDS
    busy: set[str] = field(default_factory=set)
    """Nodes that are worked on at this moment."""
    behind: set[str] = field(default_factory=set)
    """Nodes that the others went on without: their next round is still to come, busy or done by now."""
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def leave(self, name: str) -> None:
        """Its work is done or has failed."""
        self.busy.discard(name)
        self._moved.set()

    def fall_behind(self, names: Collection[str]) -> None:
        """The others go on now; those of the names that are still busy will have to catch up."""
        self.behind |= self.busy.intersection(names)

    async def keep(self, names: Collection[str]) -> None:
        """Until none of these is worked on, or those that are done have waited long enough for the rest."""
        clock = asyncio.get_running_loop()
        done, since = 0, clock.time()
        while self.busy.intersection(names):
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll):
                    await self._moved.wait()
            now = len({*names}.intersection(self.going()) - self.busy)
            if now > done:
                done, since = now, clock.time()
            elif done and clock.time() - since >= self.patience:
                return

    async def caught_up(self) -> set[str]:
        """Wait for nodes that are behind: those that are done now, whose next round it is. Empty where they failed."""
        late = set(self.behind)
        await self.keep(late)
        self.behind -= late - self.busy
        return (late - self.busy).intersection(self.going())
