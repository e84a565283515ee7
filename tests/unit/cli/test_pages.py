from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from kubeworker.cli.page_plan import apply_page, plan_page
from kubeworker.cli.page_verify import verify_page
from kubeworker.cli.report_apply import ApplyDocument, NodeResult
from kubeworker.cli.report_plan import ActionDocument, ErrorDocument, NodeDocument, PlanDocument
from kubeworker.core.verify.checks import NodeReport, Status, Verdict, VerifyReport

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


class References(HTMLParser):
    """Every attribute that could make a browser fetch something, the text, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{name}={value}" for name, value in attrs if name in {"src", "href", "srcset"} and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def node(name: str, status: Status, detail: str = "fine") -> NodeReport:
    return NodeReport(name=name, checks=(Verdict(id="kubelet.active", status=status, detail=detail),))


def test_the_page_is_one_self_contained_well_formed_file() -> None:
    text = verify_page(VerifyReport(nodes=(node("w1", "passed"), node("w2", "failed"))), subject="lab", at=AT)
    document = References(text)
    assert [each for each in document.fetched if not each.startswith("href=#")] == []
    assert document.open == []
    assert "<script" not in text
    assert "1 checks passed, 1 failed" in text
    assert "2026-11-24 12:00:00 UTC" in text


def test_failed_nodes_stand_first_and_open() -> None:
    text = verify_page(VerifyReport(nodes=(node("w1", "passed"), node("w2", "failed"))), subject="lab", at=AT)
    assert text.index('id="w2"') < text.index('id="w1"')
    assert text.count('<details class="card" open>') == 1


def test_what_nodes_say_is_escaped() -> None:
    text = verify_page(VerifyReport(nodes=(node("w1", "failed", "<img src=x>\nline 2"),)), subject="a & b", at=AT)
    assert "<img" not in text
    assert "&lt;img src=x&gt;\nline 2" in text
    assert "a &amp; b" in text


def test_a_fault_of_many_nodes_is_told_once_with_their_names() -> None:
    nodes = tuple(node(f"w{number}", "failed", "port 10255 is open") for number in range(12))
    text = References(verify_page(VerifyReport(nodes=nodes), subject="lab", at=AT)).text
    assert "kubelet.active on w0, w1, w10, w11, w2, w3, w4, w5 and 4 moreport 10255 is open" in text


def test_a_node_out_of_reach_is_told_by_that_and_not_by_each_of_its_checks() -> None:
    checks = tuple(Verdict(id=f"kubelet.{each}", status="failed", detail="unreachable: no route") for each in range(9))
    report = VerifyReport(nodes=(NodeReport(name="w1", checks=checks, unreachable=True),))
    text = verify_page(report, subject="lab", at=AT)
    assert text.count('<div class="card bad">') == 1
    assert "w1unreachable: no route" in References(text).text


DIFF = "--- /etc/kubelet\n+++ /etc/kubelet\n@@ -1,2 +1,2 @@\n a\n-maxPods: 110\n+maxPods: 220 <b>"


def action(kind: str, subject: str, diff: str = "", reason: str = "") -> ActionDocument:
    return {"kind": kind, "subject": subject, "diff": diff, "reason": reason}


def planned(*names: str, error: ErrorDocument | None = None) -> PlanDocument:
    actions = [
        action("write", "/etc/kubelet", DIFF),
        action("restart", "kubelet.service", reason="/etc/kubelet changed"),
    ]
    nodes: list[NodeDocument] = [
        {"name": name, "status": "ok", "actions": actions, "error": None, "deferred": [], "warnings": []}
        for name in names
    ]
    if error:
        nodes.append({"name": "w9", "status": "failed", "actions": [], "error": error})
    objects = [action("create", "ClusterRoleBinding kubelet")]
    return {"changes": 2 * len(names) + 1, "nodes": nodes, "cluster": {"actions": objects}, "warnings": ["ipvs goes"]}


ERROR: ErrorDocument = {"id": "KW1", "type": "NodeError", "subject": "w9", "message": "a <b>\n  c", "hint": "look"}


def test_a_plan_has_every_diff_folded_and_nodes_alike_once() -> None:
    text = plan_page(planned("w1", "w2", error=ERROR), subject="lab", at=AT)
    document = References(text)
    assert document.fetched == []
    assert document.open == []
    assert "w1, w2 (2 nodes with the same plan)" in document.text
    assert text.count("maxPods: 220") == 1
    assert "1 new line, 1 removed line" in document.text
    assert '<span class="del">-maxPods: 110\n</span><span class="add">+maxPods: 220 &lt;b&gt;\n</span>' in text
    assert "--- /etc/kubelet" not in document.text
    assert "(/etc/kubelet changed)" in document.text
    assert "hint: look" in document.text
    assert "ipvs goes" in document.text


def test_an_apply_has_what_became_of_each_node_and_why() -> None:
    result: ApplyDocument = {
        "changes": 3,
        "nodes": [
            {"name": "w1", "status": "ok", "actions": 2, "seconds": 12.34, "uploaded": 214_000_000, "error": None},
            {"name": "w9", "status": "failed", "actions": 0, "seconds": 0.0, "uploaded": 0, "error": ERROR},
        ],
        "cluster": 1,
        "warnings": [],
    }
    text = apply_page(planned("w1", error=ERROR), result, subject="lab", at=AT)
    document = References(text)
    assert document.open == []
    assert "Applied: 2 changes on 1 node, 1 change in the cluster; not done: w9" in document.text
    assert "w1ok2214 MB12.3" in document.text
    assert "w9a <b> [KW1]\n  c" in document.text


def test_an_apply_that_sent_nothing_has_no_column_for_it() -> None:
    node: NodeResult = {"name": "w1", "status": "ok", "actions": 2, "seconds": 12.34, "uploaded": 0, "error": None}
    sending: NodeResult = {**node, "pulled": 1000}

    def text(node: NodeResult) -> str:
        result: ApplyDocument = {"changes": 2, "nodes": [node], "warnings": []}
        return References(apply_page(planned("w1"), result, subject="lab", at=AT)).text

    assert "statuschangesseconds\nw1ok212.3" in text(node)
    assert "statuschangessentseconds\nw1ok21 kB12.3" in text(sending)


def test_an_apply_with_nothing_to_do_says_so() -> None:
    plan: PlanDocument = {"changes": 0, "nodes": [], "cluster": {"actions": []}, "warnings": []}
    result: ApplyDocument = {"changes": 0, "nodes": [], "warnings": []}
    text = apply_page(plan, result, subject="lab", at=AT)
    assert "Changes</h2>" not in text
