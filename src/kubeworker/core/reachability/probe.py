"""The program that each node runs while nodes try to reach each other: it listens, tries, and says what it saw.

One Perl process on each node, fed over the node's SSH channel: perl-base is Essential on Debian, its Socket module can
bind an address, forbid fragmentation and tell one error from another, which sh and systemd-socket-activate can't
(docs/adr/0011). It writes no file, and ends when its channel is closed or when it was told nothing for SECONDS: nothing
of it outlives a control host that died.

A listener answers with the run's nonce and its own number, so that no foreign service is taken for it. A port that is
held already (by kubelet, by Cilium) is left alone: peers connect to what is there. Datagrams on a held port are seen by
a raw socket, which gets what has passed the node's packet filter (raw(7)); they are told by whom they reach, in one
direction, and never answered. They start with eight zero bytes: no valid header for the kernel's own vxlan, which drops
them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kubeworker.core.reachability.program import PROGRAM

Protocol: TypeAlias = Literal["tcp", "udp", "icmp"]

SECONDS = 60
"""A probe that is told nothing for so long ends by itself."""
LIMIT = 4
"""Seconds that a TCP connection may take: two repeated SYNs, and time enough for ARP to give up (3 s)."""
AT_ONCE = 64
"""Connections that one node opens at the same time."""
PASSES = 3
"""Each datagram is sent so often: one that is lost for another reason is no fault of the path."""
SMALL = 200
"""Bytes of the IP packet that shows whether datagrams arrive at all."""
LARGEST = 65_000
"""No packet can be much larger (an IPv4 packet has at most 65,535 bytes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """A port that the node watches. Of ICMP it watches echo requests, and the port is 0."""

    protocol: Protocol
    port: int = 0

    @property
    def word(self) -> str:
        """As the probe and its answers name it."""
        return self.protocol if self.protocol == "icmp" else f"{self.protocol}/{self.port}"


# ---------------------------------------------------------------------------------------------------------------
# What it is told


def script(
    *,
    nonce: str,
    number: int,
    address: str,
    listen: Sequence[Listen],
    via: Iterable[str] = (),
    seconds: int = SECONDS,
    limit: int = LIMIT,
) -> str:
    """POSIX sh that becomes the probe of node `number`, on its `address`. Orders come by standard input.

    `via`: addresses of which it also tells through which router, if any, they are reached. It ends by itself when it is
    told nothing for `seconds`, and gives a TCP connection `limit` seconds.
    """
    arguments = (nonce, str(number), address, str(seconds), str(limit), str(AT_ONCE), str(PASSES))
    return _SCRIPT.format(
        address=shlex.quote(address),
        routes=" ".join(shlex.quote(each) for each in via) or "''",
        arguments=shlex.join((*arguments, *(each.word for each in listen))),
        program=PROGRAM,
    )


def connect(peer: int, address: str, port: int, *, ours: bool) -> str:
    """The order to open a TCP connection; `ours`: it must be the peer's probe that answers."""
    return f"connect {peer} {address} {port} {'ours' if ours else 'any'}\n"


def send(listen: Listen, peer: int, address: str, sizes: Iterable[int]) -> str:
    """The order to send one datagram for each of these sizes, in bytes of the whole IP packet, none in fragments."""
    return f"send {listen.word} {peer} {address} {','.join(map(str, sizes))}\n"


# ---------------------------------------------------------------------------------------------------------------
# What it says


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """It listens."""

    interface: str = ""
    """The one that has the node's address; empty: none has."""
    mtu: int = 0
    """That interface's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """How a port is watched: by a listener of the probe's own; or it is held; or it can't be."""

    listen: Listen
    state: Literal["own", "held", "failed"]
    detail: str = ""
    """The process that holds it (empty where the kernel does); why it can't be watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Via:
    """The router through which an address is reached; empty: it is on the node's own segment."""

    address: str
    router: str


Outcome: TypeAlias = Literal["ours", "open", "other", "refused", "no-route", "timeout", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """How a TCP connection went.

    ours: the peer's probe answered; open: something accepted it, as was enough; other: something else answered.
    """

    peer: int
    port: int
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Datagrams have left, as far as the node can tell."""

    listen: Listen
    peer: int
    path_mtu: int = 0
    """What the kernel knows of the way there: less than the interface's where a router said "fragmentation needed"."""
    too_big: tuple[int, ...] = ()
    """Sizes that the node's own interface does not take."""
    error: str = ""
    """Why none left: `Operation not permitted` is the node's own packet filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """A datagram of another node has arrived here."""

    listen: Listen
    peer: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """The node has no perl."""


Line: TypeAlias = Ready | Watched | Via | Connected | Sent | Got | Missing


def parse(line: str) -> Line:
    """One line of its output; ValueError for anything else."""
    match line.split("\t"):
        case ["missing"]:
            return Missing()
        case ["ready", interface, mtu]:
            return Ready(interface=interface, mtu=int(mtu or 0))
        case ["watched", word, ("own" | "held" | "failed") as state, detail]:
            return Watched(listen=_listen(word), state=state, detail=detail)
        case ["via", address, router]:
            return Via(address=address, router=router)
        case [
            "connected",
            peer,
            port,
            ("ours" | "open" | "other" | "refused" | "no-route" | "timeout" | "error") as outcome,
            detail,
        ]:
            return Connected(peer=int(peer), port=int(port), outcome=outcome, detail=detail)
        case ["sent", word, peer, path_mtu, too_big, error]:
            sizes = tuple(int(size) for size in too_big.split(",") if size)
            return Sent(listen=_listen(word), peer=int(peer), path_mtu=int(path_mtu), too_big=sizes, error=error)
        case ["got", word, peer, size]:
            return Got(listen=_listen(word), peer=int(peer), size=int(size))
        case _:
            raise ValueError(f"the probe answered {line!r}")


def _listen(word: str) -> Listen:
    match word.split("/"):
        case ["icmp"]:
            return Listen(protocol="icmp")
        case [("tcp" | "udp") as protocol, port]:
            return Listen(protocol=protocol, port=int(port))
        case _:
            raise ValueError(f"the probe named {word!r}")


_SCRIPT = """\
LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
export LC_ALL PATH
command -v perl > /dev/null || {{ echo missing; exit 0; }}
interface=$(ip -o addr show to {address} | {{ read -r _ name _ && printf %s "${{name%%@*}}"; }})
mtu=
[ -z "$interface" ] || read -r mtu < "/sys/class/net/$interface/mtu"
for peer in {routes}; do
  [ -n "$peer" ] || continue
  route=$(ip -o route get "$peer" 2> /dev/null)
  case $route in
    *" via "*) router=${{route#* via }}; printf 'via\\t%s\\t%s\\n' "$peer" "${{router%% *}}" ;;
    *) printf 'via\\t%s\\t\\n' "$peer" ;;
  esac
done
# The program comes by a descriptor of its own: standard input is for orders.
exec perl /dev/fd/3 "$interface" "$mtu" {arguments} 3<< 'END-OF-PROGRAM'
{program}END-OF-PROGRAM
"""
