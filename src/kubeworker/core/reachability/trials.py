"""Who tries to reach whom, what each is told to try, and what has come of it. Pure; `rows` judges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from kubeworker.core.model import NodeState, NodeToNode, PathMtu, SameSegment
from kubeworker.core.reachability import probe as reach_probe
from kubeworker.core.reachability.probe import SMALL, Connected, Got, Line, Listen, Missing, Ready, Sent, Via, Watched

FULL = 40
"""Up to so many nodes each tries all others."""
NEIGHBOURS = 16
"""In a larger fleet each node tries so many others, and is tried by as many."""
OUTSIDE = 8
"""So many nodes that are not in this run (`--node`) each node of it tries: TCP ports only, for nobody listens there."""
STEPS = 40
"""Sizes that one round of the search for the largest packet tries."""

Item = TypeVar("Item")
Need: TypeAlias = NodeToNode | PathMtu | SameSegment


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node, with what its components need of the network."""

    number: int
    """As probes name it."""
    name: str
    address: str
    needs: tuple[Need, ...]
    probed: bool = True
    """A probe runs on it. False: it is not in this run, or can't run one."""

    @property
    def ports(self) -> tuple[NodeToNode, ...]:
        """Where the others must reach it."""
        return tuple(need for need in self.needs if isinstance(need, NodeToNode))

    @property
    def mtus(self) -> tuple[PathMtu, ...]:
        """What must pass from it to the others."""
        return tuple(need for need in self.needs if isinstance(need, PathMtu))

    @property
    def segment(self) -> SameSegment | None:
        """Whether the others must be on its own segment."""
        return next((need for need in self.needs if isinstance(need, SameSegment)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All that try and are tried, and who tries whom."""

    members: tuple[Member, ...]
    """By number."""
    targets: tuple[tuple[int, ...], ...]
    """For each member the numbers of those that it tries."""

    @property
    def probed(self) -> tuple[Member, ...]:
        """Those with a probe."""
        return tuple(member for member in self.members if member.probed)

    @property
    def partial(self) -> bool:
        """Not each tries all others."""
        return len(self.probed) > FULL

    def tried_by(self, member: Member) -> tuple[Member, ...]:
        """Whom this one tries."""
        return tuple(self.members[number] for number in self.targets[member.number]) if member.probed else ()

    def without_probe(self, numbers: Iterable[int]) -> Fleet:
        """The same fleet where these have turned out to run none."""
        lost = frozenset(numbers)
        return replace(
            self, members=tuple(replace(each, probed=each.probed and each.number not in lost) for each in self.members)
        )


def needs(state: NodeState) -> tuple[Need, ...]:
    """What a node's components need of the network, each once."""
    found = (need for stage in state.stages for need in stage.requirements)
    return tuple(dict.fromkeys(need for need in found if isinstance(need, NodeToNode | PathMtu | SameSegment)))


def fleet(inside: Sequence[Member], outside: Sequence[Member] = ()) -> Fleet:
    """Who tries whom: those of this run each other, and some of the others. Numbers are given anew, in this order."""
    members = tuple(
        replace(member, number=number, probed=number < len(inside)) for number, member in enumerate((*inside, *outside))
    )
    targets = tuple(
        (*around(len(inside), number), *beyond(len(inside), len(outside), number)) for number in range(len(inside))
    )
    return Fleet(members=members, targets=(*targets, *(() for _ in outside)))


def around(count: int, number: int) -> tuple[int, ...]:
    """Whom one of `count` nodes tries: all others; of many the next one on either side, the one a little further off,
    and so on to the other end of the list, so that racks and subnets, which stand together there, are mixed.

    Each is tried by as many as it tries.
    """
    if count <= FULL:
        return tuple(other for other in range(count) if other != number)
    half, farthest = NEIGHBOURS // 2, (count - 1) // 2
    distances = [round(farthest ** (step / (half - 1))) for step in range(half)]
    for step in range(1, half):
        distances[step] = max(distances[step], distances[step - 1] + 1)
    return tuple(sorted((number + sign * distance) % count for distance in distances for sign in (1, -1)))


def spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """So many of them at most, from all over the list."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[step * len(items) // count] for step in range(count))


def beyond(inside: int, outside: int, number: int) -> tuple[int, ...]:
    """Whom it tries of those that are not in this run: a few, from all over the list."""
    count = min(OUTSIDE, outside)
    return tuple(sorted(inside + (number + step * outside // count) % outside for step in range(count)))


# ---------------------------------------------------------------------------------------------------------------
# What is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One order to one probe."""

    asker: int
    target: int
    listen: Listen
    ours: bool = False
    """TCP: the target's probe must answer."""
    sizes: tuple[int, ...] = ()
    """Datagrams: bytes of the IP packets."""


def listens(fleet: Fleet) -> Mapping[int, tuple[Listen, ...]]:
    """What each node watches: its own ports, and where the others' large packets come in; nothing if nobody tries."""
    found: dict[int, dict[Listen, None]] = {}
    for asker in fleet.probed:
        ways = dict.fromkeys(way(need) for need in asker.mtus)
        for target in fleet.tried_by(asker):
            own = (Listen(protocol=need.protocol, port=need.port) for need in target.ports)
            watched = found.setdefault(target.number, dict.fromkeys(own))
            watched.update(ways)
    return {member.number: tuple(found.get(member.number, ())) for member in fleet.probed}


def script(fleet: Fleet, member: Member, listen: Sequence[Listen], nonce: str) -> str:
    """The probe of one node."""
    via = [target.address for target in fleet.tried_by(member)] if member.segment else []
    return reach_probe.script(nonce=nonce, number=member.number, address=member.address, listen=listen, via=via)


def tries(fleet: Fleet, seen: Evidence) -> tuple[Try, ...]:
    """All that is tried once the probes are ready."""
    return tuple(
        each
        for asker in fleet.probed
        for target in fleet.tried_by(asker)
        if same_family(asker, target)
        for each in (*_connections(asker, target, seen), *_datagrams(asker, target, seen))
    )


def same_family(one: Member, other: Member) -> bool:
    """Both have IPv4 addresses, or both IPv6 ones: else neither can be tried from the other's."""
    return (":" in one.address) == (":" in other.address)


def _connections(asker: Member, target: Member, seen: Evidence) -> Iterator[Try]:
    for need in target.ports:
        listen = Listen(protocol=need.protocol, port=need.port)
        watched = seen.watched.get((target.number, listen))
        if listen.protocol != "tcp" or (target.probed and (watched is None or watched.state == "failed")):
            continue
        ours = watched is not None and watched.state == "own"
        yield Try(asker=asker.number, target=target.number, listen=listen, ours=ours)


def _datagrams(asker: Member, target: Member, seen: Evidence) -> Iterator[Try]:
    sizes: dict[Listen, set[int]] = {}
    for port in target.ports:
        if port.protocol == "udp":
            sizes.setdefault(Listen(protocol="udp", port=port.port), set()).add(SMALL)
    for need in asker.mtus:
        if size := packet(need, seen.ready.get(asker.number)):
            sizes.setdefault(way(need), set()).update((SMALL, size))
    for listen, wanted in sizes.items():
        watched = seen.watched.get((target.number, listen))
        if target.probed and watched is not None and watched.state != "failed":
            yield Try(asker=asker.number, target=target.number, listen=listen, sizes=tuple(sorted(wanted)))


def packet(need: PathMtu, ready: Ready | None) -> int:
    """How large the packets are that the node will send, in bytes; 0: its interface is not known."""
    size = need.packet or (ready.mtu if ready else 0)
    return min(size, reach_probe.LARGEST)


def way(need: PathMtu) -> Listen:
    """What the packets that measure it are sent as."""
    return Listen(protocol="udp", port=need.udp_port) if need.udp_port else Listen(protocol="icmp")


def narrower(tried: Iterable[Try], seen: Evidence) -> tuple[Try, ...]:
    """The next round in the search for the largest packet that passes; nothing where it is found."""
    spans = {(each.asker, each.target, each.listen): seen.span(each.asker, each.target, each.listen) for each in tried}
    return tuple(
        Try(asker=asker, target=target, listen=listen, sizes=_between(*span))
        for (asker, target, listen), span in spans.items()
        if span[0] and span[1] - span[0] > 1
    )


def _between(low: int, high: int) -> tuple[int, ...]:
    step = max(1, (high - low) // STEPS)
    return tuple(range(low + step, high, step))


def order(fleet: Fleet, each: Try) -> str:
    """The line that the asker's probe is sent."""
    address = fleet.members[each.target].address
    if each.listen.protocol == "tcp":
        return reach_probe.connect(each.target, address, each.listen.port, ours=each.ours)
    return reach_probe.send(each.listen, each.target, address, each.sizes)


# ---------------------------------------------------------------------------------------------------------------
# What has come of it


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What the probes have said so far."""

    ready: dict[int, Ready] = field(default_factory=dict)
    watched: dict[tuple[int, Listen], Watched] = field(default_factory=dict)
    via: dict[tuple[int, str], str] = field(default_factory=dict)
    """(node, address): the router in between."""
    connected: dict[tuple[int, int, int], Connected] = field(default_factory=dict)
    """(asker, target, port)"""
    sent: dict[tuple[int, int, Listen], list[Sent]] = field(default_factory=dict)
    """(asker, target, ...): one for each order."""
    got: dict[tuple[int, int, Listen], set[int]] = field(default_factory=dict)
    """(asker, target, ...): sizes that have arrived."""
    lost: dict[tuple[int, int, Listen], set[int]] = field(default_factory=dict)
    """Sizes that were waited for in vain."""
    ended: dict[int, str] = field(default_factory=dict)
    """Why a node has no probe (any more)."""

    def add(self, number: int, line: Line) -> None:
        """Something that the probe of this node has said."""
        match line:
            case Ready():
                self.ready[number] = line
            case Watched(listen=listen):
                self.watched[number, listen] = line
            case Via(address=address, router=router):
                self.via[number, address] = router
            case Connected(peer=peer, port=port):
                self.connected[number, peer, port] = line
            case Sent(peer=peer, listen=listen):
                self.sent.setdefault((number, peer, listen), []).append(line)
            case Got(peer=peer, listen=listen, size=size):
                self.got.setdefault((peer, number, listen), set()).add(size)
            case Missing():
                self.ended[number] = "it has no perl"

    def answered(self, tried: Iterable[Try], rounds: int) -> bool:
        """Every probe has said how its part of that went; of datagrams this is the `rounds`th round."""
        return all(self._answered(each, rounds) or each.asker in self.ended for each in tried)

    def _answered(self, each: Try, rounds: int) -> bool:
        if each.listen.protocol == "tcp":
            return (each.asker, each.target, each.listen.port) in self.connected
        return len(self.sent.get((each.asker, each.target, each.listen), ())) >= rounds

    def arrived(self, tried: Iterable[Try]) -> bool:
        """Every datagram has."""
        return all(set(each.sizes) <= self.got.get((each.asker, each.target, each.listen), set()) for each in tried)

    def close(self, tried: Iterable[Try]) -> None:
        """What has not arrived by now won't."""
        for each in tried:
            key = (each.asker, each.target, each.listen)
            if missing := set(each.sizes) - self.got.get(key, set()):
                self.lost.setdefault(key, set()).update(missing)

    def span(self, asker: int, target: int, listen: Listen) -> tuple[int, int]:
        """The largest size that has arrived (0: none), and the smallest above that which has not (0: none)."""
        key = (asker, target, listen)
        low = max(self.got.get(key, set()), default=0)
        return low, min((size for size in self.lost.get(key, set()) if size > low), default=0)
