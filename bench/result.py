"""What was measured, as values, and how it is kept: one JSON file per part of the bench in `bench/results/`.

The chart and docs/benchmarks.md are drawn from these files alone.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing measured under one workload."""

    workload: str
    """Key of the workload; rows of one workload stand together: converged, first-deploy, plan-1000, ..."""
    what: str
    """Who or what was measured: kubeworker, Ansible, ssh NODE true by xargs -P, ..."""
    n: int
    """Nodes."""
    seconds: tuple[float, ...]
    """Wall-clock seconds of each repetition; empty where the row is about something else (`measured`)."""
    kind: str = "tool"
    """tool, floor or rival: how the row is drawn."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """This row's median over that of another row, by the other's `what`."""
    aim: str = ""
    """In words, with the limit: "at most 1.5 x bare asyncssh"; empty: none of its own."""
    met: bool | None = None
    """Whether the aim was met; None where there is none."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Other quantities, with the unit in the name: resident_mb, cpu_ms_per_node, uploaded_mb."""
    note: str = ""
    """What a reader must know to read the number right."""

    @property
    def median(self) -> float:
        """Median seconds; ValueError where none were measured."""
        if not self.seconds:
            raise ValueError(f"{self.workload}: {self.what}: no seconds")
        return statistics.median(self.seconds)


def ratio(row: Row, other: Row) -> float:
    """Median over median, to three digits."""
    return round(row.median / other.median, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the bench: its rows, and the circumstances under which they were measured."""

    name: str
    rows: tuple[Row, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """When, on what, by which command; versions of rivals; how many machines of which kind."""


def circumstances(command: str, **more: Any) -> dict[str, Any]:
    """What every part says of the machine that it ran on."""
    return {
        "command": command,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **more,
    }


def save(part: Part, folder: Path = RESULTS) -> Path:
    """Write the part as `<folder>/<name>.json`, in place of an earlier run's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part.name}.json"
    path.write_text(encode(part))
    return path


def load(folder: Path = RESULTS) -> tuple[Part, ...]:
    """Every part that is there, by name."""
    return tuple(decode(path.read_text()) for path in sorted(folder.glob("*.json")))


def encode(part: Part) -> str:
    """The JSON text; seconds to the millisecond."""
    document = asdict(part)
    for row in document["rows"]:
        row["seconds"] = [round(value, 3) for value in row["seconds"]]
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def decode(text: str) -> Part:
    """The part that `encode` wrote; ValueError, KeyError or TypeError for anything else."""
    document: dict[str, Any] = json.loads(text)
    rows: Sequence[dict[str, Any]] = document["rows"]
    return Part(
        name=document["name"],
        about=document["about"],
        rows=tuple(Row(**row | {"seconds": tuple(row["seconds"])}) for row in rows),
    )
