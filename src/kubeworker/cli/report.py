"""Events as they happen: a live view on a terminal, plain lines elsewhere, JSON lines for programs, or next to nothing.

All of them go to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol, Self, TypeAlias, TypeVar

from kubeworker.cli.lines import is_told, line
from kubeworker.cli.output import console
from kubeworker.cli.progress import Progress, left, listed, summary, waiting
from kubeworker.flow.events import Event, Transfer, Warning_, as_json

Form: TypeAlias = Literal["auto", "plain", "quiet", "json"]
"""auto: the live view where standard error is a terminal, else plain; quiet: warnings alone; json: for programs."""

QUIET_SECONDS = 10.0
"""Plain lines: after so long without one, how far it is; and how often a transfer under way is told."""


class Screen(Protocol):
    """A reporter that can step aside while something else is printed or asked."""

    def __call__(self, event: Event, /) -> None: ...

    def paused(self) -> AbstractContextManager[None]: ...

    def stopped(self) -> None:
        """The run was interrupted, and has cleaned up."""
        ...


_ScreenT = TypeVar("_ScreenT", bound=Screen)


@contextmanager
def reporting(form: Form = "auto") -> Iterator[Screen]:
    """A reporter for the length of one command, chosen by what standard error is."""
    if form == "json":
        yield _JsonLines()
    elif form == "quiet":
        yield _Quiet()
    elif form == "auto" and sys.stderr.isatty() and not (screen := console(stderr=True)).is_dumb_terminal:
        # Not rich's is_terminal: FORCE_COLOR, which CI sets, makes that true of a pipe.
        from kubeworker.cli.table import Table

        with _stoppable(Table(screen)) as table, table:
            yield table
    else:
        with _stoppable(_Lines()) as lines, lines:
            yield lines


@contextmanager
def _stoppable(screen: _ScreenT) -> Iterator[_ScreenT]:
    """Ctrl-C cancels the task that runs the command; by the time it comes here, flows have cleaned up."""
    try:
        yield screen
    except (asyncio.CancelledError, KeyboardInterrupt):
        screen.stopped()
        raise


class _JsonLines:
    """Each event as one JSON object on a line of its own."""

    def __call__(self, event: Event, /) -> None:
        sys.stderr.write(json.dumps(as_json(event), ensure_ascii=False) + "\n")
        sys.stderr.flush()

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stopped(self) -> None:
        pass


class _Quiet:
    """Warnings alone."""

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Warning_):
            _write(line(event))

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stopped(self) -> None:
        pass


class _Lines:
    """One line an event; of a transfer only its end. Where nothing was told for a while: how far it is, and what waits.

    Checks that passed are counted when their node is done.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}
        self._progress = Progress()
        self._began = self._last = time.monotonic()
        self._over = threading.Event()
        # A run that waits for a node tells nothing: a log must not look dead then.
        self._pulse = threading.Thread(target=self._beat, name="kubeworker-pulse", daemon=True)

    def __enter__(self) -> Self:
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pulse.join()

    def __call__(self, event: Event, /) -> None:
        now = time.monotonic()
        self._progress = self._progress.after(event, now)
        if is_told(event) and not (isinstance(event, Transfer) and not self._is_due(event, now)):
            self._tell(line(event))

    @contextmanager
    def paused(self) -> Iterator[None]:
        # What was looked at is over; what is told from here on begins anew.
        self._progress, self._began = Progress(), time.monotonic()
        yield

    def stopped(self) -> None:
        for text in left(self._progress):
            self._tell(text)

    def _beat(self) -> None:
        while not self._over.wait(1):
            now, progress = time.monotonic(), self._progress
            if now - self._last >= QUIET_SECONDS and any(row.moves for row in progress.rows.values()):
                waits = "".join(f"; waiting for {what}: {listed(names)}" for what, names in waiting(progress).items())
                self._tell(f"{summary(progress, now - self._began)}{waits}")

    def _tell(self, text: str) -> None:
        self._last = time.monotonic()
        _write(text)

    def _is_due(self, event: Transfer, now: float) -> bool:
        key = (event.node, event.subject)
        began = self._told.setdefault(key, now)
        if event.total and event.done >= event.total:
            del self._told[key]
            return True
        if now - began < QUIET_SECONDS:
            return False
        self._told[key] = now
        return True


def _write(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
