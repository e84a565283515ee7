"""What each version accepts, deprecates and removes, as data; each entry says where that is written."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """One thing that a later version takes away."""

    what: str
    software: str
    """Field of `versions` in cluster.yaml: kubernetes, containerd, ..."""
    deprecated: str
    """First version that warns of it; empty: never deprecated beforehand."""
    removed: str
    """First version that refuses it or has it off by default."""
    way_out: str
    source: str


IPVS = Horizon(
    what="kube-proxy mode ipvs",
    software="kubernetes",
    deprecated="1.35.0",
    removed="1.40.0",
    way_out="components.kube_proxy.mode: nftables (GA since 1.33)",
    source="KEP-5495; kubernetes/kubernetes#134539; kubernetes/enhancements#6120",
)
CGROUP_V1 = Horizon(
    what="cgroup v1",
    software="kubernetes",
    deprecated="1.31.0",
    removed="1.35.0",
    way_out="boot the node with cgroup v2 (systemd.unified_cgroup_hierarchy=1)",
    source="KEP-5573; kubernetes/kubernetes#134298: failCgroupV1 defaults to true",
)
POD_INFRA_IMAGE = Horizon(
    what="kubelet flag --pod-infra-container-image",
    software="kubernetes",
    deprecated="1.27.0",
    removed="1.35.0",
    way_out="components.containerd.sandbox_image",
    source="kubernetes/kubernetes#133779",
)
CNI_BIN_DIR = Horizon(
    what="containerd option cni.bin_dir",
    software="containerd",
    deprecated="2.1.0",
    removed="2.4.0",
    way_out="cni.bin_dirs (a list), written from containerd 2.1 on, and with `profile: guide` from 2.4 on",
    source="containerd RELEASES.md, deprecated config properties",
)
CONFIG_V3 = Horizon(
    what="containerd config version 3",
    software="containerd",
    deprecated="2.3.0",
    removed="",
    way_out="still read by 2.3, which migrates it to version 4 in memory",
    source="containerd RELEASES.md, daemon configuration",
)
REGISTRY_CREDENTIALS = Horizon(
    what="containerd options registry.configs and registry.auths",
    software="containerd",
    deprecated="1.5.0",
    removed="2.2.0",
    way_out="header_files of components.containerd.mirrors (no restart), or imagePullSecrets",
    source="containerd pkg/deprecation, cri-registry-configs and cri-registry-auths",
)

TABLE = (IPVS, CGROUP_V1, POD_INFRA_IMAGE, CNI_BIN_DIR, CONFIG_V3, REGISTRY_CREDENTIALS)


def at_least(version: str, floor: str) -> bool:
    """Whether `version` is `floor` or later; a pre-release counts as its release."""
    return _numbers(version) >= _numbers(floor)


def warning(entry: Horizon, version: str) -> str:
    """What a plan says of `entry` where `version` of its software runs; empty while it isn't on the horizon at all."""
    if entry.removed and at_least(version, entry.removed):
        return f"{entry.what} is gone or off by default since {entry.software} {_short(entry.removed)}: {entry.way_out}"
    when = f"{entry.software} {_short(entry.deprecated)} deprecates" if entry.deprecated else f"{entry.software} drops"
    goes = f" and {_short(entry.removed)} removes or switches off" if entry.removed else ""
    return f"{when}{goes} {entry.what}: {entry.way_out}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.split(r"[-+]", version, maxsplit=1)[0].split("."))


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])
