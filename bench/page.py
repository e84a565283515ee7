"""docs/benchmarks.md, written from bench/results/*.json: no number in it was typed. Pure, but for `write`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.chart import TITLES
from bench.result import Part, Row, load

FILE = Path(__file__).parents[1] / "docs/benchmarks.md"

_OTHER_TITLES = {
    "plan-core": "Plan without nodes: render and compare",
    "simulated": "Converged re-apply, simulated nodes",
    "simulated-50": "Converged re-apply, 50 simulated nodes",
    "plan-one": "Plan of one node, whole command",
    "start": "The command's start",
}
"""Of workloads that the chart does not show."""

_HEAD = """# What a run costs

Written by `make bench` (`bench/page.py`) from `bench/results/*.json`; every number comes from there.

![Seconds by workload](benchmarks.svg)

Seconds are medians of one run on one machine, floors and rivals in the same run; a ratio is this row's median over the
other's. How it is measured, what the machines are, and how each rival's script was made fair:
`bench/README.md`. Run it: `make bench`, `make bench N=4`, `make bench ONLY="converged changed"`.
"""


def text(parts: Sequence[Part]) -> str:
    """The whole page."""
    rows = [row for part in parts for row in part.rows]
    keys = dict.fromkeys([*(key for key in TITLES if any(row.workload == key for row in rows)), *_keys(rows)])
    sections = [_section(key, [row for row in rows if row.workload == key]) for key in keys]
    return "\n".join((_HEAD, *sections, _about(parts)))


def write(target: Path = FILE) -> None:
    """From the JSON files to the page."""
    target.write_text(text(load()))


def _keys(rows: Iterable[Row]) -> list[str]:
    return [row.workload for row in rows]


def _section(key: str, rows: Sequence[Row]) -> str:
    lines = [
        f"## {(TITLES | _OTHER_TITLES).get(key, key)}",
        "",
        "| what | nodes | seconds (runs) | ratio | aim | met | beside |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    ratios = "; ".join(f"{value:g} x {name}" for name, value in row.ratios.items())
    beside = [f"{name.replace('_', ' ')}: {value:g}" for name, value in row.measured.items()]
    beside += [row.note] if row.note else []
    cells = (row.what, str(row.n), _seconds(row), ratios, row.aim, met, "; ".join(beside))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _seconds(row: Row) -> str:
    if not row.seconds:
        return ""
    return f"{row.median:.2f} ({len(row.seconds)})"


def _about(parts: Sequence[Part]) -> str:
    lines = ["## Circumstances", ""]
    for part in parts:
        told = "; ".join(f"{key.replace('_', ' ')}: {_told(value)}" for key, value in part.about.items())
        lines.append(f"- `{part.name}.json`: {told}")
    return "\n".join(lines) + "\n"


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)
