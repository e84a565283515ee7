"""One kubelet setting changed on every node, beside a bare connection with one `systemctl restart`.

A restart alone does not wait for the service to be healthy, which an apply promises: so there is a second floor that
does, by the same connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bench import floors, tool
from bench.machines import Fleet, Say
from bench.result import Row, ratio
from bench.tool import BenchFailed

WORKLOAD = "changed"
FLOOR = "bare asyncssh: connect and systemctl restart kubelet"
HEALTHY = "bare asyncssh: the same, until healthz answers"
TOOL = "kubeworker apply"

_RESTART = "systemctl restart kubelet.service"
_ASK = "exec 3<> /dev/tcp/127.0.0.1/10248 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3"
_UNTIL_HEALTHY = f"""{_RESTART} && timeout 60 bash -c '
until ({_ASK.replace("'", '"')} && [ "$status" = 200 ]) 2> /dev/null; do sleep 0.05; done'"""


def measure(fleet: Fleet, repeat: int, say: Say) -> list[Row]:
    """Kubelet's maxPods goes from its value to another one and back."""
    applied: list[tool.Timed] = []
    bare: dict[str, list[tool.Timed]] = {FLOOR: [], HEALTHY: []}
    with _other_setting(fleet.cluster_file) as other:
        for number in range(1, repeat + 1):
            for path in (other, fleet.cluster_file):
                applied.append(tool.timed(lambda path=path: _apply(path, len(fleet.machines))))  # type: ignore[misc]
                for what, command in ((FLOOR, _RESTART), (HEALTHY, _UNTIL_HEALTHY)):
                    bare[what].append(
                        tool.timed(
                            lambda command=command: floors.bare_asyncssh(fleet.lab, fleet.machines, command)  # type: ignore[misc]
                        )
                    )
                # The tool takes a restart by others for what it is, and records it.
                tool.apply_once(path)
            floor, healthy = (bare[what][-1].seconds for what in (FLOOR, HEALTHY))
            say(f"changed, {number} of {repeat}: {TOOL} {applied[-1].seconds:.2f} s, {floor:.2f} s, {healthy:.2f} s")
    return rows(len(fleet.machines), applied, bare)


def rows(n: int, applied: Sequence[tool.Timed], bare: Mapping[str, Sequence[tool.Timed]]) -> list[Row]:
    """As rows."""
    below = [
        Row(workload=WORKLOAD, what=what, n=n, kind="floor", seconds=tuple(each.seconds for each in taken))
        for what, taken in bare.items()
    ]
    row = Row(
        workload=WORKLOAD,
        what=TOOL,
        n=n,
        seconds=tuple(each.seconds for each in applied),
        measured={"cpu_ms_per_node": round(1000 * sum(each.cpu for each in applied) / len(applied) / n, 1)},
    )
    times = {floor.what: ratio(row, floor) for floor in below}
    return [
        replace(
            row,
            ratios=times,
            aim="at most 1.5 x the floor",
            met=times[FLOOR] <= 1.5,
            note="plan, config check on the node, swap, restart, health check, record",
        ),
        *below,
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
