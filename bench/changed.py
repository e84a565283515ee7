"""One kubelet setting changed on every node, beside a bare connection with one `systemctl restart`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench import floors, tool
from bench.machines import Fleet, Say
from bench.result import Row, ratio
from bench.tool import BenchFailed

WORKLOAD = "changed"
FLOOR = "bare asyncssh: connect and systemctl restart kubelet"
TOOL = "kubeworker apply"


def measure(fleet: Fleet, repeat: int, say: Say) -> list[Row]:
    """Kubelet's maxPods goes from its value to another one and back."""
    applied, bare = [], []
    with _other_setting(fleet.cluster_file) as other:
        for number in range(1, repeat + 1):
            for path in (other, fleet.cluster_file):
                applied.append(tool.timed(lambda path=path: _apply(path, len(fleet.machines))))  # type: ignore[misc]
                bare.append(
                    tool.timed(
                        lambda: floors.bare_asyncssh(fleet.lab, fleet.machines, "systemctl restart kubelet.service")
                    )
                )
                # The tool takes a restart by others for what it is, and records it.
                tool.apply_once(path)
            say(f"changed, {number} of {repeat}: {TOOL} {applied[-1].seconds:.2f} s, floor {bare[-1].seconds:.2f} s")
    n = len(fleet.machines)
    floor = Row(workload=WORKLOAD, what=FLOOR, n=n, kind="floor", seconds=tuple(each.seconds for each in bare))
    row = Row(
        workload=WORKLOAD,
        what=TOOL,
        n=n,
        seconds=tuple(each.seconds for each in applied),
        measured={"cpu_ms_per_node": round(1000 * sum(each.cpu for each in applied) / len(applied) / n, 1)},
    )
    times = ratio(row, floor)
    return [
        Row(
            **{name: getattr(row, name) for name in ("workload", "what", "n", "seconds", "measured")},
            ratios={FLOOR: times},
            aim="at most 1.5 x the floor",
            met=times <= 1.5,
            note="plan, config check on the node, swap, restart, health check, record",
        ),
        floor,
    ]


def _apply(path: Path, nodes: int) -> None:
    done = tool.apply_once(path)
    if len([node for node in done.nodes if node.actions]) != nodes:
        raise BenchFailed(f"one setting changed, and not every node did something: {done.as_json()}")


@contextmanager
def _other_setting(cluster_file: Path) -> Iterator[Path]:
    document: dict[str, Any] = yaml.safe_load(cluster_file.read_text())
    document["components"].setdefault("kubelet", {})["max_pods"] = 200
    other = cluster_file.with_name("changed.yaml")
    other.write_text(yaml.safe_dump(document, sort_keys=False))
    try:
        yield other
    finally:
        other.unlink()
