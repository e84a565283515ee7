"""A machine with a kernel of its own: what a container can't show. Modules, settings, swap, packages, real reboots.

The machine is slow (docs/lab.md), so this asks for few things at a time and waits longer than other tests.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.conftest import MakeLab, kubeworker
from tests.lab.operate import Change, Operator, changes, kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.lab import LabState, cgroups, full_kernel, machine, network

pytestmark = pytest.mark.timeout(900)

NODE = "fk-01"
SLOW = 400.0
"""Seconds that apply and verify may take on it."""


@pytest.fixture
def operator(kernel_nodes: LabState) -> Operator:
    return Operator(lab=kernel_nodes, file=kernel_nodes.cluster_yaml)


def host(**settings: bool) -> Change:
    """The machine's own settings of the component `host`."""

    def change(document: dict[str, Any]) -> None:
        (found,) = (each for each in document["nodes"] if each["name"] == NODE)
        found["components"]["host"].update(settings)

    return change


def apply(operator: Operator) -> str:
    done = operator.run("apply", "--yes", "--node", NODE, timeout=SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def refused(operator: Operator, verb: str, *arguments: str) -> str:
    """What the command says when it does not do it."""
    done = operator.run(verb, *arguments, "--node", NODE, timeout=SLOW)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def all_green(operator: Operator) -> None:
    """On a busy host the machine may be too slow for a check's time limit, so a failure is asked about again."""
    for _ in range(3):
        done = operator.run("verify", "--node", NODE, timeout=SLOW)
        if done.returncode == 0:
            return
    raise AssertionError(done.stdout + done.stderr)


def reboot(lab: LabState) -> None:
    """As an operator does it, until systemd in the new kernel has started everything."""
    before = sh(lab, NODE, "cat /proc/sys/kernel/random/boot_id")
    labs.run(lab, lab.machine(NODE), "systemctl reboot")
    new = 'read -r boot < /proc/sys/kernel/random/boot_id; echo "$boot $(systemctl is-system-running --wait)"'

    def up() -> bool:
        done = labs.run(lab, lab.machine(NODE), new)
        return done.returncode == 0 and before not in done.stdout

    until(up, "the machine is back", seconds=180)


def ready(lab: LabState) -> bool:
    return "True" in kubectl(lab, "get", "node", NODE, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")


# ---------------------------------------------------------------------------------------------------------------


def test_its_kernel_is_its_own_and_kubelet_uses_its_cgroup_v2(kernel_nodes: LabState) -> None:
    shown = json.loads(kubeworker("lab", "status", "--name", kernel_nodes.name, "--json").stdout)
    assert {each["name"]: each["kind"] for each in shown["machines"]} == {
        "k8s-01": "nspawn",
        "k8s-02": "nspawn",
        NODE: "full-kernel",
    }
    assert sh(kernel_nodes, NODE, "uname -r") != os.uname().release
    assert sh(kernel_nodes, NODE, "systemd-detect-virt --container || :") == "none"
    assert sh(kernel_nodes, NODE, "stat -fc %T /sys/fs/cgroup") == "cgroup2fs"
    # A kubelet on v1 makes one tree for each controller, and none with these files.
    limits = sh(
        kernel_nodes,
        NODE,
        "cat /sys/fs/cgroup/kubepods.slice/cgroup.controllers /sys/fs/cgroup/kubepods.slice/cpu.weight",
    )
    assert limits.split()[:4] == ["cpu", "io", "memory", "pids"]
    metrics = kubectl(kernel_nodes, "get", "--raw", f"/api/v1/nodes/{NODE}/proxy/metrics")
    assert "\nkubelet_cgroup_version 2\n" in metrics


def test_every_check_of_verify_is_green_and_a_second_apply_does_nothing(operator: Operator) -> None:
    all_green(operator)
    assert operator.plan("--node", NODE)["changes"] == 0
    assert "No changes" in apply(operator)


def test_pods_reach_what_is_outside_under_the_nodes_address(operator: Operator) -> None:
    rules = sh(operator.lab, NODE, "iptables -t nat -S")
    assert "-A POSTROUTING -j KUBEWORKER-MASQUERADE" in rules
    cidr = kubectl(operator.lab, "get", "node", NODE, "-o", "jsonpath={.spec.podCIDR}")
    assert f"-A KUBEWORKER-MASQUERADE -s {cidr} -j MASQUERADE" in rules
    sh(operator.lab, NODE, "systemctl stop kubeworker-routes")
    assert "KUBEWORKER" not in sh(operator.lab, NODE, "iptables -t nat -S")
    sh(operator.lab, NODE, "systemctl start kubeworker-routes; systemctl reload kubeworker-routes")
    again = sh(operator.lab, NODE, "iptables -t nat -S")
    assert again.count("-j KUBEWORKER-MASQUERADE") == again.count("KUBEWORKER-MASQUERADE -s") == 1


@pytest.fixture
def pod(kernel_nodes: LabState) -> Iterator[str]:
    """A pod on the machine, running."""
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stays"},
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {"name": "main", "image": "docker.io/library/busybox:lab", "command": ["sleep", "100000"]},
            ],
        },
    }
    kubectl(kernel_nodes, "apply", "-f", "-", stdin=json.dumps(document))
    kubectl(kernel_nodes, "wait", "--for=condition=Ready", "pod/stays", "--timeout=110s")
    yield "stays"
    kubectl(kernel_nodes, "delete", "pod", "stays", "--now", "--wait=false")


@pytest.fixture
def swap(kernel_nodes: LabState) -> Iterator[str]:
    """Swap on a file, as an installer leaves it: on now and at every boot."""
    sh(
        kernel_nodes,
        NODE,
        "fallocate -l 64M /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile\n"
        "echo '/swapfile none swap sw 0 0' >> /etc/fstab && systemctl daemon-reload",
    )
    yield "/swapfile"
    sh(
        kernel_nodes,
        NODE,
        "swapoff -a; sed -i '/swapfile/d' /etc/fstab; rm -f /swapfile; systemctl unmask --quiet swapfile.swap\n"
        "systemctl daemon-reload",
    )


def test_swap_is_found_and_turned_off_and_all_of_it_outlives_a_reboot(operator: Operator, pod: str, swap: str) -> None:
    lab = operator.lab
    found = refused(operator, "plan")
    assert f"swap is on: {swap}" in found
    assert "disable_swap: true" in found
    with operator.changed(host(disable_swap=True)) as changed:
        assert changes(changed.plan("--node", NODE), NODE) == [("swap-off", swap)]
        apply(changed)
        assert sh(lab, NODE, "tail -n +2 /proc/swaps") == ""
        assert changed.plan("--node", NODE)["changes"] == 0
        restarts = "jsonpath={.status.containerStatuses[0].restartCount}"
        before = int(kubectl(lab, "get", "pod", pod, "-o", restarts))

        reboot(lab)

        assert sh(lab, NODE, "tail -n +2 /proc/swaps") == ""
        # By its name and not its unit: it may have ended before the journal looked which unit it was of.
        loaded = sh(lab, NODE, "journalctl -b -o cat -t systemd-modules-load")
        wanted = sh(lab, NODE, "cat /etc/modules-load.d/90-kubeworker.conf").split()
        assert {"overlay", "br_netfilter", "ip_vs", "ip_vs_rr", "nf_conntrack"} <= set(wanted)
        assert all(f"Inserted module '{name}'" in loaded for name in ("overlay", "br_netfilter", "ip_vs"))
        assert set(wanted) <= set(sh(lab, NODE, "cut -d ' ' -f 1 /proc/modules").split())
        assert sh(lab, NODE, "sysctl -n net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables").split() == ["1", "1"]
        until(lambda: ready(lab), "the node is Ready again", seconds=120)
        until(
            lambda: int(kubectl(lab, "get", "pod", pod, "-o", restarts) or before) > before,
            "the pod runs again, in a new container",
            seconds=120,
        )
        kubectl(lab, "wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=110s")
        assert changed.plan("--node", NODE)["changes"] == 0
        all_green(changed)


# A real repository on the machine itself: the package as dpkg installed it, packed again.
_REPOSITORY = r"""
set -e
mkdir -p /srv/repository/tree/DEBIAN
dpkg -L nftables | while read -r path; do [ -d "$path" ] || [ ! -e "$path" ] || echo "${path#/}"; done |
  tar -C / -cf - -T - | tar -C /srv/repository/tree -xf -
dpkg-query -W -f '${Package}\n${Version}\n${Architecture}\n${Depends}\n' nftables > /srv/repository/fields
{ read -r package; read -r version; read -r architecture; read -r depends; } < /srv/repository/fields
control="Package: $package
Version: $version
Architecture: $architecture
Maintainer: the lab
Depends: $depends"
printf '%s\nDescription: packed again\n' "$control" > /srv/repository/tree/DEBIAN/control
cd /srv/repository
dpkg-deb --root-owner-group --build tree nftables.deb > /dev/null
printf '%s\nFilename: ./nftables.deb\nSize: %s\nSHA256: %s\nDescription: packed again\n\n' "$control" \
  "$(stat -c %s nftables.deb)" "$(sha256sum nftables.deb | cut -d ' ' -f 1)" > Packages
dpkg -r nftables > /dev/null 2>&1
"""


@pytest.fixture
def without_nft(kernel_nodes: LabState) -> Iterator[None]:
    """The machine without a package that it needs. ipvs mode does not use it, so nothing stops meanwhile."""
    sh(kernel_nodes, NODE, "mv /etc/apt/sources.list /etc/apt/sources.list.was")
    sh(kernel_nodes, NODE, _REPOSITORY)
    yield
    sh(
        kernel_nodes,
        NODE,
        "command -v nft > /dev/null || dpkg -i /srv/repository/nftables.deb > /dev/null\n"
        "mv /etc/apt/sources.list.was /etc/apt/sources.list; rm -rf /srv/repository /etc/apt/sources.list.d/lab.list",
    )


@pytest.mark.usefixtures("without_nft")
def test_a_missing_package_is_named_and_installed_where_asked(operator: Operator) -> None:
    found = refused(operator, "plan")
    assert "the command nft is missing" in found
    assert "apt-get install nftables" in found
    with operator.changed(host(packages=True)) as changed:
        assert ("packages", "nftables") in changes(changed.plan("--node", NODE), NODE)
        failed = refused(changed, "apply", "--yes")
        assert "apt-get" in failed
        assert "nftables" in failed
        sh(
            operator.lab,
            NODE,
            "echo 'deb [trusted=yes] file:/srv/repository ./' > /etc/apt/sources.list.d/lab.list",
        )
        apply(changed)
        assert (
            sh(operator.lab, NODE, "dpkg-query -W -f '${Status}' nftables; nft list tables") == "install ok installed"
        )
        assert changed.plan("--node", NODE)["changes"] == 0


def test_a_killed_machine_comes_back_with_its_disk(operator: Operator) -> None:
    lab = operator.lab
    sh(lab, NODE, "echo kept > /root/mark; sync")
    killed = full_kernel.pid(lab, lab.machine(NODE))
    assert killed
    os.kill(killed, signal.SIGKILL)
    until(lambda: not labs.running(lab)[NODE], "the machine is off")
    labs.up(lab.name)
    assert sh(lab, NODE, "cat /root/mark; rm /root/mark") == "kept"
    until(lambda: ready(lab), "the node is Ready again", seconds=120)
    assert operator.plan("--node", NODE)["changes"] == 0


def test_it_comes_beside_workers_and_goes_with_all_that_it_had(make_lab: MakeLab) -> None:
    lab = make_lab("full", full_kernel=1)
    own = lab.machine(NODE)
    assert sh(lab, NODE, "hostname; cat /etc/machine-id").split() == [NODE, own.machine_id]
    assert kubeworker("lab", "ssh", "--name", lab.name, "--user", "ops", NODE, "--", "sudo", "id", "-u").stdout == "0\n"
    with_worker = labs.up(lab.name, workers=1)
    assert [each.name for each in with_worker.machines] == ["k8s-01", "k8s-02", "worker-01", NODE]
    assert with_worker.machine(NODE) == own
    gone = labs.up(lab.name, workers=0, full_kernel=0)
    assert [each.name for each in gone.machines] == ["k8s-01", "k8s-02"]
    assert machine.groups(lab, own) == ()
    assert network.links(lab.link(own)) == ()
    assert not Path(lab.machine_folder(own)).exists()
    labs.up(lab.name, full_kernel=1)
    labs.down(lab.name)
    assert cgroups.find(f"kubeworker-{lab.id}-") == ()
    assert network.links(lab.link(own)) == ()
