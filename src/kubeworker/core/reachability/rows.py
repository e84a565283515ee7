"""What it means how nodes have reached each other: preflight's rows, and a matrix. Pure.

Where many pairs fail in the same way, one side of them is to blame: a node that reaches none of those that others
reach, or else the node that is not reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubeworker.core.model import NodeToNode
from kubeworker.core.preflight.row import Row, Status
from kubeworker.core.reachability.pairs import Pair, judge
from kubeworker.core.reachability.probe import Listen, Watched
from kubeworker.core.reachability.trials import Evidence, Fleet

LARGEST_MATRIX = 12
"""Nodes; a wider one fits no terminal."""
NAMED = 8
"""Nodes that one message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Who reaches whom, for a fleet that is small enough to be shown so."""

    targets: tuple[str, ...]
    cells: Mapping[str, tuple[str, ...]]
    """By asker, in the order of the targets: `ok`, or what does not pass (`10250 mtu`); `?`: it is unknown; `-`: it was
    not tried."""

    def as_json(self) -> dict[str, dict[str, str]]:
        """By asker, then by target."""
        return {asker: dict(zip(self.targets, cells, strict=True)) for asker, cells in self.cells.items()}


def rows(fleet: Fleet, seen: Evidence) -> tuple[Row, ...]:
    """Everything that was found out, for each node of this run."""
    by_check: dict[str, list[Pair]] = {}
    for pair in judge(fleet, seen):
        by_check.setdefault(pair.check, []).append(pair)
    found = [row for check, pairs in by_check.items() for row in _check(check, pairs, fleet).rows()]
    odd = tuple(_watching(fleet, seen))
    better = {(row.node, row.id) for row in odd}
    silent = [
        _row_without_probe(each.name, seen.ended[each.number]) for each in fleet.members if each.number in seen.ended
    ]
    found = [*silent, *(row for row in found if row.status != "ok" or (row.node, row.id) not in better), *odd]
    order = {member.name: member.number for member in fleet.members}
    return tuple(sorted(found, key=lambda row: order[row.node]))


def matrix(fleet: Fleet, seen: Evidence) -> Matrix | None:
    """The same at a glance; None where there are too many nodes, or none to try."""
    targets = tuple(member.name for member in fleet.members)
    if not 1 < len(targets) <= LARGEST_MATRIX:
        return None
    pairs = judge(fleet, seen)
    cells = {
        asker: tuple(
            _cell([pair for pair in pairs if (pair.asker, pair.target) == (asker, target)]) for target in targets
        )
        for asker in _askers(fleet)
    }
    return Matrix(targets=targets, cells=cells)


def _cell(pairs: Sequence[Pair]) -> str:
    wrong = [pair.label for pair in pairs if pair.status in {"failed", "warning"}]
    if wrong:
        return " ".join(wrong)
    if not pairs:
        return "-"
    return "?" if any(pair.status == "unknown" for pair in pairs) else "ok"


# ---------------------------------------------------------------------------------------------------------------
# From pairs to rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """All pairs of one check."""

    id: str
    pairs: Sequence[Pair]
    asked: Mapping[str, Sequence[Pair]]
    """By asker."""
    reached: Mapping[str, Sequence[Pair]]
    """By target."""
    askers: Mapping[str, None]
    """The nodes of this run: each has a row."""
    some: str
    """Said of a fleet in which not each tries all."""

    def rows(self) -> Iterator[Row]:
        charged: dict[str, list[Row]] = {}
        for what in dict.fromkeys(pair.what for pair in self.pairs if pair.status != "ok"):
            for row in self._charge(what):
                charged.setdefault(row.node, []).append(row)
        for name in self.askers:
            if name in charged:
                yield from charged[name]
            elif name in self.asked or name in self.reached:
                yield self._summary(name)

    def _charge(self, what: str) -> Iterator[Row]:
        """Rows of the nodes that this trouble is charged to."""
        by_target: dict[str, list[Pair]] = {}
        for asked in self.asked.values():
            own = [pair for pair in asked if pair.what == what and pair.status != "ok"]
            outside = [pair for pair in own if pair.target not in self.askers]
            if own and self._asker_is_to_blame(own):
                yield self._of_asker(own, outside)
                continue
            if outside:
                yield self._of_asker(outside, outside)
            for pair in own:
                if pair.target in self.askers:
                    by_target.setdefault(pair.target, []).append(pair)
        for target, theirs in by_target.items():
            askers = _listed([pair.asker for pair in theirs])
            yield self._row(target, theirs[0].status, f"{askers} -> {target}: {what}", theirs[0].fix_target)

    def _of_asker(self, own: Sequence[Pair], outside: Sequence[Pair]) -> Row:
        first = own[0]
        targets = f"all {len(own)} others" if self._everywhere(own) else _listed([pair.target for pair in own])
        # Each node outside this run may be down; not all of them at once.
        others = [pair for pair in self.asked[first.asker] if pair.target not in self.askers]
        all_of_them = len(outside) == len(others) > 1 and outside[0].status == "warning"
        status: Status = "failed" if all_of_them else first.status
        return self._row(first.asker, status, f"{first.asker} -> {targets}: {first.what}", first.fix_asker)

    def _asker_is_to_blame(self, own: Sequence[Pair]) -> bool:
        """It says so, or it reaches none of several, of which others reach some."""
        return own[0].blame == "asker" or (
            self._everywhere(own) and any(other.status == "ok" for pair in own for other in self.reached[pair.target])
        )

    def _everywhere(self, own: Sequence[Pair]) -> bool:
        return len(own) == len(self.asked[own[0].asker]) > 1

    def _row(self, node: str, status: Status, message: str, fix: str = "") -> Row:
        return Row(node=node, id=self.id, status=status, message=message, fix=fix)

    def _summary(self, name: str) -> Row:
        """A node that nothing is charged to: of what is not ok another one has the row."""
        out, back = self.asked.get(name, ()), self.reached.get(name, ())
        good = sorted({pair.what for pair in out if pair.status == "ok" and pair.what})
        text = f"reaches {_share(out)}" + (f", reached by {_share(back)}" if back else "")
        status: Status = "ok" if any(pair.status == "ok" for pair in (*out, *back)) else "unknown"
        return self._row(name, status, f"{', '.join(good)}: {text}{self.some}" if good else f"{text}{self.some}")


def _check(check: str, pairs: Sequence[Pair], fleet: Fleet) -> _Check:
    asked: dict[str, list[Pair]] = {}
    reached: dict[str, list[Pair]] = {}
    for pair in pairs:
        asked.setdefault(pair.asker, []).append(pair)
        reached.setdefault(pair.target, []).append(pair)
    some = f" (of {len(fleet.probed)}, each tries some)" if fleet.partial else ""
    return _Check(id=check, pairs=pairs, asked=asked, reached=reached, askers=dict.fromkeys(_askers(fleet)), some=some)


def _askers(fleet: Fleet) -> tuple[str, ...]:
    """The nodes of this run."""
    return tuple(member.name for member in fleet.members if fleet.targets[member.number])


def _share(pairs: Sequence[Pair]) -> str:
    return f"{sum(pair.status == 'ok' for pair in pairs)} of {len(pairs)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _row_without_probe(name: str, reason: str) -> Row:
    fix = "apt-get install perl-base" if "perl" in reason else "run preflight again"
    message = f"whether the other nodes are reached was not tried: {reason}"
    return Row(node=name, id="reach", status="unknown", message=message, fix=fix)


def _watching(fleet: Fleet, seen: Evidence) -> Iterator[Row]:
    """What was odd about a node's own ports."""
    for member in fleet.probed:
        for need in member.ports:
            watched = seen.watched.get((member.number, Listen(protocol=need.protocol, port=need.port)))
            if watched is None:
                continue
            check, name = f"reach-{need.protocol}-{need.port}", f"{need.protocol.upper()} {need.port}"
            if watched.state == "failed":
                message = f"{member.name} can't listen on {name} of {member.address}: {watched.detail}"
                yield Row(node=member.name, id=check, status="unknown", message=message, fix=_unwatched(watched))
            elif _foreign(need, watched):
                message = f"{name} is held by {watched.detail}, not by {need.process}: the others reach that"
                fix = f"stop {watched.detail}"
                yield Row(node=member.name, id=check, status="warning", message=message, fix=fix)


def _unwatched(watched: Watched) -> str:
    if watched.detail == "Cannot assign requested address":
        return "`address` must be an address of the machine's own"
    return "as root it must be allowed to listen: CAP_NET_BIND_SERVICE, and CAP_NET_RAW for datagrams"


def _foreign(need: NodeToNode, watched: Watched) -> bool:
    return watched.state == "held" and bool(watched.detail and need.process) and watched.detail != need.process
