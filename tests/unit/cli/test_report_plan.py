import io

import pytest
from rich.console import Console

from kubeworker.cli.report_plan import ActionDocument, NodeDocument, PlanDocument, print_plan, summary


def action(kind: str, subject: str, diff: str = "", reason: str = "content differs") -> ActionDocument:
    return {"kind": kind, "subject": subject, "reason": reason, "diff": diff}


def node(name: str, *actions: ActionDocument) -> NodeDocument:
    return {"name": name, "status": "ok", "actions": list(actions), "error": None}


def unreachable(name: str) -> NodeDocument:
    error = {
        "id": "node-unreachable",
        "type": "NodeUnreachable",
        "subject": name,
        "message": "connection refused",
        "hint": "is sshd running?",
    }
    return {"name": name, "status": "unreachable", "actions": [], "error": error}  # type: ignore[typeddict-item]


def plan(*nodes: NodeDocument, cluster: tuple[ActionDocument, ...] = ()) -> PlanDocument:
    changes = sum(len(each["actions"]) for each in nodes) + len(cluster)
    return {"changes": changes, "nodes": list(nodes), "cluster": {"actions": list(cluster)}, "warnings": []}


def shown(document: PlanDocument, *, full: bool = False, colours: bool = False) -> str:
    text = io.StringIO()
    print_plan(Console(file=text, width=120, force_terminal=colours, markup=False), document, full=full)
    return text.getvalue()


RESTART = action("restart", "kubelet.service", reason="its config changed")
CHANGED = action("file", "/etc/kubelet.yaml", "--- a\n+++ b\n@@ -1 +1 @@\n-maxPods: 110\n+maxPods: 220\n")
NEW = action("file", "/etc/new", "--- /dev/null\n+++ /etc/new\n@@ -0,0 +1,2 @@\n+one\n+two\n", reason="missing")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (plan(node("a"), node("b")), "No changes: 2 nodes as described"),
        (plan(node("a", CHANGED, RESTART), node("b")), "Plan: 2 changes on 1 node, restarts: kubelet on a"),
        (plan(node("a", CHANGED)), "Plan: 1 change on 1 node, restarts nothing"),
        (plan(node("a", RESTART), node("b", RESTART)), "restarts: kubelet on a, b"),
        (plan(*(node(str(each), RESTART) for each in range(9))), "restarts: kubelet on 9 nodes"),
        (plan(node("a"), cluster=(action("rbac", "x"),)), "Plan: 1 change on the cluster, restarts nothing"),
        (plan(node("a"), unreachable("b")), "No changes: 1 node as described; unreachable: b"),
    ],
)
def test_the_summary_is_one_line(document: PlanDocument, text: str) -> None:
    assert text in summary(document)


def test_diffs_and_reasons_are_shown() -> None:
    text = shown(plan(node("a", CHANGED, RESTART)))
    assert "file     /etc/kubelet.yaml  (content differs)" in text
    assert "      -maxPods: 110\n      +maxPods: 220\n" in text
    assert "restart  kubelet.service  (its config changed)" in text
    assert "\033[" not in text
    assert "\033[" in shown(plan(node("a", CHANGED)), colours=True)


def test_new_files_are_folded_unless_asked_for() -> None:
    assert "2 new lines (--full shows them)" in shown(plan(node("a", NEW)))
    assert "      +one\n      +two\n" in shown(plan(node("a", NEW)), full=True)


def test_nodes_with_the_same_plan_are_shown_once() -> None:
    text = shown(plan(node("a", CHANGED), node("b", CHANGED), node("c", RESTART)))
    assert "a, b\n" in text
    assert text.count("/etc/kubelet.yaml") == 1


def test_an_unreachable_node_names_the_way_out() -> None:
    text = shown(plan(unreachable("b")))
    assert "b: unreachable: connection refused" in text
    assert "hint: is sshd running?" in text


def test_brackets_in_values_are_no_markup() -> None:
    assert "[bold]x[/bold]" in shown(plan(node("a", action("file", "/x", "-> [bold]x[/bold]"))))


def test_where_the_bytes_come_from_is_said() -> None:
    sent, fetched = node("a", NEW), node("b", NEW)
    sent["transfer"] = {"artifacts": 2, "bytes": 140_000_000, "from": "ssh"}
    fetched["transfer"] = {"artifacts": 1, "bytes": 70_000_000, "from": "https://m.example.com/kubeworker"}
    text = shown(plan(sent, fetched, node("c")))
    assert "sent to it over SSH, compressed: 2 artifacts, 140 MB" in text
    assert "fetched by it from https://m.example.com/kubeworker: 1 artifact, 70 MB" in text
    assert text.count("artifact") == 2
