"""`make bench`: what an apply costs on two lab nodes, beside bare ssh, in one run.

Prints seconds of a first apply, of a converged apply, of `ssh NODE true` on both nodes in parallel, the bytes uploaded,
and the ratio of converged apply to bare ssh; writes every raw number to build/bench.json. A converged apply is measured
in a process that is up already (start-up is a number of its own): apply and ssh take turns, so that a noisy machine
slows both.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kubeworker import lab
from kubeworker.flow import events
from kubeworker.flow.apply import ApplyReport, Options, apply
from kubeworker.flow.plan import Plan
from kubeworker.flow.session import Request
from kubeworker.lab import LabState

LAB = "bench"
RUNS = 15
OUT = Path("build/bench.json")
COMMAND = Path(sys.executable).with_name("kubeworker")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def apply_once(state: LabState) -> ApplyReport:
    async def yes(_plan: Plan) -> bool:
        return True

    report = asyncio.run(apply(Request(cluster_file=state.cluster_yaml), Options(), yes, events.silent))
    if report.exit_code:
        raise SystemExit(f"apply failed: {report.as_json()}")
    return report


def converged(state: LabState) -> None:
    report = apply_once(state)
    if report.plan.changes:
        raise SystemExit(f"not converged: {report.plan.as_json()}")


def bare_ssh(state: LabState) -> None:
    options = ["-F", "none", "-i", str(state.ssh_identity), "-o", f"UserKnownHostsFile={state.known_hosts}"]
    commands = [["ssh", *options, "-o", "BatchMode=yes", f"root@{each.address}", "true"] for each in state.machines]
    running = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("ssh failed")


def quietly(command: list[str]) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)


def show(name: str, values: list[float]) -> None:
    print(f"{name:<28} {min(values):8.3f} {statistics.median(values):8.3f} {max(values):8.3f}")


def main() -> None:
    lab.down(LAB)
    state = lab.up(LAB)
    try:
        raw = measure(state)
    finally:
        lab.down(LAB)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"{'seconds':<28} {'min':>8} {'median':>8} {'max':>8}")
    for name, key in (
        ("first apply", "first_apply"),
        ("converged apply", "converged_apply"),
        ("ssh NODE true, in parallel", "bare_ssh"),
        ("command start (--version)", "process_start"),
        ("converged apply, whole command", "converged_command"),
    ):
        show(name, raw[key])
    ratios = [one / other for one, other in zip(raw["converged_apply"], raw["bare_ssh"], strict=True)]
    show("converged apply / bare ssh", ratios)
    print(f"uploaded to each node: {raw['uploaded_bytes'][0] / 1e6:.1f} MB compressed; raw numbers: {OUT}")


def measure(state: LabState) -> dict[str, list[float]]:
    reports: list[ApplyReport] = []
    raw: dict[str, list[float]] = {"first_apply": [seconds(lambda: reports.append(apply_once(state)))]}
    raw["uploaded_bytes"] = [float(node.uploaded) for node in reports[0].nodes]
    raw["converged_apply"], raw["bare_ssh"] = [], []
    converged(state)
    for _ in range(RUNS):
        raw["converged_apply"].append(seconds(lambda: converged(state)))
        raw["bare_ssh"].append(seconds(lambda: bare_ssh(state)))
    whole = [str(COMMAND), "apply", "--yes", "-f", str(state.cluster_yaml)]
    raw["converged_command"] = [seconds(lambda: quietly(whole)) for _ in range(RUNS // 3)]
    raw["process_start"] = [seconds(lambda: quietly([str(COMMAND), "--version"])) for _ in range(RUNS // 3)]
    return raw


if __name__ == "__main__":
    main()
