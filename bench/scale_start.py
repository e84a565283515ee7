"""What the command costs before it does anything: `kubeworker --help` beside Python itself."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.result import Part, Row, circumstances, ratio
from bench.tool import COMMAND, compile_bytecode

REPEAT = 40
LIMIT = 2.0


def main() -> Part:
    """The part of `make bench`."""
    compile_bytecode()
    commands = {
        "kubeworker --help": [str(COMMAND), "--help"],
        "kubeworker plan --help": [str(COMMAND), "plan", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {what: [] for what in commands}
    for _ in range(REPEAT):
        for what, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[what].append(time.perf_counter() - began)
    rows = {
        what: Row(
            workload="start",
            what=what,
            n=0,
            seconds=tuple(sorted(values)),
            kind="floor" if what.startswith("python") else "tool",
            measured={"ms": round(1000 * statistics.median(values), 1)},
        )
        for what, values in seconds.items()
    }
    overview, floor = rows["kubeworker --help"], rows["python -c pass"]
    times = ratio(overview, floor)
    judged = Row(
        workload=overview.workload,
        what=overview.what,
        n=0,
        seconds=overview.seconds,
        ratios={floor.what: times},
        aim=f"at most {LIMIT:g} x python's own start",
        met=times <= LIMIT,
        measured=overview.measured,
    )
    return Part(
        name="start",
        rows=(judged, rows["kubeworker plan --help"], floor),
        about=circumstances("make bench ONLY=scale"),
    )
