"""That `csr approve --watch` goes on, for those who can start it anew: a kubelet's probes, and systemd's watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from kubeworker.core.pulse import Pulse
from kubeworker.flow.events import Event, Reporter
from kubeworker.io import health, service_manager

Turned: TypeAlias = Callable[[bool], None]
"""Called after each turn, with whether the API answered in it."""


def nobody(_answered: bool) -> None:  # noqa: FBT001 (a callback's one argument)
    """No one asks."""


@dataclass(kw_only=True)
class Alive:
    """Keeps the last sign of life, and passes it on to a service manager that waits for one."""

    pulse: Pulse = field(default_factory=lambda: Pulse(seen=_now()))

    def turned(self, answered: bool) -> None:  # noqa: FBT001 (a callback's one argument)
        """One turn is done."""
        if not self.pulse.answered and answered:
            service_manager.notify("READY=1")
        self.pulse = Pulse(seen=_now(), answered=answered)
        service_manager.notify("WATCHDOG=1")

    def heard(self, report: Reporter) -> Reporter:
        """The reporter, with each event a sign of life too: a turn with many approvals takes long."""

        def told(event: Event) -> None:
            self.pulse = replace(self.pulse, seen=_now())
            report(event)

        return told

    def answer(self, path: str) -> bool | None:
        """/healthz: it goes round. /readyz: and the API answers. None: no such path."""
        match path:
            case "/healthz":
                return self.pulse.alive(_now())
            case "/readyz":
                return self.pulse.ready(_now())
            case _:
                return None


@asynccontextmanager
async def shown(port: int | None) -> AsyncIterator[Alive]:
    """Tell of it on this port while the block runs (None: on none), and to systemd where that asked for it."""
    alive = Alive()
    async with AsyncExitStack() as stack:
        if port is not None:
            await stack.enter_async_context(health.serving(port, alive.answer))
        yield alive


def _now() -> float:
    return asyncio.get_running_loop().time()
