"""The report of one `verify` run as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from datetime import datetime
from html import escape

from kubeworker.core.checks import NodeReport, Verdict, VerifyReport

_STYLE = """
:root { color-scheme: light dark; --ok: #1a7f37; --bad: #cf222e; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td:first-child { font-family: ui-monospace, monospace; white-space: nowrap; }
td:last-child { white-space: pre-wrap; overflow-wrap: anywhere; }
.passed { color: var(--ok); } .failed { color: var(--bad); font-weight: 600; }
summary { font-size: 1.15rem; font-weight: 600; cursor: pointer; }
@media (prefers-color-scheme: dark) { :root { --ok: #3fb950; --bad: #ff7b72; } }
"""


def page(report: VerifyReport, *, title: str, at: datetime) -> str:
    """The whole document; nodes with a failed check stand first and open."""
    nodes = sorted(report.nodes, key=lambda node: (_failures(node) == 0, node.name))
    verdict = "failed" if report.failed else "passed"
    counts = f'<span class="{verdict}">{report.passed} checks passed, {report.failed} failed</span>'
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: {report.passed} passed, {report.failed} failed</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{counts} on {len(nodes)} nodes, {at:%Y-%m-%d %H:%M:%S %Z}</p>",
            *(_node(node) for node in nodes),
            "</body></html>",
            "",
        ]
    )


def _failures(node: NodeReport) -> int:
    return sum(verdict.status == "failed" for verdict in node.checks)


def _node(node: NodeReport) -> str:
    failures = _failures(node)
    state = "unreachable" if node.unreachable else f"{failures} failed" if failures else "all passed"
    rows = "\n".join(_row(verdict) for verdict in node.checks)
    return (
        f"<details{' open' if failures else ''}><summary>{escape(node.name)}: "
        f'<span class="{"failed" if failures else "passed"}">{state}</span></summary>\n'
        f"<table><thead><tr><th>check</th><th>status</th><th>detail</th></tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></details>"
    )


def _row(verdict: Verdict) -> str:
    return (
        f'<tr><td>{escape(verdict.id)}</td><td class="{verdict.status}">{verdict.status}</td>'
        f"<td>{escape(verdict.detail)}</td></tr>"
    )
