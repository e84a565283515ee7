"""What must hold on a node before anything is changed on it: requirements against an observation. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from kubeworker.core.actions import StagePlan
from kubeworker.core.model import (
    NodeState,
    RequireCgroup,
    RequireClock,
    RequireCommand,
    RequireDisk,
    RequireMasquerade,
    Requirement,
    RequireModule,
    RequirePort,
    RequireProxyMode,
    RequireSwapOff,
    RequireSysctl,
    Stage,
    WarnOfTraces,
)
from kubeworker.core.observed import Listener, Observed

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A requirement that a node does not meet."""

    node: str
    id: str
    """Stable: `port-10250`, `command-nft`, `swap`, `clock`, `hostname`, ..."""
    message: str
    fix: str
    severity: Severity = "error"
    """An error keeps the node from being changed."""


def preflight(
    state: NodeState,
    observed: Observed,
    *,
    peers: Mapping[str, Observed],
    control_time: float,
    plans: Sequence[StagePlan] = (),
    architecture: str = "",
) -> tuple[Finding, ...]:
    """Every requirement that this node does not meet, in a stable order.

    `peers` are all observed nodes by name (this one may be among them); `control_time` is the control host's clock
    when the node said its own; `plans` tell what will be sent; `architecture` is what the binaries are for.
    """
    node = _Node(name=state.node, state=state, observed=observed, control_time=control_time, plans=tuple(plans))
    findings: list[Finding] = []
    if architecture and observed.architecture != architecture:
        message = f"the machine is {observed.architecture}, the artifacts are for {architecture}"
        fix = "take it out of `nodes:`; one cluster.yaml has nodes of one architecture"
        findings.append(Finding(node=state.node, id="architecture", message=message, fix=fix))
    for stage in state.stages:
        for requirement in stage.requirements:
            findings.extend(node.unmet(stage, requirement))
        findings.extend(node.unloadable(stage))
    findings.extend(node.space())
    findings.extend(_twins(state.node, observed, peers))
    return tuple(dict.fromkeys(findings))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    name: str
    state: NodeState
    observed: Observed
    control_time: float
    plans: tuple[StagePlan, ...]

    def finding(self, key: str, message: str, fix: str, severity: Severity = "error") -> Finding:
        return Finding(node=self.name, id=key, message=message, fix=fix, severity=severity)

    def host_owned(self, key: str, message: str, fix: str) -> Finding:
        """A fact that a container takes over from its host: there is the place to change it."""
        if not self.observed.container:
            return self.finding(key, message, fix)
        container = self.observed.container
        return self.finding(key, f"{message} (owned by the host of this {container} container)", f"on its host: {fix}")

    def unmet(self, stage: Stage, requirement: Requirement) -> Iterator[Finding]:
        seen = self.observed
        match requirement:
            case RequireCommand(name=name, package=package):
                if name not in seen.commands and package not in stage.packages:
                    fix = f"apt-get install {package}, or `host: {{packages: true}}`"
                    yield self.finding(f"command-{name}", f"the command {name} is missing", fix)
            case RequirePort(port=port, unit=unit):
                for listener in seen.listeners:
                    if listener.port == port and listener.unit != unit:
                        yield self._busy(listener, unit)
            case RequireDisk():
                pass  # `space` adds them up per file system.
            case RequireModule(name=name, why=why):
                if seen.modules.get(name, "missing") == "missing":
                    message = f"the kernel {seen.kernel} has no {name} ({why})"
                    yield self.host_owned(f"module-{name}", message, "use a kernel that has it")
                elif seen.container and seen.modules[name] == "available":
                    message = f"the kernel module {name} is not loaded ({why})"
                    fix = f"modprobe {name}, and a line with it in /etc/modules-load.d"
                    yield self.host_owned(f"module-{name}", message, fix)
            case RequireSysctl(key=key, value=value, fix=fix):
                if (now := seen.sysctls.get(key, "not there")) != value:
                    yield self.finding(f"sysctl-{key}", f"{key} is {now}, not {value}", fix)
            case RequireSwapOff():
                if seen.swaps and not any(other.swap_off for other in self.state.stages):
                    fix = "swapoff -a and take it out of /etc/fstab, or `host: {disable_swap: true}`"
                    yield self.host_owned("swap", f"swap is on: {', '.join(seen.swaps)}", fix)
            case RequireProxyMode(mode=mode):
                yield from self._proxy_mode(mode)
            case RequireMasquerade(family=family):
                if not seen.masquerade:
                    command = "iptables" if family == "ip" else "ip6tables"
                    message = f"neither nft nor {command} can hide pods' addresses behind the node's (masquerade)"
                    fix = f"a kernel with nf_tables or iptable_nat; apt-get install nftables, or {command}"
                    yield self.host_owned("masquerade", message, fix)
            case RequireClock(skew=allowed):
                skew = seen.clock - self.control_time
                if abs(skew) > allowed:
                    way = "ahead of" if skew > 0 else "behind"
                    message = f"its clock is {abs(skew):.1f} s {way} the control host's (allowed: {allowed:g} s)"
                    yield self.host_owned("clock", message, "synchronise both, for example with systemd-timesyncd")
            case RequireCgroup(versions=versions, why=why):
                if seen.cgroup not in versions:
                    yield self.host_owned("cgroup", f"it uses cgroup v{seen.cgroup}: {why}", "boot it with cgroup v2")
            case WarnOfTraces(name=name, message=message, fix=fix):
                if found := seen.traces.get(name):
                    yield self.finding(f"trace-{name}", message.replace("{found}", found), fix, "warning")
            case _:
                assert_never(requirement)

    def unloadable(self, stage: Stage) -> Iterator[Finding]:
        for module in stage.modules:
            if self.observed.modules.get(module.name, "missing") == "missing":
                message = f"the kernel {self.observed.kernel} has no module {module.name}"
                yield self.host_owned(f"module-{module.name}", message, "use a kernel that has it")

    def _busy(self, listener: Listener, unit: str) -> Finding:
        holder = f"{listener.process} (pid {listener.pid})" if listener.pid else "an unknown process"
        of = f" of {listener.unit}" if listener.unit else ""
        message = f"port {listener.port}, which {unit} needs, is held by {holder}{of} on {listener.address}"
        fix = f"stop it: systemctl disable --now {listener.unit}" if listener.unit else f"stop {holder}"
        return self.finding(f"port-{listener.port}", message, fix)

    def _proxy_mode(self, mode: str) -> Iterator[Finding]:
        answer = self.observed.proxy_modes.get(mode, "the node did not say")
        if answer == "yes":
            return
        able = [other for other, other_answer in self.observed.proxy_modes.items() if other_answer == "yes"]
        fix = (
            f"`kube_proxy: {{mode: ...}}`: it can do {' and '.join(able)}" if able else "it can do no other mode either"
        )
        yield self.host_owned(f"proxy-mode-{mode}", f"kube-proxy mode {mode}: {answer}", fix)

    def space(self) -> Iterator[Finding]:
        """Disk space and inodes, added up for each file system."""
        sent = sum(blob.size for plan in self.plans for blob in plan.blobs)
        needs: dict[str, int] = {}
        if sent:
            needs[self.state.bin_dir] = sent
        for stage in self.state.stages:
            for requirement in stage.requirements:
                if isinstance(requirement, RequireDisk):
                    needs[requirement.path] = needs.get(requirement.path, 0) + requirement.free
        mounts: dict[str, list[str]] = {}
        for path in needs:
            if (disk := self.observed.disks.get(path)) is not None:
                mounts.setdefault(disk.mount, []).append(path)
        for paths in mounts.values():
            yield from self._full(paths, sum(needs[path] for path in paths), installed=not sent)

    def _full(self, paths: list[str], need: int, *, installed: bool) -> Iterator[Finding]:
        disk = self.observed.disks[paths[0]]
        # A node that runs already has filled its disk by working: that is worth a word, not a refusal.
        severity: Severity = "warning" if installed else "error"
        if disk.free < need:
            message = f"{_size(disk.free)} free on {disk.mount}, {_size(need)} needed for {', '.join(paths)}"
            yield self.finding(f"disk-{disk.mount}", message, f"free space on {disk.mount}", severity)
        if disk.inodes is not None and disk.inodes < MIN_INODES:
            message = f"{disk.inodes} inodes free on {disk.mount}"
            yield self.finding(f"inodes-{disk.mount}", message, f"remove files on {disk.mount}", severity)


MIN_INODES = 10_000
"""A small image has some thousand files."""


def _twins(node: str, observed: Observed, peers: Mapping[str, Observed]) -> Iterator[Finding]:
    """Clones of one machine: they answer to the same name, or have one machine-id."""
    for key, value, fix in (
        ("hostname", observed.hostname, "hostnamectl set-hostname NAME on one of them"),
        ("machine-id", observed.machine_id, "rm /etc/machine-id && systemd-machine-id-setup, then reboot one of them"),
    ):
        twins = sorted(
            name
            for name, peer in peers.items()
            if name != node and (peer.hostname if key == "hostname" else peer.machine_id) == value
        )
        if twins:
            message = f"its {key} {value or '(empty)'} is also that of {', '.join(twins)}"
            yield Finding(node=node, id=key, message=message, fix=fix)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
