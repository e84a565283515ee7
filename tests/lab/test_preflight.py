"""`preflight` on real machines with real faults: many at once, one run, all found; then undone.

A machine is a container here. What it can't have, for its kernel and firmware are the host's, stands in files that are
bound over those of /proc and /sys in its own mount name space: an old kernel, a full conntrack table, a product_uuid.
The probe reads them as it would the kernel's. Clock, swap and modules are another file's, where a machine has a kernel
of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.lab.operate import Operator, kubectl, sh, until

from kubeworker.lab import LabState, pki

pytestmark = pytest.mark.timeout(180)

NODE, PEER = "worker-01", "k8s-02"

MAKE = r"""
set -e
mkdir -p /run/kw /etc/kubernetes/manifests /etc/cni/net.d /var/lib/rancher/k3s /etc/ufw /etc/docker
over() { cat > "/run/kw/${1##*/}"; mount --bind "/run/kw/${1##*/}" "$1"; } # over FILE: what it says comes on stdin

# What others left.
touch /etc/kubernetes/admin.conf /etc/kubernetes/manifests/kube-apiserver.yaml /etc/cni/net.d/09-flannel.conflist
ip link add flannel.1 type bridge
echo '{"exec-opts": ["native.cgroupdriver=systemd"]}' > /etc/docker/daemon.json
mkdir -p /run/kw/deb/DEBIAN /run/kw/deb/usr/lib/systemd/system
printf 'Package: kw-containerd\nVersion: 1\nArchitecture: all\nMaintainer: x <x@invalid>\nDescription: x\n' \
  > /run/kw/deb/DEBIAN/control
printf '[Service]\nExecStart=/usr/bin/containerd\n' > /run/kw/deb/usr/lib/systemd/system/containerd.service
dpkg-deb --build --root-owner-group /run/kw/deb /run/kw/kw.deb > /dev/null
dpkg --install /run/kw/kw.deb > /dev/null
mkdir -p /usr/lib/systemd/system/kubelet.service.d
printf '[Service]\nExecStart=\nExecStart=/usr/bin/kubelet\n' > /usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf
current=/etc/kubernetes/cert/kubelet-client-current.pem
if [ ! -e $current ]; then mkdir -p ${current%/*}; touch $current /run/kw/made; fi
readlink -f $current > /run/kw/current
printf %s "$CERTIFICATE" | over "$(cat /run/kw/current)"

# What the machine is, and how it is set.
echo 'net.ipv4.ip_forward = 0' > /etc/sysctl.d/99-zz.conf
echo 'nameserver 127.0.0.1' | over /etc/resolv.conf
mkdir -p /opt/cni/bin /srv/kw
mount --bind /opt /opt && mount -o remount,bind,noexec /opt
mount -t tmpfs -o noexec,size=1m,nr_inodes=40 kw /srv/kw
hostname OddName
echo 5.3.0 | over /proc/sys/kernel/osrelease
echo sh | over /proc/1/comm
printf '#!/bin/sh\necho s390x\n' | over /usr/bin/uname
chmod 755 /usr/bin/uname
for key in vm/overcommit_memory kernel/keys/root_maxkeys fs/inotify/max_user_instances \
  net/netfilter/nf_conntrack_max; do
  echo 100 | over /proc/sys/$key
done
echo 90 | over /proc/sys/net/netfilter/nf_conntrack_count

# Firewalls. firewalld itself is not on the machine: what is asked is whether a unit of that name is active.
echo ENABLED=yes > /etc/ufw/ufw.conf
systemd-run --quiet --collect --unit firewalld sleep infinity
nft -f - <<'KW'
table inet kwtest {
  chain input {
    type filter hook input priority 0; policy drop
    meta iifname lo accept; tcp dport 22 accept; ct state established accept
  }
  chain forward { type filter hook forward priority 0; policy drop; accept; }
  chain cali-FORWARD { counter; }
}
table ip6 kwtest {
  chain input { type filter hook input priority 0; policy drop; meta iifname lo accept; }
  chain FLANNEL-FWD { counter; }
}
KW

# Ports: of a unit, of a process that belongs to none, and UDP.
systemd-run --quiet --collect --unit kw-udp socat -u UDP-RECV:8472 OPEN:/dev/null
systemd-run --quiet --collect --unit kw-gops socat TCP-LISTEN:9890,bind=127.0.0.1 OPEN:/dev/null
setsid socat TCP-LISTEN:4240 OPEN:/dev/null < /dev/null > /dev/null 2>&1 &
echo $! > /run/kw/pid
until [ "$(ss -Hlntu 'sport = :8472 or sport = :9890 or sport = :4240' | wc -l)" -ge 3 ]; do sleep 0.1; done
"""
UNDO = r"""
kill "$(cat /run/kw/pid)"; systemctl stop kw-udp kw-gops firewalld
nft delete table inet kwtest; nft delete table ip6 kwtest
for place in net/netfilter/nf_conntrack_count net/netfilter/nf_conntrack_max fs/inotify/max_user_instances \
  kernel/keys/root_maxkeys vm/overcommit_memory kernel/osrelease; do umount /proc/sys/$place; done
current=$(cat /run/kw/current)
umount /usr/bin/uname /proc/1/comm /srv/kw /opt /etc/resolv.conf "$current"; hostname worker-01
[ ! -e /run/kw/made ] || rm "$current"
ip link delete flannel.1
rm -r /usr/lib/systemd/system/kubelet.service.d
dpkg --purge kw-containerd > /dev/null
rm -f /etc/kubernetes/admin.conf /etc/cni/net.d/09-flannel.conflist /etc/sysctl.d/99-zz.conf
rm -rf /etc/kubernetes/manifests /var/lib/rancher /etc/ufw /etc/docker /srv/kw /run/kw
mountpoint -q /opt && exit 1
exit 0
"""
FOUND = {
    "other-cluster": ("warning", "/etc/kubernetes/manifests/kube-apiserver.yaml"),
    "other-cni": ("warning", "flannel.1"),
    "trace-cni-links": ("warning", "flannel.1"),
    "trace-cni-config": ("warning", "09-flannel.conflist"),
    "other-rules": ("warning", "nft inet cali-FORWARD", "nft ip6 FLANNEL-FWD"),
    "other-unit-containerd": ("warning", "/usr/lib/systemd/system/containerd.service (package kw-containerd)"),
    "other-unit-kubelet": ("failed", "10-kubeadm.conf gives kubelet.service another command"),
    "cgroup-driver-other": ("warning", "/etc/docker/daemon.json: systemd"),
    "client-certificate": ("failed", "is another cluster's (signed by CN=elsewhere)"),
    "sysctl-boot-net.ipv4.ip_forward": ("warning", "/etc/sysctl.d/99-zz.conf sets net.ipv4.ip_forward to 0"),
    "sysctl-vm.overcommit_memory": ("failed", "vm.overcommit_memory is 100, not 1"),
    "sysctl-kernel.keys.root_maxkeys": ("failed", "kernel.keys.root_maxkeys is 100, not 1000000"),
    "resolv-conf": ("warning", "127.0.0.1"),
    "init": ("failed", "process 1 is sh"),
    "architecture": ("failed", "the machine is s390x, the artifacts are for "),
    "noexec": ("failed", "/opt"),
    "noexec-data": ("warning", "/srv/kw/containerd, /srv/kw/kubelet: mounted noexec"),
    "disk-/srv/kw": ("failed", "1 MiB free on /srv/kw, 8 MiB needed for /srv/kw/kubelet, /srv/kw/containerd"),
    "inodes-/srv/kw": ("failed", "inodes free on /srv/kw"),
    "firewall": ("warning", "firewalld.service, ufw.service", "nft ip6 kwtest input", "nft inet kwtest", "tcp 10250"),
    "forwarding": ("warning", "inet kwtest forward"),
    "hostname-name": ("warning", "OddName"),
    "kernel-nftables": ("failed", "the kernel is 5.3.0, older than 5.13"),
    "kernel-cilium": ("warning", "5.3.0, older than 5.4"),
    "inotify-max_user_instances": ("warning", "fs.inotify.max_user_instances is 100, below"),
    "conntrack": ("warning", "90 of 100 connections"),
    "port-8472-udp": ("failed", "UDP port 8472, which Cilium's vxlan needs, is held by socat", "kw-udp.service"),
    "port-9890": ("failed", "held by socat", "of kw-gops.service on 127.0.0.1"),
    "port-4240": ("failed", "held by socat (pid "),
    "memory": ("warning", "at least 9765.6 GiB are asked for"),
    "cpus": ("warning", "at least 999 are asked for"),
    "reserved-memory": ("failed", "1024.3 GiB of "),
    "reserved-cpus": ("failed", "500.1 of "),
    "cgroup": ("failed", "it uses cgroup v1: kubelet 1.35.0 refuses cgroup v1"),
    "cgroup-driver": ("failed", "kubelet: cgroupfs"),
    "pod-addresses": ("warning", "maxPods is 300"),
    "product-uuid": ("host", "systemd-nspawn"),
    "swap-boot": ("host", "systemd-nspawn"),
    "clock": ("host", "systemd-nspawn"),
}


def strange(document: dict[str, Any]) -> None:
    """What is asked of the machine, and can't be had there or does not fit together."""
    document["cni"] = "cilium"
    document["versions"]["kubernetes"] = "1.35.0"
    document["paths"] = {"k8s_dir": "/srv/kw/kubelet", "containerd_dir": "/srv/kw/containerd"}
    components = document["components"]
    components["host"] = {"min_memory_mib": 10_000_000, "min_cpus": 999, "min_free_gib": 0}
    components["kube_proxy"] = {"mode": "nftables"}
    kubelet = components["kubelet"]
    kubelet["max_pods"] = 300
    kubelet["config"] |= {
        "cgroupDriver": "cgroupfs",
        "protectKernelDefaults": True,
        "kubeReserved": {"memory": "1Ti", "cpu": "500"},
    }


@pytest.fixture
def registered(lab: LabState) -> Iterator[None]:
    """The cluster has a Node of that name, with a block of addresses: it may have joined long ago."""
    there = kubectl(lab, "get", "node", NODE, "--ignore-not-found")
    if not there:
        kubectl(
            lab, "create", "-f", "-", stdin=json.dumps({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE}})
        )
    until(lambda: bool(kubectl(lab, "get", "node", NODE, "-o=jsonpath={.spec.podCIDR}")), "it has a podCIDR")
    yield
    if not there:
        kubectl(lab, "delete", "node", NODE)


@pytest.fixture
def faulty(lab: LabState, registered: None) -> Iterator[Operator]:
    now = datetime.now(UTC)
    stranger = pki.issue(pki.make_authority("elsewhere", now), pki.Subject(common_name=f"system:node:{NODE}"), now)
    try:
        # With its key, as kubelet's own file: the API proxy's probe of a deployed node shows it to the API meanwhile.
        sh(lab, NODE, f"CERTIFICATE='{(stranger.cert + stranger.key).decode()}'\n{MAKE}")
        yield Operator(lab=lab, file=lab.cluster_yaml)
    finally:
        sh(lab, NODE, UNDO)


def checks(operator: Operator, code: int, *names: str) -> dict[str, dict[str, dict[str, Any]]]:
    chosen = [word for name in names for word in ("--node", name)]
    done = operator.run("preflight", "--json", "--no-api-token", *chosen)
    assert done.returncode == code, done.stdout + done.stderr
    return {node["name"]: {row["id"]: row for row in node["checks"]} for node in json.loads(done.stdout)["nodes"]}


def files(lab: LabState) -> set[str]:
    """Every file of the machine with what a change of its content, name, mode or owner shows in: nobody can set ctime.

    Of folders not ctime, for an overlay notes things of its own in them. Not logs, which say who logged in, nor what
    the services of a deployed node write while they run.
    """
    where = r"""
live=
if systemctl -q is-active kubelet; then
  for path in /data /opt/k8s/kube-nginx /var/lib/cni /var/lib/kubelet; do live="$live -o -path $path"; done
fi
find / /data /dev/shm /tmp -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /var/log $live \) \
  -prune -o -type d -printf '%p d %m %u:%g %T@ %i\n' -o -printf '%p %y %m %u:%g %s %T@ %C@ %i %l\n'
"""
    found = set(sh(lab, NODE, where).splitlines())
    assert len(found) > 5000
    return found


def test_every_fault_of_a_machine_is_found_at_once_with_its_fix_and_no_file_is_changed(faulty: Operator) -> None:
    before = files(faulty.lab)
    with faulty.changed(strange) as operator:
        rows = checks(operator, 1, NODE)[NODE]
    assert files(faulty.lab) ^ before == set()
    # On a host of cgroup v2 no machine can have v1.
    v2 = sh(faulty.lab, NODE, "test ! -e /sys/fs/cgroup/cgroup.controllers || echo yes")
    missed = {
        check: rows.get(check)
        for check, (status, *says) in (FOUND | ({"cgroup": ("host", "v2")} if v2 else {})).items()
        if check not in rows
        or rows[check]["status"] != status
        or not all(each in rows[check]["message"] for each in says)
        or not (status == "host" or rows[check]["fix"])
    }
    assert missed == {}


TWIN = r"""
set -e
mkdir -p /run/kw/upper /run/kw/work
over() { cat > "/run/kw/${1##*/}"; mount --bind "/run/kw/${1##*/}" "$1"; }
# The node's address of this test is on a bridge without ports, so that equal MACs are in nobody's way.
ip link add kwpair type bridge
ip link set kwpair address 02:4b:57:00:00:01
for address in $OWN; do ip address add "$address/32" dev kwpair; done
ip link set kwpair up
hostname kwtwin
printf '%032d\n' 7 | over /etc/machine-id
: | over /run/systemd/container # as if it were a machine of its own
mount -t overlay kw -o lowerdir=/sys/class,upperdir=/run/kw/upper,workdir=/run/kw/work /sys/class
mkdir -p /sys/class/dmi/id
echo 4C4C4544-0000-0000-0000-000000000007 > /sys/class/dmi/id/product_uuid
"""
UNTWIN = r"umount /sys/class /run/systemd/container /etc/machine-id; ip link delete kwpair; rm -r /run/kw; hostname "


def twins(document: dict[str, Any]) -> None:
    nodes = [node for node in document["nodes"] if node["name"] in (NODE, PEER)]
    for node in nodes:
        node["ssh"] = {"host": node["address"]}
        node["address"] = {NODE: "10.99.0.1", PEER: "10.99.0.2"}[node["name"]]
    document["nodes"] = nodes


def test_twins_are_told_by_name_address_mac_machine_id_and_product_uuid(lab: LabState) -> None:
    operator = Operator(lab=lab, file=lab.cluster_yaml)
    try:
        sh(lab, NODE, f"OWN=10.99.0.1\n{TWIN}")
        sh(lab, PEER, f"OWN='10.99.0.2 10.99.0.1'\n{TWIN}")
        with operator.changed(twins) as changed:
            found = checks(changed, 1, NODE, PEER)
    finally:
        for name in (NODE, PEER):
            sh(lab, name, UNTWIN + name)
    for name, twin in ((NODE, PEER), (PEER, NODE)):
        for check, status in (
            ("hostname", "failed"),
            ("machine-id", "failed"),
            ("product-uuid", "warning"),
            ("mac", "warning"),
        ):
            row = found[name][check]
            assert (row["status"], f"is also that of {twin}" in row["message"]) == (status, True), row
            assert row["fix"]
    assert (found[NODE]["address"]["status"], found[PEER]["address"]["status"]) == ("failed", "ok")
    assert f"10.99.0.1 is also on {PEER}" in found[NODE]["address"]["message"]


def test_a_node_that_is_unreachable_is_exit_code_4_and_the_others_are_checked(lab: LabState) -> None:
    def closed(document: dict[str, Any]) -> None:
        document["nodes"] = [node for node in document["nodes"] if node["name"] in (NODE, PEER)]
        # A port where no sshd is.
        document["nodes"][0]["ssh"] = {"port": 1}

    with Operator(lab=lab, file=lab.cluster_yaml).changed(closed) as operator:
        done = operator.run("preflight", "--json", "--no-api-token")
    document = json.loads(done.stdout)
    assert done.returncode == 4, done.stdout + done.stderr
    seen = {node["name"]: (node["status"], bool(node["checks"]), bool(node["error"])) for node in document["nodes"]}
    assert seen == {NODE: ("ok", True, False), PEER: ("unreachable", False, True)}
