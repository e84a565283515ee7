"""What a drill of API failover has measured on a lab, and whether that is good enough; see docs/failover.md.

Times are seconds. Those of requests, looks and events are of one monotonic clock.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from typing import Any, Literal, TypeAlias, get_args

Case: TypeAlias = Literal["stopped", "blackholed", "hung", "unready"]
"""What befalls one kube-apiserver: killed; packets of its port dropped; SIGSTOP; its way to etcd cut off."""
CASES: tuple[Case, ...] = get_args(Case)

GAP: Mapping[Case, float] = {"stopped": 1.0, "blackholed": 6.0, "hung": 6.0, "unready": 6.0}
"""Aim: the longest time without an answer on the kept connection."""
SHARE = 1.5
"""Aim: no API server has more sessions than so many times its fair share ..."""
SPREAD_LIMIT = 60.0
"""... so many seconds after the return of one."""
LATE = 20.0
"""A lease older than this is late: kubelet renews it every 10 s, and it lasts 40 s."""

Sessions: TypeAlias = Mapping[str, int]
"""Machine of each kube-apiserver -> connections from nodes' proxies to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The longest time between two answers."""

    seconds: float
    ended: bool = True
    """Whether an answer came after it; else it lasted as long as anybody looked."""

    @property
    def text(self) -> str:
        """`3.2 s`."""
        return f"{self.seconds:.1f} s" if self.ended else f"over {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What one client met with."""

    gap: Gap
    """During the fault."""
    after: float
    """Longest time between two answers from the return on: a node that goes back to the returned one cuts sessions."""
    noise: float
    """The same in the seconds before the fault, when nothing is wrong."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed requests from the fault on, by their reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One case."""

    case: Case
    apiserver: str
    """Machine of the kube-apiserver that it befell."""
    held: float
    """How long."""
    recovery: float
    """From the end of the fault until its /readyz answered 200."""
    kept: Client
    dial: Client
    watch: float | None
    """From the fault until the watch on the kept connection was opened anew; None: it was not."""
    before: Sessions
    during: Sessions
    """At the end of the fault."""
    after: Sessions
    """At the end of the case."""
    even: float | None
    """From its return until no API server had more than SHARE times its share; None: not within SPREAD_LIMIT."""
    leases: Mapping[str, float]
    """By node, the longest time between two renewals of its lease."""
    not_ready: tuple[str, ...]
    """Nodes that were not Ready at some time."""
    reloads: Mapping[str, tuple[float, ...]]
    """By node, when its kube-nginx began to work with another list after the return; seconds since the epoch."""

    @property
    def missed(self) -> tuple[str, ...]:
        """The aims that it does not meet."""
        return tuple(_missed(self))

    def as_json(self) -> dict[str, Any]:
        """The case in `drill apiserver --json`."""
        clock = {
            node: [dt.datetime.fromtimestamp(time, dt.UTC).isoformat(timespec="milliseconds") for time in times]
            for node, times in self.reloads.items()
        }
        found: dict[str, Any] = _rounded(asdict(self) | {"reloads": clock, "missed": list(self.missed)})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """The API proxy that the clients go through."""

    node: str
    listen: str
    """HOST:PORT."""
    balance: str
    """least_conn or hash."""
    probe: bool
    """Whether a probe keeps its list to those that are ready."""
    ping_seconds: tuple[int, int]
    """How its kubelet pings, and so the kept connection: after so long a silence, and so long for the answer."""

    @property
    def text(self) -> str:
        """`least_conn, with a probe; pings after 10 + 5 s`."""
        idle, answer = self.ping_seconds
        return f"{self.balance}, {'with a' if self.probe else 'no'} probe; pings after {idle} + {answer} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """All cases of one run."""

    lab: str
    proxy: Proxy
    nodes: tuple[str, ...]
    """Those whose sessions are counted."""
    results: tuple[Result, ...]

    @property
    def missed(self) -> tuple[tuple[Case, str], ...]:
        """The aims that are not met, by case."""
        return tuple((result.case, text) for result in self.results for text in result.missed)

    def as_json(self) -> dict[str, Any]:
        """The document of `drill apiserver --json`."""
        return {
            "lab": self.lab,
            "proxy": asdict(self.proxy),
            "nodes": list(self.nodes),
            "cases": [result.as_json() for result in self.results],
            "met": not self.missed,
        }


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
        case _:
            return value


def _missed(result: Result) -> Iterable[str]:
    aim = GAP[result.case]
    if not result.kept.gap.ended or result.kept.gap.seconds > aim:
        yield f"the kept connection was without an answer for {result.kept.gap.text}; the aim is {aim:g} s"
    if result.not_ready:
        yield f"NotReady: {', '.join(result.not_ready)}"
    if result.even is None:
        yield f"sessions were not spread again within {SPREAD_LIMIT:.0f} s of the return"
    for one, other in same_second(result.reloads):
        yield f"{one} and {other} reloaded kube-nginx in the same second"


# ---------------------------------------------------------------------------------------------------------------


def longest_gap(answers: Sequence[float], begin: float, end: float, seen_until: float) -> Gap:
    """The longest time between two answers in a row, of those pairs that have a part of begin..end between them.

    `answers` are the times at which good ones came, in order; who looked, looked until `seen_until`.
    """
    around = [Gap(seconds=after - before) for before, after in pairwise(answers) if after > begin and before < end]
    last = max((each for each in answers if each <= seen_until), default=begin)
    if last < end:
        around.append(Gap(seconds=seen_until - last, ended=False))
    return max(around, key=lambda gap: gap.seconds, default=Gap(seconds=0.0))


def longest_pause(answers: Iterable[float], begin: float, end: float) -> float:
    """The longest time between two answers in a row that both came within begin..end; 0 where there is no such pair."""
    within = [each for each in answers if begin <= each <= end]
    return max((after - before for before, after in pairwise(within)), default=0.0)


def over(sessions: Sessions) -> bool:
    """Whether an API server has more than SHARE times its fair share of the sessions."""
    total = sum(sessions.values())
    return bool(total) and max(sessions.values()) > SHARE * total / len(sessions)


def even_since(looks: Iterable[tuple[float, Sessions]], begin: float) -> float | None:
    """The first look from `begin` on after which no API server was over its share any more; None: the last one was."""
    since: float | None = None
    for at, sessions in looks:
        if at < begin:
            continue
        if over(sessions):
            since = None
        elif since is None:
            since = at
    return since


def oldest(renewals: Collection[float], seen_until: float) -> float:
    """The longest time between two renewals of a lease, or from the last one until nobody looked any more."""
    times = sorted(renewals)
    return max(after - before for before, after in pairwise([*times, seen_until])) if times else seen_until


def same_second(reloads: Mapping[str, Collection[float]]) -> tuple[tuple[str, str], ...]:
    """Pairs of nodes that reloaded in the same second of the wall clock."""
    seconds = {node: {int(time) for time in times} for node, times in reloads.items()}
    return tuple((one, other) for one, other in combinations(sorted(seconds), 2) if seconds[one] & seconds[other])


# ---------------------------------------------------------------------------------------------------------------


def measures(result: Result) -> dict[str, str]:
    """The case in words, by what was measured: a column of the table that people see."""
    late = max(result.leases.values(), default=0.0)
    return {
        "longest gap, kept connection": result.kept.gap.text,
        "longest gap, dialling anew": result.dial.gap.text,
        "watch opened anew after": "never" if result.watch is None else f"{result.watch:.1f} s",
        "sessions before": spread(result.before),
        "sessions at the fault's end": spread(result.during),
        "sessions at the end": spread(result.after),
        "even again after": f"{result.even:.1f} s" if result.even is not None else f"not within {SPREAD_LIMIT:.0f} s",
        "oldest lease": f"{late:.1f} s{', late' if late > LATE else ''}",
        "NotReady": ", ".join(result.not_ready) or "none",
        "kube-nginx reloads": reloading(result.reloads),
        "longest gap after the return": f"{max(result.kept.after, result.dial.after):.1f} s",
    }


def table(drills: Mapping[str, Drill]) -> str:
    """Several drills side by side, by what is told of each, in Markdown: a line for each case of each."""
    rows = [
        {"case": result.case, "proxy": title} | measures(result)
        for results in zip(*(drill.results for drill in drills.values()), strict=True)
        for title, result in zip(drills, results, strict=True)
    ]
    head = tuple(rows[0])
    lines = (head, ("---",) * len(head), *(tuple(row.values()) for row in rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(sessions: Sessions) -> str:
    """`4 + 3`, in the order of the API servers' names."""
    return " + ".join(str(sessions[name]) for name in sorted(sessions))


def reloading(reloads: Mapping[str, Sequence[float]]) -> str:
    """`worker-01 :05, worker-02 :06`: at which second of a minute, in order."""
    times = sorted((time, node) for node, each in reloads.items() for time in each)
    return ", ".join(f"{node} :{dt.datetime.fromtimestamp(time, dt.UTC):%S}" for time, node in times) or "none"
