"""Events as they happen: a live table on a terminal, plain lines elsewhere, JSON lines for programs.

All of them go to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kubeworker.cli.output import console
from kubeworker.cli.progress import Progress, Row, line, size
from kubeworker.flow.events import CheckDone, Event, Transfer, Warning_, as_json

STYLES = {
    "ok": "green",
    "passed": "green",
    "running": "cyan",
    "failed": "bold red",
    "unreachable": "bold red",
    "skipped": "yellow",
    "pending": "yellow",
}
"""Colour by status, the same in every table."""

QUIET_SECONDS = 10.0
"""Without a terminal a transfer under way is told this often."""


class Screen(Protocol):
    """A reporter that can step aside while something else is printed or asked."""

    def __call__(self, event: Event, /) -> None: ...

    def paused(self) -> AbstractContextManager[None]: ...


@contextmanager
def reporting(*, json_events: bool = False) -> Iterator[Screen]:
    """A reporter for the length of one command, chosen by what standard error is."""
    screen = console(stderr=True)
    if json_events:
        yield _JsonLines()
    elif screen.is_terminal:
        with _Table(screen) as table:
            yield table
    else:
        yield _Lines()


class _JsonLines:
    """Each event as one JSON object on a line of its own."""

    def __call__(self, event: Event, /) -> None:
        sys.stderr.write(json.dumps(as_json(event), ensure_ascii=False) + "\n")
        sys.stderr.flush()

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Lines:
    """One line an event; of a transfer only its end, and where it takes long its state now and then.

    Checks that passed are counted when their node is done.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}

    def __call__(self, event: Event, /) -> None:
        match event:
            case CheckDone(status="passed"):
                return
            case Transfer() if not self._is_due(event):
                return
        sys.stderr.write(line(event) + "\n")
        sys.stderr.flush()

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _is_due(self, event: Transfer) -> bool:
        now, key = time.monotonic(), (event.node, event.subject)
        began = self._told.setdefault(key, now)
        if event.total and event.done >= event.total:
            del self._told[key]
            return True
        if now - began < QUIET_SECONDS:
            return False
        self._told[key] = now
        return True


class _Table:
    """A live table, one row per node; what is worth keeping (warnings, notes, failures) scrolls by above it."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._progress = Progress()
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._drawn, console=screen, refresh_per_second=8, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._live.stop()
        try:
            yield
        finally:
            self._progress = Progress()
            self._live.start()

    def __call__(self, event: Event, /) -> None:
        before = self._progress
        self._progress = before.after(event)
        if self._progress is before:  # not part of any row
            self._screen.print(Text(line(event), style="yellow" if isinstance(event, Warning_) else "dim"))

    def _drawn(self) -> RenderableType:
        rows, left_out = self._progress.shown(limit=max(4, self._screen.height - 3))
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row(
                Text(row.name, style="bold"), self._state(row), Text(row.stage), _bar(row), Text(row.detail or row.last)
            )
        return Group(table, Text(f"and {left_out} more", style="dim")) if left_out else table

    def _state(self, row: Row) -> RenderableType:
        return self._spinner if row.status == "running" else Text(row.status, style=STYLES[row.status])


def _bar(row: Row) -> RenderableType:
    if not row.total or row.done >= row.total:
        return Text(f"{row.actions} done" if row.actions else "")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=row.total, completed=row.done, width=20), Text(f"{size(row.done)}/{size(row.total)}"))
    return bar
