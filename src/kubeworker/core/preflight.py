"""What must hold on a node before anything is changed on it: requirements against an observation. Pure.

Every check that is made gives a row, whether it holds or not: `preflight` shows them all, `plan` and `apply` take the
failed ones as errors and show the warnings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from kubeworker.core.actions import StagePlan
from kubeworker.core.model import (
    NodeState,
    NodeToNode,
    PathMtu,
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
    SameSegment,
    Stage,
    WarnOfTraces,
)
from kubeworker.core.observed import Listener, Observed

Status: TypeAlias = Literal["ok", "failed", "warning", "host", "unknown"]
"""failed keeps the node from being changed; host: the fact is that of the machine that this container runs on, and is
not judged here or fine; unknown: it could not be found out."""

_RANK: Mapping[Status, int] = {"ok": 0, "host": 0, "unknown": 1, "warning": 2, "failed": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check on one node."""

    node: str
    id: str
    """Stable: `port-10250`, `command-nft`, `swap`, `clock`, `hostname`, ... (docs/preflight.md)."""
    status: Status
    message: str
    """What was found, or what is wrong."""
    fix: str = ""
    """How to mend it; empty where nothing is to mend."""

    def as_json(self) -> dict[str, str]:
        """The check as `preflight --json` prints it."""
        return {"id": self.id, "status": self.status, "message": self.message, "fix": self.fix}


def distinct(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Each check of a node once, in the order of the first: where several ask the same, those that are worst off."""
    kept: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        same = kept.setdefault((row.node, row.id), [])
        if same and _RANK[row.status] > _RANK[same[0].status]:
            same[:] = [row]
        elif not same or (_RANK[row.status] == _RANK[same[0].status] > 0 and row not in same):
            same.append(row)
    return tuple(row for same in kept.values() for row in same)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """One node's rows, as all checks make them."""

    name: str
    observed: Observed

    def row(self, key: str, status: Status, message: str, fix: str = "") -> Row:
        """A row that is what it says."""
        return Row(node=self.name, id=key, status=status, message=message, fix=fix)

    def judge(self, key: str, *, good: str, wrong: str, fix: str, otherwise: Status = "failed") -> Row:
        """A check of the machine's own: `wrong` is empty where it holds."""
        return self.row(key, otherwise, wrong, fix) if wrong else self.row(key, "ok", good)

    def judge_host(self, key: str, *, good: str, wrong: str, fix: str, otherwise: Status = "failed") -> Row:
        """The same of a fact that a container takes over from its host: there is the place to change it."""
        container = self.observed.container
        if not container:
            return self.judge(key, good=good, wrong=wrong, fix=fix, otherwise=otherwise)
        owner = f"(owned by the host of this {container} container)"
        if wrong:
            return self.row(key, otherwise, f"{wrong} {owner}", f"on its host: {fix}")
        return self.row(key, "host", f"{good} {owner}")


def preflight(
    state: NodeState,
    observed: Observed,
    *,
    peers: Mapping[str, Observed],
    control_time: float,
    plans: Sequence[StagePlan] = (),
    architecture: str = "",
) -> tuple[Row, ...]:
    """Every check of this node, in a stable order.

    `peers` are all observed nodes by name (this one may be among them); `control_time` is the control host's clock
    when the node said its own; `plans` tell what will be sent; `architecture` is what the binaries are for.
    """
    node = _Node(name=state.node, state=state, observed=observed, control_time=control_time, plans=tuple(plans))
    return distinct(
        (
            *node.machine(architecture),
            *(row for stage in state.stages for row in node.stage(stage)),
            *node.space(),
            *_twins(node, peers),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node(Checker):
    state: NodeState
    control_time: float
    plans: tuple[StagePlan, ...]

    def machine(self, architecture: str) -> Iterator[Row]:
        found = self.observed.architecture
        if architecture:
            wrong = f"the machine is {found}, the artifacts are for {architecture}" if found != architecture else ""
            fix = "take it out of `nodes:`; one cluster.yaml has nodes of one architecture"
            yield self.judge("architecture", good=found, wrong=wrong, fix=fix)

    def stage(self, stage: Stage) -> Iterator[Row]:
        for requirement in stage.requirements:
            yield from self.requirement(stage, requirement)
        for module in stage.modules:
            yield self._module(module.name, "")

    def requirement(self, stage: Stage, requirement: Requirement) -> Iterator[Row]:
        seen = self.observed
        match requirement:
            case RequireCommand(name=name, package=package):
                missing = name not in seen.commands and package not in stage.packages
                good = "it is there" if name in seen.commands else f"apply installs {package}"
                fix = f"apt-get install {package}, or `host: {{packages: true}}`"
                wrong = f"the command {name} is missing" if missing else ""
                yield self.judge(f"command-{name}", good=good, wrong=wrong, fix=fix)
            case RequirePort(port=port, unit=unit):
                yield from self._port(port, unit)
            case RequireDisk():
                pass  # `space` adds them up per file system.
            case RequireModule(name=name, why=why):
                yield self._module(name, why)
            case RequireSysctl(key=key, value=value, fix=fix):
                now = seen.sysctls.get(key, "not there")
                wrong = f"{key} is {now}, not {value}" if now != value else ""
                yield self.judge(f"sysctl-{key}", good=f"it is {value}", wrong=wrong, fix=fix)
            case RequireSwapOff():
                off = any(other.swap_off for other in self.state.stages)
                wrong = f"swap is on: {', '.join(seen.swaps)}" if seen.swaps and not off else ""
                fix = "swapoff -a and take it out of /etc/fstab, or `host: {disable_swap: true}`"
                good = f"apply turns off {', '.join(seen.swaps)}" if seen.swaps else "swap is off"
                yield self.judge_host("swap", good=good, wrong=wrong, fix=fix)
            case RequireProxyMode(mode=mode):
                yield self._proxy_mode(mode)
            case RequireMasquerade(family=family):
                command = "iptables" if family == "ip" else "ip6tables"
                wrong = f"neither nft nor {command} can hide pods' addresses behind the node's (masquerade)"
                fix = f"a kernel with nf_tables or iptable_nat; apt-get install nftables, or {command}"
                good = f"by {seen.masquerade}"
                yield self.judge_host("masquerade", good=good, wrong="" if seen.masquerade else wrong, fix=fix)
            case RequireClock(skew=allowed):
                yield self._clock(allowed)
            case RequireCgroup(versions=versions, why=why):
                wrong = f"it uses cgroup v{seen.cgroup}: {why}" if seen.cgroup not in versions else ""
                yield self.judge_host("cgroup", good=f"v{seen.cgroup}", wrong=wrong, fix="boot it with cgroup v2")
            case WarnOfTraces(name=name, message=message, fix=fix):
                found = seen.traces.get(name, "")
                wrong = message.replace("{found}", found) if found else ""
                yield self.judge(f"trace-{name}", good="none", wrong=wrong, fix=fix, otherwise="warning")
            case NodeToNode() | PathMtu() | SameSegment():
                pass  # Nodes try that with each other (core/reachability.py).
            case _:
                assert_never(requirement)

    def _module(self, name: str, why: str) -> Row:
        found = self.observed.modules.get(name, "missing")
        because = f" ({why})" if why else ""
        wrong, fix = "", ""
        if found == "missing":
            wrong = f"the kernel {self.observed.kernel} has no {name}{because}"
            fix = "use a kernel that has it"
        elif self.observed.container and found == "available":
            wrong = f"the kernel module {name} is not loaded{because}"
            fix = f"modprobe {name}, and a line with it in /etc/modules-load.d"
        return self.judge_host(f"module-{name}", good=found, wrong=wrong, fix=fix)

    def _port(self, port: int, unit: str) -> Iterator[Row]:
        mine, busy = False, False
        for listener in self.observed.listeners:
            if listener.port == port:
                mine = True
                if listener.unit != unit:
                    busy = True
                    yield self._busy(listener, unit)
        if not busy:
            yield self.row(f"port-{port}", "ok", f"{unit} has it" if mine else "it is free")

    def _busy(self, listener: Listener, unit: str) -> Row:
        holder = f"{listener.process} (pid {listener.pid})" if listener.pid else "an unknown process"
        of = f" of {listener.unit}" if listener.unit else ""
        message = f"port {listener.port}, which {unit} needs, is held by {holder}{of} on {listener.address}"
        fix = f"stop it: systemctl disable --now {listener.unit}" if listener.unit else f"stop {holder}"
        return self.row(f"port-{listener.port}", "failed", message, fix)

    def _proxy_mode(self, mode: str) -> Row:
        answer = self.observed.proxy_modes.get(mode, "the node did not say")
        able = [other for other, other_answer in self.observed.proxy_modes.items() if other_answer == "yes"]
        fix = (
            f"`kube_proxy: {{mode: ...}}`: it can do {' and '.join(able)}" if able else "it can do no other mode either"
        )
        wrong = "" if answer == "yes" else f"kube-proxy mode {mode}: {answer}"
        return self.judge_host(f"proxy-mode-{mode}", good="the kernel can do it", wrong=wrong, fix=fix)

    def _clock(self, allowed: float) -> Row:
        skew = self.observed.clock - self.control_time
        way = "ahead of" if skew > 0 else "behind"
        says = f"its clock is {abs(skew):.1f} s {way} the control host's"
        wrong = f"{says} (allowed: {allowed:g} s)" if abs(skew) > allowed else ""
        fix = "synchronise both, for example with systemd-timesyncd"
        return self.judge_host("clock", good=says, wrong=wrong, fix=fix)

    def space(self) -> Iterator[Row]:
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

    def _full(self, paths: list[str], need: int, *, installed: bool) -> Iterator[Row]:
        disk = self.observed.disks[paths[0]]
        # A node that runs already has filled its disk by working: that is worth a word, not a refusal.
        otherwise: Status = "warning" if installed else "failed"
        says = f"{_size(disk.free)} free on {disk.mount}, {_size(need)} needed for {', '.join(paths)}"
        fix = f"free space on {disk.mount}"
        wrong = says if disk.free < need else ""
        yield self.judge(f"disk-{disk.mount}", good=says, wrong=wrong, fix=fix, otherwise=otherwise)
        if disk.inodes is not None:
            says = f"{disk.inodes} inodes free on {disk.mount}"
            wrong = says if disk.inodes < MIN_INODES else ""
            fix = f"remove files on {disk.mount}"
            yield self.judge(f"inodes-{disk.mount}", good=says, wrong=wrong, fix=fix, otherwise=otherwise)


MIN_INODES = 10_000
"""A small image has some thousand files."""


def _twins(node: Checker, peers: Mapping[str, Observed]) -> Iterator[Row]:
    """Clones of one machine: they answer to the same name, or have one machine-id."""
    observed = node.observed
    for key, value, fix in (
        ("hostname", observed.hostname, "hostnamectl set-hostname NAME on one of them"),
        ("machine-id", observed.machine_id, "rm /etc/machine-id && systemd-machine-id-setup, then reboot one of them"),
    ):
        twins = sorted(
            name
            for name, peer in peers.items()
            if name != node.name and (peer.hostname if key == "hostname" else peer.machine_id) == value
        )
        wrong = f"its {key} {value or '(empty)'} is also that of {', '.join(twins)}" if twins else ""
        yield node.judge(key, good=value, wrong=wrong, fix=fix)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
