"""What each version accepts, deprecates and removes, as data; each entry says where that is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
CONFIG_V2 = Horizon(
    what="containerd config version 2 or older",
    software="containerd",
    deprecated="2.0.0",
    removed="",
    way_out="still read by 2.x, which migrates it in memory at each start; `containerd config migrate` writes it anew",
    source="containerd RELEASES.md, daemon configuration",
)
METRICS_SECTION = Horizon(
    what="containerd config section [metrics]",
    software="containerd",
    deprecated="2.3.0",
    removed="",
    way_out='[plugins."io.containerd.server.v1.metrics"] of config version 4, which 2.3 makes of it in memory',
    source="containerd docs/man/containerd-config.toml.5.md",
)
REGISTRY_CREDENTIALS = Horizon(
    what="containerd options registry.configs and registry.auths",
    software="containerd",
    deprecated="1.5.0",
    removed="2.4.0",
    way_out="header_files of components.containerd.mirrors (no restart), or imagePullSecrets",
    source="containerd RELEASES.md, deprecated config properties (2.1's own warning names 2.2)",
)
REGISTRY_MIRRORS = Horizon(
    what="containerd option registry.mirrors",
    software="containerd",
    deprecated="1.5.0",
    removed="2.4.0",
    way_out="components.containerd.mirrors, which writes hosts.toml files below config_path",
    source="containerd RELEASES.md, deprecated config properties",
)
ENABLE_CDI = Horizon(
    what="containerd option enable_cdi",
    software="containerd",
    deprecated="2.2.0",
    removed="2.4.0",
    way_out="leave it out: CDI is always on then",
    source="containerd RELEASES.md, deprecated config properties",
)
CONTAINERD_CGROUP_V1 = Horizon(
    what="containerd on cgroup v1",
    software="containerd",
    deprecated="2.2.0",
    removed="",
    way_out="cgroup v2; one branch at least keeps v1 until May 2029",
    source="containerd RELEASES.md, deprecated features",
)
RUNTIME_ENDPOINT_FLAG = Horizon(
    what="kubelet flag --container-runtime-endpoint",
    software="kubernetes",
    deprecated="1.27.0",
    removed="",
    way_out="containerRuntimeEndpoint in components.kubelet.config (what `profile: default` writes)",
    source="kubernetes/kubernetes#112136, kubernetes/website#43935; cmd/kubelet/app/options/options.go",
)

TABLE = (
    IPVS,
    CGROUP_V1,
    POD_INFRA_IMAGE,
    RUNTIME_ENDPOINT_FLAG,
    CNI_BIN_DIR,
    CONFIG_V2,
    CONFIG_V3,
    METRICS_SECTION,
    REGISTRY_MIRRORS,
    REGISTRY_CREDENTIALS,
    ENABLE_CDI,
    CONTAINERD_CGROUP_V1,
)

ENDS: Mapping[str, Mapping[str, str]] = {
    "kubernetes": {
        "1.30": "2025-07-15",
        "1.31": "2025-11-11",
        "1.33": "2026-06-28",
        "1.34": "2026-10-27",
        "1.35": "2027-02-28",
        "1.36": "2027-06-28",
        "1.37": "2027-10-28",
    },
    "containerd": {
        "1.6": "2025-08-23",
        "1.7": "2026-09-30",
        "2.0": "2027-03-31",
        "2.1": "2026-07-03",
        "2.2": "2026-11-06",
        "2.3": "2028-04-30",
    },
}
"""Last day on which a release series gets fixes; where upstream names a month, that month's last day."""
ENDS_SOURCE = {
    "kubernetes": "kubernetes.io/releases, end of life of each series",
    "containerd": "containerd RELEASES.md, current state of releases",
}

PAIRS: Mapping[str, tuple[str, ...]] = {
    "1.30": ("1.6.28", "1.7.13", "2.0.0", "2.1.0"),
    "1.31": ("1.6.34", "1.7.20", "2.0.0", "2.1.0"),
    "1.32": ("1.6.36", "1.7.24", "2.0.1", "2.1.0"),
    "1.33": ("1.6.36", "1.7.24", "2.0.4", "2.1.0"),
    "1.34": ("1.6.39", "1.7.28", "2.0.6", "2.1.3"),
    "1.35": ("1.7.28", "2.1.5", "2.2.0"),
    "1.36": ("2.2.0", "2.3.0"),
}
"""By Kubernetes series, the first containerd of each series that its project recommends for it."""
PAIRS_SOURCE = "containerd RELEASES.md, Kubernetes support"

SKEW = 3
"""Minor versions that kubelet and kube-proxy may be older than kube-apiserver; newer they must not be."""
SKEW_SOURCE = "kubernetes.io/releases/version-skew-policy"


def at_least(version: str, floor: str) -> bool:
    """Whether `version` is `floor` or later; a pre-release counts as its release."""
    return _numbers(version) >= _numbers(floor)


def warning(entry: Horizon, version: str) -> str:
    """What a plan says of `entry` where `version` of its software runs; empty while it isn't on the horizon at all."""
    if entry.removed and at_least(version, entry.removed):
        return f"{entry.what} is gone or off by default since {entry.software} {series(entry.removed)}: {entry.way_out}"
    when = f"{entry.software} {series(entry.deprecated)} deprecates" if entry.deprecated else f"{entry.software} drops"
    goes = f" and {series(entry.removed)} removes or switches off" if entry.removed else ""
    return f"{when}{goes} {entry.what}: {entry.way_out}"


def series(version: str) -> str:
    """1.33 of 1.33.3"""
    return ".".join(version.split("-", maxsplit=1)[0].split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.split(r"[-+]", version, maxsplit=1)[0].split("."))
