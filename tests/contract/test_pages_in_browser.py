"""The HTML reports in a real browser: at the width of a phone and of a desk, light and dark, without a network.

The reports are recorded ones, of real runs on a lab (tests/contract/reports, as `--json` printed them): the plan of a
new machine, a plan and the apply of it, and `verify` of two runs: nodes in order from one, and from one that was told a
wrong port and a machine that is not there, the others.
KUBEWORKER_PICTURES=docs/images makes the pictures of the docs anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.contract.browser import Browser, chromium

from kubeworker.cli.page_plan import apply_page, plan_page
from kubeworker.cli.page_verify import verify_page
from kubeworker.core.verify.checks import NodeReport, Verdict, VerifyReport

pytestmark = pytest.mark.timeout(180)

REPORTS = Path(__file__).parent / "reports"
AT = datetime(2026, 11, 25, 11, 15, tzinfo=UTC)
WIDTHS = (390, 1280)

PALE = """
(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = numbers(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  for (const each of document.querySelectorAll("body *")) {
    if (![...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || !each.offsetParent) continue;
    const [a, b] = [light(numbers(getComputedStyle(each).color)), light(behind(each))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.add(`${each.tagName} ${each.className} ${each.parentElement.className}`);
  }
  return [...found];
})()
"""
"""Elements whose text stands out too little from what is behind it: less than 4.5 to 1 (WCAG 2.2, 1.4.3)."""


def recorded(name: str) -> Any:
    return json.loads((REPORTS / f"{name}.json").read_text())


def verified() -> VerifyReport:
    nodes = tuple(
        NodeReport(
            name=node["name"],
            checks=tuple(Verdict(**check) for check in node["checks"]),
            unreachable=all(check["detail"].startswith("unreachable: ") for check in node["checks"]),
        )
        for node in recorded("verify")["nodes"]
    )
    return VerifyReport(nodes=nodes)


def fleet(number: int) -> VerifyReport:
    """As many nodes: the recorded ones again and again, under names as long as they get."""
    nodes = verified().nodes
    each = (
        replace(nodes[index % len(nodes)], name=f"worker-rack-a{index:03}.example.internal") for index in range(number)
    )
    return VerifyReport(nodes=tuple(each))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        "plan": plan_page(recorded("first-plan"), subject="cluster.yaml", at=AT),
        "apply": apply_page(recorded("plan"), recorded("apply"), subject="cluster.yaml", at=AT),
        "verify": verify_page(verified(), subject="cluster.yaml", at=AT),
        "fleet": verify_page(fleet(60), subject="/srv/clusters/a-site-with-a-long-name/production/cluster.yaml", at=AT),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["plan", "apply", "verify", "fleet"])
def test_a_page_can_be_read_at_any_width_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str, *, dark: bool
) -> None:
    for width in WIDTHS:
        browser.open(pages[name], width=width, dark=dark)
        # With all of it unfolded: diffs and journals have the longest lines.
        browser.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        wide = browser.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(wide) == width, f"{name} scrolls sideways at {width}"
        assert browser.requested() == [pages[name].as_uri()]
        assert browser.complaints() == []
        if name != "fleet":
            assert browser.evaluate(PALE) == []
    back = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 128) is dark


def test_verify_reads_as_what_failed_then_nodes_by_checks(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["verify"], width=1280)
    report = verified()
    assert browser.evaluate("document.querySelector('.verdict').innerText") == (
        f"{report.passed} checks passed, {report.failed} failed on {len(report.nodes)} nodes"
    )
    rows = browser.evaluate("[...document.querySelectorAll('.matrix tbody tr')].map(row => row.innerText.split('\\t'))")
    assert sorted(row[0] for row in rows) == sorted(node.name for node in report.nodes)
    groups = browser.evaluate("[...document.querySelectorAll('.matrix thead th')].map(cell => cell.innerText)")
    assert groups[:2] == ["node", "kube_nginx"]
    counts = dict(zip(groups, next(row for row in rows if row[0] == "k8s-01"), strict=True))
    checks = [check for node in report.nodes for check in node.checks if node.name == "k8s-01"]
    assert counts["containerd"] == str(sum(check.id.startswith("containerd.") for check in checks))
    failing = {node.name for node in report.nodes if any(check.status == "failed" for check in node.checks)}
    shown = browser.evaluate(
        "[...document.querySelectorAll('main > details[open] > summary > span:first-child')]"
        ".map(each => each.innerText)"
    )
    assert set(shown) == failing


def test_a_link_of_the_matrix_opens_its_node(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["verify"], width=390)
    folded = "!document.getElementById('k8s-01').closest('details').open"
    assert browser.evaluate(folded) is True
    browser.evaluate("[...document.querySelectorAll('.matrix a')].find(each => each.innerText === 'k8s-01').click()")
    assert browser.evaluate(folded) is False


def test_an_apply_has_its_diffs_folded_and_its_nodes_in_a_table(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["apply"], width=390)
    text = browser.evaluate("document.body.innerText")
    assert "Applied: " in text
    assert "maxPods" not in text
    browser.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert "+maxPods: 200" in browser.evaluate("document.body.innerText")
    names = browser.evaluate("[...document.querySelectorAll('tbody th')].map(each => each.innerText)")
    assert names == [node["name"] for node in recorded("apply")["nodes"]]


@pytest.mark.parametrize("name", ["apply", "verify"])
def test_pictures_are_taken(browser: Browser, pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("KUBEWORKER_PICTURES", tmp_path))
    for width, dark, height in ((390, True, 844), (1280, False, 900)):
        browser.open(pages[name], width=width, dark=dark)
        picture = folder / f"{name}-{width}.png"
        browser.picture(picture, height=height)
        head = picture.read_bytes()[:24]
        assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) == (width, height)
        assert picture.stat().st_size > 10_000, "nearly empty"
