"""`status` for people: a table with a line per node."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.report import STYLES
from kubeworker.flow.status import FleetStatus, NodeLine

SOON_DAYS = 30
"""Certificates that end sooner are marked."""

_GOOD, _BAD = STYLES["passed"], STYLES["failed"]


def print_status(screen: Console, fleet: FleetStatus) -> None:
    """The table, then the CA's own days and what kept something from being seen."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NODE", "READY", "KUBELET", "CONTAINERD", "UNITS", "CERTIFICATES (DAYS)", "DRIFT"):
        table.add_column(column, justify="right" if column == "DRIFT" else "left")
    for node in fleet.nodes:
        table.add_row(*_cells(node))
    screen.print(table)
    screen.print(Text.assemble("CA: ", _days(fleet.ca_days), " days left"))
    if fleet.trouble:
        screen.print(Text(f"no kube-apiserver answers: {fleet.trouble}", style=_BAD))
    for node in fleet.nodes:
        if node.error:
            screen.print(Text(f"{node.name}: {node.error.message}", style=_BAD), soft_wrap=True)


def _cells(node: NodeLine) -> tuple[Text, ...]:
    if node.status == "unreachable":
        return Text(node.name), Text("unreachable", style=_BAD)
    return (
        Text(node.name),
        Text(node.ready or "?", style=_GOOD if node.ready == "Ready" else _BAD),
        Text(node.kubelet or "-"),
        Text(node.runtime or "-"),
        _units(node),
        Text(" ").join(
            Text.assemble(f"{check.removesuffix('_cert')} ", _days(days)) for check, days in node.certificates.items()
        ),
        _drift(node.drift),
    )


def _units(node: NodeLine) -> Text:
    down = [f"{unit.removesuffix('.service')} {state}" for unit, state in node.units.items() if state != "active"]
    if not down:
        return Text(f"{len(node.units)} active", style=_GOOD)
    return Text(", ".join(down), style=_BAD)


def _drift(drift: int | None) -> Text:
    if drift is None:
        return Text("?", style=_BAD)
    return Text(str(drift), style=_GOOD if drift == 0 else _BAD)


def _days(days: int | None) -> Text:
    if days is None:
        return Text("none", style=_BAD)
    return Text(str(days), style=_GOOD if days >= SOON_DAYS else _BAD)
