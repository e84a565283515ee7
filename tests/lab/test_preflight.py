"""`preflight` on real machines with real faults: many at once on one machine, one run, all found; then undone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.lab.operate import Operator, sh

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(180)

NODE = "worker-01"

MAKE = r"""
set -e
mkdir -p /etc/kubernetes/manifests /etc/cni/net.d /var/lib/rancher/k3s
touch /etc/kubernetes/admin.conf /etc/kubernetes/manifests/kube-apiserver.yaml /etc/cni/net.d/09-flannel.conflist
ip link add flannel.1 type bridge
echo 'net.ipv4.ip_forward = 0' > /etc/sysctl.d/99-zz.conf
echo 'nameserver 127.0.0.1' > /run/resolv.conf.bad
mount --bind /run/resolv.conf.bad /etc/resolv.conf
mkdir -p /opt/cni/bin
mount --bind /opt /opt && mount -o remount,bind,noexec /opt
nft -f - <<'KW'
table inet kwtest {
  chain input {
    type filter hook input priority 0; policy drop
    meta iifname lo accept; tcp dport 22 accept; ct state established accept
  }
  chain forward { type filter hook forward priority 0; policy drop; accept; }
  chain cali-FORWARD { counter; }
}
KW
hostname OddName
"""
UNDO = r"""
nft delete table inet kwtest
umount /opt; umount /etc/resolv.conf; hostname worker-01
ip link delete flannel.1
rm -f /etc/kubernetes/admin.conf /etc/cni/net.d/09-flannel.conflist /etc/sysctl.d/99-zz.conf
rm -rf /etc/kubernetes/manifests /var/lib/rancher
"""
FOUND = {
    "other-cluster": ("warning", "/etc/kubernetes/manifests/kube-apiserver.yaml"),
    "other-cni": ("warning", "flannel.1"),
    "other-rules": ("warning", "cali-FORWARD"),
    "sysctl-boot-net.ipv4.ip_forward": ("warning", "/etc/sysctl.d/99-zz.conf sets net.ipv4.ip_forward to 0"),
    "resolv-conf": ("warning", "127.0.0.1"),
    "noexec": ("failed", "/opt"),
    "firewall": ("warning", "tcp 10250"),
    "forwarding": ("warning", "inet kwtest forward"),
    "hostname-name": ("warning", "OddName"),
    "product-uuid": ("host", "systemd-nspawn"),
    "swap-boot": ("host", "systemd-nspawn"),
    "clock": ("host", "systemd-nspawn"),
}


@pytest.fixture
def faulty(lab: LabState) -> Iterator[Operator]:
    try:
        sh(lab, NODE, MAKE)
        yield Operator(lab=lab, file=lab.cluster_yaml)
    finally:
        sh(lab, NODE, UNDO)


def checks(operator: Operator, code: int) -> dict[str, dict[str, Any]]:
    done = operator.run("preflight", "--json", "--no-api-token", "--node", NODE)
    assert done.returncode == code, done.stdout + done.stderr
    (node,) = json.loads(done.stdout)["nodes"]
    return {row["id"]: row for row in node["checks"]}


def test_every_fault_of_a_machine_is_found_at_once_with_its_fix(faulty: Operator) -> None:
    rows = checks(faulty, 1)
    for check, (status, says) in FOUND.items():
        assert (rows[check]["status"], says in rows[check]["message"]) == (status, True), rows[check]
        assert status == "host" or rows[check]["fix"]
