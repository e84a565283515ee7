"""A plan, and what `apply` made of it, as one HTML file: nodes, what went wrong, and the changes with folded diffs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from kubeworker.cli.page import Html, Text, badge, element, folded, joined, page, table
from kubeworker.cli.progress import listed, size
from kubeworker.cli.report_apply import ApplyDocument, NodeResult, closing, errors, moved
from kubeworker.cli.report_plan import ActionDocument, NodeDocument, PlanDocument, alike, count, diff_lines, summary

TONES = {"ok": "ok", "failed": "bad", "unreachable": "bad", "skipped": "late"}
"""By a node's status."""

KINDS = {"restart": "late", "reload": "late", "remove": "bad", "stop": "bad", "leftover": "bad", "start": "ok"}
"""Tone of the kinds of action that an operator looks for first."""


def plan_page(plan: PlanDocument, *, subject: str, at: datetime) -> str:
    """What `plan` shows, every diff in full. Secrets are hashes in it, as in the plan itself."""
    failed = any(node["error"] for node in plan["nodes"])
    verdict = ("bad" if failed else "late" if plan["changes"] else "ok", summary(plan))
    body = [*_warnings(plan), *_plan_errors(plan["nodes"]), *_changes(plan)]
    return page(verb="plan", subject=subject, at=at, verdict=verdict, body=body)


def apply_page(plan: PlanDocument, result: ApplyDocument, *, subject: str, at: datetime) -> str:
    """What became of each node, and the plan that was carried out."""
    undone = any(node["status"] != "ok" for node in result["nodes"])
    verdict = ("bad" if undone else "ok", closing(result) if plan["changes"] else summary(plan))
    body = [*_result_errors(result["nodes"]), *_nodes(result["nodes"]), *_warnings(plan), *_changes(plan)]
    return page(verb="apply", subject=subject, at=at, verdict=verdict, body=body)


def _warnings(plan: PlanDocument) -> Iterator[Html]:
    if plan["warnings"]:
        yield element("h2", Text("Warnings"))
    for warning in plan["warnings"]:
        yield element("div", element("div", Text(warning), class_="detail"), class_="card late")


def _error(names: str, message: str, hint: str) -> Html:
    way_out = [element("p", Text(f"hint: {hint}"), class_="detail dim")] if hint else []
    said = element("div", Text(message), class_="detail")
    return element("div", element("p", element("strong", Text(names))), said, *way_out, class_="card bad")


def _plan_errors(nodes: Sequence[NodeDocument]) -> Iterator[Html]:
    failed = [(names, node["error"]) for names, node in alike(nodes) if node["error"]]
    if failed:
        yield element("h2", Text("Without a plan"))
    for names, error in failed:
        if error:
            yield _error(listed(names), error["message"], error["hint"])


def _result_errors(nodes: Sequence[NodeResult]) -> Iterator[Html]:
    found = list(errors(nodes))
    if found:
        yield element("h2", Text("What failed"))
    for names, message, hint in found:
        yield _error(listed(names), message, hint)


def _nodes(nodes: Sequence[NodeResult]) -> Iterator[Html]:
    yield element("h2", Text("Nodes"))
    sent = any(map(moved, nodes))
    head = ("node", "status", "changes", *(["sent"] if sent else []), "seconds")
    rows = (_result(node, sent=sent) for node in nodes)
    yield table(head, rows, numbers=frozenset({"changes", "sent", "seconds"}))


def _result(node: NodeResult, *, sent: bool) -> Html:
    bytes_ = [size(moved(node)) if moved(node) else ""] if sent else []
    numbers = (str(node["actions"]), *bytes_, f"{node['seconds']:.1f}")
    return element(
        "tr",
        element("th", Text(node["name"]), scope="row"),
        element("td", badge(node["status"], TONES.get(node["status"], ""))),
        *(element("td", Text(number), class_="number") for number in numbers),
    )


def _changes(plan: PlanDocument) -> Iterator[Html]:
    groups = [(names, node) for names, node in alike(plan["nodes"]) if node["actions"] or node.get("deferred")]
    cluster = plan["cluster"]["actions"]
    if not groups and not cluster:
        return
    yield element("h2", Text("Changes"))
    if cluster:
        head = Html(element("span", Text("cluster")) + badge(count(len(cluster), "change")))
        yield folded(head, _actions(cluster), is_open=True)
    for names, node in groups:
        many = f" ({len(names)} nodes with the same plan)" if len(names) > 1 else ""
        head = Html(element("span", Text(listed(names) + many)) + badge(count(len(node["actions"]), "change")))
        later = (
            element("p", Text(f"later in the same run: {each}"), class_="detail") for each in node.get("deferred", [])
        )
        noted = (element("p", Text(f"warning: {each}"), class_="late") for each in node.get("warnings", []))
        yield folded(head, joined([*noted, _actions(node["actions"]), *later]), is_open=len(groups) == 1)


def _actions(actions: Sequence[ActionDocument]) -> Html:
    return element("ul", Html("\n"), joined(map(_action, actions)), class_="rows actions")


def _action(action: ActionDocument) -> Html:
    lines = action["diff"].splitlines()
    parts = [element("code", Text(action["subject"]))]
    if len(lines) == 1:
        parts.append(element("span", Text(f" {lines[0]}"), class_="mono dim"))
    if action["reason"]:
        parts.append(element("span", Text(f" ({action['reason']})"), class_="dim"))
    if len(lines) > 1:
        parts.append(_diff(diff_lines(lines)))
    return element("li", element("span", badge(action["kind"], KINDS.get(action["kind"], ""))), element("div", *parts))


def _diff(lines: Sequence[str]) -> Html:
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    said = ", ".join(count(number, f"{what} line") for number, what in ((added, "new"), (removed, "removed")) if number)
    return element(
        "details", element("summary", Text(said or "diff"), class_="dim"), element("pre", *map(_line, lines))
    )


def _line(line: str) -> Html:
    tone = {"+": "add", "-": "del", "@": "at"}.get(line[:1])
    return element("span", Text(f"{line}\n"), class_=tone or False)
