"""What is going on, folded from events: one row per node, as values. Pure; `live.py` draws it, `lines.py` tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from kubeworker.flow.events import (
    ActionDone,
    ActionStarted,
    CheckDone,
    Event,
    NodeDone,
    NodeQueued,
    NodeSeen,
    NodeStarted,
    StageStarted,
    Transfer,
    Waiting,
)

RowStatus: TypeAlias = Literal["queued", "running", "ok", "failed", "unreachable", "skipped"]
RowKind: TypeAlias = Literal["node", "download", "cluster"]

CLUSTER = "cluster"
"""Name of the row of the Kubernetes objects."""

_ENDED = frozenset({"failed", "unreachable", "skipped"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One node's line, one download's or a bundle's (the name is then the file's), or that of the cluster's objects."""

    name: str
    kind: RowKind = "node"
    status: RowStatus = "running"
    stage: str = ""
    """What is done now: connect, observe, artifacts, a component, verify."""
    last: str = ""
    """The action or check under way, or the last one."""
    waits: str = ""
    """What it waits for."""
    done: int = 0
    """Bytes of the transfer under way."""
    total: int = 0
    moved: int = 0
    """Bytes of transfers that are over."""
    actions: int = 0
    """Actions or checks done."""
    steps: int = 0
    """How many there will be; 0: not known."""
    failures: int = 0
    """Checks that failed."""
    detail: str = ""
    """Why it failed."""
    finished: bool = False
    """Its work is done; an `ok` without it has only been looked at."""
    since: float = 0.0
    """When the present state began, on the clock that the events are folded with."""

    @property
    def state(self) -> str:
        """One word or two for where it stands: rows of the same state are counted together."""
        if self.waits and self.status not in _ENDED:
            return "waits"
        match self.status:
            case "running":
                return self.stage or "started"
            case "ok":
                return "done" if self.finished else "seen"
            case status:
                return status

    @property
    def moves(self) -> bool:
        """Whether something is done on it, or waited for, at this moment."""
        return self.status == "running" or self.state == "waits"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, as far as it is known."""
        return self.status not in {"running", "queued"} and self.state != "waits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All rows by name, in the order in which they appeared."""

    rows: Mapping[str, Row] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[Row, ...]:
        """The rows of nodes."""
        return tuple(row for row in self.rows.values() if row.kind == "node")

    def after(self, event: Event, at: float = 0.0) -> Progress:
        """The progress once this event has happened; at which second, on any clock that only goes forward."""
        match event:
            case NodeQueued(node=node, steps=steps):
                row = self._row(node)
                queued = replace(row, status="queued", stage="", steps=row.actions + steps, finished=False)
                return self._with(queued, at)
            case NodeStarted(node=node, what=what, steps=steps):
                row = self._row(node)
                return self._with(
                    replace(row, status="running", stage=what, waits="", steps=row.actions + steps or row.steps), at
                )
            case NodeSeen(node=node):
                return self._with(replace(self._row(node), status="ok", stage=""), at)
            case StageStarted(node=node, component=component):
                row = replace(self._row(node), status="running", stage=component, last="", waits="", done=0, total=0)
                return self._with(row, at)
            case ActionStarted(node=node, kind=kind, subject=subject):
                return self._with(replace(self._row(node), last=f"{kind} {subject}"), at)
            case ActionDone(node=node, kind=kind, subject=subject):
                row = self._row(node)
                done = replace(row, last=f"{kind} {subject}", actions=row.actions + 1, done=0, total=0)
                return self._with(done if node else replace(done, status="ok", finished=True), at)
            case CheckDone(node=node, id=check, status=status):
                row = self._row(node)
                failures = row.failures + (status == "failed")
                return self._with(replace(row, last=check, actions=row.actions + 1, failures=failures), at)
            case Waiting(node=node, what=what):
                return self._with(replace(self._row(node), waits=what), at)
            case Transfer():
                return self._moved(event, at)
            case NodeDone(node=node, status=status, detail=detail):
                row = replace(self._row(node), status=status, detail=headline(detail), waits="", done=0, total=0)
                return self._with(replace(row, finished=True), at)
            case _:
                return self

    def _moved(self, event: Transfer, at: float) -> Progress:
        is_whole = event.total > 0 and event.done >= event.total
        if not event.node:
            stage = event.what or "download"
            row = self._row(event.subject, "download")
            row = replace(row, status="running", stage=stage, done=event.done, total=event.total, finished=False)
            return self._with(replace(row, status="ok", finished=True) if is_whole else row, at)
        row = replace(self._row(event.node), status="running", stage=event.subject, waits="", last="")
        if is_whole:
            # Its last bytes are on the way; the node still has to unpack and check them.
            return self._with(replace(row, done=0, total=0, moved=row.moved + event.total, last="check them"), at)
        return self._with(replace(row, done=event.done, total=event.total), at)

    def counts(self) -> Counter[str]:
        """How many nodes stand where."""
        return Counter(row.state for row in self.nodes)

    def _row(self, name: str, kind: RowKind = "node") -> Row:
        # A download has a key of its own: an artifact and a node may have the same name.
        if not name:
            name, kind = CLUSTER, "cluster"
        return self.rows.get(_key(name, kind)) or Row(name=name, kind=kind)

    def _with(self, row: Row, at: float) -> Progress:
        before = self.rows.get(key := _key(row.name, row.kind))
        same = before is not None and (before.state, before.waits) == (row.state, row.waits)
        return Progress(rows={**self.rows, key: row if same else replace(row, since=at)})


def _key(name: str, kind: RowKind) -> str:
    return name if kind == "node" else f"{kind} {name}"


def summary(progress: Progress, seconds: float | None = None, *, width: int = 0) -> str:
    """All of it in one line: `1 of 3 nodes done, 36 of 102 changes, 120 MB, 42 s`; what does not fit is left out."""
    nodes = progress.nodes
    parts = list(_parts(progress))
    if seconds is not None:
        parts.append(duration(seconds))
    while width and len(", ".join(parts)) > width and len(parts) > 1:
        # The first says how far it is, the last how long it took: the middle goes, from behind.
        parts.pop(-2 if seconds is not None and len(parts) > 2 else -1)
    return ", ".join(parts) if nodes or progress.rows else ""


def _parts(progress: Progress) -> list[str]:
    nodes, counts = progress.nodes, progress.counts()
    every = f"{len(nodes)} node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    word = "done" if any(row.finished or row.steps for row in nodes) else "seen"
    parts = [f"{counts['done' if word == 'done' else 'seen']} of {every} {word}"] if nodes else []
    parts += [f"{counts[state]} {state}" for state in ("failed", "unreachable", "skipped") if counts[state]]
    steps, actions = sum(row.steps for row in nodes), sum(row.actions for row in nodes)
    if steps:
        what = "checks" if any(row.stage == "verify" for row in nodes) else "changes"
        parts.append(f"{actions} of {steps} {what}")
    if moved := sum(row.moved + row.done for row in nodes):
        parts.append(f"{size(moved)} sent")
    moving = [row for row in progress.rows.values() if row.kind == "download" and row.moves]
    if loading := sum(row.stage == "download" for row in moving):
        parts.append(f"{loading} download{'s' * (loading > 1)}")
    parts += [f"{row.stage} {row.name}" for row in moving if row.stage != "download"]
    return parts


def at_work(progress: Progress) -> dict[str, list[str]]:
    """The nodes that something is done on, by what that is."""
    found: dict[str, list[str]] = {}
    for row in progress.nodes:
        if row.moves and not row.waits:
            found.setdefault(row.state, []).append(row.name)
    return found


def waiting(progress: Progress) -> dict[str, list[str]]:
    """The nodes that wait, by what for."""
    found: dict[str, list[str]] = {}
    for row in progress.nodes:
        if row.state == "waits":
            found.setdefault(row.waits, []).append(row.name)
    return found


def listed(names: Sequence[str]) -> str:
    """`a, b, c`; of a fleet the first eight and how many more."""
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])} and {len(names) - 8} more"


def size(count: int) -> str:
    """Bytes for people: 214 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `3:07 min`."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02} min"


def headline(detail: str) -> str:
    """The first line: the journal lines below it are shown with the outcome."""
    return detail.split("\n", maxsplit=1)[0]


def left(progress: Progress) -> Iterator[str]:
    """Where an interrupted run stands: what is done, and what was being done."""
    if not progress.nodes:
        return
    yield f"stopped: {summary(progress)}"
    for what, names in at_work(progress).items():
        yield f"  {what}: {listed(names)}"
    for what, names in waiting(progress).items():
        yield f"  waited for {what}: {listed(names)}"
