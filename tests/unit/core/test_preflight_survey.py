from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.engine_states import bare, blob, state

from kubeworker.core.model import (
    Binary,
    File,
    NodeToNode,
    RequireCgroupDriver,
    RequireClock,
    RequireDisk,
    RequireSysctl,
    Stage,
    Unit,
)
from kubeworker.core.node.observed import Disk, NodeAddress, Observed, SeenUnit
from kubeworker.core.preflight import fleet as preflight_fleet
from kubeworker.core.preflight.requirements import preflight
from kubeworker.core.preflight.row import Row
from kubeworker.core.preflight.survey_rows import at_boot

WANTED = state(
    Stage(
        component="bridge_cni",
        requirements=(
            RequireClock(skew=5),
            RequireSysctl(key="net.ipv4.ip_forward", value="1", fix="sysctl"),
            NodeToNode(protocol="tcp", port=10250, why="kubelet"),
            RequireDisk(path="/opt/k8s/bin", free=0),
            RequireDisk(path="/data/k8s", free=0),
            RequireCgroupDriver(of="kubelet", driver="systemd"),
        ),
        files=(File(path="/etc/containerd/config.toml", content=b""),),
        units=(Unit(name="containerd.service", content=""), Unit(name="kubelet.service", content="")),
        binaries=(Binary(path="/opt/k8s/bin/kubelet", blob=blob(b"x"), version="1"),),
    )
)


def rows(observed: Observed, peers: dict[str, Observed] | None = None, **fields: Any) -> dict[str, Row]:
    seen = {"n1": observed, **(peers or {})}
    fleet = preflight_fleet.of(seen, {"n1": "10.0.0.1", "n2": "10.0.0.2"}, fields.pop("clocks", ()))
    made = preflight(WANTED, observed, fleet=fleet, control_time=observed.clock, address="10.0.0.1", **fields)
    return {row.id: row for row in made}


def surveyed(**found: tuple[str, ...]) -> dict[str, Row]:
    survey = {key.replace("_", "-"): lines for key, lines in found.items()}
    disks = {
        "/opt/k8s/bin": Disk(path="/opt/k8s/bin", mount="/opt", free=1, inodes=None),
        "/data/k8s": Disk(path="/data/k8s", mount="/data", free=1, inodes=None),
    }
    return rows(bare(survey=survey, sysctls={"net.ipv4.ip_forward": "1"}, disks=disks))


FAULTS = [
    ("noexec", {"noexec": ("/opt",)}, "failed", "/opt/k8s/bin"),
    ("noexec-data", {"noexec": ("/data",)}, "warning", "/data/k8s: mounted noexec"),
    (
        "other-unit-containerd",
        {"unit_file": ("/usr/lib/systemd/system/containerd.service containerd.io",)},
        "warning",
        "(package containerd.io)",
    ),
    (
        "other-unit-kubelet",
        {"unit_command": ("/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",)},
        "failed",
        "10-kubeadm.conf gives kubelet.service another command",
    ),
    ("cgroup-driver-other", {"cgroup_driver": ("/var/lib/kubelet/config.yaml:cgroupDriver: cgroupfs",)}, "warning", ""),
    ("sysctl-boot-net.ipv4.ip_forward", {"sysctl": ("/etc/sysctl.d/99-x.conf:net.ipv4.ip_forward=0",)}, "warning", "0"),
    ("swap-boot", {"swap": ("/etc/systemd/zram-generator.conf",)}, "warning", "zram-generator"),
    ("other-cluster", {"remains": ("/etc/kubernetes/admin.conf",)}, "warning", "admin.conf"),
    ("other-cluster", {"active": ("docker.service",)}, "warning", "docker.service"),
    ("other-cni", {"cni_conf": ("/etc/cni/net.d/10-flannel.conflist",)}, "warning", "flannel"),
    ("other-cni", {"link": ("flannel.1", "kw0")}, "warning", "flannel.1"),
    ("other-rules", {"rules": ("nft ip KUBE-SERVICES",)}, "warning", "KUBE-SERVICES"),
    ("firewall", {"drops": ("input nft inet filter input",)}, "warning", "tcp 10250"),
    ("firewall", {"active": ("firewalld.service",)}, "warning", "firewalld"),
    ("forwarding", {"drops": ("forward nft ip filter FORWARD",)}, "warning", "FORWARD"),
    ("inotify-max_user_instances", {"value": ("fs/inotify/max_user_instances:5",)}, "warning", "5"),
    (
        "conntrack",
        {"value": ("net/netfilter/nf_conntrack_max:100", "net/netfilter/nf_conntrack_count:90")},
        "warning",
        "90 of 100",
    ),
]


@pytest.mark.parametrize(("check", "found", "status", "says"), FAULTS)
def test_a_fault_is_found_with_a_fix(check: str, found: dict[str, tuple[str, ...]], status: str, says: str) -> None:
    row = surveyed(**found)[check]
    assert (row.status, says in row.message, bool(row.fix)) == (status, True, True)
    assert {each.status for each in surveyed(began=("",)).values() if each.id.startswith(check)} <= {"ok"}


def test_a_rule_that_names_the_port_opens_it() -> None:
    opened = surveyed(drops=("input nft inet filter input",), rule=("tcp dport { 22, 10250 } accept",))
    assert opened["firewall"].status == "ok"


@pytest.mark.parametrize(
    ("line", "driver"),
    [
        ('/etc/docker/daemon.json:  "exec-opts": ["native.cgroupdriver=cgroupfs"]', "cgroupfs"),
        ('/etc/default/kubelet:KUBELET_EXTRA_ARGS="--cgroup-driver=cgroupfs"', "cgroupfs"),
        ("/etc/k3s/config.toml:  SystemdCgroup = false", "cgroupfs"),
        ("/etc/default/kubelet:KUBELET_EXTRA_ARGS=--cgroup-driver=systemd", ""),
        ("/etc/k3s/config.toml:  SystemdCgroup = true", ""),
        # Managed: apply writes it anew.
        ("/etc/containerd/config.toml:  SystemdCgroup = false", ""),
    ],
)
def test_another_files_cgroup_driver_is_compared_with_the_nodes(line: str, driver: str) -> None:
    row = surveyed(cgroup_driver=(line,))["cgroup-driver-other"]
    assert (row.status, driver in row.message) == ("warning" if driver else "ok", True)


def test_a_distributions_unit_that_runs_is_told_so() -> None:
    path = "/usr/lib/systemd/system/containerd.service"
    unit = SeenUnit(name="containerd.service", active_state="active", fragment=path)
    found = rows(bare(survey={"unit-file": (f"{path} ",)}, units={unit.name: unit}))["other-unit-containerd"]
    assert f"{path} is a containerd.service of a distribution's own and runs now" in found.message


def test_the_last_file_by_name_has_the_last_word_and_etc_hides_usr() -> None:
    lines = [
        "/usr/lib/sysctl.d/50-a.conf:net.ipv4.ip_forward = 0",
        "/etc/sysctl.d/90-kubeworker.conf:net.ipv4.ip_forward = 1",
    ]
    assert at_boot("net.ipv4.ip_forward", lines) == ("/etc/sysctl.d/90-kubeworker.conf", "1")
    hidden = [*lines, "/usr/lib/sysctl.d/90-kubeworker.conf:net.ipv4.ip_forward = 2"]
    assert at_boot("net.ipv4.ip_forward", hidden) == ("/etc/sysctl.d/90-kubeworker.conf", "1")
    pattern = [*lines, "/etc/sysctl.d/99-z.conf:net.ipv4.* = 3"]
    assert at_boot("net.ipv4.ip_forward", pattern) == ("/etc/sysctl.d/90-kubeworker.conf", "1")
    assert at_boot("net.ipv4.ip_forward", [*lines, "/etc/sysctl.conf:net/ipv4/ip_forward=0"]) == (
        "/etc/sysctl.conf",
        "0",
    )


def machine(**fields: Any) -> Observed:
    own = NodeAddress(address="10.0.0.1", link="eth0", mac="52:54:00:00:00:01")
    return bare(**({"addresses": (own,), "product_uuid": "u1"} | fields))


def test_an_address_that_the_machine_does_not_have_or_shares() -> None:
    assert rows(machine())["address"].status == "ok"
    assert rows(machine(addresses=()))["address"].status == "failed"
    twin = machine(hostname="n2", machine_id="2")
    found = rows(machine(), {"n2": twin})
    assert "also on n2" in found["address"].message
    assert (found["address"].status, found["product-uuid"].status) == ("failed", "warning")


def test_in_a_container_product_uuid_is_not_compared() -> None:
    twin = machine(hostname="n2", machine_id="2", container="lxc")
    assert rows(machine(container="lxc"), {"n2": twin})["product-uuid"].status == "host"


def test_names_and_clocks_are_compared_with_the_fleets() -> None:
    assert rows(machine(hostname="n2"))["hostname-name"].status == "warning"
    assert rows(machine(hostname="Big_Box"))["hostname-name"].status == "warning"
    assert rows(machine(), clocks=(0.0, -60.0, -60.0))["clock-fleet"].status == "warning"
    assert rows(machine(), clocks=(0.0, 0.1, 0.2))["clock-fleet"].status == "ok"
