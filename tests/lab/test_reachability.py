"""`preflight` on real machines whose network has real faults: what it finds, and that it leaves nothing.

The nodes may be deployed (kubelet holds 10250 then, and shows its certificate) or not: one of them is made to look as
if it had yet to join, so that a token is made for it either way.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from tests.lab.operate import Operator, kubectl, sh, until
from tests.tls_server import TlsServer, tls_server

from kubeworker.core.cluster.bootstrap_token import BootstrapToken, found
from kubeworker.lab import LabState, pki

pytestmark = pytest.mark.timeout(240)

NODES = ("k8s-01", "k8s-02", "worker-01")
CERTIFICATE = "/etc/kubernetes/cert/kubelet-client-current.pem"


class Seen(NamedTuple):
    id: str
    status: str
    message: str


class Checks:
    """What `preflight --json` has said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.document: dict[str, Any] = json.loads(done.stdout)
        self.code = done.returncode
        self.text = done.stdout + done.stderr

    def of(self, node: str, *ids: str) -> list[Seen]:
        (rows,) = (each["checks"] for each in self.document["nodes"] if each["name"] == node)
        return [Seen(row["id"], row["status"], row["message"]) for row in rows if row["id"] in ids]

    def fix(self, node: str, check: str) -> str:
        (rows,) = (each["checks"] for each in self.document["nodes"] if each["name"] == node)
        return next(str(row["fix"]) for row in rows if row["id"] == check and row["status"] != "ok")

    def cell(self, asker: str, target: str) -> str:
        return str(self.document["reachability"][asker][target])


def three_nodes(document: dict[str, Any]) -> None:
    document["nodes"] = [node for node in document["nodes"] if node["name"] in NODES]


def address(lab: LabState, name: str) -> str:
    return lab.machine(name).address


@contextmanager
def rules(lab: LabState, name: str, *lines: str, hook: str = "input") -> Iterator[None]:
    """Rules of the machine's packet filter."""
    table = f"preflight_{hook}"
    kind = "nat" if hook == "prerouting" else "filter"
    text = f"table inet {table} {{ chain c {{ type {kind} hook {hook} priority -150; {'; '.join(lines)}; }}; }}"
    sh(lab, name, f"nft -f - <<'END'\n{text}\nEND")
    try:
        yield
    finally:
        sh(lab, name, f"nft delete table inet {table}")


@contextmanager
def away(lab: LabState, name: str, *paths: str) -> Iterator[None]:
    """Without these files for a while."""
    sh(lab, name, "".join(f"[ ! -e {path} ] || mv {path} {path}.away\n" for path in paths))
    try:
        yield
    finally:
        sh(lab, name, "".join(f"[ ! -e {path}.away ] || mv {path}.away {path}\n" for path in paths))


@contextmanager
def held(lab: LabState, name: str, port: int) -> Iterator[None]:
    """A process that has nothing to do with Kubernetes holds the port."""
    program = f"socket(S, AF_INET, SOCK_STREAM, 6) && bind(S, sockaddr_in({port}, INADDR_ANY)) && listen(S, 9) && sleep"
    sh(lab, name, f"systemd-run --quiet --collect --unit foreign-{port} perl -MSocket -e '{program}'")
    until(lambda: bool(sh(lab, name, f"ss -Hltn 'sport = :{port}'")), f"{port} is held")
    try:
        yield
    finally:
        sh(lab, name, f"systemctl stop foreign-{port}")


def tokens(lab: LabState) -> list[BootstrapToken]:
    """The tool's tokens in the cluster."""
    listed = kubectl(lab, "get", "secret", "-n", "kube-system", "-o", "json")
    return [token for each in json.loads(listed)["items"] if (token := found(each)) is not None]


def probes(lab: LabState) -> list[str]:
    """Probes that run on any of the machines."""
    return [line for name in NODES for line in sh(lab, name, "pgrep -af 'perl /dev/fd/3' || :").splitlines()]


def traces(lab: LabState, name: str) -> str:
    """Listening sockets, raw ones, and files where a check could leave some; the hash index is another part's."""
    where = "/tmp /var/tmp /dev/shm /root /etc /run/kubeworker* /opt /usr/local"
    return sh(
        lab,
        name,
        "ss -Hltnu | awk '{print $1, $5}' | sort; ss -Hwn | wc -l;"
        f"find {where} -printf '%p %T@ %i\\n' 2> /dev/null | grep -v kubelet-client-current | sort",
    )


@pytest.fixture(scope="module")
def operator(lab: LabState) -> Operator:
    return Operator(lab=lab, file=lab.cluster_yaml)


def check(operator: Operator, *arguments: str) -> Checks:
    return Checks(operator.run("preflight", "--json", *arguments))


def test_all_well_and_nothing_is_left(operator: Operator) -> None:
    lab = operator.lab
    with operator.changed(three_nodes) as three, away(lab, "worker-01", CERTIFICATE):
        before = {name: traces(lab, name) for name in NODES}
        checks = check(three)
        assert {name: traces(lab, name) for name in NODES} == before
    for name in NODES:
        assert checks.of(name, "reach-tcp-10250", "path-mtu", "same-segment", "api") == [
            ("reach-tcp-10250", "ok", "reaches 2 of 2, reached by 2 of 2"),
            ("path-mtu", "ok", "packets of 1500 bytes pass: reaches 2 of 2, reached by 2 of 2"),
            ("same-segment", "ok", "reaches 2 of 2, reached by 2 of 2"),
            ("api", "ok", f"{', '.join(f'{address(lab, each)}:6443' for each in NODES[:2])}: reached and trusted"),
        ]
    assert checks.of("worker-01", "api-token") == [
        ("api-token", "ok", "its bootstrap token, made for this check, is accepted")
    ]
    assert tokens(lab) == []
    assert probes(lab) == []


def test_a_run_for_one_node_tries_the_others_where_kubelet_runs(operator: Operator) -> None:
    with operator.changed(three_nodes) as three:
        checks = check(three, "--node", "worker-01")
    if all(sh(operator.lab, name, "ss -Hltn 'sport = :10250'") for name in NODES[:2]):
        expected = ("reach-tcp-10250", "ok", "reaches 2 of 2")
    else:
        text = "worker-01 -> all 2 others: refused: nothing listens there yet, and it is not in this run"
        expected = ("reach-tcp-10250", "unknown", text)
    assert checks.of("worker-01", "reach-tcp-10250", "path-mtu") == [expected]
    assert list(checks.document["reachability"]) == ["worker-01"]


class Faulty(NamedTuple):
    lab: LabState
    checks: Checks
    stranger: TlsServer
    renamed: TlsServer
    closed: TlsServer


@contextmanager
def tunnel(lab: LabState, name: str) -> Iterator[None]:
    """The kernel holds UDP 8472, as with Cilium's own device."""
    sh(lab, name, "ip link add preflight0 type vxlan external dstport 8472 && ip link set preflight0 up")
    try:
        yield
    finally:
        sh(lab, name, "ip link delete preflight0")


@pytest.fixture(scope="module")
def faulty(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """One run, with `cni: cilium`, that meets every fault; they are mended before a test looks at one."""
    lab, folder = operator.lab, tmp_path_factory.mktemp("servers")
    first, second, worker = (address(lab, name) for name in NODES)
    ours = pki.Pair(cert=(lab.folder / "ca.pem").read_bytes(), key=(lab.folder / "ca-key.pem").read_bytes())
    other = pki.make_authority("kubernetes-ca", datetime.now(UTC))
    gateway = first.rpartition(".")[0] + ".1"
    with ExitStack() as stack:
        enter = stack.enter_context
        # Reached from every machine at the lab's own gateway.
        stranger = enter(tls_server(folder, other, address=gateway))
        renamed = enter(tls_server(folder, ours, address=gateway, names=("kubernetes",)))
        closed = enter(tls_server(folder, ours, address=gateway, status=401))
        enter(away(lab, "worker-01", CERTIFICATE))
        enter(rules(lab, "k8s-01", f"ip saddr {worker} tcp dport 10250 drop"))
        enter(rules(lab, "k8s-01", f"ip saddr {second} tcp dport 4240 redirect to :22", hook="prerouting"))
        enter(
            rules(
                lab,
                "k8s-02",
                "tcp dport 4240 reject with tcp reset",
                f"ip saddr {first} tcp dport 4244 reject with icmp host-prohibited",
                f"ip saddr {first} udp dport 8472 ip length > 1402 drop",
            )
        )
        enter(rules(lab, "worker-01", "udp dport 8472 drop"))
        enter(rules(lab, "worker-01", f"ip daddr {second} tcp dport 6443 drop", hook="output"))
        enter(held(lab, "worker-01", 4244))
        enter(tunnel(lab, "k8s-01"))

        def change(document: dict[str, Any]) -> None:
            three_nodes(document)
            document["cni"] = "cilium"
            document["cluster"]["apiservers"] += [each.endpoint for each in (stranger, renamed, closed)]

        changed = enter(operator.changed(change))
        return Faulty(lab, check(changed), stranger, renamed, closed)


def test_a_port_that_is_dropped_in_one_direction(faulty: Faulty) -> None:
    checks = faulty.checks
    assert checks.code == 1
    assert checks.of("k8s-01", "reach-tcp-10250") == [
        ("reach-tcp-10250", "failed", "worker-01 -> k8s-01: no answer within 4 s (dropped by a firewall?)")
    ]
    assert checks.fix("k8s-01", "reach-tcp-10250").startswith("on k8s-01: let TCP 10250 in from the other nodes")
    assert "10250" in checks.cell("worker-01", "k8s-01")
    assert "10250" not in checks.cell("k8s-01", "worker-01")
    assert [row.status for name in NODES[1:] for row in checks.of(name, "reach-tcp-10250")] == ["ok", "ok"]


def test_a_port_that_is_rejected_and_one_that_is_somebody_elses(faulty: Faulty) -> None:
    refused = "k8s-01, worker-01 -> k8s-02: refused, though something listens there (a firewall that rejects?)"
    assert faulty.checks.of("k8s-02", "reach-tcp-4240") == [("reach-tcp-4240", "failed", refused)]
    ((_, status, message),) = faulty.checks.of("k8s-01", "reach-tcp-4240")
    assert status == "failed"
    assert re.match(r"k8s-02 -> k8s-01: something else answers \(SSH-2\.0-.*\): an address that is used twice", message)


def test_a_firewall_that_says_no_route(faulty: Faulty) -> None:
    ((_, status, message),) = faulty.checks.of("k8s-02", "reach-tcp-4244")
    assert (status, message[:39]) == ("failed", "k8s-01 -> k8s-02: no route to host (non")


def test_a_foreign_process_on_a_port(faulty: Faulty) -> None:
    assert faulty.checks.of("worker-01", "reach-tcp-4244") == [
        ("reach-tcp-4244", "warning", "TCP 4244 is held by perl, not by cilium-agent: the others reach that")
    ]


def test_vxlan_that_is_dropped(faulty: Faulty) -> None:
    assert faulty.checks.of("worker-01", "reach-udp-8472", "path-mtu") == [
        (
            "reach-udp-8472",
            "failed",
            "k8s-01, k8s-02 -> worker-01: no datagram arrives (dropped by a firewall?)",
        ),
        ("path-mtu", "unknown", "k8s-01, k8s-02 -> worker-01: not measured: UDP 8472 does not pass"),
    ]
    assert [row.status for name in NODES[:2] for row in faulty.checks.of(name, "reach-udp-8472")] == ["ok", "ok"]


def test_vxlan_is_tried_where_the_kernel_holds_its_port(faulty: Faulty) -> None:
    assert faulty.checks.of("k8s-01", "reach-udp-8472", "path-mtu") == [
        ("reach-udp-8472", "ok", "reaches 1 of 2, reached by 2 of 2"),
        ("path-mtu", "ok", "reaches 0 of 2, reached by 2 of 2"),
    ]


def test_a_black_hole_for_large_packets(faulty: Faulty) -> None:
    lost = "k8s-01 -> k8s-02: packets above 1402 bytes are lost, and nobody says so (black hole; 1500 are to pass)"
    assert faulty.checks.of("k8s-02", "path-mtu") == [("path-mtu", "failed", lost)]
    assert "components.cilium.mtu: 1402" in faulty.checks.fix("k8s-02", "path-mtu")


def test_api_servers_that_a_node_can_not_use(faulty: Faulty) -> None:
    second = address(faulty.lab, "k8s-02")
    for name in NODES:
        found = {row.message for row in faulty.checks.of(name, "api") if row.status == "failed"}
        host, untrusted = faulty.renamed.address, "unable to get local issuer certificate"
        expected = {
            f"{name} -> {faulty.stranger.endpoint}: its certificate is not of the cluster's CA: {untrusted}",
            f"{name} -> {faulty.renamed.endpoint}: its certificate is not for {host} (no such SAN)",
        }
        if name == "worker-01":
            expected.add(f"{name} -> {second}:6443: no answer within 4 s (dropped by a firewall?)")
        assert {re.sub(r"self-signed .*", untrusted, text) for text in found} == expected
    ((_, status, message),) = faulty.checks.of("worker-01", "api-token")
    assert (status, message) == (
        "failed",
        f"worker-01 -> {faulty.closed.endpoint}: its bootstrap token is not accepted (401)",
    )
    # A token was shown to the one that is trusted, and to no other.
    assert any(header.startswith("Bearer ") for header in faulty.closed.asked)
    assert faulty.stranger.asked == faulty.renamed.asked == []
    token = next(header for header in faulty.closed.asked if header).removeprefix("Bearer ")
    assert token not in faulty.checks.text
    assert tokens(faulty.lab) == []


def test_a_link_with_a_smaller_mtu(operator: Operator) -> None:
    lab = operator.lab
    sh(lab, "worker-01", "ip link set host0 mtu 1400")
    try:
        with operator.changed(three_nodes) as three:
            checks = check(three)
    finally:
        sh(lab, "worker-01", "ip link set host0 mtu 1500")
    (lost, own) = checks.of("worker-01", "path-mtu")
    # A veth takes four bytes more than its MTU, for a VLAN's tag (is_skb_forwardable, net/core/dev.c).
    assert re.match(r"k8s-01, k8s-02 -> worker-01: packets above 140[04] bytes are lost", lost.message)
    assert own.status == "warning"
    assert own.message == "worker-01 -> all 2 others: packets above 1400 bytes do not fit its own interface"


@contextmanager
def detour(lab: LabState, name: str, target: str, router: str, mtu: int) -> Iterator[None]:
    """From one machine to another by a third one, which says what it does not let through (RFC 1191)."""
    to, via = address(lab, target), address(lab, router)
    redirects = "/proc/sys/net/ipv4/conf/all/send_redirects /proc/sys/net/ipv4/conf/host0/send_redirects"
    sh(lab, router, f"for f in {redirects}; do echo 0 > $f; done; ip route add {to}/32 dev host0 mtu lock {mtu}")
    sh(lab, name, f"ip route add {to}/32 via {via}")
    try:
        yield
    finally:
        sh(lab, name, f"ip route delete {to}/32 via {via}")
        sh(lab, router, f"ip route delete {to}/32 dev host0; for f in {redirects}; do echo 1 > $f; done")


def test_a_router_that_says_what_it_does_not_let_through(operator: Operator) -> None:
    with operator.changed(three_nodes) as three, detour(operator.lab, "worker-01", "k8s-01", "k8s-02", 1400):
        checks = check(three)
    router = address(operator.lab, "k8s-02")
    assert checks.of("k8s-01", "path-mtu", "same-segment") == [
        (
            "path-mtu",
            "warning",
            "worker-01 -> k8s-01: packets above 1400 bytes pass in fragments only, as a router says",
        ),
        ("same-segment", "failed", f"worker-01 -> k8s-01: reached through the router {router}"),
    ]
    assert checks.cell("worker-01", "k8s-01") == "mtu routed"
    assert checks.cell("k8s-01", "worker-01") == "ok"


def test_one_unreachable_node_and_one_without_tools_leave_the_others_tested(operator: Operator) -> None:
    lab = operator.lab

    def change(document: dict[str, Any]) -> None:
        three_nodes(document)
        document["nodes"][1]["ssh"] = {"port": 1}

    with operator.changed(change) as changed, away(lab, "worker-01", "/usr/bin/perl", "/usr/bin/curl"):
        checks = check(changed)
    states = {node["name"]: node["status"] for node in checks.document["nodes"]}
    assert states["k8s-02"] == "unreachable"
    assert [row.status for row in checks.of("k8s-01", "api")] == ["ok"]
    ((_, status, message),) = checks.of("worker-01", "reach")
    assert (status, message) == ("unknown", "whether the other nodes are reached was not tried: it has no perl")
    assert checks.fix("worker-01", "reach") == "apt-get install perl-base"
    ((_, status, message),) = checks.of("worker-01", "api")
    assert (status, message[:36]) == ("unknown", "not asked: the node has no curl (10.")


@contextmanager
def half_way(operator: Operator) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run that waits for an answer that does not come, with its probes and its token; and the traces before it."""
    lab = operator.lab
    with operator.changed(three_nodes) as three, ExitStack() as stack:
        stack.enter_context(away(lab, "worker-01", CERTIFICATE))
        stack.enter_context(rules(lab, "k8s-01", "tcp dport 10250 drop"))
        # The API server that its curl asks second holds the token's use until the limit.
        stack.enter_context(rules(lab, "worker-01", "tcp dport 6443 drop", hook="output"))
        before = traces(lab, "worker-01")
        running = three.start("preflight")
        try:
            until(lambda: len(probes(lab)) == len(NODES) and bool(tokens(lab)), "it is half-way")
            yield running, before
        finally:
            running.kill()
            running.wait()


def test_ctrl_c_takes_everything_back(operator: Operator) -> None:
    lab = operator.lab
    with half_way(operator) as (running, before):
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=20) == 130
        assert tokens(lab) == []
        until(lambda: probes(lab) == [], "no probe runs", seconds=5)
        assert traces(lab, "worker-01") == before


def test_probes_end_when_the_control_host_dies_and_the_token_has_minutes(operator: Operator) -> None:
    lab = operator.lab
    with half_way(operator) as (running, before):
        running.kill()
        running.wait()
        until(lambda: probes(lab) == [], "no probe runs", seconds=5)
        assert traces(lab, "worker-01") == before
    left = tokens(lab)
    assert "worker-01" in {token.node for token in left}
    assert all((token.expires - datetime.now(UTC)).total_seconds() <= 600 for token in left)
    kubectl(lab, "delete", "secret", "-n", "kube-system", *(token.secret_name for token in left))
