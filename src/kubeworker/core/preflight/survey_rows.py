"""What the survey of a node (core/node/survey.py) says, judged. A warning, but for what no join survives. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence

from kubeworker.core.model import NodeState, NodeToNode, RequireCgroupDriver, RequireDisk
from kubeworker.core.node.survey import OWN_UNITS, SYSCTL_DIRS
from kubeworker.core.preflight.row import Checker, Row

Survey = Mapping[str, Sequence[str]]

ENGINES = ("docker.service", "crio.service")
FIREWALLS = ("firewalld.service", "ufw.service")


def survey_rows(node: Checker, state: NodeState) -> Iterator[Row]:
    """The rows; none where the node was not surveyed."""
    survey = node.observed.survey
    if survey is None:
        return
    yield _noexec(node, state, survey)
    yield _noexec_data(node, state, survey)
    yield from _sysctls(node, state, survey)
    yield _swap(node, survey)
    yield _other_cluster(node, survey)
    yield from _other_units(node, state, survey)
    yield _other_driver(node, state, survey)
    yield _network(node, state, survey)
    yield _rules(node, state, survey)
    yield from _firewall(node, state, survey)
    yield from _limits(node, survey)


def _noexec(node: Checker, state: NodeState, survey: Survey) -> Row:
    places = dict.fromkeys(binary.path.rpartition("/")[0] for stage in state.stages for binary in stage.binaries)
    mounts = tuple(survey.get("noexec", ()))
    bad = [place for place in places if any(f"{place}/".startswith(f"{mount.rstrip('/')}/") for mount in mounts)]
    # A file system of its own below one that is mounted so is told by its own options.
    disks = node.observed.disks
    bad = [place for place in bad if place not in disks or disks[place].mount in mounts]
    wrong = f"programs can't be run from {', '.join(bad)}: mounted noexec" if bad else ""
    fix = "mount it with exec (/etc/fstab), or set `paths:` to another file system"
    return node.judge("noexec", good="programs can be run where they are put", wrong=wrong, fix=fix)


def _noexec_data(node: Checker, state: NodeState, survey: Survey) -> Row:
    """The folders of kubelet and containerd: much works all the same, so that is a warning."""
    mounts, disks = survey.get("noexec", ()), node.observed.disks
    needs = {need.path for stage in state.stages for need in stage.requirements if isinstance(need, RequireDisk)}
    bad = sorted(path for path in needs - {state.bin_dir} if path in disks and disks[path].mount in mounts)
    # Tried: programs on an overlayfs run, whatever the options of the file system below are; a bind mount keeps them.
    wrong = (
        f"{', '.join(bad)}: mounted noexec. Programs can't be run from pods' emptyDir and local volumes there, nor "
        "images with a snapshotter other than overlayfs"
        if bad
        else ""
    )
    fix = "mount it with exec (/etc/fstab), or set `paths:` to another file system"
    good = "programs can be run from volumes"
    return node.judge("noexec-data", good=good, wrong=wrong, fix=fix, otherwise="warning")


def _sysctls(node: Checker, state: NodeState, survey: Survey) -> Iterator[Row]:
    wanted = {
        need.key: need.value
        for stage in state.stages
        for need in (*stage.requirements, *stage.sysctls)
        if hasattr(need, "key") and hasattr(need, "value")
    }
    for key, value in sorted(wanted.items()):
        found = at_boot(key, survey.get("sysctl", ()))
        wrong = (
            f"{found[0]} sets {key} to {found[1]} at the next boot, not {value}" if found and found[1] != value else ""
        )
        good = f"{found[0]} sets it" if found else "no file of sysctl.d says otherwise"
        fix = f"take {key} out of {found[0]}" if found else ""
        yield node.judge(f"sysctl-boot-{key}", good=good, wrong=wrong, fix=fix, otherwise="warning")


def at_boot(key: str, lines: Sequence[str]) -> tuple[str, str] | None:
    """FILE and value that `FILE:KEY = VALUE` lines give the setting, by sysctl.d(5): files by name, the first folder of
    those that have one of that name, the last line; an explicit key before a pattern; /etc/sysctl.conf, which
    `sysctl --system` reads, last.
    """
    best: tuple[tuple[bool, bool, str, int], str, str] | None = None
    kept: dict[str, str] = {}
    for line in lines:
        path = line.partition(":")[0]
        folder, _, name = path.rpartition("/")
        if folder in SYSCTL_DIRS and SYSCTL_DIRS.index(folder) <= SYSCTL_DIRS.index(kept.get(name, SYSCTL_DIRS[-1])):
            kept[name] = folder
    for number, line in enumerate(lines):
        path, _, setting = line.partition(":")
        folder, _, name = path.rpartition("/")
        if folder in SYSCTL_DIRS and kept[name] != folder:
            continue
        left, _, right = setting.partition("=")
        pattern = left.strip().lstrip("-").replace("/", ".")
        if not fnmatch.fnmatchcase(key, pattern):
            continue
        rank = (pattern == key, path == "/etc/sysctl.conf", name, number)
        if best is None or rank > best[0]:
            best = (rank, path, " ".join(right.split()))
    return best[1:] if best else None


def _swap(node: Checker, survey: Survey) -> Row:
    if node.observed.container:
        return node.row("swap-boot", "host", f"swap is the host's of this {node.observed.container} container")
    found = (*(f"/etc/fstab ({each})" for each in node.observed.fstab_swaps), *survey.get("swap", ()))
    wrong = f"swap comes back at the next boot: {', '.join(found)}" if found else ""
    fix = "take it out there (systemctl mask NAME.swap for a unit), or `host: {disable_swap: true}` while it is on"
    return node.judge("swap-boot", good="nothing turns swap on at boot", wrong=wrong, fix=fix, otherwise="warning")


def _other_cluster(node: Checker, survey: Survey) -> Row:
    active = [unit for unit in survey.get("active", ()) if unit not in FIREWALLS]
    found = (*active, *survey.get("remains", ()))
    wrong = f"another Kubernetes or container engine was or is here: {', '.join(found)}" if found else ""
    fix = "take it away by its own means (kubeadm reset, k3s-uninstall.sh, apt-get remove), then what is left by hand"
    return node.judge("other-cluster", good="no traces", wrong=wrong, fix=fix, otherwise="warning")


def _other_units(node: Checker, state: NodeState, survey: Survey) -> Iterator[Row]:
    """Units of distributions' packages by the names of ours: ours in /etc hides them, their drop-ins change ours."""
    own = {unit.name: unit.path for stage in state.stages for unit in stage.units}
    for name in OWN_UNITS:
        if name not in own:
            continue
        files = [each.partition(" ")[::2] for each in survey.get("unit-file", ()) if f"/{name} " in f"{each} "]
        changed = [path for path in survey.get("unit-command", ()) if f"/{name}.d/" in path]
        seen = node.observed.units.get(name)
        runs = " and runs now" if seen and seen.active_state == "active" and seen.fragment != own[name] else ""
        key, package = f"other-unit-{name.removesuffix('.service')}", files[0][1] if files else ""
        if changed:
            wrong = f"{', '.join(changed)} gives {name} another command than this tool's: it would not be what is run"
            fix = f"remove {' '.join(changed)}, with the package that brought it (kubeadm, kubelet)"
            yield node.row(key, "failed", wrong, fix)
            continue
        of = f" (package {package})" if package else ""
        found = ", ".join(path for path, _ in files)
        wrong = (
            f"{found}{of} is a {name} of a distribution's own{runs}; this tool's hides it, but an upgrade or removal "
            "of its package restarts, stops or disables what has that name"
            if files
            else ""
        )
        fix = f"once its containers are gone: apt-get purge {package or 'PACKAGE'}, or hold it: apt-mark hold"
        yield node.judge(key, good="no package has one", wrong=wrong, fix=fix, otherwise="warning")


_DRIVER = re.compile(r"(?:cgroup-?driver\W+|native\.cgroupdriver=)(\w+)|SystemdCgroup\W+(true|false)", re.IGNORECASE)


def _other_driver(node: Checker, state: NodeState, survey: Survey) -> Row:
    """What files that are not this tool's say of the cgroup driver: two managers are in each other's way."""
    managed = {file.path for stage in state.stages for file in stage.files}
    needs = [need for stage in state.stages for need in stage.requirements if isinstance(need, RequireCgroupDriver)]
    ours = next((need.driver for need in needs if need.of == "kubelet"), "")
    found = []
    for line in survey.get("cgroup-driver", ()):
        path, _, text = line.partition(":")
        match = _DRIVER.search(text)
        if path in managed or match is None:
            continue
        driver = match[1] or ("systemd" if match[2] == "true" else "cgroupfs")
        found += [f"{path}: {driver}"] if ours and driver != ours else []
    wrong = f"another cgroup driver than this node's {ours}: {', '.join(found)}" if found else ""
    fix = f"set {ours} there, or remove what reads the file: of two drivers one will kill the other's containers"
    good = "no other file says otherwise"
    return node.judge("cgroup-driver-other", good=good, wrong=wrong, fix=fix, otherwise="warning")


def _network(node: Checker, state: NodeState, survey: Survey) -> Row:
    parts = {stage.component for stage in state.stages}
    if not parts & {"bridge_cni", "cilium"}:
        return node.row("other-cni", "ok", "`cni: none`: any network plugin is the operator's own")
    managed = {file.path for stage in state.stages for file in stage.files}
    managed |= {each.path for stage in state.stages for each in stage.deferred}
    managed |= {each.path for stage in state.stages for each in stage.absent}
    own = ("kw0", "cilium") if "cilium" in parts else ("kw0",)
    known = ("/etc/cni/net.d/05-cilium.conflist", "/etc/cni/net.d/10-kubeworker.conflist")
    conf = [path for path in survey.get("cni-conf", ()) if path not in managed and path not in known]
    links = [link for link in survey.get("link", ()) if not link.startswith(own)]
    found = (*conf, *links)
    wrong = f"another network plugin's: {', '.join(found)}" if found else ""
    fix = "remove its files from /etc/cni/net.d (the first by name is used), and reboot once it is out of the cluster"
    return node.judge("other-cni", good="no traces", wrong=wrong, fix=fix, otherwise="warning")


def _rules(node: Checker, state: NodeState, survey: Survey) -> Row:
    cilium = any(stage.component == "cilium" for stage in state.stages)
    proxy = node.observed.units.get("kube-proxy.service")
    ours = proxy is not None and proxy.active_state == "active"
    found = [
        rule
        for rule in survey.get("rules", ())
        if not (ours and re.search(r" (KUBE-|table kube-proxy)", rule)) and not (cilium and " CILIUM_" in rule)
    ]
    wrong = f"somebody else's packet rules: {', '.join(found)}" if found else ""
    fix = "reboot, once what makes them is gone (or kube-proxy --cleanup, nft delete table ...)"
    return node.judge("other-rules", good="none", wrong=wrong, fix=fix, otherwise="warning")


def _firewall(node: Checker, state: NodeState, survey: Survey) -> Iterator[Row]:
    needs = {
        (each.protocol, each.port)
        for stage in state.stages
        for each in stage.requirements
        if isinstance(each, NodeToNode)
    }
    text = "\n".join((*survey.get("rule", ()), *survey.get("firewalld-port", ())))
    shut = ", ".join(f"{protocol} {port}" for protocol, port in sorted(needs) if not re.search(rf"\b{port}\b", text))
    firewalls = [unit for unit in survey.get("active", ()) if unit == "firewalld.service"]
    firewalls += ["ufw.service"] if "ufw" in survey else []
    inputs = [each.partition(" ")[2] for each in survey.get("drops", ()) if each.startswith("input ")]
    named = [*firewalls, *inputs]
    wrong = f"a firewall drops what no rule names ({', '.join(named)}), and none names {shut}" if named and shut else ""
    fix = "let them in from the other nodes and the API servers: nft add rule ..., firewall-cmd --add-port, ufw allow"
    good = "its rules name every port that others must reach" if named else "no firewall drops by default"
    yield node.judge("firewall", good=good, wrong=wrong, fix=fix, otherwise="warning")
    forward = [each.partition(" ")[2] for each in survey.get("drops", ()) if each.startswith("forward ")]
    wrong = f"forwarded packets are dropped by default ({', '.join(forward)}): pods' are" if forward else ""
    fix = "iptables -P FORWARD ACCEPT, or rules that accept the pods' network (Docker sets this policy)"
    yield node.judge("forwarding", good="not dropped by default", wrong=wrong, fix=fix, otherwise="warning")


def _limits(node: Checker, survey: Survey) -> Iterator[Row]:
    settings = (each.partition(":") for each in survey.get("value", ()))
    values = {key.replace("/", "."): int(value) for key, _, value in settings}
    for key, least in (("max_user_instances", 128), ("max_user_watches", 8192)):
        now = values.get(f"fs.inotify.{key}")
        if now is not None:
            wrong = f"fs.inotify.{key} is {now}, below the kernel's own default {least}" if now < least else ""
            fix = f"sysctl -w fs.inotify.{key}={least} or more, and a line in /etc/sysctl.d"
            yield node.judge_host(f"inotify-{key}", good=str(now), wrong=wrong, fix=fix, otherwise="warning")
    most, used = values.get("net.netfilter.nf_conntrack_max"), values.get("net.netfilter.nf_conntrack_count", 0)
    if most:
        says = f"{used} of {most} connections are tracked"
        fix = "raise net.netfilter.nf_conntrack_max (components.kube_proxy.config.conntrack)"
        wrong = f"{says}: new ones are dropped soon" if used > 0.8 * most else ""
        yield node.judge_host("conntrack", good=says, wrong=wrong, fix=fix, otherwise="warning")
