"""kube-proxy's modes on real kernels: what verify sees of ipvs, what a switch costs and leaves, kube-proxy taken away.

`pytest tests/lab/test_kube_proxy_modes.py -s` prints the gaps of docs/kube-proxy.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab.operate import Change, Operator, kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.lab import LabState

NATIVE, FULL = "k8s-02", "fk-01"
"""A container of the host's kernel (nftables) and a machine with a kernel of its own (ipvs)."""
API = "10.254.0.1"
SECONDS = 5.0
"""Within which the Service has to answer again."""
SLOW = 400.0
"""Seconds that apply may take: a machine under user-mode-linux has one CPU and forks slowly."""

CLIENT = Path(__file__).with_name("asking.pl").read_text()


@pytest.fixture
def operator(kernel_nodes: LabState) -> Operator:
    return Operator(lab=kernel_nodes, file=kernel_nodes.cluster_yaml)


def settings(node: str, **kube_proxy: Any) -> Change:
    """This node's own settings of kube-proxy."""

    def change(document: dict[str, Any]) -> None:
        (found,) = (each for each in document["nodes"] if each["name"] == node)
        own = found.setdefault("components", {}).setdefault("kube_proxy", {})
        own.update(kube_proxy)

    return change


def apply(operator: Operator, node: str) -> str:
    done = operator.run("apply", "--yes", "--node", node, timeout=SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verify(operator: Operator, node: str, check: str) -> tuple[str, str]:
    """Status and detail of one check."""
    done = operator.run("verify", "--json", "--node", node, "--check", check, timeout=SLOW)
    ((found,),) = (each["checks"] for each in json.loads(done.stdout)["nodes"])
    assert found["id"] == check
    return found["status"], found["detail"]


def verify_all(operator: Operator, node: str) -> None:
    done = operator.run("verify", "--node", node, "--check", "kube_proxy", "--check", "service", timeout=SLOW)
    assert done.returncode == 0, done.stdout + done.stderr


_TRACES = """
{ nft list tables | grep -q ' kube-proxy$'; } 2> /dev/null && echo nftables
{ iptables-save; ip6tables-save; } 2> /dev/null > /tmp/rules
grep -q -E '^:KUBE-(SVC-|SEP-|EXTERNAL-SERVICES|NODEPORTS|PROXY-CANARY)' /tmp/rules && echo iptables
grep -q -E '^:KUBE-(NODE-PORT|LOAD-BALANCER|IPVS-FILTER)' /tmp/rules && echo 'chains of ipvs'
[ ! -e /sys/class/net/kube-ipvs0 ] || echo kube-ipvs0
ipset list -n 2> /dev/null | grep -q '^KUBE-' && echo sets
grep -q '^TCP' /proc/net/ip_vs 2> /dev/null && echo 'virtual servers'
grep -q -E '^:KUBE-(SERVICES|POSTROUTING|MARK-MASQ|FORWARD)' /tmp/rules && echo 'chains of both'
grep -q -E '^:KW-' /tmp/rules && echo copies
{ nft list tables | grep -q kubeworker-former; } 2> /dev/null && echo copies
rm /tmp/rules
"""
"""Says of which modes there is anything in the kernel; by other means than the tool's own."""

TRACES = {
    "nftables": {"nftables"},
    "iptables": {"iptables", "chains of both"},
    "ipvs": {"chains of ipvs", "kube-ipvs0", "sets", "virtual servers", "chains of both"},
    "": set(),
}


def traces(lab: LabState, node: str) -> set[str]:
    return set(sh(lab, node, _TRACES).splitlines())


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client saw that connected to the `kubernetes` Service fifty times a second."""

    tries: int
    failed: int
    longest: float
    """Seconds between two answers with a failure between them."""


@contextmanager
def asking(lab: LabState, node: str) -> Iterator[list[Asked]]:
    """The client runs on the node meanwhile; what it saw is in the list afterwards."""
    stop = "/run/asking.stop"
    seen: list[Asked] = []
    script = f"timeout {SLOW} perl - {API} 443 {stop} <<'PERL'\n{CLIENT}PERL"
    with ThreadPoolExecutor(1) as pool:
        sh(lab, node, f"rm -f {stop}")
        answer = pool.submit(labs.run, lab, lab.machine(node), script, timeout=SLOW)
        try:
            yield seen
        finally:
            sh(lab, node, f"touch {stop}")
        tries, failed, longest = answer.result().stdout.split()
        seen.append(Asked(int(tries), int(failed), float(longest)))


def switch(operator: Operator, node: str, mode: str) -> str:
    """Apply another mode: the Service answers meanwhile, nothing of the former one is left. The plan's warnings."""
    plan = operator.plan("--node", node)
    (planned,) = plan["nodes"]
    assert [action["kind"] for action in planned["actions"]][-2:] == ["restart", "leftover"]
    with asking(operator.lab, node) as seen:
        apply(operator, node)
    (asked,) = seen
    print(f"\n{node} -> {mode}: {asked.tries} connections, {asked.failed} failed, longest gap {asked.longest:.2f} s")
    assert asked.longest < SECONDS
    assert operator.plan("--node", node)["changes"] == 0
    assert traces(operator.lab, node) == TRACES[mode]
    verify_all(operator, node)
    return "\n".join(plan["warnings"])


def test_nftables_to_iptables_and_back_leaves_no_rule_and_the_service_answers(operator: Operator) -> None:
    assert traces(operator.lab, NATIVE) == TRACES["nftables"]
    with operator.changed(settings(NATIVE, mode="iptables")) as there:
        switch(there, NATIVE, "iptables")
    switch(operator, NATIVE, "nftables")


def test_ipvs_to_iptables_and_back_leaves_no_rule_and_the_service_answers(operator: Operator) -> None:
    assert traces(operator.lab, FULL) == TRACES["ipvs"]
    with operator.changed(settings(FULL, mode="iptables")) as there:
        assert "ipvs" not in switch(there, FULL, "iptables")
    warnings = switch(operator, FULL, "ipvs")
    assert "kubernetes 1.35 deprecates and 1.40 removes or switches off kube-proxy mode ipvs" in warnings


def test_rules_of_another_mode_are_named_and_removed_and_those_of_others_stay(operator: Operator) -> None:
    sh(
        operator.lab,
        NATIVE,
        "iptables -t nat -N KUBE-SERVICES; iptables -t nat -A OUTPUT -j KUBE-SERVICES;"
        "iptables -t nat -N KUBE-MARK-MASQ;"
        "iptables -t nat -N SITE; iptables -t nat -A SITE -j KUBE-MARK-MASQ; nft add table ip kubeworker-former",
    )
    assert verify(operator, NATIVE, "kube_proxy.rules") == (
        "failed",
        "sh ended with status 1: there are kube-proxy's iptables rules\nthere are copies of kube-proxy's former rules",
    )
    apply(operator, NATIVE)
    assert operator.plan("--node", NATIVE)["changes"] == 0
    assert "-j KUBE-SERVICES" not in sh(operator.lab, NATIVE, "iptables-save -t nat")
    assert "-A SITE -j KUBE-MARK-MASQ" in sh(operator.lab, NATIVE, "iptables-save -t nat")
    sh(
        operator.lab,
        NATIVE,
        "for chain in SITE KUBE-MARK-MASQ; do iptables -t nat -F $chain; done; iptables -t nat -X SITE",
    )
    sh(operator.lab, NATIVE, "iptables -t nat -X KUBE-MARK-MASQ")
    assert traces(operator.lab, NATIVE) == TRACES["nftables"]


_SITES = """
apiVersion: v1
kind: Service
metadata: {{name: own-endpoint, namespace: default}}
spec:
  clusterIP: 10.254.113.80
  internalTrafficPolicy: Local
  ports: [{{name: peer, port: 443, targetPort: 4244}}]
---
apiVersion: v1
kind: Service
metadata: {{name: everywhere, namespace: default}}
spec:
  clusterIP: 10.254.113.81
  type: NodePort
  externalIPs: [192.0.2.80]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 600}}}}
  ports: [{{name: peer, port: 443, targetPort: 4244, nodePort: 30443}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: own-endpoint-1, namespace: default, labels: {{kubernetes.io/service-name: own-endpoint}}}}
addressType: IPv4
ports: [{{name: peer, port: 4244}}]
endpoints: &endpoints
- {{addresses: [{full}], nodeName: fk-01, conditions: {{ready: true}}}}
- {{addresses: [{native}], nodeName: k8s-02, conditions: {{ready: true}}}}
- {{addresses: [192.0.2.9], nodeName: k8s-02, conditions: {{ready: false}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: everywhere-1, namespace: default, labels: {{kubernetes.io/service-name: everywhere}}}}
addressType: IPv4
ports: [{{name: peer, port: 4244}}]
endpoints: *endpoints
"""
"""The guide's hubble-peer row (each node's own endpoint), and one of every kind of address."""


@pytest.fixture
def sites(kernel_nodes: LabState) -> Iterator[tuple[str, str]]:
    """Two Services without pods; the addresses of fk-01 and k8s-02."""
    full, native = (kernel_nodes.machine(name).address for name in (FULL, NATIVE))
    # An anchor does not reach into another document.
    endpoints = _SITES.format(full=full, native=native)
    documents = list(yaml.safe_load_all(endpoints.replace("*endpoints", "[]")))
    documents[3]["endpoints"] = documents[2]["endpoints"]
    kubectl(kernel_nodes, "apply", "-f", "-", stdin=yaml.safe_dump_all(documents))
    yield full, native
    kubectl(kernel_nodes, "delete", "service", "own-endpoint", "everywhere")
    kubectl(kernel_nodes, "delete", "endpointslice", "own-endpoint-1", "everywhere-1", "--ignore-not-found")


def test_verify_compares_every_virtual_server_with_the_api_and_names_what_is_wrong(
    operator: Operator, sites: tuple[str, str]
) -> None:
    full, native = sites
    until(lambda: verify(operator, FULL, "kube_proxy.ipvs")[0] == "passed", "kube-proxy follows", seconds=120)
    _, detail = verify(operator, FULL, "kube_proxy.ipvs")
    apiservers = ", ".join(sorted(f"{operator.lab.machine(name).address}:6443" for name in ("k8s-01", "k8s-02")))
    both = ", ".join(sorted((f"{full}:4244", f"{native}:4244")))
    rows = detail.splitlines()
    assert rows[0].endswith(f"default/kubernetes:https  TCP {API}:443 rr -> {apiservers}")
    assert f"default/own-endpoint:peer  TCP 10.254.113.80:443 rr -> {full}:4244" in rows
    assert f"default/everywhere:peer  TCP 10.254.113.81:443 rr persistent 600 -> {both}" in rows
    assert f"default/everywhere:peer  TCP 192.0.2.80:443 rr persistent 600 -> {both}" in rows
    assert f"default/everywhere:peer  TCP {full}:30443 rr persistent 600 -> {both}" in rows

    own = "TCP 10.254.113.80:443 (default/own-endpoint:peer)"
    # kube-proxy would mend it at its next sync.
    sh(
        operator.lab,
        FULL,
        f"systemctl stop kube-proxy; ipvsadm -D -t {API}:443; ipvsadm -d -t 10.254.113.81:443 -r {native}:4244;"
        f"ipvsadm -a -t 10.254.113.80:443 -r {native}:4244 -m; ipvsadm -A -t 192.0.2.99:80 -s rr;"
        "ip addr del 10.254.113.80/32 dev kube-ipvs0",
    )
    try:
        status, detail = verify(operator, FULL, "kube_proxy.ipvs")
    finally:
        sh(operator.lab, FULL, "systemctl start kube-proxy")
    assert (status, set(detail.splitlines())) == (
        "failed",
        {
            f"TCP {API}:443 (default/kubernetes:https): missing",
            f"TCP 10.254.113.81:443 (default/everywhere:peer): lacks {native}:4244",
            f"{own}: sends to {native}:4244, which is no endpoint of it for this node",
            f"{own}: 10.254.113.80 is not on kube-ipvs0",
            "TCP 192.0.2.99:80: of no Service",
        },
    )
    until(lambda: verify(operator, FULL, "kube_proxy.ipvs")[0] == "passed", "kube-proxy mends them", seconds=120)


def test_strict_arp_and_another_scheduler_reach_the_kernel_and_the_next_boot(operator: Operator) -> None:
    change = settings(FULL, config={"conntrack": None, "ipvs": {"strictARP": True, "scheduler": "wrr"}})
    with operator.changed(change) as there:
        sh(there.lab, FULL, "rmmod ip_vs_wrr 2> /dev/null || :")
        apply(there, FULL)
        arp = "sysctl -n net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce"
        until(lambda: sh(there.lab, FULL, arp).split() == ["1", "2"], "strictARP", seconds=60)
        assert sh(there.lab, FULL, "lsmod | grep ip_vs_wrr")
        assert "ip_vs_wrr" in sh(there.lab, FULL, "cat /etc/modules-load.d/90-kubeworker.conf").split()
        until(lambda: verify(there, FULL, "kube_proxy.ipvs")[0] == "passed", "every row has wrr", seconds=120)
        assert verify(operator, FULL, "kube_proxy.ipvs")[0] == "failed"
    apply(operator, FULL)
    until(lambda: verify(operator, FULL, "kube_proxy.ipvs")[0] == "passed", "every row has rr again", seconds=120)


@pytest.mark.parametrize(("node", "mode"), [(NATIVE, "nftables"), (FULL, "ipvs")])
def test_a_kube_proxy_that_is_not_wanted_is_taken_away_with_its_rules_and_comes_back(
    operator: Operator, node: str, mode: str
) -> None:
    with operator.changed(settings(node, enabled=False)) as there:
        apply(there, node)
        assert traces(there.lab, node) == TRACES[""]
        left = "/{opt/k8s/bin,etc/kubernetes,etc/systemd/system,data/k8s/k8s}/kube-proxy*"
        assert sh(there.lab, node, f"bash -c 'ls -d {left}' 2> /dev/null || :") == ""
        assert sh(there.lab, node, "systemctl is-active kube-proxy || :") == "inactive"
        assert there.plan("--node", node)["changes"] == 0
        assert verify(there, node, "kube_proxy.absent")[0] == "passed"
        assert verify(there, node, "kube_proxy.rules")[0] == "passed"
        assert verify(operator, node, "kube_proxy.unit")[0] == "failed"
    apply(operator, node)
    until(lambda: traces(operator.lab, node) == TRACES[mode], "its rules are there again", seconds=60)
    verify_all(operator, node)
