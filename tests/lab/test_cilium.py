"""`cni: cilium` on real machines: from the bridge to Cilium, each check of verify broken, kube-proxy away and back.

The tests are one story on one lab, in this order.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab.operate import Change, Operator, kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(400)

FIRST, SECOND = "k8s-01", "k8s-02"
BUSYBOX = "docker.io/library/busybox:lab"
MADE = ("--all-namespaces", "--selector=app.kubernetes.io/managed-by=kubeworker-verify", "--output=name")
MADE_KINDS = "pods,services,serviceaccounts,clusterrolebindings,ciliumnetworkpolicies"


@pytest.fixture(scope="module")
def lab(_no_leftover_labs: None) -> Iterator[LabState]:
    """Two machines with a control plane, fit for Cilium; KUBEWORKER_TEST_LAB names one that is kept."""
    if kept := os.environ.get("KUBEWORKER_TEST_LAB"):
        yield labs.find(kept)
        return
    name = f"test-{os.getpid()}-cilium"
    try:
        yield labs.up(name, workers=0, cni="cilium")
    finally:
        labs.down(name)


@pytest.fixture
def operator(lab: LabState) -> Operator:
    return Operator(lab=lab, file=lab.cluster_yaml)


def apply(operator: Operator, *arguments: str) -> str:
    done = operator.run("apply", "--yes", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def verdicts(operator: Operator, *arguments: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(node, check) -> (status, detail)."""
    document = json.loads(operator.run("verify", "--json", *arguments).stdout)
    return {
        (node["name"], check["id"]): (check["status"], check["detail"])
        for node in document["nodes"]
        for check in node["checks"]
    }


def failing(operator: Operator, *arguments: str) -> dict[tuple[str, str], str]:
    return {key: detail for key, (status, detail) in verdicts(operator, *arguments).items() if status != "passed"}


def with_cilium(**settings: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["components"]["cilium"] |= settings

    return change


def agent(operator: Operator, node: str, *command: str) -> str:
    """What a command in the node's agent prints."""
    pod = kubectl(
        operator.lab,
        *("--namespace=kube-system", "get", "pods", "--selector=k8s-app=cilium"),
        *(f"--field-selector=spec.nodeName={node}", "--output=jsonpath={.items[0].metadata.name}"),
    )
    return kubectl(operator.lab, "--namespace=kube-system", "exec", pod, "--container=cilium-agent", "--", *command)


def pod(name: str, node: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "3600"]}],
            },
        }
    )


# ---------------------------------------------------------------------------------------------------------------
# From the bridge to Cilium


TRACES = """
ip link add flannel.1 type bridge
printf '{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "loopback"}]}' > /etc/cni/net.d/90-other.conflist
"""


def on_the_bridge(document: dict[str, Any]) -> None:
    document["cni"] = "bridge"


def test_nodes_on_the_bridge_are_moved_to_cilium_and_a_second_run_does_nothing(operator: Operator) -> None:
    lab = operator.lab
    with operator.changed(on_the_bridge) as before:
        apply(before)
    kubectl(lab, "create", "--filename=-", stdin=pod("old", FIRST))
    kubectl(lab, "wait", "--for=condition=Ready", "pod/old", "--timeout=30s")
    sh(lab, FIRST, TRACES)
    stranger = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "stranger"}}
    kubectl(lab, "create", "--filename=-", stdin=json.dumps(stranger))

    document = operator.plan()
    told = "\n".join(document["warnings"] + document["nodes"][0]["warnings"])
    assert "stranger: in the cluster but not in cluster.yaml" in told
    assert "configuration in /etc/cni/net.d: 90-other.conflist" in told
    assert "interfaces: flannel.1" in told
    assert "1 pods are on the bridge" in told
    assert (
        "kubeworker-routes.service: removed once Cilium's agent on the node is Ready"
        in document["nodes"][0]["deferred"]
    )
    objects = {each["subject"]: each for each in document["cluster"]["actions"]}
    assert "sha256 " in objects["Secret kube-system/hubble-server-certs"]["diff"]
    assert "LS0tLS1" not in json.dumps(document)  # base64 of -----BEGIN
    assert objects["cilium hubble-server"]["kind"] == "issue-certificate"
    kubectl(lab, "delete", "node", "stranger")

    printed = apply(operator)
    order = [
        printed.index(f"cluster: apply-object {what}") for what in ("Namespace cilium-secrets", "DaemonSet kube-sys")
    ]
    assert order == sorted(order)
    assert operator.plan()["changes"] == 0
    for node in (FIRST, SECOND):
        assert sh(lab, node, "ls /sys/class/net | grep -x kw0 || :; ls -d /etc/kubeworker 2> /dev/null || :") == ""
        assert sh(lab, node, "ip route show proto 171; nft list tables | grep kubeworker || :") == ""
        assert sh(lab, node, "systemctl show -P LoadState kubeworker-routes.service") == "not-found"
        assert sh(lab, node, "ls /etc/cni/net.d | grep -v other") == "05-cilium.conflist"
    assert sh(lab, FIRST, "ls /etc/cni/net.d | grep other") == "90-other.conflist.cilium_bak"
    sh(lab, FIRST, "ip link delete flannel.1; rm /etc/cni/net.d/90-other*")


def test_a_pod_of_the_former_plugin_is_named_until_it_is_made_anew(operator: Operator) -> None:
    found = failing(operator, "--check", "cilium.pods")
    assert list(found) == [(FIRST, "cilium.pods")]
    assert "default/old" in found[FIRST, "cilium.pods"]
    kubectl(operator.lab, "delete", "pod", "old")
    assert failing(operator) == {}
    assert kubectl(operator.lab, "get", MADE_KINDS, *MADE) == ""


# ---------------------------------------------------------------------------------------------------------------
# Each check can fail


@contextmanager
def stopped(operator: Operator, node: str) -> Iterator[None]:
    """The agent's process does not go on, as one that hangs."""
    sh(operator.lab, node, "pkill -STOP -x cilium-agent")
    try:
        yield
    finally:
        sh(operator.lab, node, "pkill -CONT -x cilium-agent")


@contextmanager
def without_kube_proxy(operator: Operator, node: str) -> Iterator[None]:
    sh(operator.lab, node, "systemctl stop kube-proxy; nft delete table ip kube-proxy")
    try:
        yield
    finally:
        sh(operator.lab, node, "systemctl start kube-proxy")
        until(lambda: "kube-proxy" in sh(operator.lab, node, "nft list tables"), "kube-proxy's rules")


@contextmanager
def policy_off(operator: Operator, node: str) -> Iterator[None]:
    """The agent does not enforce any policy."""
    agent(operator, node, "cilium-dbg", "config", "PolicyEnforcement=never")
    try:
        yield
    finally:
        agent(operator, node, "cilium-dbg", "config", "PolicyEnforcement=default")


@contextmanager
def all_denied(operator: Operator, _node: str) -> Iterator[None]:
    """A policy of somebody's that lets nobody into any pod."""
    wide = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "deny-all"},
        "spec": {"endpointSelector": {}, "ingressDeny": [{"fromEntities": ["all"]}], "ingress": [{}]},
    }
    kubectl(operator.lab, "create", "--filename=-", stdin=json.dumps(wide))
    try:
        yield
    finally:
        kubectl(operator.lab, "delete", "ciliumclusterwidenetworkpolicy", "deny-all")


Break = Callable[[Operator, str], Any]


@pytest.mark.parametrize(
    ("damage", "must_fail"),
    [
        (stopped, {(FIRST, "cilium.status")}),
        (without_kube_proxy, {(FIRST, "cilium.node_to_service")}),
        # The policy is enforced where the pod is that is asked: on the other node.
        (policy_off, {(SECOND, "cilium.policy")}),
        (
            all_denied,
            {(node, f"cilium.{check}") for node in (FIRST, SECOND) for check in ("pod_to_pod", "pod_to_service")},
        ),
    ],
)
def test_a_check_fails_when_what_it_proves_is_broken(
    operator: Operator, damage: Break, must_fail: set[tuple[str, str]]
) -> None:
    checks = {check for _, check in must_fail}
    asked = [word for check in sorted(checks) for word in ("--check", check)]
    with damage(operator, FIRST):
        found = failing(operator, *asked)
    assert must_fail <= set(found), found
    if damage is not all_denied:
        assert set(found) == must_fail, found


def test_agents_that_are_gone_are_missed_and_the_edit_that_did_it_is_taken_back(operator: Operator) -> None:
    nowhere = {"spec": {"template": {"spec": {"nodeSelector": {"no-such": "node"}}}}}
    kubectl(
        operator.lab,
        *("--namespace=kube-system", "patch", "daemonset", "cilium", "--type=merge", "--patch", json.dumps(nowhere)),
        "--field-manager=kubectl-edit",
    )
    until(
        lambda: (
            not kubectl(
                operator.lab, "--namespace=kube-system", "get", "pods", "--selector=k8s-app=cilium", "--output=name"
            )
        ),
        "no agent",
        seconds=60,
    )
    found = failing(operator, "--check", "cilium.agent", "--check", "cilium.proxy")
    assert found[FIRST, "cilium.agent"] == "no pod of cilium on this node"
    assert set(found) == {(node, f"cilium.{check}") for node in (FIRST, SECOND) for check in ("agent", "proxy")}
    (action,) = operator.plan()["cluster"]["actions"]
    assert action["subject"] == "DaemonSet kube-system/cilium"
    assert "no-such: node" in action["diff"]
    status = operator.run("status", "--json")
    assert status.returncode == 2, status.stderr
    edited = [
        each for each in json.loads(status.stdout)["cluster"] if each["subject"] == "DaemonSet kube-system/cilium"
    ]
    assert [(each["who"], each["by"]) for each in edited] == [("cluster", "kubectl-edit")]
    apply(operator)
    assert operator.plan()["changes"] == 0
    assert failing(operator, "--check", "cilium.agent", "--check", "cilium.proxy") == {}


def test_nothing_of_verify_stays_after_an_interrupt(operator: Operator) -> None:
    with operator.start("verify", "--check", "cilium.policy") as process:
        until(lambda: "/kubeworker-verify" in kubectl(operator.lab, "get", "ciliumnetworkpolicies", *MADE), "a policy")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert kubectl(operator.lab, "get", MADE_KINDS, *MADE) == ""


# ---------------------------------------------------------------------------------------------------------------
# Hubble, and kube-proxy's work


def shown(address: str, folder: Path) -> str:
    """The name that Hubble's server on the node has a certificate for, told to who has one of the same authority."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "hubble-relay.pem", folder / "hubble-relay-key.pem")
    with (
        socket.create_connection((address, 4244), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="any.default.hubble-grpc.cilium.io") as tls,
    ):
        certificate = tls.getpeercert()
        assert certificate is not None
        return str(certificate["subjectAltName"])


def test_hubble_is_served_with_certificates_of_this_tools_own(operator: Operator) -> None:
    folder = operator.file.parent / ".kubeworker/cilium"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert "*.default.hubble-grpc.cilium.io" in shown(operator.lab.machine(FIRST).address, folder)


def test_cilium_takes_over_kube_proxys_work_and_gives_it_back(operator: Operator) -> None:
    lab = operator.lab
    with operator.changed(with_cilium(kube_proxy_replacement=True, hubble=False)) as replacing:
        # Asked for, and not done yet.
        assert "False" in failing(replacing, "--check", "cilium.proxy")[FIRST, "cilium.proxy"]
        document = replacing.plan()
        assert {each["subject"] for each in document["cluster"]["actions"] if each["kind"] == "delete-object"} == {
            "Secret kube-system/hubble-server-certs",
            "Service kube-system/hubble-peer",
        }
        assert any("kube-proxy.service: removed once" in text for text in document["nodes"][0]["deferred"])
        apply(replacing)
        assert replacing.plan()["changes"] == 0
        for node in (FIRST, SECOND):
            assert sh(lab, node, "pgrep -x kube-proxy || :; nft list tables | grep kube-proxy || :") == ""
        assert failing(replacing) == {}
    apply(operator)
    assert operator.plan()["changes"] == 0
    assert failing(operator) == {}
    assert "False" in agent(operator, FIRST, "cilium-dbg", "status")
    assert yaml.safe_load(operator.file.read_text())["cni"] == "cilium"
