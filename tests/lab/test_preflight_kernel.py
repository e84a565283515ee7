"""`preflight` where a machine's clock, swap, modules, memory and packet filter are its own: the full-kernel machine.

It runs before the machine is a node, whose modules would be loaded already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.lab.operate import Operator, sh

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(300)

NODE = "fk-01"

MAKE = r"""
set -e
modprobe overlay 2> /dev/null || :
# An earlier look at the nat table has loaded it.
modprobe -r iptable_nat 2> /dev/null || :
# This kernel has no nf_tables for IP: rules are iptables-legacy's. The lab's addresses are let in, whatever the port.
iptables -A INPUT -s 10.77.0.0/16 -j ACCEPT
for tool in iptables ip6tables; do
  $tool -N KUBE-SERVICES
  $tool -A INPUT -i lo -j ACCEPT
  $tool -P INPUT DROP; $tool -P FORWARD DROP
done
fallocate -l 16M /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile
echo '/swapfile none swap sw 0 0' >> /etc/fstab
echo '[zram0]' > /etc/systemd/zram-generator.conf
printf '[Swap]\nWhat=/other\n' > /etc/systemd/system/other.swap
sysctl fs.inotify.max_user_watches > /run/watches
sysctl -q -w vm.panic_on_oom=1 fs.inotify.max_user_watches=1000
modules=/lib/modules/$(uname -r)
mkdir -p /run/empty && mount --bind /run/empty "$modules"
touch /run/none && mount --bind /run/none /usr/sbin/ipset
date -s "+1 hour" > /dev/null
"""
UNDO = r"""
date -s "-1 hour" > /dev/null
umount "/lib/modules/$(uname -r)" /usr/sbin/ipset
sysctl -q -w vm.panic_on_oom=0; sysctl -q -p /run/watches
swapoff /swapfile; sed -i '/swapfile/d' /etc/fstab
rm -f /swapfile /etc/systemd/zram-generator.conf /etc/systemd/system/other.swap
for tool in iptables ip6tables; do $tool -P INPUT ACCEPT; $tool -P FORWARD ACCEPT; $tool -F; $tool -X; done
"""
FOUND = {
    "swap": ("failed", "/swapfile"),
    "swap-boot": ("warning", "/etc/fstab (/swapfile", "zram-generator.conf", "other.swap"),
    "clock": ("failed", "ahead of"),
    "clock-fleet": ("warning", "ahead of the nodes' median"),
    "module-ip_vs": ("failed", "has no ip_vs (kube-proxy mode ipvs)"),
    "proxy-mode-ipvs": ("failed", "the kernel has no module ip_vs"),
    "masquerade": ("failed", "neither nft nor iptables"),
    "command-ipset": ("failed", "the command ipset is missing"),
    "memory": ("warning", "at least 4.0 GiB are asked for"),
    "cpus": ("warning", "it has 1 processors, at least 2"),
    "reserved-cpus": ("failed", "1.5 of 1 processors"),
    "reserved-memory": ("failed", "3.3 GiB of "),
    "sysctl-vm.panic_on_oom": ("failed", "vm.panic_on_oom is 1, not 0"),
    "inotify-max_user_watches": ("warning", "1000, below"),
    "firewall": ("warning", "iptables filter INPUT", "ip6tables filter INPUT", "tcp 10250"),
    "forwarding": ("warning", "iptables filter FORWARD", "ip6tables filter FORWARD"),
    "other-rules": ("warning", "iptables KUBE-SERVICES", "ip6tables KUBE-SERVICES"),
}


def strict(document: dict[str, Any]) -> None:
    """What a machine of one processor and 2 GiB of memory does not have, and its kernel is not set to."""
    (own,) = (node for node in document["nodes"] if node["name"] == NODE)
    own["components"]["host"] = {"min_memory_mib": 4096, "min_cpus": 2}
    own["components"]["kubelet"] = {
        "config": {"protectKernelDefaults": True, "kubeReserved": {"cpu": "1400m", "memory": "3Gi"}}
    }


@pytest.fixture
def faulty(kernel_lab: LabState) -> Iterator[Operator]:
    try:
        sh(kernel_lab, NODE, MAKE)
        yield Operator(lab=kernel_lab, file=kernel_lab.cluster_yaml)
    finally:
        sh(kernel_lab, NODE, UNDO)


def test_what_its_own_kernel_lacks_is_found_and_left_as_it_is(faulty: Operator) -> None:
    with faulty.changed(strict) as operator:
        done = operator.run("preflight", "--json", "--no-api-token")
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads(done.stdout)
    rows = {node["name"]: {row["id"]: row for row in node["checks"]} for node in document["nodes"]}
    own = rows[NODE]
    missed = {
        check: own.get(check)
        for check, (status, *says) in FOUND.items()
        if check not in own
        or own[check]["status"] != status
        or not all(each in own[check]["message"] for each in says)
        or not own[check]["fix"]
    }
    assert missed == {}
    assert rows["k8s-02"]["clock"]["status"] == "host"
    # What is wrong stays so until somebody mends it.
    assert "/swapfile" in sh(faulty.lab, NODE, "cat /proc/swaps")
