from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.engine_states import bare, blob, state

from kubeworker.core.diff import diff
from kubeworker.core.model import (
    Binary,
    Module,
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
from kubeworker.core.node.observed import Disk, Listener, Observed
from kubeworker.core.preflight import fleet as preflight_fleet
from kubeworker.core.preflight.requirements import preflight
from kubeworker.core.preflight.row import Row

GIB = 2**30


def needs(*requirements: Requirement, **parts: Any) -> NodeState:
    return state(Stage(component="c", requirements=requirements, **parts))


def rows(wanted: NodeState, observed: Observed, **fields: Any) -> tuple[Row, ...]:
    peers = fields.pop("peers", {"n1": observed})
    known: dict[str, Any] = {"fleet": preflight_fleet.of(peers, {}), "control_time": observed.clock}
    return preflight(wanted, observed, **(known | fields))


def found(wanted: NodeState, observed: Observed, **fields: Any) -> tuple[Row, ...]:
    """What wants mending."""
    return tuple(row for row in rows(wanted, observed, **fields) if row.status in {"failed", "warning"})


def one(wanted: NodeState, observed: Observed, **fields: Any) -> Row:
    (finding,) = found(wanted, observed, **fields)
    assert finding.node == "n1"
    assert finding.fix
    return finding


def listener(port: int, unit: str, pid: int = 42) -> Listener:
    return Listener(port=port, address="0.0.0.0", pid=pid, process="haproxy" if pid else "", unit=unit)


def disk(path: str, free: int, *, mount: str = "/", inodes: int | None = 10**6) -> Disk:
    return Disk(path=path, free=free, inodes=inodes, mount=mount)


def test_a_machine_that_has_everything_is_left_alone() -> None:
    wanted = needs(
        RequireCommand(name="nft", package="nftables"),
        RequirePort(port=10250, unit="kubelet.service"),
        RequireDisk(path="/data", free=GIB),
        RequireModule(name="overlay", why="images"),
        RequireSysctl(key="net.ipv4.ip_forward", value="1", fix="sysctl"),
        RequireSwapOff(),
        RequireProxyMode(mode="nftables"),
        RequireMasquerade(family="ip"),
        RequireClock(skew=5),
        RequireCgroup(versions=(2,), why="KEP-5573"),
        modules=(Module(name="br_netfilter"),),
    )
    observed = bare(
        commands=frozenset({"nft"}),
        listeners=(listener(10250, "kubelet.service"), listener(22, "ssh.service")),
        disks={"/data": disk("/data", 2 * GIB)},
        modules={"overlay": "builtin", "br_netfilter": "available"},
        sysctls={"net.ipv4.ip_forward": "1"},
        proxy_modes={"nftables": "yes"},
        masquerade="iptables",
    )
    assert found(wanted, observed, control_time=observed.clock + 4, architecture="amd64") == ()


def test_a_missing_command_names_its_package() -> None:
    finding = one(needs(RequireCommand(name="nft", package="nftables")), bare())
    assert (finding.id, finding.status) == ("command-nft", "failed")
    assert "apt-get install nftables" in finding.fix


def test_a_command_whose_package_will_be_installed_is_no_finding() -> None:
    wanted = needs(RequireCommand(name="nft", package="nftables"), packages=("nftables",))
    assert found(wanted, bare()) == ()


@pytest.mark.parametrize(
    ("unit", "pid", "message", "fix"),
    [
        ("haproxy.service", 42, "held by haproxy (pid 42) of haproxy.service", "disable --now haproxy.service"),
        ("", 42, "held by haproxy (pid 42) on", "stop haproxy (pid 42)"),
        ("", 0, "held by an unknown process on", "stop an unknown process"),
    ],
)
def test_a_port_of_a_foreign_process(unit: str, pid: int, message: str, fix: str) -> None:
    observed = bare(listeners=(listener(8443, unit, pid),))
    finding = one(needs(RequirePort(port=8443, unit="kube-nginx.service")), observed)
    assert finding.id == "port-8443"
    assert message in finding.message
    assert fix in finding.fix


def test_needs_of_one_file_system_are_added_up() -> None:
    wanted = needs(RequireDisk(path="/data", free=3 * GIB), RequireDisk(path="/var", free=GIB))
    disks = {"/data": disk("/data", 3 * GIB), "/var": disk("/var", 3 * GIB)}
    finding = one(wanted, bare(disks=disks))
    assert finding.id == "disk-/"
    assert "3.0 GiB free on /, 4.0 GiB needed for /data, /var" in finding.message
    apart = {"/data": disk("/data", 3 * GIB, mount="/data"), "/var": disk("/var", 3 * GIB)}
    assert found(wanted, bare(disks=apart)) == ()


def test_what_is_sent_counts_and_only_then_a_full_disk_is_an_error() -> None:
    binary = Binary(path="/opt/k8s/bin/kubelet", blob=blob(b"x" * 100), version="1")
    wanted = needs(binaries=(binary,))
    observed = bare(disks={wanted.bin_dir: disk(wanted.bin_dir, 99)})
    finding = one(wanted, observed, plans=diff(wanted, observed))
    assert (finding.id, finding.status) == ("disk-/", "failed")
    lasting = needs(RequireDisk(path="/data", free=GIB))
    assert one(lasting, bare(disks={"/data": disk("/data", 1)})).status == "warning"


def test_inodes_run_out_too() -> None:
    wanted = needs(RequireDisk(path="/data", free=1))
    assert one(wanted, bare(disks={"/data": disk("/data", GIB, inodes=5)})).id == "inodes-/"
    assert found(wanted, bare(disks={"/data": disk("/data", GIB, inodes=None)})) == ()


def test_a_kernel_without_a_module() -> None:
    observed = bare(modules={"overlay": "missing"})
    finding = one(needs(RequireModule(name="overlay", why="images")), observed)
    assert "the kernel 6.1.0 has no overlay (images)" in finding.message
    assert one(needs(modules=(Module(name="overlay"),)), observed).id == "module-overlay"


def test_a_wrong_sysctl_says_what_it_is() -> None:
    wanted = needs(RequireSysctl(key="vm.overcommit_memory", value="1", fix="sysctl -w ..."))
    finding = one(wanted, bare(sysctls={"vm.overcommit_memory": "2"}))
    assert (finding.message, finding.fix) == ("vm.overcommit_memory is 2, not 1", "sysctl -w ...")


def test_swap_is_a_finding_unless_it_is_turned_off() -> None:
    observed = bare(swaps=("/dev/sda2",))
    assert "/dev/sda2" in one(needs(RequireSwapOff()), observed).message
    assert found(needs(RequireSwapOff(), swap_off=True), observed) == ()


def test_a_mode_that_the_kernel_can_not_do_names_those_it_can() -> None:
    modes = {"ipvs": "the kernel has no module ip_vs", "nftables": "yes", "iptables": "yes"}
    finding = one(needs(RequireProxyMode(mode="ipvs")), bare(proxy_modes=modes))
    assert "kube-proxy mode ipvs: the kernel has no module ip_vs" in finding.message
    assert "it can do nftables and iptables" in finding.fix


@pytest.mark.parametrize(("skew", "way"), [(30, "ahead of"), (-30, "behind")])
def test_a_wrong_clock_says_which_way(skew: float, way: str) -> None:
    observed = bare()
    finding = one(needs(RequireClock(skew=5)), observed, control_time=observed.clock - skew)
    assert f"30.0 s {way} the control host's" in finding.message


def test_a_cgroup_version_that_is_refused_later() -> None:
    assert "cgroup v1: KEP-5573" in one(needs(RequireCgroup(versions=(2,), why="KEP-5573")), bare(cgroup=1)).message


@pytest.mark.parametrize("key", ["hostname", "machine_id"])
def test_clones_are_told_from_each_other(key: str) -> None:
    observed = bare()
    twin = bare(**_other(key))
    finding = one(needs(), observed, peers={"n1": observed, "n2": twin, "n3": bare(hostname="n3", machine_id="3")})
    assert finding.id == key.replace("_", "-")
    assert "n2" in finding.message
    assert "n3" not in finding.message


def _other(same: str) -> dict[str, str]:
    fields = {"hostname": "n2", "machine_id": "2" * 32}
    del fields[same]
    return fields


def test_another_architecture_is_refused() -> None:
    finding = one(needs(), bare(machine="aarch64"), architecture="amd64")
    assert "the machine is arm64, the artifacts are for amd64" in finding.message


@pytest.mark.parametrize(
    ("requirement", "fields"),
    [
        (RequireSwapOff(), {"swaps": ("/dev/sda2",)}),
        (RequireModule(name="overlay", why="images"), {}),
        (RequireProxyMode(mode="ipvs"), {"proxy_modes": {"ipvs": "no module"}}),
        (RequireMasquerade(family="ip"), {}),
        (RequireCgroup(versions=(2,), why="x"), {"cgroup": 1}),
    ],
)
def test_in_a_container_the_hosts_facts_are_named_so(requirement: Requirement, fields: dict[str, Any]) -> None:
    finding = one(needs(requirement), bare(container="systemd-nspawn", **fields))
    assert "owned by the host of this systemd-nspawn container" in finding.message
    assert finding.fix.startswith("on its host: ")


def test_traces_of_another_plugin_are_named_and_keep_nobody_from_being_changed() -> None:
    trace = WarnOfTraces(name="cni-links", look="true", message="other interfaces: {found}", fix="reboot")
    finding = one(needs(trace), bare(traces={"cni-links": "flannel.1"}))
    assert (finding.status, finding.message) == ("warning", "other interfaces: flannel.1")
    assert found(needs(trace), bare()) == ()
