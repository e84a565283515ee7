"""What is going on, folded from events: one row per node, as values. Pure; `report.py` draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, assert_never

from kubeworker.flow.events import (
    ActionDone,
    ArtifactReady,
    CheckDone,
    CsrDecision,
    Event,
    NodeDone,
    NodeStarted,
    Note,
    StageStarted,
    Transfer,
    Warning_,
)

RowStatus: TypeAlias = Literal["running", "ok", "failed", "unreachable", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One node's line, or one download's (`node` is then the artifact)."""

    name: str
    status: RowStatus = "running"
    stage: str = ""
    last: str = ""
    """The last action or check."""
    done: int = 0
    """Bytes of the transfer under way."""
    total: int = 0
    actions: int = 0
    failures: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All rows by name, in the order in which they appeared."""

    rows: Mapping[str, Row] = field(default_factory=dict)

    def after(self, event: Event) -> Progress:
        """The progress once this event has happened."""
        match event:
            case NodeStarted(node=node, what=what):
                return self._with(replace(self._row(node), status="running", stage=what))
            case StageStarted(node=node, component=component):
                return self._with(replace(self._row(node), stage=component, last="", done=0, total=0))
            case ActionDone(node=node, kind=kind, subject=subject):
                row = self._row(node or "cluster")
                return self._with(replace(row, last=f"{kind} {subject}", actions=row.actions + 1, done=0, total=0))
            case CheckDone(node=node, id=check, status=status):
                row = self._row(node or "cluster")
                failures = row.failures + (status == "failed")
                return self._with(replace(row, last=check, actions=row.actions + 1, failures=failures))
            case Transfer(node=node, subject=subject, done=done, total=total):
                row = replace(self._row(node or subject), done=done, total=total)
                finished = not node and total > 0 and done >= total
                return self._with(replace(row, status="ok") if finished else row)
            case NodeDone(node=node, status=status, detail=detail):
                return self._with(replace(self._row(node), status=status, detail=_headline(detail), done=0, total=0))
            case _:
                return self

    def shown(self, limit: int) -> tuple[tuple[Row, ...], int]:
        """The rows that fit in `limit` lines, those that matter most first, and how many are left out."""
        order = {"failed": 0, "unreachable": 1, "running": 2, "skipped": 3, "ok": 4}
        rows = sorted(self.rows.values(), key=lambda row: order[row.status])
        return tuple(rows[:limit]), max(0, len(rows) - limit)

    def _row(self, name: str) -> Row:
        return self.rows.get(name) or Row(name=name)

    def _with(self, row: Row) -> Progress:
        return Progress(rows={**self.rows, row.name: row})


def size(count: int) -> str:
    """Bytes for people: 214 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _headline(detail: str) -> str:
    """The first line: the journal lines below it are shown with the outcome."""
    return detail.split("\n", maxsplit=1)[0]


def line(event: Event) -> str:
    """The event as one plain line."""
    match event:
        case NodeStarted(node=node, what=what):
            return f"{node}: {what or 'started'}"
        case StageStarted(node=node, component=component):
            return f"{node}: {component}"
        case ActionDone(node=node, kind=kind, subject=subject, seconds=seconds):
            took = f" ({seconds:.1f} s)" if seconds >= 0.1 else ""
            return f"{node or 'cluster'}: {kind} {subject}{took}"
        case CheckDone(node=node, id=check, status=status, detail=detail):
            return f"{node or 'cluster'}: {check}: {status}{f': {detail}' if detail and status != 'passed' else ''}"
        case Transfer(node=node, subject=subject, done=done, total=total):
            return f"{node}: " * bool(node) + f"{subject} {size(done)}{f' of {size(total)}' if total else ''}"
        case NodeDone(node=node, status=status, detail=detail, seconds=seconds):
            took = f" after {seconds:.1f} s" if seconds else ""
            return f"{node}: {status}{took}{f': {_headline(detail)}' if detail else ''}"
        case Note(subject=subject, text=text):
            return f"{subject}: {text}" if subject else text
        case Warning_(subject=subject, text=text):
            return f"warning: {subject}: {text}" if subject else f"warning: {text}"
        case ArtifactReady(name=name, version=version, source=source):
            return f"{name} {version}: from {source}"
        case CsrDecision(name=name, node=node, signer=signer, decision=decision, rule=rule, detail=detail):
            return ": ".join(filter(None, (node, f"{decision} {name} ({signer})", rule, detail)))
        case _:
            assert_never(event)
