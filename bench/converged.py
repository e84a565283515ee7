"""Everything observed, nothing changed: kubeworker beside bare connections, and beside the rivals' second runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench import floors, rival, tool
from bench.machines import Fleet, Say
from bench.result import Row, ratio
from bench.rival import Rival, Setting
from bench.tool import Timed

WORKLOAD = "converged"
OPENSSH, ASYNCSSH = "ssh NODE true by xargs -P", "bare asyncssh: connect and true"
TOOL, COMMAND = "kubeworker apply", "kubeworker apply, whole command"


def measure(fleet: Fleet, repeat: int, say: Say) -> list[Row]:
    """The tool and the floors take turns, so that a noisy host slows all of them."""
    taken: dict[str, list[Timed]] = {TOOL: [], OPENSSH: [], ASYNCSSH: [], COMMAND: []}
    tool.converged(fleet.cluster_file)
    for number in range(1, repeat + 1):
        taken[TOOL].append(tool.timed(lambda: tool.converged(fleet.cluster_file)))
        taken[OPENSSH].append(tool.timed(lambda: floors.openssh(fleet.lab, fleet.machines)))
        taken[ASYNCSSH].append(tool.timed(lambda: floors.bare_asyncssh(fleet.lab, fleet.machines)))
        taken[COMMAND].append(tool.timed(lambda: tool.converged_command(fleet.cluster_file)))
        last = ", ".join(f"{name} {times[-1].seconds:.2f} s" for name, times in taken.items())
        say(f"converged, {number} of {repeat}: {last}")
    return rows(len(fleet.machines), taken)


def rows(n: int, taken: dict[str, list[Timed]]) -> list[Row]:
    """As rows, the tool's with its ratios to both floors."""
    made = {name: _row(name, n, times) for name, times in taken.items()}
    ratios = {name: ratio(made[TOOL], made[name]) for name in (OPENSSH, ASYNCSSH)}
    made[TOOL] = _row(
        TOOL,
        n,
        taken[TOOL],
        ratios=ratios,
        aim="at most 0.6 x ssh by xargs and 1.5 x bare asyncssh",
        met=ratios[OPENSSH] <= 0.6 and ratios[ASYNCSSH] <= 1.5,
        note="in a process that is up already",
    )
    return list(made.values())


def _row(
    name: str,
    n: int,
    times: Sequence[Timed],
    *,
    ratios: dict[str, float] | None = None,
    aim: str = "",
    met: bool | None = None,
    note: str = "",
) -> Row:
    return Row(
        workload=WORKLOAD,
        what=name,
        n=n,
        seconds=tuple(each.seconds for each in times),
        kind="floor" if name in {OPENSSH, ASYNCSSH} else "tool",
        ratios=ratios or {},
        measured={"cpu_ms_per_node": round(1000 * statistics.median(each.cpu for each in times) / n, 1)},
        aim=aim,
        met=met,
        note=note,
    )


AIMS = {"Ansible": 60.0, "pyinfra": 6.0}
"""How many times as long as kubeworker a rival should take at least."""


def measure_rivals(setting: Setting, rivals: Sequence[Rival], tools: Row, say: Say) -> list[Row]:
    """Each rival's run over nodes that have everything already; once, for they take long."""
    made = []
    for each in rivals:
        say(f"converged: {each.name} ...")
        taken, note = rival.timed(setting, each)
        seconds = taken.seconds
        n = len(setting.fleet.machines)
        # Fewer nodes than the tool's: only what was measured on as many is compared.
        times = round(seconds / tools.median, 1) if n == tools.n else 0.0
        say(f"converged: {each.name} {seconds:.1f} s on {n} nodes, {times or '-'} x kubeworker")
        least = AIMS.get(each.name)
        made.append(
            Row(
                workload=WORKLOAD,
                what=each.name,
                n=n,
                seconds=(seconds,),
                kind="rival",
                ratios={tools.what: times} if times else {},
                aim=f"kubeworker at least {least:g} x faster" if least else "",
                met=times >= least if least else None,
                note=note
                or ("node after node; it redoes everything, restarts too" if each.name.startswith("guide") else ""),
                measured={"cpu_ms_per_node": round(1000 * taken.cpu / n, 1)},
            )
        )
    return made
