"""One more node joins a fleet, beside the deployment of that node alone; who is connected to meanwhile is counted."""

from __future__ import annotations

from pathlib import Path

from bench import connections, tool
from bench.machines import Fleet, Say, reset, write_cluster
from bench.payload import Payload
from bench.result import Row, ratio
from bench.settings import fleet_settings
from bench.tool import BenchFailed
from kubeworker.lab import Machine

WORKLOAD = "one-more"
ALONE = "kubeworker apply, the node alone"


def measure(fleet: Fleet, payload: Payload, work: Path, repeat: int, say: Say) -> list[Row]:
    """The spare machine is deployed to again and again, each time as it was before."""
    spare = fleet.spare
    if spare is None:
        raise BenchFailed("the fleet has no spare machine")
    files = {"joins": fleet.lab.folder / "one-more.yaml", "alone": fleet.lab.folder / "alone.yaml"}
    write_cluster(fleet.lab, files["joins"], (*fleet.machines, spare), fleet_settings(fleet.lab, work))
    write_cluster(fleet.lab, files["alone"], (spare,), fleet_settings(fleet.lab, work))
    seconds: dict[str, list[float]] = {"joins": [], "alone": []}
    others = 0
    for number in range(1, repeat + 1):
        for how, path in files.items():
            reset(fleet, payload.units, payload.paths, (spare,))
            with connections.counted(fleet.lab.bridge) as seen:
                seconds[how].append(tool.timed(lambda path=path: _deploy(path, spare)).seconds)  # type: ignore[misc]
            if not seen[spare.address]:
                raise BenchFailed(f"no connection to {spare.address} was counted: {dict(seen)}")
            others += sum(seen[each.address] for each in fleet.machines)
        say(f"one more, {number} of {repeat}: {seconds['joins'][-1]:.2f} s, alone {seconds['alone'][-1]:.2f} s")
    return rows(len(fleet.machines), seconds["joins"], seconds["alone"], others)


def rows(n: int, joins: list[float], alone: list[float], others: int) -> list[Row]:
    """As rows."""
    floor = Row(workload=WORKLOAD, what=ALONE, n=1, kind="floor", seconds=tuple(alone))
    row = Row(workload=WORKLOAD, what="", n=n, seconds=tuple(joins))
    times = ratio(row, floor)
    return [
        Row(
            workload=WORKLOAD,
            what=f"kubeworker apply --node, beside {n} others",
            n=n,
            seconds=row.seconds,
            ratios={ALONE: times},
            aim="within 10 % of that node alone, and no connection to any other node",
            met=times <= 1.1 and not others,
            measured={"connections_to_others": others},
            note="small stand-ins for binaries, and no TLS bootstrap: what is compared is what the fleet adds",
        ),
        floor,
    ]


def _deploy(path: Path, spare: Machine) -> None:
    done = tool.apply_once(path, (spare.name,))
    if not done.plan.changes:
        raise BenchFailed(f"{spare.name} was not as after its first boot")
