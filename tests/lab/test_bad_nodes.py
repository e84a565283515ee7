"""What goes wrong on real machines: one clear error with a way out, the node as it was, and the others done."""

from __future__ import annotations

import contextlib
import platform
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.lab import operate
from tests.lab.operate import Change, Operator, kubectl, restarted, sh, starts, until

from kubeworker import lab as labs
from kubeworker.core.model import Blob
from kubeworker.core.node.probe import store_path
from kubeworker.io.blob_store import BlobStore
from kubeworker.lab import LabState, pki

pytestmark = pytest.mark.timeout(180)

NODES = ("k8s-01", "k8s-02", "worker-01")
CONFIG = "/etc/kubernetes/kubelet-config.yaml"


@pytest.fixture
def operator(deployed: LabState) -> Iterator[Operator]:
    """Finds the nodes as described, and leaves them so."""
    someone = Operator(lab=deployed, file=deployed.cluster_yaml)
    yield someone
    someone.apply()


def merged(path: str, value: Any) -> Change:
    """Set one field of cluster.yaml, dotted."""

    def change(document: dict[str, Any]) -> None:
        *above, last = path.split("/")
        place = document
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value

    return change


def pods_on(lab: LabState, name: str) -> str:
    return kubectl(lab, "get", "node", name, "-o=jsonpath={.status.capacity.pods}")


def ghost(lab: LabState) -> Change:
    """One more node, at an address where nobody is; and a change that the others can be seen to get."""

    def change(document: dict[str, Any]) -> None:
        document["nodes"].append({"name": "ghost", "address": lab.gateway.rpartition(".")[0] + ".250"})
        document["ssh"]["connect_timeout"] = 3
        document["components"]["kubelet"]["max_pods"] = 115

    return change


# ---------------------------------------------------------------------------------------------------------------
# Configuration that must never go live

REFUSED = {
    # setting -> its value, the checker, and what the error must say
    "kubelet/config/maxPodz": (5, "kubelet: kubelet --config", 'unknown field \\"maxPodz\\"'),
    "kubelet/config/maxPods": ("many", "kubelet: kubelet --config", "KubeletConfiguration.maxPods of type int32"),
    "containerd/config/oom_scores": (5, "containerd: containerd config dump", "oom_scores"),
    "containerd/config/oom_score": ("low", "containerd: containerd config dump", "config.Config.OOMScore of type int"),
    "kube_proxy/config/modus": ("fast", "kube_proxy: kube-proxy --write-config-to", 'unknown field \\"modus\\"'),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_config_that_its_checker_refuses_is_never_swapped_in(operator: Operator, setting: str) -> None:
    lab = operator.lab
    value, checker, said = REFUSED[setting]
    before = operate.contents(lab, "worker-01"), starts(lab, "worker-01")
    with operator.changed(merged(f"components/{setting}", value)) as changed:
        printed = changed.apply("--node", "worker-01", code=1)
    error = printed[printed.index("\nworker-01: ") :]
    place = f"components.{setting.partition('/')[0]}.config is merged over this file"
    assert f"worker-01: {checker} refuses the new configuration ({place})" in error
    assert said in error
    assert "kubeworker-new" not in error
    assert len(error.splitlines()) < 12
    assert "what was there before is back" in error
    assert (operate.contents(lab, "worker-01"), starts(lab, "worker-01")) == before
    assert operate.leftovers(lab, "worker-01") == ""


def test_a_config_that_starts_but_is_not_healthy_gives_way_to_the_former_one(operator: Operator) -> None:
    lab = operator.lab
    before, started = operate.contents(lab, "worker-01"), starts(lab, "worker-01")
    # kubelet reads quantities only after its own validation, and ends.
    setting = merged("components/kubelet/config/evictionHard", {"memory.available": "lots"})
    with operator.changed(setting) as changed:
        printed = changed.apply("--node", "worker-01", code=1)
        assert "worker-01: kubelet: kubelet.service ended by itself 3 times after its start" in printed
        assert "quantities must match the regular expression" in printed
        assert "what was there before is back" in printed
        assert changed.run("plan", "--node", "worker-01").returncode == 2
    assert operate.contents(lab, "worker-01") == before
    assert operate.leftovers(lab, "worker-01") == ""
    assert restarted(started, starts(lab, "worker-01")) == {"kubelet"}
    until(lambda: sh(lab, "worker-01", "curl -s http://127.0.0.1:10248/healthz || :") == "ok", "kubelet is healthy")
    assert operator.plan("--node", "worker-01")["changes"] == 0


# ---------------------------------------------------------------------------------------------------------------
# One node's trouble stays its own


@contextlib.contextmanager
def directory_in_the_way(lab: LabState, name: str) -> Iterator[str]:
    """Somebody's directory where a managed file belongs: the tool does not remove it."""
    path = "/etc/crictl.yaml"
    sh(lab, name, f"rm {path}; mkdir {path}; touch {path}/mine")
    try:
        yield path
    finally:
        sh(lab, name, f"rm -r {path}")


@pytest.mark.parametrize(
    ("arguments", "done", "statuses"),
    [
        ((), {"k8s-02", "worker-01"}, "failed ok ok"),
        (("--serial", "1"), set(), "failed skipped skipped"),
        (("--serial", "1", "--max-failures", "1"), {"k8s-02", "worker-01"}, "failed ok ok"),
    ],
)
def test_a_failing_node_stops_later_batches_as_far_as_allowed(
    operator: Operator, arguments: tuple[str, ...], done: set[str], statuses: str
) -> None:
    lab = operator.lab
    with (
        directory_in_the_way(lab, "k8s-01") as path,
        operator.changed(merged("components/kubelet/max_pods", 116)) as changed,
    ):
        printed = changed.apply(*arguments, code=1)
    assert f"k8s-01: containerd: {path} is a directory" in printed
    table = printed[printed.index("NODE ") :].splitlines()[1:4]
    assert " ".join(row.split()[1] for row in table) == statuses
    assert {name for name in NODES if "maxPods: 116" in sh(lab, name, f"cat {CONFIG}")} == done
    if not done:
        assert "not started: 1 node failed, and --max-failures is 0" in printed


def test_a_node_that_is_down_is_named_and_the_others_are_done(operator: Operator) -> None:
    lab = operator.lab
    with operator.changed(ghost(lab)) as changed:
        planned = changed.run("plan")
        assert planned.returncode == 4
        assert "ghost: unreachable" in planned.stdout
        printed = changed.apply(code=4)
    assert "250 does not answer within 3 s" in printed or "No route to host" in printed
    assert "hint: " in printed
    assert "not done: ghost" in printed
    assert [pods_on(lab, name) for name in NODES] == ["115"] * 3


def test_a_machine_without_sshd_is_named_and_left_alone(operator: Operator) -> None:
    lab = operator.lab
    sh(lab, "worker-01", "systemctl stop ssh.socket ssh 2> /dev/null; systemctl stop ssh")
    try:
        printed = operator.apply(code=4)
    finally:
        sh(lab, "worker-01", "systemctl start ssh")
    assert "worker-01: unreachable" in printed
    assert "refuses connections" in printed
    assert "is sshd running, and on this port?" in printed


def test_a_key_that_nodes_do_not_know_is_refused_by_name(operator: Operator, tmp_path: Path) -> None:
    private, _ = pki.ssh_key("stranger")
    key = tmp_path / "id"
    key.write_bytes(private)
    key.chmod(0o600)
    with operator.changed(merged("ssh/identity", str(key))) as changed:
        printed = changed.apply("--node", "worker-01", code=4)
    address = operator.lab.machine("worker-01").address
    assert f"{address} refuses the key for user root" in printed
    assert "ssh.identity" in printed


def test_another_host_key_is_refused_and_a_new_one_is_pinned_only_when_asked(operator: Operator) -> None:
    lab = operator.lab
    mine = lab.machine("worker-01").address
    lines = lab.known_hosts.read_text().splitlines()
    (own,) = [line for line in lines if line.startswith(f"{mine} ")]
    others = [line for line in lines if line != own]
    _, public = pki.ssh_key("")
    pinned = lab.folder / "known_hosts.test"
    with operator.changed(merged("ssh/known_hosts", str(pinned))) as changed:
        pinned.write_text("\n".join([*others, f"{mine} {public.strip()}", ""]))
        for arguments in ((), ("--accept-new-host-keys",)):
            printed = changed.apply(*arguments, code=4)
            assert f"{mine} shows another host key" in printed
            assert f"ssh-keygen -f {pinned} -R '{mine}'" in printed

        pinned.write_text("\n".join([*others, ""]))
        printed = changed.apply(code=4)
        assert f"the host key of {mine}" in printed
        assert "--accept-new-host-keys" in printed
        assert mine not in pinned.read_text()

        changed.apply("--accept-new-host-keys")
        assert own.split()[:3] in [line.split()[:3] for line in pinned.read_text().splitlines()]
        changed.apply()
    pinned.unlink()


# ---------------------------------------------------------------------------------------------------------------
# Nodes that lack something


def test_a_full_disk_is_one_error_and_the_node_is_as_it_was(operator: Operator) -> None:
    lab = operator.lab
    store = store_path("/opt/k8s/bin", "").rpartition("/")[0]
    sh(lab, "worker-01", f"rm /opt/k8s/bin/ctr; mount -t tmpfs -o size=2m tmpfs {store}")
    before = operate.contents(lab, "worker-01"), starts(lab, "worker-01")
    try:
        printed = operator.apply("--node", "worker-01", code=1)
        assert (operate.contents(lab, "worker-01"), starts(lab, "worker-01")) == before
        assert sh(lab, "worker-01", f"find {store} -type f") == ""
    finally:
        sh(lab, "worker-01", f"umount {store}")
    assert "space" in printed
    assert store in printed
    assert "hint: " in printed


def test_a_port_that_somebody_else_holds_is_named_with_its_process(operator: Operator) -> None:
    lab = operator.lab
    sh(lab, "worker-01", "systemd-run -q --collect --unit=squatter socat TCP-LISTEN:10299,fork,reuseaddr EXEC:/bin/cat")
    until(lambda: "10299" in sh(lab, "worker-01", "ss -Hltn"), "socat listens")
    before = operate.contents(lab, "worker-01"), starts(lab, "worker-01")
    try:
        with operator.changed(merged("components/kubelet/config/healthzPort", 10299)) as changed:
            printed = changed.apply("--node", "worker-01", code=1)
    finally:
        sh(lab, "worker-01", "systemctl stop squatter")
    assert "10299" in printed
    assert "socat" in printed
    assert "squatter.service" in printed
    assert (operate.contents(lab, "worker-01"), starts(lab, "worker-01")) == before


def test_with_no_apiserver_up_the_node_is_changed_all_the_same(operator: Operator) -> None:
    lab = operator.lab
    for machine in lab.control_plane:
        sh(lab, machine.name, "systemctl stop kube-apiserver")
    try:
        with operator.changed(merged("components/kubelet/max_pods", 117)) as changed:
            printed = changed.apply("--node", "worker-01")
    finally:
        for machine in lab.control_plane:
            sh(lab, machine.name, "systemctl start --no-block kube-apiserver")
    assert "no kube-apiserver answers" in printed
    assert "maxPods: 117" in sh(lab, "worker-01", f"cat {CONFIG}")
    ready = lambda: all(labs.apiserver_ready(lab, machine) for machine in lab.control_plane)  # noqa: E731
    until(ready, "the API is back", seconds=60)
    # nginx would leave both alone for the rest of its fail_timeout.
    sh(lab, "worker-01", "systemctl reload kube-nginx")


# ---------------------------------------------------------------------------------------------------------------
# Artifacts that are not what they should be


def place_artifacts(lab: LabState, folder: Path) -> None:
    """What the nodes have, as files by the artifacts' names: a visible artifact has a second name in its store."""
    folders = "/opt/k8s/bin /opt/cni/bin /opt/k8s/kube-nginx/sbin"
    found = sh(lab, "k8s-01", f"find {folders} -type f -links +1 -exec sha256sum {{}} +")
    for line in found.splitlines():
        digest, path = line.split()
        size = int(sh(lab, "k8s-01", f"stat -c %s {path}"))
        (folder / Path(path).name).symlink_to(BlobStore.default().path(Blob(sha256=digest, size=size)))


@pytest.mark.parametrize(
    ("program", "machine", "said"),
    [
        # EM_AARCH64 and EM_X86_64 (elf(5), e_machine), whichever this machine is not.
        ("crictl", b"\xb7\x00" if platform.machine() == "x86_64" else b"\x3e\x00", "crictl is for"),
        ("runc", None, "crictl reports 1.3.0; 1.34.0 is asked for"),
    ],
)
def test_an_artifact_of_the_wrong_kind_reaches_no_node(
    operator: Operator, tmp_path: Path, program: str, machine: bytes | None, said: str
) -> None:
    lab = operator.lab
    place_artifacts(lab, tmp_path)
    content = bytearray((tmp_path / program).read_bytes())
    if machine is not None:
        content[18:20] = machine
    (tmp_path / "crictl").unlink()
    (tmp_path / "crictl").write_bytes(content)
    (tmp_path / "crictl").chmod(0o755)
    before = operate.contents(lab, "worker-01")

    def change(document: dict[str, Any]) -> None:
        document["artifacts"] |= {"sources": ["local"], "local": str(tmp_path)}

    with operator.changed(change) as changed:
        printed = changed.apply(code=1)
    assert said in printed
    assert str(tmp_path / "crictl") in printed
    assert printed.count("error: ") == 1
    assert "hint: " in printed
    assert operate.contents(lab, "worker-01") == before


# ---------------------------------------------------------------------------------------------------------------
# API servers whose certificate is not for 127.0.0.1


@contextlib.contextmanager
def tls_server(lab: LabState, names: tuple[str, ...], folder: Path) -> Iterator[int]:
    """On the lab's bridge, something with a certificate of the cluster's CA for these names that closes after the
    handshake; its port."""
    authority = pki.Pair(cert=lab.ca.read_bytes(), key=lab.ca_key.read_bytes())
    subject = pki.Subject(common_name="kube-apiserver", names=names, server=True)
    pair = pki.issue(authority, subject, datetime.now(UTC))
    (folder / "cert.pem").write_bytes(pair.cert)
    (folder / "key.pem").write_bytes(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    listener = socket.create_server((lab.gateway, 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_an_apiserver_certificate_that_is_not_for_the_proxy_stops_before_any_kubeconfig(
    operator: Operator, tmp_path: Path
) -> None:
    lab = operator.lab
    kubeconfigs = "/etc/kubernetes/kube-proxy.kubeconfig /etc/kubernetes/kubelet.kubeconfig"
    with tls_server(lab, (lab.gateway,), tmp_path) as port:
        sh(lab, "worker-01", f"rm {kubeconfigs}")
        servers = merged("cluster/apiservers", [f"{lab.gateway}:{port}"])
        with operator.changed(servers) as changed:
            printed = changed.apply("--node", "worker-01", code=1)
        assert sh(lab, "worker-01", f"ls {kubeconfigs} 2> /dev/null || :") == ""
    assert "worker-01: 127.0.0.1:8443" in printed
    assert "subject alternative names" in printed
