"""`status` for people: one line per node, coloured where it wants a look."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.flow.status import FleetStatus, NodeLine

EXPIRES_SOON_DAYS = 30
"""From here on a certificate's days are shown as a warning; apply renews kube-proxy's at the same point."""

COLUMNS = ("NAME", "READY", "KUBELET", "CONTAINERD", "UNITS", "CERTIFICATES", "DRIFT")


def print_status(screen: Console, fleet: FleetStatus) -> None:
    """The table, then what could not be looked at, and the CA's remaining days."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column)
    for node in fleet.nodes:
        table.add_row(
            Text(node.name, style="bold"),
            _ready(node),
            node.kubelet,
            node.runtime,
            _units(node),
            _days(node),
            _drift(node),
        )
    screen.print(table)
    for node in fleet.nodes:
        if node.error:
            screen.print(Text(f"{node.name}: {node.error.message}", style="red"), soft_wrap=True)
            if node.error.hint:
                screen.print(Text(f"  hint: {node.error.hint}", style="dim"), soft_wrap=True)
    if fleet.trouble:
        screen.print(Text(fleet.trouble, style="red"), soft_wrap=True)
    if fleet.ca_days < EXPIRES_SOON_DAYS:
        screen.print(Text(f"the cluster's CA lasts {fleet.ca_days} more days", style="bold red"))


def _ready(node: NodeLine) -> Text:
    if node.error:
        return Text(node.status, style="bold red")
    return Text(node.ready or "unknown", style="green" if node.ready == "Ready" else "yellow")


def _units(node: NodeLine) -> Text:
    """`4 active`, or those that are not."""
    wrong = {unit.removesuffix(".service"): state for unit, state in node.units.items() if state != "active"}
    if wrong:
        return Text(", ".join(f"{unit} {state}" for unit, state in wrong.items()), style="red")
    return Text(f"{len(node.units)} active" if node.units else "")


def _days(node: NodeLine) -> Text:
    """Days left of the certificate that ends first, and its name."""
    missing = [name for name, days in node.certificates.items() if days is None]
    if missing:
        return Text(f"missing: {', '.join(missing)}", style="red")
    ends = [(days, name) for name, days in node.certificates.items() if days is not None]
    if not ends:
        return Text("")
    days, name = min(ends)
    return Text(f"{days} days ({name})", style="yellow" if days < EXPIRES_SOON_DAYS else "")


def _drift(node: NodeLine) -> Text:
    if node.drift is None:
        return Text("unknown", style="yellow")
    return Text(f"{node.drift} changes", style="yellow") if node.drift else Text("none", style="green")
