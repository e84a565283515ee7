"""Pod networking for nodes of one layer-2 segment: a bridge on each node and routes to the other nodes' pods."""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Literal

from pydantic import Field

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, Release, cni_ldflags
from kubeworker.core.component import Component, ComponentConfig, Context, binary
from kubeworker.core.formats import unit
from kubeworker.core.model import (
    Absent,
    Check,
    Deferred,
    Directory,
    File,
    NodeCommand,
    PathMtu,
    RequireCommand,
    RequireMasquerade,
    Requirement,
    RequireModule,
    RequireSysctl,
    SameSegment,
    Stage,
    Unit,
    UnitActive,
)
from kubeworker.core.spec import ClusterFile


class Config(ComponentConfig):
    """`components.bridge_cni`, with `cni: bridge`."""

    mtu: int = Field(default=0, ge=0)
    """MTU of pods' interfaces; 0: the kernel's default (1500)."""


_MTU = 1500
"""The kernel's default for veth and bridge (ETH_DATA_LEN)."""
_BIN_DIR = "/opt/cni/bin"
_CONFLIST = "/etc/cni/net.d/10-kubeworker.conflist"
_ROUTES = "/etc/kubeworker/routes"
_MASQUERADE = {"nft": "/etc/kubeworker/masquerade.nft", "iptables": "/etc/kubeworker/masquerade.iptables"}
"""By the command that reads it: `Facts.masquerade`."""
_UNIT = "kubeworker-routes.service"
_PROTOCOL = 171
"""Routes carry this number (rtnetlink(7), rtm_protocol; none of /etc/iproute2/rt_protos), so that ours are known."""
_TABLE = "kubeworker"
_CHAIN = "KUBEWORKER-MASQUERADE"

_PLUGINS = {
    "bridge": "main/bridge",
    "host-local": "ipam/host-local",
    "loopback": "main/loopback",
    "portmap": "meta/portmap",
}


def _artifacts(cluster: ClusterFile, _config: Config) -> tuple[Artifact, ...]:
    version = cluster.versions.cni_plugins
    url = (
        "https://github.com/containernetworking/plugins/releases/download/"
        f"v{version}/cni-plugins-linux-{{arch}}-v{version}.tgz"
    )
    return tuple(
        Artifact(
            name=name,
            version=version,
            releases=(Release(url=url, member=f"./{name}", checksum_url=f"{url}.sha256"),),
            build=GoBuild(
                module="cni",
                package=f"github.com/containernetworking/plugins/plugins/{path}",
                ldflags=cni_ldflags(version),
            ),
            field="versions.cni_plugins",
        )
        for name, path in _PLUGINS.items()
    )


# A pod that asks a Service whose endpoint is on its own node gets the answer across the bridge. Only if bridged
# packets pass conntrack is the Service's address put back into it; without that the connection hangs, in every
# kube-proxy mode.
_REQUIREMENTS: tuple[Requirement, ...] = (
    RequireModule(name="br_netfilter", why="answers of a Service's pod on the same node must pass conntrack"),
    RequireSysctl(
        key="net.bridge.bridge-nf-call-iptables",
        value="1",
        fix="modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1, "
        "or components.host: {load_modules: true, sysctls: true}",
    ),
    # The portmap plugin uses iptables or nft, whichever it finds.
    RequireCommand(name="nft", package="nftables"),
    SameSegment(why="each node is the next hop to its own pods' addresses (cni: bridge)"),
)


def _stage(context: Context[Config]) -> Stage:
    binaries = tuple(
        binary(artifact, _BIN_DIR, context.blobs) for artifact in _artifacts(context.cluster, context.config)
    )
    command = context.facts.masquerade
    paths = (_CONFLIST, _ROUTES, _MASQUERADE[command])
    files = _files(context) if context.facts.pod_cidr else ()
    reason = "the node's podCIDR is known once it has joined"
    return Stage(
        component="bridge_cni",
        requirements=(
            *_REQUIREMENTS,
            RequireMasquerade(family=_family(context.cluster)),
            PathMtu(
                packet=context.config.mtu or _MTU,
                why="pods' packets are routed as they are (cni: bridge)",
                setting="components.bridge_cni.mtu",
            ),
        ),
        directories=tuple(Directory(path=path) for path in (_BIN_DIR, "/etc/cni/net.d", "/etc/kubeworker")),
        binaries=binaries,
        files=files,
        absent=tuple(
            Absent(path=path, reason=f"this kernel takes such rules from {command}")
            for other, path in _MASQUERADE.items()
            if other != command
        ),
        deferred=() if files else tuple(Deferred(path=path, reason=reason) for path in paths),
        units=(
            Unit(
                name=_UNIT, content=_unit_file(context.cluster), reload_on=(_ROUTES, _MASQUERADE[command]), oneshot=True
            ),
        ),
    )


def _files(context: Context[Config]) -> tuple[File, ...]:
    return (
        File(path=_CONFLIST, content=(json.dumps(_conflist(context), indent=2) + "\n").encode()),
        File(path=_ROUTES, content=_routes(context).encode()),
        File(path=_MASQUERADE[context.facts.masquerade], content=_masquerade(context).encode()),
    )


def _conflist(context: Context[Config]) -> dict[str, Any]:
    cidr = context.facts.pod_cidr
    everywhere = "::/0" if _family(context.cluster) == "ip6" else "0.0.0.0/0"
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": "kw0",
        # Not isDefaultGateway: it would add the default route that ipam gives already, and fail on it ("file exists").
        "isGateway": True,
        # A pod that reaches itself through its own Service.
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": cidr}]], "routes": [{"dst": everywhere}]},
    }
    if context.config.mtu:
        bridge["mtu"] = context.config.mtu
    return {
        "cniVersion": "1.0.0",
        "name": "kubeworker",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def _routes(context: Context[Config]) -> str:
    """Input of `ip -batch`: this tool's routes are dropped and set anew, within a few milliseconds."""
    peers = sorted(context.facts.peers, key=lambda peer: peer.name)
    lines = [f"route flush proto {_PROTOCOL}"]
    lines += [f"route replace {peer.pod_cidr} via {peer.address} proto {_PROTOCOL}" for peer in peers if peer.pod_cidr]
    return "\n".join(lines) + "\n"


def _masquerade(context: Context[Config]) -> str:
    """Pods leave the cluster under their node's address, and keep their own towards other pods.

    The bridge plugin's own ipMasq would hide a pod's address from pods on other nodes too.
    """
    cidr, ip = context.facts.pod_cidr, _family(context.cluster)
    cluster_cidr = context.cluster.cluster.cluster_cidr
    multicast = "ff00::/8" if ip == "ip6" else "224.0.0.0/4"
    if context.facts.masquerade == "iptables":
        return f"""\
# For iptables-restore --noflush, which empties a chain that it declares. The unit has POSTROUTING jump to it.
*nat
:{_CHAIN} - [0:0]
-A {_CHAIN} -d {cluster_cidr} -j RETURN
-A {_CHAIN} -d {multicast} -j RETURN
-A {_CHAIN} -s {cidr} -j MASQUERADE
COMMIT
"""
    inside = f"{{ {cluster_cidr}, {multicast} }}"
    return f"""\
# Added and deleted first, so that this file replaces the table whether or not it is there.
table {ip} {_TABLE}
delete table {ip} {_TABLE}
table {ip} {_TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        {ip} saddr {cidr} {ip} daddr != {inside} masquerade
    }}
}}
"""


def _family(cluster: ClusterFile) -> Literal["ip", "ip6"]:
    return "ip6" if ipaddress.ip_network(cluster.cluster.cluster_cidr).version == 6 else "ip"


def _unit_file(cluster: ClusterFile) -> str:
    family = _family(cluster)
    option, iptables = ("-6", "ip6tables") if family == "ip6" else ("-4", "iptables")
    nft_file, iptables_file = _MASQUERADE["nft"], _MASQUERADE["iptables"]
    table, jump = f"{iptables} -w -t nat", f"POSTROUTING -j {_CHAIN}"
    # The files come after the node has joined, and only one of the last two; what is not there is nothing to do.
    apply = (
        _shell(f"[ ! -e {_ROUTES} ] || ip {option} -batch {_ROUTES}"),
        _shell(f"[ ! -e {nft_file} ] || nft -f {nft_file}"),
        _shell(f"[ ! -e {iptables_file} ] || {iptables}-restore -w --noflush {iptables_file}"),
        _shell(f"[ ! -e {iptables_file} ] || {table} -C {jump} 2> /dev/null || {table} -A {jump}"),
    )
    undo = (
        _shell(f"ip {option} route flush proto {_PROTOCOL}", prefix="-"),
        _shell(f"[ ! -e {nft_file} ] || nft delete table {family} {_TABLE}", prefix="-"),
        _shell(f"[ ! -e {iptables_file} ] || {table} -D {jump}", prefix="-"),
        _shell(f"[ ! -e {iptables_file} ] || {{ {table} -F {_CHAIN}; {table} -X {_CHAIN}; }}", prefix="-"),
    )
    return unit.dump(
        {
            "Unit": {
                "Description": "Routes to the pods of the other nodes (kubeworker)",
                "After": "network-online.target",
                "Wants": "network-online.target",
            },
            "Service": {
                "Type": "oneshot",
                "RemainAfterExit": "yes",
                "ExecStart": apply,
                "ExecReload": apply,
                "ExecStop": undo,
            },
            "Install": {"WantedBy": "multi-user.target"},
        }
    )


def _shell(command: str, *, prefix: str = "") -> unit.Command:
    """Through sh, which finds `ip`, `nft` and `iptables` wherever the distribution has them."""
    return unit.Command(arguments=("/bin/sh", "-c", command), prefix=prefix)


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    return (
        UnitActive(id="bridge_cni.unit", unit=_UNIT),
        *(
            NodeCommand(
                id=f"bridge_cni.route.{peer.name}",
                command=("ip", "-6" if _family(context.cluster) == "ip6" else "-4", "route", "show", peer.pod_cidr),
                contains=f"via {peer.address} ",
            )
            for peer in context.facts.peers
            if peer.pod_cidr
        ),
    )


COMPONENT = Component(
    name="bridge_cni",
    config=Config,
    stage=_stage,
    artifacts=_artifacts,
    checks=_checks,
    enabled=lambda cluster: cluster.cni == "bridge",
    after=("host", "containerd", "kubelet"),
)
