"""What must hold on a node before anything is changed on it: requirements against an observation. Pure.

Every check that is made gives a row, whether it holds or not: `preflight` shows them all, `plan` and `apply` take the
failed ones as errors and show the warnings.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from kubeworker.core.actions import StagePlan
from kubeworker.core.horizon import at_least
from kubeworker.core.model import (
    NodeState,
    NodeToNode,
    PathMtu,
    RequireCgroup,
    RequireCgroupDriver,
    RequireClock,
    RequireCommand,
    RequireDisk,
    RequireKernel,
    RequireMachine,
    RequireMasquerade,
    Requirement,
    RequireModule,
    RequirePodAddresses,
    RequirePort,
    RequireProxyMode,
    RequireReserved,
    RequireResolvConf,
    RequireSwapOff,
    RequireSysctl,
    SameSegment,
    Stage,
    WarnOfTraces,
)
from kubeworker.core.node.observed import Listener, Observed
from kubeworker.core.preflight import fleet as preflight_fleet
from kubeworker.core.preflight import kubelet as preflight_kubelet
from kubeworker.core.preflight.fleet import Fleet
from kubeworker.core.preflight.row import Checker, Row, Status, distinct, size
from kubeworker.core.preflight.survey_rows import survey_rows


def preflight(
    state: NodeState,
    observed: Observed,
    *,
    fleet: Fleet,
    control_time: float,
    plans: Sequence[StagePlan] = (),
    architecture: str = "",
    address: str = "",
) -> tuple[Row, ...]:
    """Every check of this node, in a stable order.

    `fleet` is what the nodes that were looked at have in common; `control_time` is the control host's clock when the
    node said its own; `plans` tell what will be sent; `architecture` is the binaries'; `address` the node's.
    """
    node = _Node(name=state.node, state=state, observed=observed, control_time=control_time, plans=tuple(plans))
    offset = observed.clock - control_time
    return distinct(
        (
            *node.machine(architecture),
            *(row for stage in state.stages for row in node.stage(stage)),
            node.cgroup_driver(),
            *preflight_kubelet.identity(node, state, now=control_time),
            *node.space(),
            *preflight_fleet.rows(node, fleet, address=address, offset=offset, allowed=node.allowed_skew()),
            *survey_rows(node, state),
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
        init = self.observed.init
        wrong = (
            f"process 1 is {init}, not systemd, which starts the units and makes the cgroups"
            if init != "systemd"
            else ""
        )
        yield self.judge("init", good=init, wrong=wrong, fix="boot it with systemd")

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
            case RequirePort():
                yield from self._port(requirement)
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
            case RequireKernel(version=version, name=name, why=why, refuses=refuses):
                old = not at_least(_version(seen.kernel), version)
                wrong = f"the kernel is {seen.kernel}, older than {version}: {why}" if old else ""
                key, otherwise = f"kernel-{name}", _REFUSES[refuses]
                fix = "boot a newer kernel"
                yield self.judge_host(key, good=seen.kernel, wrong=wrong, fix=fix, otherwise=otherwise)
            case RequireMachine(memory=memory, cpus=cpus):
                yield from self._machine_size(memory, cpus)
            case RequireReserved():
                yield from preflight_kubelet.reserved(self, requirement)
            case RequireCgroupDriver():
                pass  # `cgroup_driver` compares them.
            case RequireResolvConf(path=path):
                yield self._resolv_conf(path)
            case RequirePodAddresses(pods=pods, cidr=cidr):
                yield self._pod_addresses(pods, cidr)
            case WarnOfTraces(name=name, message=message, fix=fix):
                found = seen.traces.get(name, "")
                wrong = message.replace("{found}", found) if found else ""
                yield self.judge(f"trace-{name}", good="none", wrong=wrong, fix=fix, otherwise="warning")
            case NodeToNode() | PathMtu() | SameSegment():
                pass  # Nodes try that with each other (core/reachability/trials.py).
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

    def _port(self, need: RequirePort) -> Iterator[Row]:
        holders = [each for each in self.observed.listeners if (each.port, each.protocol) == (need.port, need.protocol)]
        foreign = [each for each in holders if not _entitled(each, need)]
        for listener in foreign:
            yield self._busy(listener, need)
        if not foreign:
            yield self.row(_port_id(need), "ok", f"{need.unit} has it" if holders else "it is free")

    def _busy(self, listener: Listener, need: RequirePort) -> Row:
        holder = f"{listener.process} (pid {listener.pid})" if listener.pid else "an unknown process"
        of = f" of {listener.unit}" if listener.unit else ""
        port = f"port {listener.port}" if need.protocol == "tcp" else f"UDP port {listener.port}"
        message = f"{port}, which {need.unit} needs, is held by {holder}{of} on {listener.address}"
        fix = f"stop it: systemctl disable --now {listener.unit}" if listener.unit else f"stop {holder}"
        return self.row(_port_id(need), "failed", message, fix)

    def _machine_size(self, memory: int, cpus: int) -> Iterator[Row]:
        seen = self.observed
        for key, has, needs, says, fix in (
            (
                "memory",
                seen.memory,
                memory,
                size(seen.memory),
                "give it more memory, or set components.host.min_memory_mib",
            ),
            ("cpus", seen.cpus, cpus, f"{seen.cpus} processors", "give it more, or set components.host.min_cpus"),
        ):
            if not has:
                yield self.row(key, "unknown", "the node did not say")
                continue
            least = size(needs) if key == "memory" else str(needs)
            wrong = f"it has {says}, at least {least} are asked for" if has < needs else ""
            yield self.judge_host(key, good=says, wrong=wrong, fix=fix, otherwise="warning")

    def _resolv_conf(self, path: str) -> Row:
        if path != "/etc/resolv.conf":
            return self.row("resolv-conf", "ok", f"pods get the name servers of {path}")
        loops = [each for each in self.observed.nameservers if each.startswith("127.") or each == "::1"]
        wrong = f"{path}, which pods get, names {', '.join(loops)}: in a pod that is the pod itself, and CoreDNS loops"
        fix = (
            "name servers that pods can reach in a file of their own, and components.kubelet.config: {resolvConf: FILE}"
        )
        good = f"{path}: {', '.join(self.observed.nameservers) or 'no name server'}"
        return self.judge("resolv-conf", good=good, wrong=wrong if loops else "", fix=fix, otherwise="warning")

    def _pod_addresses(self, pods: int, cidr: str) -> Row:
        if not cidr:
            return self.row("pod-addresses", "unknown", "the node's podCIDR is known once it has joined")
        network = ipaddress.ip_network(cidr)
        # The network's own address, the bridge's or router's, and the last one.
        room = network.num_addresses - 3
        says = f"{cidr} has addresses for {room} pods, maxPods is {pods}"
        fix = f"components.kubelet.max_pods: {room}, or larger blocks (kube-controller-manager --node-cidr-mask-size)"
        return self.judge("pod-addresses", good=says, wrong=says if room < pods else "", fix=fix, otherwise="warning")

    def cgroup_driver(self) -> Row:
        """Kubelet's and containerd's, as their rendered files have it."""
        needs = [each for stage in self.state.stages for each in stage.requirements]
        drivers = {each.of: each.driver for each in needs if isinstance(each, RequireCgroupDriver)}
        says = ", ".join(f"{name}: {driver}" for name, driver in drivers.items()) or "nobody says"
        wrong = f"they disagree ({says}): pods would not start, or be killed" if len(set(drivers.values())) > 1 else ""
        fix = "components.kubelet.config.cgroupDriver and containerd's SystemdCgroup: systemd and true, or neither"
        return self.judge("cgroup-driver", good=says, wrong=wrong, fix=fix)

    def allowed_skew(self) -> float | None:
        """What a clock may be off; None: nobody asks."""
        needs = [each for stage in self.state.stages for each in stage.requirements]
        return next((each.skew for each in needs if isinstance(each, RequireClock)), None)

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
        for path, room in self._images():
            needs[path] = needs.get(path, 0) + room
        mounts: dict[str, list[str]] = {}
        for path in needs:
            if (disk := self.observed.disks.get(path)) is not None:
                mounts.setdefault(disk.mount, []).append(path)
        for paths in mounts.values():
            yield from self._full(paths, sum(needs[path] for path in paths), installed=not sent)

    def _images(self) -> Iterator[tuple[str, int]]:
        """Room of images to come: the archive's content, and unpacked about twice that."""
        there = self.observed.images or frozenset()
        coming = {
            (image.root, image.archive)
            for stage in self.state.stages
            for image in stage.images
            if image.root and image.reference not in there
        }
        for root, archive in coming:
            yield root, 3 * archive.size

    def _full(self, paths: list[str], need: int, *, installed: bool) -> Iterator[Row]:
        disk = self.observed.disks[paths[0]]
        # A node that runs already has filled its disk by working: that is worth a word, not a refusal.
        otherwise: Status = "warning" if installed else "failed"
        says = f"{size(disk.free)} free on {disk.mount}, {size(need)} needed for {', '.join(paths)}"
        fix = f"free space on {disk.mount}"
        wrong = says if disk.free < need else ""
        yield self.judge(f"disk-{disk.mount}", good=says, wrong=wrong, fix=fix, otherwise=otherwise)
        if disk.inodes is not None:
            says = f"{disk.inodes} inodes free on {disk.mount}"
            wrong = says if disk.inodes < MIN_INODES else ""
            fix = f"remove files on {disk.mount}"
            yield self.judge(f"inodes-{disk.mount}", good=says, wrong=wrong, fix=fix, otherwise=otherwise)


_REFUSES: Mapping[bool, Status] = {True: "failed", False: "warning"}

MIN_INODES = 10_000
"""A small image has some thousand files."""


def _entitled(listener: Listener, need: RequirePort) -> bool:
    if need.process:
        return listener.process == need.process
    kernels = need.protocol == "udp" and not listener.pid
    return kernels or listener.unit == need.unit


def _port_id(need: RequirePort) -> str:
    return f"port-{need.port}" + ("-udp" if need.protocol == "udp" else "")


def _version(kernel: str) -> str:
    """The two numbers that a kernel's release begins with."""
    found = re.match(r"\d+\.\d+", kernel)
    return found[0] if found else "0.0"
