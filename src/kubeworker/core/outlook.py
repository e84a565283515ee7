"""What runs on a node, held against the horizon: what fails, what is deprecated, what has an end, what fits together.

Pure; the facts themselves, each with its source, are data in core/horizon.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal, TypeAlias

from kubeworker.core import horizon
from kubeworker.core.horizon import Horizon, at_least, series

State: TypeAlias = Literal["fails", "unsupported", "ended", "deprecated", "ahead"]
"""fails: this version refuses it or has it off. unsupported: upstream neither tests nor promises it. ended: no more
fixes. deprecated: works, with a warning. ahead: works; a later version takes it away, or the end is near."""

ORDER: tuple[State, ...] = ("fails", "unsupported", "ended", "deprecated", "ahead")
"""The worst first."""

NEAR_DAYS = 90
"""From when on the end of a release series is told beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What is seen of a node's software; unknown parts are empty."""

    kubernetes: str = ""
    """kubelet's version, as it told the API."""
    containerd: str = ""
    apiserver: str = ""
    """The version of the kube-apiserver that was asked."""
    kernel: str = ""
    cgroup: int = 0
    """1 or 2; 0: unknown."""
    proxy_mode: str = ""
    """Of kube-proxy's configuration; empty where there is none on the node."""
    containerd_config: int = 0
    """`version` of config.toml; 0: there is none."""
    containerd_keys: frozenset[str] = frozenset()
    """What config.toml uses of: bin_dir, metrics, enable_cdi, mirrors, configs, auths."""
    kubelet_flags: frozenset[str] = frozenset()
    """Names of the flags that the running kubelet was started with, without dashes."""
    told: tuple[str, ...] = ()
    """What kubelet and containerd themselves say is deprecated."""

    def as_json(self) -> dict[str, object]:
        """The machine-readable form."""
        return {
            "kubernetes": self.kubernetes,
            "containerd": self.containerd,
            "apiserver": self.apiserver,
            "kernel": self.kernel,
            "cgroup": self.cgroup,
            "proxy_mode": self.proxy_mode,
            "containerd_config": self.containerd_config,
            "containerd_keys": sorted(self.containerd_keys),
            "kubelet_flags": sorted(self.kubelet_flags),
            "told": list(self.told),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One thing on the horizon of what runs."""

    what: str
    state: State
    when: str
    """The version or the day that it is about: `kubernetes 1.40`, `2026-06-28`."""
    way_out: str
    source: str

    def as_json(self) -> dict[str, str]:
        """The machine-readable form."""
        return {
            "what": self.what,
            "state": self.state,
            "when": self.when,
            "way_out": self.way_out,
            "source": self.source,
        }


def outlook(running: Running, today: date) -> tuple[Prospect, ...]:
    """What lies ahead of this node, the worst first."""
    found = (*_used(running), *_ends(running, today), *_pair(running), *_skew(running))
    return tuple(sorted(found, key=lambda each: ORDER.index(each.state)))


def against(running: Running, versions: Mapping[str, str]) -> Running:
    """The same node, were these the versions (kubernetes, containerd) in cluster.yaml.

    An API server older than that is left as it is: the skew shows that it must go first.
    """
    return replace(
        running,
        kubernetes=versions.get("kubernetes", running.kubernetes),
        containerd=versions.get("containerd", running.containerd),
    )


def _used(running: Running) -> Iterator[Prospect]:
    flags, keys, config = running.kubelet_flags, running.containerd_keys, running.containerd_config
    uses: Mapping[Horizon, bool] = {
        horizon.IPVS: running.proxy_mode == "ipvs",
        horizon.CGROUP_V1: running.cgroup == 1,
        horizon.CONTAINERD_CGROUP_V1: running.cgroup == 1,
        horizon.POD_INFRA_IMAGE: "pod-infra-container-image" in flags,
        horizon.RUNTIME_ENDPOINT_FLAG: "container-runtime-endpoint" in flags,
        horizon.CNI_BIN_DIR: "bin_dir" in keys,
        horizon.CONFIG_V2: config in (1, 2),
        horizon.CONFIG_V3: config == 3,
        horizon.METRICS_SECTION: "metrics" in keys,
        horizon.REGISTRY_MIRRORS: "mirrors" in keys,
        horizon.REGISTRY_CREDENTIALS: bool({"configs", "auths"} & keys),
        horizon.ENABLE_CDI: "enable_cdi" in keys,
    }
    versions = {"kubernetes": running.kubernetes, "containerd": running.containerd}
    for entry, used in uses.items():
        if used and versions[entry.software]:
            yield _prospect(entry, versions[entry.software])


def _prospect(entry: Horizon, version: str) -> Prospect:
    state: State = "ahead"
    when = entry.removed or entry.deprecated
    if entry.removed and at_least(version, entry.removed):
        state = "fails"
    elif entry.deprecated and at_least(version, entry.deprecated):
        state = "deprecated"
    elif entry.deprecated:
        when = entry.deprecated
    words = f"{entry.software} {series(entry.deprecated)} deprecates it" if entry.deprecated else ""
    goes = f"{entry.software} {series(entry.removed)} removes it or has it off" if entry.removed else ""
    return Prospect(
        what=entry.what,
        state=state,
        when=", ".join(filter(None, (words, goes))) or when,
        way_out=entry.way_out,
        source=entry.source,
    )


def _ends(running: Running, today: date) -> Iterator[Prospect]:
    for software, version in (("kubernetes", running.kubernetes), ("containerd", running.containerd)):
        end = _end(software, version) if version else ""
        if not end:
            continue
        days = (date.fromisoformat(end) - today).days
        if days > NEAR_DAYS:
            continue
        yield Prospect(
            what=f"{software} {series(version)} gets no more fixes",
            state="ended" if days < 0 else "ahead",
            when=f"since {end}" if days < 0 else f"from {end} on, in {days} days",
            way_out=f"versions.{software}: a series with a later end ({_later(software, today)})",
            source=horizon.ENDS_SOURCE[software],
        )


def _end(software: str, version: str) -> str:
    """The last day of the version's series. One that no table has any more is older than one that has ended."""
    table = horizon.ENDS[software]
    if known := table.get(series(version)):
        return known
    newer = [end for other, end in table.items() if at_least(f"{other}.0", version)]
    return min(newer, default="")


def _later(software: str, today: date) -> str:
    left = [name for name, end in horizon.ENDS[software].items() if date.fromisoformat(end) > today]
    return ", ".join(left) or "none is known here"


def _pair(running: Running) -> Iterator[Prospect]:
    if not running.kubernetes or not running.containerd or fits(running.kubernetes, running.containerd):
        return
    yield Prospect(
        what=f"containerd {running.containerd} with kubernetes {series(running.kubernetes)}",
        state="unsupported",
        when=f"recommended: {recommended(running.kubernetes)}",
        way_out="versions.containerd: one of these",
        source=horizon.PAIRS_SOURCE,
    )


def fits(kubernetes: str, containerd: str) -> bool:
    """Whether containerd's project recommends this version for that Kubernetes; of one it does not list, nothing is
    known.
    """
    firsts = horizon.PAIRS.get(series(kubernetes), ())
    mine = [first for first in firsts if series(first) == series(containerd)]
    # A series later than those that are listed came after them.
    return not firsts or any(at_least(containerd, first) for first in (*mine, firsts[-1]))


def recommended(kubernetes: str) -> str:
    """`2.1.0+, 2.0.4+`"""
    return ", ".join(f"{first}+" for first in reversed(horizon.PAIRS.get(series(kubernetes), ())))


def _skew(running: Running) -> Iterator[Prospect]:
    if not running.kubernetes or not running.apiserver:
        return
    mine, theirs = (_minor(version) for version in (running.kubernetes, running.apiserver))
    what = f"kubelet {running.kubernetes} at kube-apiserver {running.apiserver}"
    if mine > theirs:
        yield Prospect(
            what=what,
            state="unsupported",
            when="kubelet and kube-proxy must not be newer than kube-apiserver",
            way_out="upgrade every kube-apiserver first",
            source=horizon.SKEW_SOURCE,
        )
    elif theirs - mine > horizon.SKEW:
        yield Prospect(
            what=what,
            state="unsupported",
            when=f"kubelet and kube-proxy may be {horizon.SKEW} minor versions older at most",
            way_out=f"versions.kubernetes: at least 1.{theirs - horizon.SKEW}",
            source=horizon.SKEW_SOURCE,
        )


def _minor(version: str) -> int:
    return int(version.split(".")[1])
