"""The plan for people: what changes, why, the diffs, and which restarts it costs. Its source is the JSON form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

from rich.console import Console
from rich.text import Text

from kubeworker.cli.progress import listed, size
from kubeworker.cli.styles import STYLES
from kubeworker.errors import tagged


class ActionDocument(TypedDict):
    """One action in the machine-readable form."""

    kind: str
    subject: str
    reason: str
    diff: str


class ErrorDocument(TypedDict):
    """An error in the machine-readable form."""

    id: str
    type: str
    subject: str
    message: str
    hint: str


TransferDocument = TypedDict("TransferDocument", {"artifacts": int, "bytes": int, "from": str})
"""The artifacts that a node lacks, and where it gets them: "ssh", or the URL of a mirror."""


class NodeDocument(TypedDict):
    """One node's part of a plan."""

    name: str
    status: str
    actions: list[ActionDocument]
    error: ErrorDocument | None
    deferred: NotRequired[list[str]]
    """What is decided later in the same run."""
    warnings: NotRequired[list[str]]
    transfer: NotRequired[TransferDocument | None]


class ClusterDocument(TypedDict):
    """The Kubernetes objects' part of a plan."""

    actions: list[ActionDocument]


class PlanDocument(TypedDict):
    """`plan --json`."""

    changes: int
    nodes: list[NodeDocument]
    cluster: ClusterDocument
    warnings: list[str]


KINDS = {"restart": "yellow", "reload": "yellow", "remove": "red", "stop": "red", "leftover": "red", "start": "green"}
"""Colour of the kinds of action that an operator looks for first."""


def print_plan(screen: Console, plan: PlanDocument, *, full: bool = False) -> None:
    """Warnings, the cluster's objects, the nodes (those with the same plan together), and the summary line."""
    for warning in plan["warnings"]:
        screen.print(Text(f"warning: {warning}", style="yellow"))
    if plan["cluster"]["actions"]:
        screen.print(Text("cluster", style="bold"))
        _print_actions(screen, plan["cluster"]["actions"], full=full)
    for members, node in alike(plan["nodes"]):
        names, error = listed(members), node["error"]
        if error:
            screen.print(
                Text.assemble(
                    (names, "bold"),
                    ": ",
                    (node["status"], STYLES["failed"]),
                    f": {tagged(error['message'], error['id'])}",
                )
            )
            if error["hint"]:
                screen.print(Text(f"  hint: {error['hint']}", style="dim"))
        elif node["actions"] or node.get("warnings") or node.get("deferred"):
            screen.print(Text(names, style="bold"))
            _print_node(screen, node, full=full)
    screen.print(Text(summary(plan), style="bold"), soft_wrap=True)


def summary(plan: PlanDocument) -> str:
    """`Plan: 12 changes on 2 nodes, restarts: kubelet on k8s-01`."""
    undone = "".join(
        f"; {status}: {listed(names)}"
        for status in ("failed", "unreachable")
        if (names := [node["name"] for node in plan["nodes"] if node["status"] == status])
    )
    if not plan["changes"]:
        seen = sum(node["status"] == "ok" for node in plan["nodes"])
        return f"No changes: {count(seen, 'node')} as described{undone}" if seen else f"No plan{undone}"
    changed = [node for node in plan["nodes"] if node["actions"]]
    where = [count(len(changed), "node")] if changed else []
    where += ["the cluster"] if plan["cluster"]["actions"] else []
    return f"Plan: {count(plan['changes'], 'change')} on {' and '.join(where)}, {_restarts(changed)}{undone}"


def _restarts(nodes: Sequence[NodeDocument]) -> str:
    """`restarts: kubelet on k8s-01, k8s-02; containerd on k8s-01`, shortened for a fleet."""
    by_unit: dict[str, list[str]] = {}
    for node in nodes:
        for action in node["actions"]:
            if action["kind"] == "restart":
                by_unit.setdefault(action["subject"].removesuffix(".service"), []).append(node["name"])
    if not by_unit:
        return "restarts nothing"
    parts = (
        f"{unit} on {', '.join(names) if len(names) <= 4 else count(len(names), 'node')}"
        for unit, names in by_unit.items()
    )
    return f"restarts: {'; '.join(parts)}"


def count(number: int, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def alike(nodes: Sequence[NodeDocument]) -> Iterator[tuple[list[str], NodeDocument]]:
    """Nodes with the same plan as one entry: a change to a fleet reads as one change."""
    groups: list[tuple[list[str], NodeDocument]] = []
    for node in nodes:
        for names, first in groups:
            if {**first, "name": ""} == {**node, "name": ""}:
                names.append(node["name"])
                break
        else:
            groups.append(([node["name"]], node))
    yield from groups


def _print_node(screen: Console, node: NodeDocument, *, full: bool) -> None:
    for warning in node.get("warnings", []):
        screen.print(Text(f"  warning: {warning}", style="yellow"), soft_wrap=True)
    if node["actions"]:
        _print_actions(screen, node["actions"], full=full)
    if transfer := node.get("transfer"):
        screen.print(Text(f"  {_transfer(transfer)}", style="dim"), soft_wrap=True)
    for later in node.get("deferred", []):
        screen.print(Text(f"  later in the same run: {later}", style="dim"), soft_wrap=True)


def _transfer(transfer: TransferDocument) -> str:
    what = f"{count(transfer['artifacts'], 'artifact')}, {size(transfer['bytes'])}"
    if transfer["from"] == "ssh":
        return f"sent to it over SSH, compressed: {what}"
    return f"fetched by it from {transfer['from']}: {what}; what fails there is sent over SSH"


def _print_actions(screen: Console, actions: Sequence[ActionDocument], *, full: bool) -> None:
    wide = max(len(action["kind"]) for action in actions)
    for action in actions:
        style = KINDS.get(action["kind"], "cyan")
        lines = action["diff"].splitlines()
        note = f"  {lines[0]}" if len(lines) == 1 else ""
        reason = f"  ({action['reason']})" if action["reason"] else ""
        head = Text.assemble("  ", (action["kind"].ljust(wide), style), "  ", action["subject"], note, (reason, "dim"))
        screen.print(head, soft_wrap=True)
        if len(lines) > 1:
            _print_diff(screen, lines, full=full)


def diff_lines(lines: Sequence[str]) -> Sequence[str]:
    """A diff without its two header lines: the path stands above it already."""
    return lines[2:] if lines[0].startswith("--- ") and lines[1].startswith("+++ ") else lines


def _print_diff(screen: Console, lines: Sequence[str], *, full: bool) -> None:
    body = diff_lines(lines)
    added = [each for each in body if not each.startswith("@@")]
    if not full and all(each.startswith("+") for each in added):
        screen.print(Text(f"      {count(len(added), 'new line')} (--full shows them)", style="dim"))
        return
    for each in body:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(each[:1], "")
        screen.print(Text(f"      {each}", style=style), soft_wrap=True)
