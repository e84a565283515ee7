"""What the machines of a fleet must not have in common, and what they must: names, addresses, the time. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kubeworker.core.node.observed import NodeAddress, Observed
from kubeworker.core.preflight.row import Checker, Row

_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
"""RFC 1123, in lower case, as a Node's name has to be."""

ENOUGH = 3
"""With fewer clocks than this a median tells nobody from the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Who has what, over all nodes that were looked at: made once, asked for each node."""

    names: frozenset[str] = frozenset()
    """Of all nodes in cluster.yaml."""
    hostnames: Mapping[str, Sequence[str]] = field(default_factory=dict)
    machine_ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    product_uuids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of machines, not of containers: theirs is their host's."""
    macs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of the interface that has the node's address."""
    holders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By address, the nodes that have it on an interface."""
    clocks: Sequence[float] = ()
    """Seconds that each node's clock is ahead of the control host's."""
    ahead: float = 0.0
    """Their median."""


def of(seen: Mapping[str, Observed], addresses: Mapping[str, str], clocks: Sequence[float] = ()) -> Fleet:
    """The fleet of these nodes; `addresses` are all nodes' own, by name."""
    hostnames: dict[str, list[str]] = {}
    machine_ids: dict[str, list[str]] = {}
    product_uuids: dict[str, list[str]] = {}
    macs: dict[str, list[str]] = {}
    holders: dict[str, list[str]] = {}
    for name in sorted(seen):
        observed = seen[name]
        hostnames.setdefault(observed.hostname, []).append(name)
        machine_ids.setdefault(observed.machine_id, []).append(name)
        if observed.product_uuid and not observed.container:
            product_uuids.setdefault(observed.product_uuid.lower(), []).append(name)
        own = _interface(observed, addresses.get(name, ""))
        if own and own.mac:
            macs.setdefault(own.mac, []).append(name)
        for each in observed.addresses:
            holders.setdefault(each.address, []).append(name)
    return Fleet(
        names=frozenset(addresses),
        hostnames=hostnames,
        machine_ids=machine_ids,
        product_uuids=product_uuids,
        macs=macs,
        holders=holders,
        clocks=tuple(clocks),
        ahead=statistics.median(clocks) if clocks else 0.0,
    )


def rows(node: Checker, fleet: Fleet, *, address: str, offset: float, allowed: float | None) -> Iterator[Row]:
    """This node's part: `offset` is what its clock is ahead of the control host's, `allowed` the limit (None: any)."""
    observed = node.observed
    fix = "hostnamectl set-hostname NAME on one of them"
    yield _unique(node, "hostname", observed.hostname, fleet.hostnames, fix)
    yield _hostname(node, fleet)
    fix = "rm /etc/machine-id && systemd-machine-id-setup, then reboot one of them"
    yield _unique(node, "machine-id", observed.machine_id, fleet.machine_ids, fix)
    yield _product_uuid(node, fleet)
    if address:
        yield _address(node, fleet, address)
        yield _mac(node, fleet, address)
    if allowed is not None:
        yield _clock(node, fleet, offset, allowed)


def _unique(node: Checker, key: str, value: str, holders: Mapping[str, Sequence[str]], fix: str) -> Row:
    twins = [name for name in holders.get(value, ()) if name != node.name]
    wrong = f"its {key} {value or '(empty)'} is also that of {', '.join(twins)}" if twins else ""
    return node.judge(key, good=value, wrong=wrong, fix=fix)


def _hostname(node: Checker, fleet: Fleet) -> Row:
    """Kubelet is told the node's name, so the machine may be called otherwise; what else asks it should get sense."""
    hostname, wrong = node.observed.hostname, ""
    if hostname != node.name and hostname in fleet.names:
        wrong = f"the machine is called {hostname}, which is another node in cluster.yaml: are their addresses swapped?"
    elif len(hostname) > 253 or not _HOSTNAME.fullmatch(hostname):
        wrong = f"its hostname {hostname!r} could not be a Node's name (lower-case RFC 1123): agents may report it"
    elif hostname == "localhost":
        wrong = "its hostname is localhost: logs and agents that report it can't be told apart"
    good = hostname if hostname == node.name else f"{hostname}; the Node is called {node.name}, as kubelet is told"
    fix = f"hostnamectl set-hostname {node.name}, or put the addresses in cluster.yaml right"
    return node.judge("hostname-name", good=good, wrong=wrong, fix=fix, otherwise="warning")


def _product_uuid(node: Checker, fleet: Fleet) -> Row:
    observed = node.observed
    if observed.container:
        text = f"not compared: it is that of the host of this {observed.container} container"
        return node.row("product-uuid", "host", text)
    value = observed.product_uuid.lower()
    if not value:
        return node.row("product-uuid", "ok", "the machine has none")
    twins = [name for name in fleet.product_uuids.get(value, ()) if name != node.name]
    wrong = f"its product_uuid {value} is also that of {', '.join(twins)}: a clone?" if twins else ""
    fix = "give the virtual machine a UUID of its own (virsh edit, the cloud's image settings)"
    return node.judge("product-uuid", good=value, wrong=wrong, fix=fix, otherwise="warning")


def _interface(observed: Observed, address: str) -> NodeAddress | None:
    return next((each for each in observed.addresses if each.address == address), None)


def _address(node: Checker, fleet: Fleet, address: str) -> Row:
    own = _interface(node.observed, address)
    others = [name for name in fleet.holders.get(address, ()) if name != node.name]
    wrong, fix = "", ""
    if own is None:
        has = ", ".join(dict.fromkeys(each.address for each in node.observed.addresses)) or "none"
        # kubelet then registers a Node without addresses (kubelet's validateNodeIP).
        wrong = f"no interface that is up has the node's address {address}: kubelet refuses it; it has {has}"
        fix = (
            "put the machine's own address into `nodes:`, and the way in, where it is another, into `ssh: {host: ...}`"
        )
    elif others:
        wrong = f"the node's address {address} is also on {', '.join(others)}"
        fix = f"take {address} off the others, or name an address that one machine alone has"
    return node.judge("address", good=f"{address} on {own.link}" if own else "", wrong=wrong, fix=fix)


def _mac(node: Checker, fleet: Fleet, address: str) -> Row:
    own = _interface(node.observed, address)
    if own is None or not own.mac:
        return node.row("mac", "unknown" if own is None else "ok", "the node's address is on no such interface")
    twins = [name for name in fleet.macs.get(own.mac, ()) if name != node.name]
    wrong = f"{own.link}'s MAC address {own.mac} is also that of {', '.join(twins)}: a clone?" if twins else ""
    fix = "give one of them a MAC address of its own, where both are in one layer-2 segment"
    return node.judge("mac", good=f"{own.mac} ({own.link})", wrong=wrong, fix=fix, otherwise="warning")


def _clock(node: Checker, fleet: Fleet, offset: float, allowed: float) -> Row:
    if len(fleet.clocks) < ENOUGH:
        return node.row("clock-fleet", "ok", f"not compared: fewer than {ENOUGH} nodes were looked at")
    median = fleet.ahead
    skew = offset - median
    says = f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the nodes' median"
    wrong, fix = "", ""
    if abs(skew) > allowed:
        wrong, fix = f"{says} (allowed: {allowed:g} s)", "synchronise it, for example with systemd-timesyncd"
    elif abs(median) > allowed:
        way = "behind" if median > 0 else "ahead of"
        wrong = f"{says}: it is the control host's clock that is {abs(median):.1f} s {way} the fleet"
        fix = "synchronise the control host"
    return node.judge_host("clock-fleet", good=says, wrong=wrong, fix=fix, otherwise="warning")
