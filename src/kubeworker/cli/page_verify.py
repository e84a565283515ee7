"""The report of one `verify` run as one HTML file: what failed, nodes by checks, then every check of every node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from kubeworker.cli.page import Html, Text, badge, element, folded, joined, page, table
from kubeworker.cli.progress import listed
from kubeworker.core.verify.checks import NodeReport, Verdict, VerifyReport

OPEN_MOST = 3
"""How many nodes with a failed check stand open: of more, what failed is told above, once for all that have it."""


def verify_page(report: VerifyReport, *, subject: str, at: datetime) -> str:
    """The whole document; nodes with a failed check stand first, and open where they are few."""
    nodes = sorted(report.nodes, key=lambda node: (not _failures(node.checks), node.name))
    number = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    verdict = f"{report.passed} checks passed, {report.failed} failed on {number}"
    return page(
        verb="verify",
        subject=subject,
        at=at,
        verdict=("bad" if report.failed else "ok", verdict),
        body=[
            *_failed(nodes),
            *_matrix(nodes),
            element("h2", Text("Checks")),
            *(
                _node(node, is_open=index < OPEN_MOST and _failures(node.checks) > 0)
                for index, node in enumerate(nodes)
            ),
        ],
    )


def _failures(checks: Sequence[Verdict]) -> int:
    return sum(verdict.status == "failed" for verdict in checks)


def _group(verdict: Verdict) -> str:
    """The component, or what else the id begins with."""
    return verdict.id.partition(".")[0]


def _failed(nodes: Sequence[NodeReport]) -> Iterator[Html]:
    """Each failure once, with the nodes that have it: one fault of a fleet reads as one."""
    found: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        if node.unreachable:
            why = next((verdict.detail for verdict in node.checks), "unreachable")
            found.setdefault(("", why), []).append(node.name)
            continue
        for verdict in node.checks:
            if verdict.status == "failed":
                found.setdefault((verdict.id, verdict.detail), []).append(node.name)
    if found:
        yield element("h2", Text("What failed"))
    for (check, detail), names in found.items():
        head = [element("code", Text(check), class_="bad")] if check else []
        yield element(
            "div",
            element("p", *head, Text(f"{' on ' if check else ''}{listed(names)}")),
            element("div", Text(detail), class_="detail"),
            class_="card bad",
        )


def _matrix(nodes: Sequence[NodeReport]) -> Iterator[Html]:
    groups = list(dict.fromkeys(_group(verdict) for node in nodes for verdict in node.checks))
    yield element("h2", Text("Nodes by checks"))
    yield element("p", Text("Checks that passed; where some did not, how many failed of how many."), class_="dim")
    yield table(["node", *groups], (_line(node, groups) for node in nodes), class_="matrix")


def _line(node: NodeReport, groups: Sequence[str]) -> Html:
    name = element("a", Text(node.name), href=f"#{node.name}")
    cells = []
    for group in groups:
        checks = [verdict for verdict in node.checks if _group(verdict) == group]
        bad = _failures(checks)
        text = f"{bad}/{len(checks)}" if bad else str(len(checks) or "")
        cells.append(element("td", Text(text), class_=("bad" if bad else "ok") if checks else False))
    return element("tr", element("th", name, scope="row"), *cells)


def _node(node: NodeReport, *, is_open: bool) -> Html:
    bad = _failures(node.checks)
    state = "unreachable" if node.unreachable else f"{bad} failed" if bad else f"{len(node.checks)} passed"
    head = Html(element("span", Text(node.name)) + badge(state, "bad" if bad else "ok"))
    groups: dict[str, list[Verdict]] = {}
    for verdict in node.checks:
        groups.setdefault(_group(verdict), []).append(verdict)
    parts = (
        element("h3", Text(group)) + element("ul", Html("\n"), joined(map(_row, checks)), class_="rows")
        for group, checks in groups.items()
    )
    # The target is inside: a browser that goes to it opens what folds it.
    return folded(head, element("div", joined(map(Html, parts)), id=node.name), is_open=is_open)


def _row(verdict: Verdict) -> Html:
    tone, mark = ("ok", "✓") if verdict.status == "passed" else ("bad", "✗")
    return element(
        "li",
        element("span", Text(mark), class_=tone, title=verdict.status),
        element("code", Text(verdict.id)),
        element("span", Text(verdict.detail), class_="detail"),
        class_=tone,
    )
