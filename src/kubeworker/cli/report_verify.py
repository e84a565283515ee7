"""The outcome of `verify` for people: failures with their detail, and a line per node."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.styles import STYLES
from kubeworker.core.verify.checks import NodeReport, VerifyReport

TELLING = ("containerd.registry.", "containerd.mirror.")
"""Checks whose detail is worth reading when they pass too: which host served an image."""


def print_verdicts(screen: Console, report: VerifyReport, *, passed: bool = False) -> None:
    """Failed checks first to last (passed ones on request), then the counts per node and the verdict."""
    for node in report.nodes:
        _print_node(screen, node, passed=passed)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NODE", "PASSED", "FAILED"):
        table.add_column(column, justify="left" if column == "NODE" else "right")
    for node in report.nodes:
        failures = _failures(node)
        verdict = "unreachable" if node.unreachable else "failed" if failures else "passed"
        cells = (node.name, str(len(node.checks) - failures), str(failures))
        table.add_row(*(Text(cell, style=STYLES[verdict]) for cell in cells))
    screen.print(table)
    style = STYLES["failed" if report.failed else "passed"]
    screen.print(Text(f"{report.passed} checks passed, {report.failed} failed", style=style))


def _print_node(screen: Console, node: NodeReport, *, passed: bool) -> None:
    shown = [each for each in node.checks if passed or each.status == "failed" or each.id.startswith(TELLING)]
    if not shown:
        return
    screen.print(Text(node.name, style="bold"))
    if node.unreachable and not passed:
        # Each check says so, for programs; a person reads it once.
        screen.print(Text.assemble("  ", (shown[0].detail, STYLES["unreachable"])), soft_wrap=True)
        return
    for verdict in shown:
        first, *rest = verdict.detail.splitlines() or [""]
        status = (verdict.status, STYLES[verdict.status])
        screen.print(Text.assemble("  ", status, "  ", verdict.id, f": {first}" if first else ""), soft_wrap=True)
        for line in rest:
            screen.print(Text(f"          {line}", style="dim"), soft_wrap=True)


def _failures(node: NodeReport) -> int:
    return sum(verdict.status == "failed" for verdict in node.checks)
