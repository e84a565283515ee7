"""`status` for people: one line per node, coloured where it wants a look."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.core.expiry import SOON, Expiry
from kubeworker.flow.status import FleetStatus, NodeLine

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
            _certificates(node),
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
    if fleet.ca.state != "good":
        screen.print(Text(f"the cluster's CA: {fleet.ca.text} left", style="bold red"))


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


STATES = {"expired": "bold red", "overdue": "red", "soon": "yellow", "good": ""}
"""The worst first."""


def _certificates(node: NodeLine) -> Text:
    """What is left of the certificate that is worst off, and its name."""
    missing = [name for name, lasts in node.certificates.items() if lasts is None]
    if missing:
        return Text(f"missing: {', '.join(missing)}", style="red")
    known = [(lasts, name) for name, lasts in node.certificates.items() if lasts is not None]
    if not known:
        return Text("")
    lasts, name = min(known, key=lambda each: ([*STATES].index(each[0].state), each[0].ends))
    return Text(f"{lasts.text}{_renewal(lasts)} ({name})", style=STATES[lasts.state])


def _renewal(lasts: Expiry) -> str:
    """What to think of little time left."""
    if lasts.state == "overdue":
        return ", not renewed in time"
    return ", renewed by itself" if lasts.rotates and lasts.state == "good" and lasts.left < SOON else ""


def _drift(node: NodeLine) -> Text:
    if node.drift is None:
        return Text("unknown", style="yellow")
    return Text(f"{node.drift} changes", style="yellow") if node.drift else Text("none", style="green")
