"""`status` for people: one line per node, then what is not as it was left, coloured where it wants a look."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.core.certificates.expiry import SOON, Expiry
from kubeworker.core.drift import NOTHING_YET, Drift
from kubeworker.core.outlook import Prospect
from kubeworker.flow.status import FleetStatus, NodeLine

COLUMNS = ("NAME", "READY", "KUBELET", "CONTAINERD", "UNITS", "APISERVERS", "CERTIFICATES", "DRIFT")

SHOWN = 12
"""Differences of one node that are shown; more are counted."""
DIFF_LINES = 10
"""Lines shown of one difference."""


def print_status(
    screen: Console, fleet: FleetStatus, *, certificates: bool = False, horizon: bool = False, quiet: bool = False
) -> None:
    """The table, the differences, what could not be looked at. quiet: nodes in order are left out."""
    lines = [node for node in fleet.nodes if not quiet or node.drifts or node.error]
    if lines:
        screen.print(_table(lines))
    for node in lines:
        _node(screen, node, notes=not quiet)
    for title, drifts in (("cluster", fleet.cluster), ("control host", fleet.control_host)):
        if drifts:
            screen.print(Text(title, style="bold"))
            _drifts(screen, drifts)
    for note in () if quiet else fleet.notes:
        _line(screen, f"note: {note}", "dim")
    if fleet.trouble:
        _line(screen, fleet.trouble, "red")
    if any(node.drift for node in lines):
        _line(screen, "kubeworker apply puts back what changed on nodes and does what is not applied yet", "dim")
    if certificates:
        screen.print(_certificate_table(fleet))
    if horizon:
        _horizon(screen, fleet)


def _line(screen: Console, text: str, style: str = "") -> None:
    screen.print(Text(text, style=style), soft_wrap=True)


def _table(nodes: Sequence[NodeLine]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column)
    for node in nodes:
        table.add_row(
            Text(node.name, style="bold"),
            _ready(node),
            node.kubelet,
            node.runtime,
            _units(node),
            _servers(node),
            _certificates(node),
            _drift(node),
        )
    return table


def _node(screen: Console, node: NodeLine, *, notes: bool) -> None:
    said = node.notes if notes else ()
    if not (node.drifts or node.error or said):
        return
    when = f"  last apply {node.applied} by kubeworker {node.tool}" if node.applied else ""
    screen.print(Text.assemble((node.name, "bold"), (when, "dim")), soft_wrap=True)
    if node.error:
        _line(screen, f"  {node.error.tagged}", "red")
        _line(screen, f"  hint: {node.error.hint or node.error.way_out}", "dim")
    _drifts(screen, node.drifts)
    for note in said:
        _line(screen, f"  note: {note}", "dim")


# ---------------------------------------------------------------------------------------------------------------
# Differences


def _drifts(screen: Console, every: Sequence[Drift]) -> None:
    new = [each for each in every if each.by == NOTHING_YET]
    if new:
        _line(screen, f"  {NOTHING_YET}: {len(new)} changes (kubeworker plan shows them)", "yellow")
    drifts = [each for each in every if each.by != NOTHING_YET]
    for drift in drifts[:SHOWN]:
        _line(screen, f"  {drift.kind} {drift.subject}: {drift.what}", "yellow")
        _line(screen, f"      {whose(drift)}")
        lines = drift.diff.splitlines()
        # Unified diffs begin with two lines that name the files.
        for line in lines[:DIFF_LINES]:
            _line(screen, f"      {line}", "dim")
        if len(lines) > DIFF_LINES:
            _line(screen, f"      ... {len(lines) - DIFF_LINES} more lines (kubeworker plan --full)", "dim")
        if drift.fix:
            _line(screen, f"      fix: {drift.fix}", "dim")
    if len(drifts) > SHOWN:
        _line(screen, f"  ... and {len(drifts) - SHOWN} more (--json has them all, kubeworker plan shows them)", "dim")


def whose(drift: Drift) -> str:
    """Who has moved, in words."""
    at = f" at {drift.since}" if drift.since else ""
    match drift.who:
        case "node":
            return f"changed on the node{at}"
        case "input":
            return f"not applied yet: {drift.by}"
        case "both":
            return f"changed on the node{at}; and not applied yet: {drift.by}"
        case "run":
            return "left by an apply that did not get to its end"
        case "cluster" if drift.by:
            return f"changed in the cluster{at} by {drift.by}"
        case "cluster":
            return f"in the cluster{at and f', since {drift.since}'}"
        case "unknown":
            return (
                f"whose change it is can't be told: the node has no record of what was applied{at and f' ({at[1:]})'}"
            )


# ---------------------------------------------------------------------------------------------------------------
# The table's cells


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


def _servers(node: NodeLine) -> Text:
    """How many of them its API proxy uses at the moment; empty where nothing probes them."""
    used = sum(server.ready for server in node.servers)
    return Text(f"{used} of {len(node.servers)}" if node.servers else "", style="" if used else "red")


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
    """How many, and who has moved: `3: node, input`."""
    if node.drifts:
        who = ", ".join(dict.fromkeys(each.who for each in node.drifts))
        return Text(f"{len(node.drifts)}: {who}", style="yellow")
    return Text("none", style="green") if node.drift is not None else Text("unknown", style="yellow")


# ---------------------------------------------------------------------------------------------------------------
# Certificates and what lies ahead, where asked for

ROTATIONS = {
    "works": "works: kubelet renews it",
    "stuck": "stuck: its request gets nowhere",
    "late": "late: it should have been renewed",
    "none": "renewed by apply, 30 days before",
}


def _certificate_table(fleet: FleetStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NODE", "CERTIFICATE", "ENDS", "LEFT", "ROTATION"):
        table.add_column(column)
    for node in fleet.nodes:
        for name, lasts in node.certificates.items():
            if lasts is None:
                table.add_row(node.name, name, "", "missing", "")
                continue
            itself = "kubelet" in name and not lasts.rotates
            rotation = "off (rotateCertificates)" if itself else ROTATIONS[node.rotation(name)]
            ends = f"{lasts.ends:%Y-%m-%d %H:%M}"
            table.add_row(node.name, name, ends, Text(lasts.text, style=STATES[lasts.state]), rotation)
    ca = fleet.ca
    table.add_row("", "the cluster's CA", f"{ca.ends:%Y-%m-%d %H:%M}", Text(ca.text, style=STATES[ca.state]), "yours")
    return table


PROSPECTS = {"fails": "bold red", "unsupported": "red", "ended": "red", "deprecated": "yellow", "ahead": ""}


def _horizon(screen: Console, fleet: FleetStatus) -> None:
    """Each thing once, with the nodes that it concerns."""
    nodes: dict[Prospect, list[str]] = {}
    for node in fleet.nodes:
        for each in node.prospects:
            nodes.setdefault(each, []).append(node.name)
    screen.print(Text("horizon", style="bold"))
    if not nodes:
        _line(screen, "  nothing that is known here lies ahead of what runs")
    for each in sorted(nodes, key=lambda prospect: [*PROSPECTS].index(prospect.state)):
        where = "all nodes" if len(nodes[each]) == len(fleet.nodes) else ", ".join(nodes[each])
        _line(screen, f"  {each.state}: {each.what} ({where})", PROSPECTS[each.state])
        _line(screen, f"      {each.when}")
        _line(screen, f"      way out: {each.way_out}")
        _line(screen, f"      source: {each.source}", "dim")
    for text in dict.fromkeys(text for node in fleet.nodes for text in node.running.told):
        _line(screen, f"  they say themselves: {text}", "yellow")
