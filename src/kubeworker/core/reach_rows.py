"""What it means how nodes have reached each other: preflight's rows, and a matrix. Pure.

Where many pairs fail in the same way, one side of them is to blame: a node that reaches none of those that others
reach, or else the node that is not reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kubeworker.core.model import NodeToNode, PathMtu
from kubeworker.core.preflight import Row, Status
from kubeworker.core.reach_probe import LIMIT, Connected, Listen, Sent, Watched
from kubeworker.core.reachability import Evidence, Fleet, Member, packet, way

LARGEST_MATRIX = 12
"""Nodes; a wider one fits no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """How one node fared with another, of one check."""

    check: str
    asker: str
    target: str
    status: Status = "ok"
    what: str = ""
    """What went wrong, without the pair's names: the same words are the same trouble. Of a pair that is well: what that
    shows, if it is more than that."""
    fix_asker: str = ""
    """What to do where the asker is to blame."""
    fix_target: str = ""
    """The same of the target."""
    label: str = ""
    """The check in a cell of the matrix."""
    blame: Literal["asker", "either"] = "either"


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
    pairs = judge(fleet, seen)
    found = [_row_without_probe(member.name, seen.ended[member.number]) for member in _without_probe(fleet, seen)]
    for check in dict.fromkeys(pair.check for pair in pairs):
        found += _check(check, [pair for pair in pairs if pair.check == check], fleet)
    odd = tuple(_watching(fleet, seen))
    found = [row for row in found if row.status != "ok" or (row.node, row.id) not in {(o.node, o.id) for o in odd}]
    found += odd
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
# Pair by pair


def judge(fleet: Fleet, seen: Evidence) -> tuple[Pair, ...]:
    """How each pair fared, check by check in the order in which components ask for them."""
    found = [
        pair
        for asker in fleet.probed
        for target in fleet.tried_by(asker)
        for pair in (
            *(_port(need, asker, target, seen) for need in target.ports if need.protocol == "tcp" or target.probed),
            *(_mtu(need, asker, target, seen) for need in asker.mtus if target.probed),
            *_segment(asker, target, seen),
        )
    ]
    order = {check: place for place, check in enumerate(dict.fromkeys(pair.check for pair in found))}
    return tuple(sorted(found, key=lambda pair: order[pair.check]))


def _port(need: NodeToNode, asker: Member, target: Member, seen: Evidence) -> Pair:
    name = f"{need.protocol.upper()} {need.port}"
    status, what, blame = (_tcp if need.protocol == "tcp" else _udp)(need, asker, target, seen)
    both = f"--node {asker.name} --node {target.name}, so that something listens" if what == _SILENT else ""
    return Pair(
        check=f"reach-{need.protocol}-{need.port}",
        asker=asker.name,
        target=target.name,
        status=status,
        what=what,
        fix_asker=both or f"on {asker.name}: let it send to {name} of the other nodes ({need.why})",
        fix_target=f"on {target.name}: let {name} in from the other nodes ({need.why})",
        label=str(need.port),
        blame=blame,
    )


_SILENT = "refused: nothing listens there yet, and it is not in this run"
_Judged = tuple[Status, str, Literal["asker", "either"]]


def _tcp(need: NodeToNode, asker: Member, target: Member, seen: Evidence) -> _Judged:
    match seen.connected.get((asker.number, target.number, need.port)):
        case None:
            return "unknown", _why_not(asker, target, Listen(protocol="tcp", port=need.port), seen), "either"
        case Connected(outcome="ours" | "open"):
            return "ok", "", "either"
        case Connected(outcome="refused") if not target.probed:
            return "unknown", _SILENT, "either"
        case answer:
            what, blame = _trouble(answer)
            return ("failed" if target.probed else "warning"), what, blame


def _trouble(answer: Connected) -> tuple[str, Literal["asker", "either"]]:
    match answer.outcome:
        case "refused":
            return "refused, though something listens there (a firewall that rejects?)", "either"
        case "no-route":
            return "no route to host (none there, or a firewall that says so, as firewalld's does)", "either"
        case "timeout":
            return f"no answer within {LIMIT} s (dropped by a firewall?)", "either"
        case "other":
            said = f" ({answer.detail})" if answer.detail else ""
            return f"something else answers{said}: an address that is used twice, or NAT in between?", "either"
        case _:
            return f"can't connect: {answer.detail}", "asker"


def _udp(need: NodeToNode, asker: Member, target: Member, seen: Evidence) -> _Judged:
    listen = Listen(protocol="udp", port=need.port)
    if seen.span(asker.number, target.number, listen)[0]:
        return "ok", "", "either"
    sent = seen.sent.get((asker.number, target.number, listen))
    if not sent:
        return "unknown", _why_not(asker, target, listen, seen), "either"
    if error := sent[0].error:
        return "failed", f"datagrams do not leave the node: {error} (its own packet filter?)", "asker"
    if target.number in seen.ended:
        return "unknown", _why_not(asker, target, listen, seen), "either"
    return "failed", "no datagram arrives (dropped by a firewall?)", "either"


def _why_not(asker: Member, target: Member, listen: Listen, seen: Evidence) -> str:
    for member in (asker, target):
        if reason := seen.ended.get(member.number):
            return f"not tried: {member.name}: {reason}"
    watched = seen.watched.get((target.number, listen))
    if watched is not None and watched.state == "failed":
        return f"not tried: {target.name} can't listen there: {watched.detail}"
    return "not tried: the probe gave no answer in time"


def _mtu(need: PathMtu, asker: Member, target: Member, seen: Evidence) -> Pair:
    listen, ready = way(need), seen.ready.get(asker.number)
    size = packet(need, ready)
    largest, _ = seen.span(asker.number, target.number, listen)
    sent = seen.sent.get((asker.number, target.number, listen), ())
    status, what, blame = _passing(need, size, largest, sent)
    if status == "unknown":
        way_name = f"UDP {need.udp_port}" if need.udp_port else "ICMP echo"
        what, fix = f"not measured: {what or f'{way_name} does not pass'}", f"let {way_name} pass between the nodes"
    else:
        fix = f"an MTU of {size} on every interface and switch on the way, or {need.setting}: {largest} ({need.why})"
    return Pair(
        check="path-mtu",
        asker=asker.name,
        target=target.name,
        status=status,
        what=what,
        fix_asker=fix,
        fix_target=fix,
        label="mtu",
        blame=blame,
    )


def _passing(need: PathMtu, size: int, largest: int, sent: Sequence[Sent]) -> _Judged:
    if not size:
        return "unknown", "the node's interface is not known", "asker"
    if largest >= size:
        return "ok", f"packets of {size} bytes pass", "either"
    if not largest:
        return "unknown", "", "either"
    above = f"packets above {largest} bytes"
    if any(size in each.too_big for each in sent):
        # The node itself tells its pods, so that they send less; a tunnel's packets can't be told.
        return ("failed" if need.udp_port else "warning"), f"{above} do not fit its own interface", "asker"
    if any(0 < each.path_mtu < size for each in sent):
        told = f"{above} pass in fragments only, as a router says"
        return ("failed" if need.udp_port else "warning"), told, "either"
    return "failed", f"{above} are lost, and nobody says so (black hole; {size} are to pass)", "either"


def _segment(asker: Member, target: Member, seen: Evidence) -> Iterator[Pair]:
    need = asker.segment
    router = seen.via.get((asker.number, target.address))
    if need is None or router is None:
        return
    fix = f"a network in which the nodes reach each other without a router: {need.why}"
    yield Pair(
        check="same-segment",
        asker=asker.name,
        target=target.name,
        status="failed" if router else "ok",
        what=f"reached through the router {router}" if router else "",
        fix_asker=fix,
        fix_target=fix,
        label="routed",
    )


# ---------------------------------------------------------------------------------------------------------------
# From pairs to rows


def _check(check: str, pairs: Sequence[Pair], fleet: Fleet) -> Iterator[Row]:
    inside = _askers(fleet)
    blamed: dict[str, list[tuple[str, Status, str]]] = {}
    good_targets = {pair.target for pair in pairs if pair.status == "ok"}
    for what in dict.fromkeys(pair.what for pair in pairs if pair.status != "ok"):
        same = [pair for pair in pairs if pair.what == what and pair.status != "ok"]
        left: dict[str, list[Pair]] = {}
        for asker in dict.fromkeys(pair.asker for pair in same):
            own = [pair for pair in same if pair.asker == asker]
            if _asker_is_to_blame(own, pairs, good_targets, inside):
                text = f"{asker} -> {_all(own, pairs)}: {what}"
                blamed.setdefault(asker, []).append((text, _severity(own, pairs), own[0].fix_asker))
            else:
                for pair in own:
                    left.setdefault(pair.target, []).append(pair)
        for target, theirs in left.items():
            text = f"{', '.join(pair.asker for pair in theirs)} -> {target}: {what}"
            blamed.setdefault(target, []).append((text, theirs[0].status, theirs[0].fix_target))
    for name in inside:
        for text, status, fix in blamed.get(name, ()):
            yield Row(node=name, id=check, status=status, message=text, fix=fix)
        if name not in blamed and (own := _own(name, pairs)):
            yield Row(node=name, id=check, status=_status(own), message=_summary(name, own, fleet), fix="")


def _askers(fleet: Fleet) -> tuple[str, ...]:
    """The nodes of this run."""
    return tuple(member.name for member in fleet.members if fleet.targets[member.number])


def _asker_is_to_blame(
    own: Sequence[Pair], pairs: Sequence[Pair], good_targets: set[str], inside: Sequence[str]
) -> bool:
    """It says so; or the target is not in this run; or it reaches none of several, and others do reach some of them."""
    if own[0].blame == "asker" or own[0].target not in inside:
        return True
    all_of_its = [pair for pair in pairs if pair.asker == own[0].asker]
    return len(own) == len(all_of_its) > 1 and any(pair.target in good_targets for pair in own)


def _severity(own: Sequence[Pair], pairs: Sequence[Pair]) -> Status:
    """Nodes outside this run may be down, each of them; not all at once."""
    everywhere = len(own) > 1 and len(own) == sum(pair.asker == own[0].asker for pair in pairs)
    return "failed" if everywhere and own[0].status == "warning" and own[0].check != "path-mtu" else own[0].status


def _all(own: Sequence[Pair], pairs: Sequence[Pair]) -> str:
    if len(own) > 1 and len(own) == sum(pair.asker == own[0].asker for pair in pairs):
        return f"all {len(own)} others"
    return ", ".join(pair.target for pair in own)


def _own(name: str, pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if name in {pair.asker, pair.target}]


def _status(own: Iterable[Pair]) -> Status:
    """A node that nothing is charged to: of what is not ok another one has the row."""
    return "ok" if any(pair.status == "ok" for pair in own) else "unknown"


def _summary(name: str, own: Sequence[Pair], fleet: Fleet) -> str:
    out = [pair for pair in own if pair.asker == name]
    back = [pair for pair in own if pair.target == name]
    text = f"reaches {_share(out)}" + (f", reached by {_share(back)}" if back else "")
    good = {pair.what for pair in out if pair.status == "ok" and pair.what}
    text = f"{', '.join(sorted(good))}: {text}" if good else text
    return f"{text} (of {len(fleet.probed)}, each tries some)" if fleet.partial else text


def _share(pairs: Sequence[Pair]) -> str:
    return f"{sum(pair.status == 'ok' for pair in pairs)} of {len(pairs)}"


def _without_probe(fleet: Fleet, seen: Evidence) -> tuple[Member, ...]:
    return tuple(member for member in fleet.members if member.number in seen.ended)


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
                fix = "`address` must be an address of the machine's own"
                yield Row(node=member.name, id=check, status="unknown", message=message, fix=fix)
            elif _foreign(need, watched):
                message = f"{name} is held by {watched.detail}, not by {need.process}: the others reach that"
                fix = f"stop {watched.detail}"
                yield Row(node=member.name, id=check, status="warning", message=message, fix=fix)


def _foreign(need: NodeToNode, watched: Watched) -> bool:
    return watched.state == "held" and bool(watched.detail and need.process) and watched.detail != need.process
