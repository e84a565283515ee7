"""The results as one SVG: bars for each workload, on a logarithmic scale of seconds. Pure, but for `draw`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bench.result import Row, load

FILE = Path(__file__).parents[1] / "docs/benchmarks.svg"
TITLES = {
    "converged": "Converged re-apply: nothing to change",
    "changed": "One kubelet setting changed",
    "first-deploy": "First deploy, all binaries",
    "one-more": "One more node joins",
}
"""Workloads with seconds that are drawn, in this order; others stand in docs/benchmarks.md alone."""

_WIDTH, _LABEL, _BAR, _GAP, _HEAD = 960, 380, 16, 6, 44
_COLOURS = {"tool": "#1f6feb", "floor": "#8b949e", "rival": "#d4a72c"}


def svg(rows: Iterable[Row]) -> str:
    """The whole document; workloads without rows are left out."""
    groups = [(title, [row for row in rows if row.workload == key and row.seconds]) for key, title in TITLES.items()]
    groups = [(title, its) for title, its in groups if its]
    values = [row.median for _, its in groups for row in its]
    low, high = _decades(values)
    parts, top = [], 70
    for title, its in groups:
        n = max(row.n for row in its)
        parts.append(_text(16, top, f"{title}, {n} nodes", weight="bold"))
        top += 14
        for row in its:
            parts += _bar(row, "" if row.n in {1, n} else f" ({row.n} nodes)", top, low, high)
            top += _BAR + _GAP
        top += _HEAD - 14
    legend = (("tool", "kubeworker"), ("floor", "bare connections and streams"), ("rival", "others"))
    parts.append(_text(16, 24, "Seconds, median, logarithmic scale; all of one run on one machine", size=14))
    x = 16
    for kind, text in legend:
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        parts.append(_text(x + 18, 46, text))
        x += 40 + 7 * len(text)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}" '
        f'font-family="sans-serif" role="img" aria-label="Seconds by workload">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def draw(target: Path = FILE) -> None:
    """From the JSON files to the picture that the README shows."""
    target.write_text(svg([row for part in load() for row in part.rows]))


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """The scale's ends: whole powers of ten around the values, exponents."""
    if not values:
        return -1.0, 1.0
    return math.floor(math.log10(min(values)) - 0.3), math.ceil(math.log10(max(values)))


def _bar(row: Row, fewer: str, top: int, low: float, high: float) -> list[str]:
    room = _WIDTH - _LABEL - 80
    length = max(2.0, room * (math.log10(row.median) - low) / (high - low))
    value = f"{row.median:.2f} s" if row.median < 10 else f"{row.median:.0f} s"
    return [
        _text(_LABEL - 8, top + _BAR - 4, row.what + fewer, anchor="end"),
        f'<rect x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[row.kind]}"/>',
        _text(int(_LABEL + length + 6), top + _BAR - 4, value),
    ]


def _text(x: int, y: int, text: str, *, size: int = 12, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="#1f2328">'
        f"{escape(text)}</text>"
    )
