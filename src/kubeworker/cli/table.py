"""The live view on a terminal: `live.py` draws it, rich keeps it in its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kubeworker.cli.lines import line
from kubeworker.cli.live import View, drawn
from kubeworker.cli.progress import Progress, left
from kubeworker.cli.styles import STYLES
from kubeworker.flow.events import Event, NodeDone, Warning_


class Table:
    """The live view; what is worth keeping (warnings, notes, failures) scrolls by above it."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._progress = Progress()
        self._began = time.monotonic()
        self._live = self._new()

    def _new(self) -> Live:
        """One for each time that it is shown: a stopped Live remembers its height, and started again it would first
        take away as many lines of what was printed meanwhile.
        """
        return Live(
            get_renderable=self._drawn,
            console=self._screen,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
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
            self._progress, self._began = Progress(), time.monotonic()
            self._live = self._new()
            self._live.start()

    def stopped(self) -> None:
        for text in left(self._progress):
            self._screen.print(Text(text))

    def __call__(self, event: Event, /) -> None:
        before = self._progress
        self._progress = before.after(event, time.monotonic())
        if self._progress is before:  # not part of any row
            style = STYLES["pending"] if isinstance(event, Warning_) else "dim"
        elif isinstance(event, NodeDone) and event.status != "ok":
            style = STYLES[event.status]
        else:
            return
        self._screen.print(Text(line(event), style=style))

    def _drawn(self) -> RenderableType:
        size = self._screen.size
        view = View(
            width=size.width,
            height=size.height,
            now=time.monotonic(),
            began=self._began,
            ascii=not self._screen.encoding.startswith("utf"),
        )
        return Group(*drawn(self._progress, view))
