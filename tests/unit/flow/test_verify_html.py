from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from kubeworker.core.checks import NodeReport, Status, Verdict, VerifyReport
from kubeworker.flow.verify_html import page

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


class References(HTMLParser):
    """Collects every attribute that could make a browser fetch something, and checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [name for name, _ in attrs if name in {"src", "href", "srcset"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def node(name: str, status: Status, detail: str = "fine") -> NodeReport:
    return NodeReport(name=name, checks=(Verdict(id="kubelet.active", status=status, detail=detail),))


def test_the_page_is_one_self_contained_well_formed_file() -> None:
    text = page(VerifyReport(nodes=(node("w1", "passed"), node("w2", "failed"))), title="lab", at=AT)
    document = References(text)
    assert document.fetched == []
    assert document.open == []
    assert "<script" not in text
    assert "1 checks passed, 1 failed" in text
    assert "2026-11-24 12:00:00 UTC" in text


def test_failed_nodes_stand_first_and_open() -> None:
    text = page(VerifyReport(nodes=(node("w1", "passed"), node("w2", "failed"))), title="lab", at=AT)
    assert text.index("w2") < text.index("w1")
    assert text.count("<details open>") == 1


def test_what_nodes_say_is_escaped() -> None:
    text = page(VerifyReport(nodes=(node("w1", "failed", "<img src=x>\nline 2"),)), title="a & b", at=AT)
    assert "<img" not in text
    assert "&lt;img src=x&gt;\nline 2" in text
    assert "a &amp; b" in text
