"""The outcome of `apply` for people: a line per node, then what to do about those that failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NotRequired, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.progress import listed, size
from kubeworker.cli.report_plan import ErrorDocument, count
from kubeworker.cli.styles import STYLES
from kubeworker.errors import tagged


class NodeResult(TypedDict):
    """One node's part of an apply."""

    name: str
    status: str
    actions: int
    """How many were carried out."""
    seconds: float
    uploaded: int
    """Compressed bytes of artifacts that were sent."""
    pulled: NotRequired[int]
    """Bytes of artifacts that it fetched itself."""
    error: ErrorDocument | None


class ApplyDocument(TypedDict):
    """`apply --json`."""

    changes: int
    """Of the plan that was shown."""
    nodes: list[NodeResult]
    cluster: NotRequired[int]
    """Changes of the cluster's objects that were carried out."""
    warnings: list[str]


def print_result(screen: Console, result: ApplyDocument) -> None:
    """The table, the failures with their way out, and one closing line. Warnings were shown with the plan."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    sent = any(moved(node) for node in result["nodes"])
    for column in ("NODE", "STATUS", "CHANGES", *(["SENT"] if sent else []), "SECONDS"):
        table.add_column(column, justify="right" if column in {"CHANGES", "SENT", "SECONDS"} else "left")
    for node in result["nodes"]:
        table.add_row(
            node["name"],
            Text(node["status"], style=STYLES.get(node["status"], "")),
            str(node["actions"]),
            *([_moved(node)] if sent else []),
            f"{node['seconds']:.1f}",
        )
    screen.print(table)
    for names, message, hint in errors(result["nodes"]):
        screen.print(Text.assemble((f"{listed(names)}: ", "bold"), message), soft_wrap=True)
        if hint:
            screen.print(Text(f"  hint: {hint}", style="dim"), soft_wrap=True)
    screen.print(Text(closing(result), style="bold"), soft_wrap=True)


def moved(node: NodeResult) -> int:
    """Bytes of artifacts that came to it, sent or fetched."""
    return node["uploaded"] + node.get("pulled", 0)


def _moved(node: NodeResult) -> str:
    """`106 MB`; `306 MB pulled` where it fetched from a mirror itself."""
    pulled = node.get("pulled", 0)
    parts = (size(node["uploaded"]) if node["uploaded"] else "", f"{size(pulled)} pulled" if pulled else "")
    return ", ".join(filter(None, parts))


def errors(nodes: Iterable[NodeResult]) -> Iterator[tuple[list[str], str, str]]:
    """Each error once, with the nodes that have it: a batch that was not started is one line."""
    found: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        if error := node["error"]:
            found.setdefault((tagged(error["message"], error["id"]), error["hint"]), []).append(node["name"])
    for (message, hint), names in found.items():
        yield names, message, hint


def closing(result: ApplyDocument) -> str:
    """`Applied: 12 changes on 2 nodes`, and which nodes are not done."""
    undone = [node["name"] for node in result["nodes"] if node["status"] != "ok"]
    actions = sum(node["actions"] for node in result["nodes"])
    nodes = sum(bool(node["actions"]) for node in result["nodes"])
    where = [f"{count(actions, 'change')} on {count(nodes, 'node')}"] if actions else []
    where += [f"{count(objects, 'change')} in the cluster"] if (objects := result.get("cluster", 0)) else []
    done = f"Applied: {', '.join(where) or 'nothing'}"
    return f"{done}; not done: {listed(undone)} (run apply again once that is fixed)" if undone else done
