"""How one node fared with another: judged pair by pair, check by check. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kubeworker.core.model import NodeToNode, PathMtu
from kubeworker.core.preflight.row import Status
from kubeworker.core.reachability.probe import LIMIT, Connected, Listen, Sent
from kubeworker.core.reachability.trials import Evidence, Fleet, Member, packet, same_family, way


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
    if not same_family(asker, target):
        return "not tried: one has an IPv4 address, the other an IPv6 one"
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
        name = f"UDP {need.udp_port}" if need.udp_port else "ICMP echo"
        fix = f"let {name} pass between the nodes"
        if not sent or target.number in seen.ended:
            what = what or _why_not(asker, target, listen, seen)
        else:
            what = f"not measured: {name} does not pass"
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
        return "unknown", "not measured: the node's interface is not known", "asker"
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
