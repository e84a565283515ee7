"""kube-proxy's virtual servers in ipvs mode: what the API asks for on a node, and what the node's kernel has. Pure.

What is wanted follows kube-proxy 1.33's own code: pkg/proxy/ipvs/proxier.go (syncProxyRules, syncEndpoint),
pkg/proxy/topology.go (CategorizeEndpoints), pkg/proxy/serviceport.go and endpointslicecache.go. What the node has is
read from /proc/net/ip_vs (net/netfilter/ipvs/ip_vs_ctl.c), which needs root and no ipvsadm.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.model import VirtualServers

Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Key: TypeAlias = tuple[str, Ip, int]
"""Protocol, address, port: what makes a virtual server."""
Endpoint: TypeAlias = tuple[Ip, int]

DEVICE = "kube-ipvs0"
"""The dummy device that has the Services' addresses."""

SCRIPT = """\
PATH=$PATH:/usr/sbin:/sbin
[ -r /proc/net/ip_vs ] || { echo 'the kernel has no ipvs (/proc/net/ip_vs)' >&2; exit 1; }
cat /proc/net/ip_vs
echo ==
ip -o addr show
echo ==
for family in 4 6; do
  case $family in 4) tool=iptables ;; *) tool=ip6tables ;; esac
  ! "$tool" -w 5 -t nat -S POSTROUTING > /dev/null 2>&1 || echo "$family"
done
echo ==
! grep -q persistent /proc/net/ip_vs || for time in 1 2; do
  awk '/^now at/ { print $3 } /^jiffies/ { print $2; exit }' /proc/timer_list
  [ "$time" = 2 ] || sleep 0.4
done
"""
"""sh that shows the virtual servers, the node's addresses, the families that kube-proxy serves (those that iptables
does: NewDualStack in pkg/util/iptables), and twice the kernel's time in nanoseconds and in jiffies."""

HZ = (100, 250, 300, 1000)
"""Jiffies in a second, of which a kernel has one (kernel/Kconfig.hz): /proc/net/ip_vs tells timeouts in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServer:
    """One virtual server and where it sends connections."""

    protocol: str
    """TCP, UDP or SCTP."""
    address: Ip
    port: int
    scheduler: str
    persistent: int = 0
    """Seconds that a client stays with its endpoint; 0: no session affinity."""
    servers: Mapping[Endpoint, int] = field(default_factory=dict)
    """Real servers and their weight; one with weight 0 takes no new connection (kube-proxy lets it drain)."""

    @property
    def key(self) -> Key:
        """What makes it this one."""
        return self.protocol, self.address, self.port


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a node showed."""

    servers: tuple[VirtualServer, ...]
    addresses: frozenset[Ip]
    """Of every device but kube-ipvs0; neither loopback nor link-local."""
    bound: frozenset[Ip]
    """Of kube-ipvs0."""
    families: frozenset[int] = frozenset({4})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A virtual server that the API asks for."""

    service: str
    """namespace/name:port"""
    server: VirtualServer
    bind: bool
    """Its address must be on kube-ipvs0."""


# ---------------------------------------------------------------------------------------------------------------
# What the node has


def parse(text: str) -> Seen:
    """Read SCRIPT's answer; ValueError for what is none."""
    table, addresses, families, clocks = text.split("==\n")
    hz = _hz([int(word) for word in clocks.split()])
    bound: set[Ip] = set()
    others: set[Ip] = set()
    for line in addresses.splitlines():
        # 2: eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth0\       valid_lft forever preferred_lft forever
        _number, device, _family, address, *_ = line.split()
        ip = ipaddress.ip_interface(address).ip
        if ip.is_loopback or (ip.version == 6 and ip.is_link_local):
            continue
        (bound if device.partition("@")[0] == DEVICE else others).add(ip)
    return Seen(
        servers=tuple(_servers(table, hz)),
        addresses=frozenset(others),
        bound=frozenset(bound),
        families=frozenset(map(int, families.split())),
    )


def _hz(clocks: Sequence[int]) -> int:
    """How many jiffies the kernel counts in a second; 1 where nothing needs them."""
    if not clocks:
        return 1
    began, first, ended, second = clocks
    measured = (second - first) * 1e9 / (ended - began)
    return min(HZ, key=lambda each: abs(each - measured))


def _servers(table: str, hz: int) -> Iterator[VirtualServer]:
    current: dict[str, Any] | None = None
    for line in table.splitlines():
        words = line.split()
        match words:
            case ["TCP" | "UDP" | "SCTP" as protocol, place, scheduler, *flags]:
                if current is not None:
                    yield VirtualServer(**current)
                address, port = _place(place)
                current = {
                    "protocol": protocol,
                    "address": address,
                    "port": port,
                    "scheduler": scheduler,
                    "persistent": int(flags[flags.index("persistent") + 1]) // hz if "persistent" in flags else 0,
                    "servers": {},
                }
            case ["FWM", *_]:
                # By firewall mark: none of kube-proxy's; its real servers are not to be taken for the former one's.
                if current is not None:
                    yield VirtualServer(**current)
                current = None
            case ["->", place, _forward, weight, *_] if current is not None and weight.isdigit():
                current["servers"][_place(place)] = int(weight)
            case _:
                pass  # the three lines of heading
    if current is not None:
        yield VirtualServer(**current)


def _place(text: str) -> Endpoint:
    """`0AFE0001:01BB`, or `[fd00:0000:...]:01BB`."""
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        return ipaddress.IPv6Address(host.strip("[]")), int(port, 16)
    if not re.fullmatch(r"[0-9A-F]{8}", host):
        raise ValueError(f"/proc/net/ip_vs has the address {text!r}")
    return ipaddress.IPv4Address(int(host, 16)), int(port, 16)


# ---------------------------------------------------------------------------------------------------------------
# What the API asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """The node whose kube-proxy it is."""

    name: str
    zone: str = ""
    """Its label topology.kubernetes.io/zone."""


def wanted(
    services: Iterable[Document], slices: Iterable[Document], node: NodeView, seen: Seen, check: VirtualServers
) -> tuple[Wanted, ...]:
    """Every virtual server that kube-proxy in ipvs mode makes on this node, by service, ClusterIPs first."""
    by_service: dict[tuple[str, str], list[Document]] = {}
    for each in slices:
        labels = each["metadata"].get("labels") or {}
        if not _others_work(labels):
            key = each["metadata"]["namespace"], labels.get("kubernetes.io/service-name") or ""
            by_service.setdefault(key, []).append(each)
    found: list[Wanted] = []
    for service in services:
        metadata = service["metadata"]
        if _others_work(metadata.get("labels") or {}) or not _proxied(service["spec"]):
            continue
        own = by_service.get((metadata["namespace"], metadata["name"]), [])
        for family in sorted(seen.families):
            for port in service["spec"].get("ports") or ():
                found.extend(_of_port(_Port(service=service, port=port, family=family), own, node, seen, check))
    return tuple(sorted(found, key=lambda each: (each.service, each.server.address.version, not each.bind)))


def _others_work(labels: Mapping[str, str]) -> bool:
    """Filtered out by kube-proxy's informers (cmd/kube-proxy/app/server.go): another proxy's, or headless."""
    return "service.kubernetes.io/service-proxy-name" in labels or "service.kubernetes.io/headless" in labels


def _proxied(spec: Mapping[str, Any]) -> bool:
    """ShouldSkipService of pkg/proxy/util."""
    return spec.get("clusterIP") not in {None, "", "None"} and spec.get("type") != "ExternalName"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Port:
    """A port of a Service in one family."""

    service: Document
    port: Mapping[str, Any]
    family: int

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.service["spec"]
        return spec

    @property
    def name(self) -> str:
        metadata = self.service["metadata"]
        port = self.port.get("name")
        return f"{metadata['namespace']}/{metadata['name']}{f':{port}' if port else ''}"

    @property
    def protocol(self) -> str:
        return str(self.port.get("protocol") or "TCP")

    @property
    def cluster_ip(self) -> Ip | None:
        several = self.spec.get("clusterIPs") or [self.spec["clusterIP"]]
        return next(iter(self.of_family(several)), None)

    @property
    def external_ips(self) -> tuple[Ip, ...]:
        return self.of_family(self.spec.get("externalIPs") or ())

    @property
    def vips(self) -> tuple[Ip, ...]:
        """Addresses of a load balancer that sends packets to the node as they are (IsVIPMode)."""
        ingress = ((self.service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        return self.of_family(each["ip"] for each in ingress if each.get("ip") and each.get("ipMode", "VIP") == "VIP")

    @property
    def node_port(self) -> int:
        return int(self.port.get("nodePort") or 0)

    @property
    def internal_local(self) -> bool:
        return self.spec.get("internalTrafficPolicy") == "Local"

    @property
    def external_local(self) -> bool:
        return self.spec.get("externalTrafficPolicy") == "Local"

    @property
    def externally_accessible(self) -> bool:
        return bool(self.node_port or self.vips or self.external_ips)

    @property
    def persistent(self) -> int:
        if self.spec.get("sessionAffinity") != "ClientIP":
            return 0
        return int(((self.spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds", 10800))

    def of_family(self, addresses: Iterable[str]) -> tuple[Ip, ...]:
        several = map(ipaddress.ip_address, addresses)
        return tuple(each for each in several if each.version == self.family)


def _of_port(
    port: _Port, slices: Iterable[Document], node: NodeView, seen: Seen, check: VirtualServers
) -> Iterator[Wanted]:
    cluster_ip = port.cluster_ip
    if cluster_ip is None:
        return
    endpoints = tuple(_endpoints(port, slices, node))

    def row(address: Ip, number: int, *, local: bool, bind: bool) -> Wanted:
        server = VirtualServer(
            protocol=port.protocol,
            address=address,
            port=number,
            scheduler=check.scheduler,
            persistent=port.persistent,
            servers=dict.fromkeys(_chosen(endpoints, port, node, local=local), 1),
        )
        return Wanted(service=port.name, server=server, bind=bind)

    number = int(port.port["port"])
    yield row(cluster_ip, number, local=port.internal_local, bind=True)
    for address in (*port.external_ips, *port.vips):
        # An address that another device has stays there alone.
        yield row(address, number, local=port.external_local, bind=address not in seen.addresses)
    if port.node_port:
        for address in _node_port_addresses(port.family, seen, check):
            yield row(address, port.node_port, local=port.external_local, bind=False)


def _node_port_addresses(family: int, seen: Seen, check: VirtualServers) -> tuple[Ip, ...]:
    blocks = [block for block in map(ipaddress.ip_network, check.node_port_addresses) if block.version == family]
    own = sorted(each for each in seen.addresses if each.version == family)
    return tuple(each for each in own if not blocks or any(each in block for block in blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Endpoint:
    place: Endpoint
    local: bool
    ready: bool
    draining: bool
    """Terminating, and still serving."""
    zones: frozenset[str]


def _endpoints(port: _Port, slices: Iterable[Document], node: NodeView) -> Iterator[_Endpoint]:
    known: dict[Endpoint, _Endpoint] = {}
    for each in slices:
        if each.get("addressType") != f"IPv{port.family}":
            continue
        for target in each.get("ports") or ():
            same = (target.get("name") or "") == (port.port.get("name") or "")
            if not (same and (target.get("protocol") or "TCP") == port.protocol and target.get("port")):
                continue
            for endpoint in each.get("endpoints") or ():
                found = _endpoint(endpoint, int(target["port"]), node)
                if found.place not in known or found.local:
                    known[found.place] = found
    yield from known.values()


def _endpoint(endpoint: Mapping[str, Any], port: int, node: NodeView) -> _Endpoint:
    conditions = endpoint.get("conditions") or {}
    # Unknown counts as ready and serving, and as not terminating (discovery/v1 EndpointConditions).
    return _Endpoint(
        place=(ipaddress.ip_address(endpoint["addresses"][0]), port),
        local=endpoint.get("nodeName") == node.name,
        ready=conditions.get("ready") is not False,
        draining=conditions.get("serving") is not False and conditions.get("terminating") is True,
        zones=frozenset(each["name"] for each in (endpoint.get("hints") or {}).get("forZones") or ()),
    )


def _chosen(endpoints: Sequence[_Endpoint], port: _Port, node: NodeView, *, local: bool) -> tuple[Endpoint, ...]:
    """CategorizeEndpoints, and what syncEndpoint takes of it: with a Local policy and no local endpoint, all of them
    where the Service has a Cluster policy for anything (kubernetes#97081).
    """
    if local:
        here = [each for each in endpoints if each.local]
        own = [each for each in here if each.ready] or [each for each in here if each.draining]
        if own:
            return tuple(each.place for each in own)
        if port.internal_local and not port.externally_accessible:
            return ()
    ready = [each for each in endpoints if each.ready]
    # Hints count only where every ready endpoint has one and one is for this node's zone (topologyModeFromHints; hints
    # for nodes are behind an alpha gate in 1.33).
    hinted = all(each.zones for each in ready) and any(node.zone in each.zones for each in ready)
    near = [each for each in ready if node.zone in each.zones] if hinted else ready
    return tuple(each.place for each in near or [each for each in endpoints if each.draining])


# ---------------------------------------------------------------------------------------------------------------
# Compared


def differences(desired: Iterable[Wanted], seen: Seen, check: VirtualServers) -> tuple[str, ...]:
    """A line for each virtual server that is missing, wrong, or of no Service; () where all is as the API says."""
    rows = {server.key: server for server in seen.servers}
    found: list[str] = []
    for each in desired:
        server = rows.pop(each.server.key, None)
        name = f"{place(each.server)} ({each.service})"
        if server is None:
            found.append(f"{name}: missing")
            continue
        found.extend(f"{name}: {text}" for text in _wrong(each.server, server))
        if each.bind and each.server.address not in seen.bound:
            found.append(f"{name}: {each.server.address} is not on {DEVICE}")
    excluded = tuple(map(ipaddress.ip_network, check.exclude))
    strangers = (row for row in rows.values() if not any(row.address in block for block in excluded))
    # kube-proxy leaves those of a family that it does not serve.
    found.extend(f"{place(row)}: of no Service" for row in strangers if row.address.version in seen.families)
    return tuple(found)


def _wrong(want: VirtualServer, has: VirtualServer) -> Iterator[str]:
    for target in sorted(want.servers, key=str):
        weight = has.servers.get(target)
        if weight is None:
            yield f"lacks {_target(target)}"
        elif weight == 0:
            yield f"{_target(target)} gets no connections (weight 0)"
    for target, weight in sorted(has.servers.items(), key=str):
        if target not in want.servers and weight:
            yield f"sends to {_target(target)}, which is no endpoint of it for this node"
    if want.scheduler != has.scheduler:
        yield f"scheduler {has.scheduler}, expected {want.scheduler}"
    if want.persistent != has.persistent:
        yield f"session affinity {has.persistent} s, expected {want.persistent} s"


def summary(desired: Sequence[Wanted], *, limit: int = 40) -> str:
    """How many virtual servers there are and where `kubernetes` goes, then a line for each of the first ones."""
    api = next((each for each in desired if each.service.startswith("default/kubernetes:")), None)
    where = f"; {_row(api)}" if api is not None else ""
    lines = [f"{len(desired)} virtual servers are as the API's Services and EndpointSlices say{where}"]
    lines += [_row(each) for each in desired[:limit]]
    if len(desired) > limit:
        lines.append(f"and {len(desired) - limit} more")
    return "\n".join(lines)


def _row(each: Wanted) -> str:
    targets = ", ".join(sorted(map(_target, each.server.servers))) or "no endpoint"
    sticky = f" persistent {each.server.persistent}" if each.server.persistent else ""
    return f"{each.service}  {place(each.server)} {each.server.scheduler}{sticky} -> {targets}"


def place(server: VirtualServer) -> str:
    """TCP 10.254.0.1:443"""
    return f"{server.protocol} {_target((server.address, server.port))}"


def _target(target: Endpoint) -> str:
    address, port = target
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
