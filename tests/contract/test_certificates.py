"""Bootstrap tokens and certificate requests as an operator meets them: the command against a real control plane."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.contract.control_plane import (
    SIGNS_CLIENTS,
    ControlPlane,
    Processes,
    free_port,
    start_apiserver,
    start_control_plane,
    write_kubeconfig,
)
from tests.contract.kubelets import (
    admin,
    approving,
    as_node,
    as_token,
    client_request,
    cluster_of,
    issued,
    node_document,
    planned,
    serving_request,
    sweep,
    until,
    write_cluster,
)

from kubeworker.core.certificates.issuing import SIGNING_SECONDS
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.spec import NodeSpec
from kubeworker.flow.events import Event, Warning_
from kubeworker.flow.join import apply_cluster
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(120)

COMMAND = Path(sys.executable).with_name("kubeworker")
W1 = NodeSpec(name="node-01.example.com", address="10.1.2.1")
W2 = NodeSpec(name="node-02.example.com", address="10.1.2.2")
SECRET = "0123456789abcdef"


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's connection; what tests made in the cluster is gone after each."""
    async with admin(control_plane) as connected:
        yield connected
        await sweep(connected)


@pytest.fixture
def file(control_plane: ControlPlane, tmp_path: Path) -> Path:
    return write_cluster(control_plane, tmp_path, W1, W2)


def kubeworker(*words: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr, "a token's secret was shown"
    return done


# ---------------------------------------------------------------------------------------------------------------
# Tokens


def token(node: str, id_: str, minutes: float) -> BootstrapToken:
    return BootstrapToken(id=id_, secret=SECRET, node=node, expires=datetime.now(UTC) + timedelta(minutes=minutes))


async def make_tokens(kube: Kube) -> None:
    """Two of this tool, one of which its node needs no more, an expired one, and one that somebody made by hand."""
    for each in (token(W1.name, "aaaaaa", 15), token(W2.name, "bbbbbb", 15), token(W2.name, "cccccc", -1)):
        await kube.create(bootstrap_token.document(each))
    foreign = bootstrap_token.document(token("", "kub3ad", 15))
    foreign["metadata"] = {key: foreign["metadata"][key] for key in ("name", "namespace")}
    # What `kubectl apply` leaves: the whole Secret once more, in an annotation.
    foreign["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(foreign)}
    await kube.create(foreign)
    await kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": "kube-system"}})
    await kube.create(node_document(W1.name, W1.address))


async def ids(kube: Kube) -> set[str]:
    return {each.id for each in await kube.token_views()}


async def test_tokens_are_listed_with_node_time_and_state_and_without_their_secret(kube: Kube, file: Path) -> None:
    # The control plane's tokencleaner may take the expired one away at any moment: it counts only while it is there.
    await make_tokens(kube)
    done = kubeworker("token", "list", "-f", file, "--json")
    assert done.returncode == 0, done.stderr
    listed = {each["id"]: each for each in json.loads(done.stdout)["tokens"]}
    assert {"aaaaaa", "bbbbbb", "kub3ad"} <= listed.keys() <= {"aaaaaa", "bbbbbb", "cccccc", "kub3ad"}
    states = {"aaaaaa": "joined", "bbbbbb": "valid", "cccccc": "expired", "kub3ad": "valid"}
    assert {name: each["state"] for name, each in listed.items()} == {name: states[name] for name in listed}
    assert (listed["bbbbbb"]["node"], listed["bbbbbb"]["made_by"], listed["bbbbbb"]["ours"]) == (
        W2.name,
        "kubeworker",
        True,
    )
    assert (listed["kub3ad"]["node"], listed["kub3ad"]["ours"]) == ("", False)
    assert 14 * 60 < listed["bbbbbb"]["ttl_seconds"] <= 15 * 60

    shown = kubeworker("token", "list", "-f", file)
    assert f"aaaaaa  {W1.name}  14 min" in shown.stdout
    assert "valid, though its node has joined" in shown.stdout
    await kube.delete("Secret", "other", namespace="kube-system")


async def test_tokens_are_revoked_by_id_and_by_node_and_others_are_asked_about(kube: Kube, file: Path) -> None:
    await make_tokens(kube)

    refused = kubeworker("token", "revoke", "-f", file, "kub3ad", W1.name)
    assert refused.returncode == 3
    assert "not made by this tool: kub3ad" in refused.stderr
    assert {"aaaaaa", "bbbbbb", "kub3ad"} <= await ids(kube), "nothing goes before all is agreed to"

    wrong = kubeworker("token", "revoke", "-f", file, "kub3da", "--yes")
    assert wrong.returncode == 3
    assert "did you mean kub3ad?" in wrong.stderr
    whole = kubeworker("token", "revoke", "-f", file, f"bbbbbb.{SECRET}")
    assert whole.returncode == 3

    by_node = kubeworker("token", "revoke", "-f", file, W1.name)
    assert by_node.returncode == 0, by_node.stderr
    assert by_node.stdout.startswith(f"revoked aaaaaa ({W1.name})\n")
    assert kubeworker("token", "revoke", "-f", file, W1.name, "aaaaaa").returncode == 0, "it is gone already"

    everything = kubeworker("token", "revoke", "-f", file, "--all", "--json")
    assert {each["id"] for each in json.loads(everything.stdout)["revoked"]} >= {"bbbbbb"}
    assert await ids(kube) == {"kub3ad"}
    agreed = kubeworker("token", "revoke", "-f", file, "kub3ad", "--yes")
    assert agreed.returncode == 0, agreed.stderr
    assert await ids(kube) == set()
    assert await kube.get("Secret", "other", namespace="kube-system"), "only bootstrap tokens are touched"
    await kube.delete("Secret", "other", namespace="kube-system")


# ---------------------------------------------------------------------------------------------------------------
# Requests that get no certificate


@pytest.fixture
def unsigning(binaries: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane whose controller-manager has no key for kubelets' serving certificates."""
    processes = Processes(tmp_path)
    try:
        yield start_control_plane(binaries, tmp_path, processes, signs=SIGNS_CLIENTS)
    finally:
        processes.stop()


async def test_a_signer_without_a_key_is_told_during_a_join_and_by_csr_list(
    unsigning: ControlPlane, tmp_path: Path
) -> None:
    cluster, events = cluster_of(unsigning, W1), list[Event]()
    file = write_cluster(unsigning, tmp_path, W1)
    async with admin(unsigning) as kube:
        plan = await planned(kube, cluster, W1.name)
        await apply_cluster(kube, plan.actions, events.append)
        async with approving(kube, cluster, plan, events) as desk:
            async with await as_token(unsigning, plan.tokens[0]) as kubelet:
                request = await kubelet.create(client_request(W1.name))
                await until(lambda: issued(kubelet, request["metadata"]["name"]))
            async with await as_node(unsigning, W1.name) as kubelet:
                await kubelet.create(node_document(W1.name, W1.address))
                request = await kubelet.create(serving_request(W1.name, W1.address))
            name = request["metadata"]["name"]

            async def told() -> bool:
                return W1.name in desk.troubles

            await until(told, seconds=SIGNING_SECONDS + 10)
            trouble = desk.troubles[W1.name]
        await kube.create(serving_request(W1.name, W1.address))

    assert trouble.final
    assert trouble.text.startswith(f"{name}: signer.unissued: approved ")
    assert " leads" in trouble.text
    (warning,) = [each for each in events if isinstance(each, Warning_)]
    assert warning.subject == W1.name
    assert "--cluster-signing-kubelet-serving-cert-file" in warning.text

    listed = kubeworker("csr", "list", "-f", file, "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {each["name"]: each for each in json.loads(listed.stdout)["requests"]}
    stuck = rows.pop(name)
    assert (stuck["state"], stuck["rule"], stuck["node"]) == ("Approved", "signer.unissued", W1.name)
    assert "--cluster-signing-cert-file and --cluster-signing-key-file" in stuck["hint"]
    assert {each["rule"] for each in rows.values()} == {"", "serving.requester"}
    (client,) = [each for each in rows.values() if each["state"] == "Approved,Issued"]
    assert client["requester"].startswith("system:bootstrap:")
    shown = kubeworker("csr", "list", "-f", file).stdout
    assert "signer.unissued: approved" in shown
    assert shown.count("hint: start every kube-controller-manager") == 1


async def test_denied_and_failed_requests_say_why(
    control_plane: ControlPlane, kube: Kube, file: Path, binaries: Path
) -> None:
    for node in (W1, W2):
        await kube.create(node_document(node.name, node.address))
    denied = await kube.create(serving_request(W1.name, W1.address))
    # Approved against the rules: the signer refuses usages that no kubelet asks for.
    failed = await kube.create(serving_request(W2.name, W2.address, usages=("digital signature", "client auth")))
    for document, verdict in ((denied, "deny"), (failed, "approve")):
        words = [f"--kubeconfig={control_plane.kubeconfig}", "certificate", verdict, document["metadata"]["name"]]
        subprocess.run([binaries / "kubectl", *words], check=True, capture_output=True)

    async def rules() -> dict[str, dict[str, Any]] | None:
        listed = json.loads(kubeworker("csr", "list", "-f", file, "--json").stdout)["requests"]
        rows = {each["name"]: each for each in listed}
        return rows if rows[failed["metadata"]["name"]]["rule"] else None

    rows = await until(rules)
    assert rows[denied["metadata"]["name"]]["rule"] == "denied"
    assert "KubectlDeny" in rows[denied["metadata"]["name"]]["detail"]
    row = rows[failed["metadata"]["name"]]
    assert (row["state"], row["rule"]) == ("Approved,Failed", "signer.failed")
    assert "SignerValidationFailure" in row["detail"]


async def test_a_request_that_may_not_be_approved_does_not_hold_up_the_others(
    control_plane: ControlPlane, kube: Kube, tmp_path: Path
) -> None:
    """A user who may do all but approve for kubelets' signers: the API server looks at that per signer."""
    group: dict[str, Any] = {"apiGroup": "rbac.authorization.k8s.io"}
    rules = [
        {"apiGroups": ["", "coordination.k8s.io"], "resources": ["*"], "verbs": ["*"]},
        {
            "apiGroups": ["certificates.k8s.io"],
            "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"],
            "verbs": ["*"],
        },
    ]
    role: dict[str, Any] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "all-but"},
    }
    await kube.create({**role, "rules": rules})
    binding = {
        **role,
        "kind": "ClusterRoleBinding",
        "roleRef": {**group, "kind": "ClusterRole", "name": "all-but"},
        "subjects": [{**group, "kind": "User", "name": "all-but"}],
    }
    await kube.create(binding)
    file = write_cluster(
        control_plane, tmp_path, W1, W2, kubeconfig=control_plane.kubeconfig_for("all-but", common_name="all-but")
    )
    try:
        for node in (W1, W2):
            await kube.create(node_document(node.name, node.address))
            await ask(control_plane, node)
        done = kubeworker("csr", "approve", "--no-compare", "-f", file, "--json")
        assert done.returncode == 1, done.stderr
        pending = json.loads(done.stdout)["pending"]
        assert {(each["node"], each["rule"]) for each in pending} == {
            (node.name, "approval.refused") for node in (W1, W2)
        }
        assert all("approve" in each["detail"] and "403" in each["detail"] for each in pending)
    finally:
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            await kube.delete(kind, "all-but")


# ---------------------------------------------------------------------------------------------------------------
# csr approve --watch


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """A running `csr approve --watch`, and what it has said."""

    process: subprocess.Popen[bytes]
    log: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [each for each in lines if each["event"] == kind]

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"{what}:\n{self.log.read_text()}"
            time.sleep(0.1)

    def approved(self) -> set[str]:
        return {each["name"] for each in self.events("csr-decision") if each["decision"] == "approved"}

    def rules(self) -> set[str]:
        return {each["rule"] for each in self.events("csr-decision")}

    def says(self, kind: str, words: str) -> bool:
        return any(words in each["text"] for each in self.events(kind))


@contextmanager
def watching(file: Path, *flags: str) -> Iterator[Watcher]:
    log = file.with_name("watch.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "csr", "approve", "--watch", "--no-compare", "--json-events", *flags, "-f", file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    watcher = Watcher(process=process, log=log)
    try:
        watcher.until(lambda: watcher.says("note", "looking at requests"), "it did not start")
        yield watcher
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0, "being stopped is no failure"


def health_status(port: int, path: str, *, method: str = "GET") -> int | None:
    """What the watch's health port answers; None where it does not within 2 s."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request(method, path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


async def ask(plane: ControlPlane, node: NodeSpec, **over: Any) -> str:
    async with await as_node(plane, node.name) as kubelet:
        made = await kubelet.create(serving_request(node.name, node.address, **over))
    return str(made["metadata"]["name"])


async def robot_kubeconfig(kube: Kube, plane: ControlPlane, path: Path, server: str) -> None:
    """Of a ServiceAccount that may do anything, until it is deleted."""
    metadata = {"name": "approver", "namespace": "kube-system"}
    await kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "approver"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", **metadata}],
    }
    await kube.create(binding)
    token = await kube.token_request("approver", namespace="kube-system")
    write_kubeconfig(path, server, plane.authority.cert_pem, {"token": token})


async def test_the_watch_outlives_an_api_outage_revoked_credentials_and_an_edit_of_cluster_yaml(
    control_plane: ControlPlane, kube: Kube, binaries: Path, tmp_path: Path
) -> None:
    processes = Processes(control_plane.directory)
    endpoint, server = start_apiserver(binaries, control_plane.directory, processes, control_plane.etcd_url)
    kubeconfig = tmp_path / "kubeconfig"
    await robot_kubeconfig(kube, control_plane, kubeconfig, f"https://{endpoint}")
    file = write_cluster(replace(control_plane, endpoint=endpoint), tmp_path, W1, kubeconfig=kubeconfig)
    try:
        for node in (W1, W2):
            await kube.create(node_document(node.name, node.address))
        health = free_port()
        with watching(file, f"--health-port={health}") as watcher:
            first = await ask(control_plane, W1)
            watcher.until(lambda: first in watcher.approved(), "approved while all is well")

            server.kill()
            server.wait()
            watcher.until(lambda: watcher.says("warning", "no kube-apiserver answers"), "the outage is told")
            # A kubelet sees that it does not work now, and has no reason to end it.
            watcher.until(lambda: health_status(health, "/readyz") == 503, "it is not ready")
            assert health_status(health, "/healthz") == 200
            second = await ask(control_plane, W1)
            port = int(endpoint.rpartition(":")[2])
            start_apiserver(binaries, control_plane.directory, processes, control_plane.etcd_url, port=port)
            watcher.until(lambda: second in watcher.approved(), "approved after the outage")
            assert watcher.says("note", "answers again")

            await kube.delete("ServiceAccount", "approver", namespace="kube-system")
            watcher.until(lambda: watcher.says("warning", "401"), "refused credentials are told")
            third = await ask(control_plane, W2)
            cert, key = control_plane.authority.client("admin", ("system:masters",))
            user = {
                "client-certificate-data": base64.b64encode(cert).decode(),
                "client-key-data": base64.b64encode(key).decode(),
            }
            write_kubeconfig(kubeconfig, f"https://{endpoint}", control_plane.authority.cert_pem, user)
            watcher.until(lambda: "serving.node" in watcher.rules(), "a node that cluster.yaml lacks is left and told")

            good = file.read_text()
            file.write_text("nodes: [")
            watcher.until(lambda: watcher.says("warning", "the former one stays"), "a broken file is told")
            document = yaml.safe_load(good)
            document["nodes"].append({"name": W2.name, "address": W2.address})
            file.write_text(yaml.safe_dump(document))
            watcher.until(lambda: third in watcher.approved(), "approved once cluster.yaml names the node")
    finally:
        processes.stop()
        await kube.delete("ClusterRoleBinding", "approver")
        await kube.delete("ServiceAccount", "approver", namespace="kube-system")
