"""The cluster.yaml that describes a lab to the tool, which itself knows nothing of labs.

What a nspawn machine needs differently from ordinary hardware stands here as plain component config, each with
the reason; whatever depends on the host is detected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from kubeworker.core.spec import Versions
from kubeworker.lab import cilium
from kubeworker.lab.state import CLUSTER_CIDR, DNS_SERVICE_IP, SERVICE_CIDR, LabState, Machine

VERSIONS = {"nginx": "1.22.1", "crictl": "1.34.0"}
"""Where the lab differs from the guide: Debian's nginx source, and the crictl that Go's module proxy has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTraits:
    """What of the host shows in its machines."""

    sys_resource: bool
    """CAP_SYS_RESOURCE is there."""
    ipvs: bool


def render(lab: LabState, traits: HostTraits, images: tuple[str, ...]) -> str:
    """The file's text; paths in it are relative to it."""
    header = f"# Written by `kubeworker lab up --name {lab.name}`, and again when machines are added or removed.\n"
    return header + yaml.safe_dump(document(lab, traits, images), sort_keys=False, width=120)


def document(lab: LabState, traits: HostTraits, images: tuple[str, ...]) -> dict[str, Any]:
    """The file as data."""
    return {
        "cluster": {
            "apiservers": list(lab.apiservers),
            "cluster_cidr": CLUSTER_CIDR,
            "service_cidr": SERVICE_CIDR,
            "dns_service_ip": DNS_SERVICE_IP,
            "ca": {"cert": lab.ca.name, "key": lab.ca_key.name},
            "kubeconfig": lab.kubeconfig.name,
        },
        "ssh": {"user": "root", "identity": lab.ssh_identity.name, "known_hosts": lab.known_hosts.name},
        "versions": dict(VERSIONS),
        "artifacts": {"sources": ["cache", "build"], "nginx_source": "debian"},
        "cni": lab.cni,
        "components": {
            "containerd": _containerd(traits, images),
            "kubelet": {"config": _KUBELET},
            "kube_proxy": {
                "mode": "ipvs" if traits.ipvs else "nftables",
                # nf_conntrack_max belongs to the host: it is read-only in every other network namespace.
                "config": {"conntrack": {"maxPerCore": 0}},
            },
            **_cilium(lab, traits),
        },
        "nodes": [_node(machine, traits) for machine in lab.machines],
    }


def _node(machine: Machine, traits: HostTraits) -> dict[str, Any]:
    node: dict[str, Any] = {"name": machine.name, "address": machine.address}
    if machine.kind == "full-kernel":
        node["components"] = _full_kernel(traits)
    return node


def _full_kernel(traits: HostTraits) -> dict[str, Any]:
    """A kernel of its own is as it comes: the tool loads and sets what it needs, and nothing is the host's."""
    components: dict[str, Any] = {
        "host": {"load_modules": True, "sysctls": True},
        # It has IP_VS and lacks what nftables mode needs.
        "kube_proxy": {"mode": "ipvs", "config": {"conntrack": None}},
    }
    if not traits.sys_resource:
        runtime = {"restrict_oom_score_adj": False}
        components["containerd"] = {"config": {"plugins": {"io.containerd.cri.v1.runtime": runtime}}}
    return components


# All machines share the host's disk, so its percentages say nothing about a machine's own use.
_KUBELET: dict[str, Any] = {
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "1Gi",
        "imagefs.available": "1Gi",
        "nodefs.inodesFree": "1%",
    },
    "imageGCHighThresholdPercent": 100,
    "imageGCLowThresholdPercent": 99,
}


def _cilium(lab: LabState, traits: HostTraits) -> dict[str, Any]:
    if lab.cni != "cilium":
        return {}
    return {"cilium": {"values": cilium.values(Versions().cilium, sys_resource=traits.sys_resource)}}


def _containerd(traits: HostTraits, images: tuple[str, ...]) -> dict[str, Any]:
    config: dict[str, Any] = {"preload_images": list(images)}
    if not traits.sys_resource:
        # Without CAP_SYS_RESOURCE no container may lower its OOM score, and none would start.
        runtime = {"restrict_oom_score_adj": True}
        config["config"] = {"plugins": {"io.containerd.cri.v1.runtime": runtime}}
    return config
