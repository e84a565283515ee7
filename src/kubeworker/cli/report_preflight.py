"""`preflight` for people: one table, a row for each check and what came of it, with the nodes that it came of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.progress import listed
from kubeworker.cli.report_plan import count
from kubeworker.cli.styles import STYLES
from kubeworker.core.preflight.row import Row, Status
from kubeworker.core.reachability.rows import Matrix
from kubeworker.flow.preflight import Preflight

_STYLES: dict[Status, str] = {
    "ok": STYLES["ok"],
    "host": "dim",
    "unknown": "yellow",
    "warning": "yellow",
    "failed": STYLES["failed"],
}
_WORST = tuple(reversed(_STYLES))


@dataclass(slots=True)
class _Line:
    """Nodes of which a check says the same; where it holds, its words may differ."""

    row: Row
    nodes: list[str] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        """What it says of all of them; nothing where that differs."""
        return self.row.message if len(self.messages) == 1 else ""


def print_checks(screen: Console, found: Preflight) -> None:
    """The table, the worst of each check first, then nodes that gave no answer, and the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("CHECK", "STATUS", "NODES", "FOUND"):
        table.add_column(column, overflow="fold")
    looked = sum(node.error is None for node in found.nodes)
    for line in _lines(found):
        nodes = "all" if len(line.nodes) == looked > 1 else listed(line.nodes)
        style = _STYLES[line.row.status]
        told = Text(line.text)
        if line.row.fix:
            told.append(f"\nfix: {line.row.fix}", style="dim")
        table.add_row(Text(line.row.id), Text(line.row.status, style=style), Text(nodes), told)
    if table.rows:
        screen.print(table)
    if found.matrix:
        _print_matrix(screen, found.matrix)
    for node in found.nodes:
        if node.error:
            screen.print(Text(f"{node.name}: {node.status}: {node.error.tagged}", style="red"), soft_wrap=True)
            hint = node.error.hint or node.error.way_out
            screen.print(Text(f"  hint: {hint}", style="dim"), soft_wrap=True)
    screen.print(Text(summary(found), style=STYLES["failed" if found.exit_code else "ok"]), soft_wrap=True)


def _print_matrix(screen: Console, matrix: Matrix) -> None:
    """Who reaches whom: a row for each that asks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("FROM \\ TO")
    for name in matrix.targets:
        table.add_column(name, overflow="fold")
    for name, cells in matrix.cells.items():
        table.add_row(Text(name, style="bold"), *(Text(cell, style=_CELLS.get(cell, "red")) for cell in cells))
    screen.print()
    screen.print(table)
    screen.print()


_CELLS = {"ok": STYLES["ok"], "-": "dim", "?": "yellow"}


def summary(found: Preflight) -> str:
    """`41 checks ok, 1 failed, 2 warnings; unreachable: k8s-02`."""
    parts = [f"{count(found.count('ok'), 'check')} ok", f"{found.count('failed')} failed"]
    parts.append(count(found.count("warning"), "warning"))
    parts += [f"{number} {word}" for status, word in _OTHERS if (number := found.count(status))]
    unreachable = [node.name for node in found.nodes if node.status == "unreachable"]
    return ", ".join(parts) + (f"; unreachable: {listed(unreachable)}" if unreachable else "")


_OTHERS: tuple[tuple[Status, str], ...] = (("host", "of a container's host"), ("unknown", "unknown"))


def _lines(found: Preflight) -> Iterator[_Line]:
    checks: dict[str, dict[tuple[str, str, str], _Line]] = {}
    for node in found.nodes:
        for row in node.rows:
            holds = row.status in {"ok", "host"}
            same = (row.status, "" if holds else row.message, row.fix)
            line = checks.setdefault(row.id, {}).setdefault(same, _Line(row=row))
            line.nodes.append(row.node)
            line.messages.add(row.message)
    for lines in checks.values():
        yield from sorted(lines.values(), key=lambda line: _WORST.index(line.row.status))
