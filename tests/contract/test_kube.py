"""The API as this tool uses it, against real kube-apiservers: connecting, objects, tokens, forged requests."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.contract.control_plane import Authority, ControlPlane, Processes, start_apiserver, write_kubeconfig
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

from kubeworker.core.certificates import csr
from kubeworker.core.certificates.csr import KEYS_RECORD
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.cluster.cluster_objects import AUTO_APPROVE, OWNED_RECORD
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound, ApiUnreachable, CredentialsError
from kubeworker.flow.csr import Desk
from kubeworker.flow.events import CsrDecision, Event, Warning_
from kubeworker.flow.join import apply_cluster, approve_while, decide, read_cluster
from kubeworker.io.kube import Kube
from kubeworker.io.pod_exec import pod_exec

pytestmark = pytest.mark.timeout(90)

COMMAND = Path(sys.executable).with_name("kubeworker")
W1 = NodeSpec(name="kube-01.example.com", address="10.1.1.1")
W2 = NodeSpec(name="kube-02.example.com", address="10.1.1.2")


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's connection; what tests made in the cluster is gone after each."""
    async with admin(control_plane) as connected:
        yield connected
        await sweep(connected)
        for name in (AUTO_APPROVE, "node-server-cert-renewal"):
            await connected.delete("ClusterRoleBinding", name)
        for name in (KEYS_RECORD, OWNED_RECORD):
            await connected.delete("ConfigMap", name, namespace="kube-system")


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A second kube-apiserver, to be killed."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def doomed(control_plane: ControlPlane, binaries: Path) -> Iterator[Doomed]:
    processes = Processes(control_plane.directory)
    endpoint, process = start_apiserver(binaries, control_plane.directory, processes, control_plane.etcd_url)
    yield Doomed(endpoint=endpoint, process=process)
    processes.stop()


def kubeconfig_of(plane: ControlPlane, path: Path, server: str, authority: Authority | None = None) -> Path:
    """The administrator's kubeconfig for another server, or with credentials of another authority."""
    cert, key = (authority or plane.authority).client("admin", ("system:masters",))
    user = {
        "client-certificate-data": base64.b64encode(cert).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    write_kubeconfig(path, server, plane.authority.cert_pem, user)
    return path


# ---------------------------------------------------------------------------------------------------------------
# Connecting


async def test_a_missing_kubeconfig_is_named(control_plane: ControlPlane, tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="does not exist") as caught:
        await Kube.connect(tmp_path / "none", (control_plane.endpoint,), control_plane.ca_cert)
    assert caught.value.subject == str(tmp_path / "none")
    assert "cluster.kubeconfig" in caught.value.hint


@pytest.mark.parametrize("text", ["", "][", "just words", "{}", "clusters: []\ncontexts: []\nusers: []\n"])
async def test_a_file_that_is_no_kubeconfig_is_named(control_plane: ControlPlane, tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(CredentialsError) as caught:
        await Kube.connect(path, (control_plane.endpoint,), control_plane.ca_cert)
    assert caught.value.subject == str(path)


async def test_a_kubeconfig_that_names_a_missing_certificate_is_refused(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    user = {"client-certificate": "gone.pem", "client-key": "gone-key.pem"}
    write_kubeconfig(path, control_plane.server, control_plane.authority.cert_pem, user)
    with pytest.raises(CredentialsError, match=r"can't be read.*gone|No such file") as caught:
        await Kube.connect(path, (), control_plane.ca_cert)
    assert caught.value.subject == str(path)


async def test_a_server_that_the_ca_does_not_vouch_for_is_not_spoken_to(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, control_plane.server, Authority("another").cert_pem, {"token": "never-to-be-sent"})
    with pytest.raises(CredentialsError, match="does not vouch for") as caught:
        await Kube.connect(path, (control_plane.endpoint,), control_plane.ca_cert)
    assert "cluster.ca.cert" in caught.value.hint


async def test_credentials_of_another_authority_are_refused_by_the_server(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    path = kubeconfig_of(control_plane, tmp_path / "kubeconfig", control_plane.server, Authority("another"))
    with pytest.raises(CredentialsError, match="401"):
        await Kube.connect(path, (control_plane.endpoint,), control_plane.ca_cert)


async def test_a_user_without_rights_is_told_so(control_plane: ControlPlane) -> None:
    config = control_plane.kubeconfig_for("nobody", common_name="nobody")
    async with await Kube.connect(config, (), control_plane.ca_cert) as nobody:
        with pytest.raises(ApiError, match="403") as caught:
            await nobody.nodes()
    assert 'User "nobody" cannot list resource "nodes"' in caught.value.message
    assert "cluster-admin" in caught.value.hint


async def test_each_server_that_was_tried_is_named(control_plane: ControlPlane, tmp_path: Path) -> None:
    path = kubeconfig_of(control_plane, tmp_path / "kubeconfig", "https://127.0.0.1:1")
    with pytest.raises(ApiUnreachable) as caught:
        await Kube.connect(path, ("127.0.0.1:2",), control_plane.ca_cert)
    assert "https://127.0.0.1:1" in caught.value.message
    assert "https://127.0.0.1:2" in caught.value.message


async def test_a_server_that_never_answers_is_passed_over(control_plane: ControlPlane, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        path = kubeconfig_of(control_plane, tmp_path / "kubeconfig", f"https://127.0.0.1:{mute.getsockname()[1]}")
        async with await Kube.connect(path, (control_plane.endpoint,), control_plane.ca_cert) as connected:
            assert connected.server == control_plane.server


async def test_when_its_server_dies_the_next_one_is_asked(
    control_plane: ControlPlane, doomed: Doomed, tmp_path: Path
) -> None:
    path = kubeconfig_of(control_plane, tmp_path / "kubeconfig", f"https://{doomed.endpoint}")
    async with await Kube.connect(path, (doomed.endpoint, control_plane.endpoint), control_plane.ca_cert) as connected:
        before = await connected.get("Namespace", "kube-system")
        doomed.kill()
        several = await asyncio.gather(*(connected.get("Namespace", "kube-system") for _ in range(5)))
        assert before is not None
        assert [each["metadata"]["uid"] for each in several if each] == [before["metadata"]["uid"]] * 5
        assert connected.server == control_plane.server
        made = await connected.create(config_map("after-failover", {}))
        await connected.delete("ConfigMap", made["metadata"]["name"], namespace="default")


# ---------------------------------------------------------------------------------------------------------------
# Objects


def config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def test_objects_are_made_changed_and_removed(kube: Kube) -> None:
    stale = await kube.create(config_map("thing", {"a": "1", "b": "2"}))
    with pytest.raises(ApiConflict):
        await kube.create(config_map("thing", {}))
    await kube.patch({**config_map("thing", {}), "data": {"a": None, "c": "3"}})
    with pytest.raises(ApiConflict):
        await kube.replace({**stale, "data": {}})
    found = await kube.get("ConfigMap", "thing", namespace="default")
    assert found is not None
    assert found["data"] == {"b": "2", "c": "3"}
    assert await kube.delete("ConfigMap", "thing", namespace="default")
    assert not await kube.delete("ConfigMap", "thing", namespace="default")
    assert await kube.get("ConfigMap", "thing", namespace="default") is None


async def test_a_few_nodes_cost_no_list(kube: Kube) -> None:
    for node in (W1, W2):
        await kube.create(node_document(node.name, node.address))
    assert {node.name for node in await kube.nodes()} >= {W1.name, W2.name}
    (found,) = await kube.nodes([W2.name, "nobody"])
    assert (found.name, found.internal_ip, found.ready) == (W2.name, W2.address, False)
    many = [W1.name, *(f"nobody-{number}" for number in range(9))]
    assert [node.name for node in await kube.nodes(many)] == [W1.name]


async def test_exec_in_a_pod_that_is_not_there_says_so(kube: Kube) -> None:
    with pytest.raises(ApiNotFound, match="not found"):
        await pod_exec(kube, "default", "no-such-pod", ("true",))


async def changes(kube: Kube, cluster: ClusterFile) -> list[tuple[str, str]]:
    """What a plan would change now; then it is done."""
    plan = await planned(kube, cluster)
    await apply_cluster(kube, plan.actions, lambda _: None)
    return [(action.kind, action.subject) for action in plan.actions]


async def test_bindings_that_drifted_are_found_and_healed(control_plane: ControlPlane, kube: Kube) -> None:
    cluster = cluster_of(control_plane, W1)
    await changes(kube, cluster)
    assert await changes(kube, cluster) == []

    await kube.delete("ClusterRoleBinding", "node-client-cert-renewal")
    foreign = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "somebody-elses"}
    await kube.patch(binding("kubelet-bootstrap", subjects=[foreign]))
    apis = await kube.get("ClusterRoleBinding", "kube-apiserver:kubelet-apis")
    assert apis is not None
    await kube.delete("ClusterRoleBinding", "kube-apiserver:kubelet-apis")
    await kube.create({**binding("kube-apiserver:kubelet-apis"), "roleRef": {**apis["roleRef"], "name": "view"}})

    assert await changes(kube, cluster) == [
        ("replace-object", "ClusterRoleBinding kubelet-bootstrap"),
        ("create-object", "ClusterRoleBinding node-client-cert-renewal"),
        ("recreate-object", "ClusterRoleBinding kube-apiserver:kubelet-apis"),
    ]
    assert await changes(kube, cluster) == []
    healed = await kube.get("ClusterRoleBinding", "kubelet-bootstrap")
    assert healed is not None
    assert [subject["name"] for subject in healed["subjects"]] == ["somebody-elses", "system:bootstrappers"]


def binding(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        **fields,
    }


@pytest.mark.parametrize("group", ["system:bootstrappers", "system:authenticated"])
async def test_a_binding_that_makes_guarded_pointless_is_named(
    control_plane: ControlPlane, kube: Kube, group: str
) -> None:
    cluster = cluster_of(control_plane, W1)
    assert (await read_cluster(kube, cluster)).warnings == ()
    rbac = "rbac.authorization.k8s.io"
    role = "system:certificates.k8s.io:certificatesigningrequests:nodeclient"
    await kube.create(
        binding(
            "approve-them-all",
            roleRef={"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            subjects=[{"apiGroup": rbac, "kind": "Group", "name": group}],
        )
    )
    try:
        (warning,) = await until(lambda: warnings(kube, cluster))
        assert "approve-them-all" in warning
    finally:
        await kube.delete("ClusterRoleBinding", "approve-them-all")
    # Whoever asks for it is not warned of it.
    auto = cluster.model_copy(update={"components": {"kubelet": {"client_csr": "auto"}}})
    assert (await read_cluster(kube, auto)).warnings == ()


async def warnings(kube: Kube, cluster: ClusterFile) -> tuple[str, ...]:
    return (await read_cluster(kube, cluster)).warnings


# ---------------------------------------------------------------------------------------------------------------
# Bootstrap tokens


@pytest.mark.parametrize(("profile", "minutes"), [("default", 20), ("guide", 24 * 60)])
async def test_a_token_in_the_cluster_expires_when_it_should(
    control_plane: ControlPlane, kube: Kube, profile: str, minutes: int
) -> None:
    cluster = cluster_of(control_plane, W1).model_copy(update={"profile": profile})
    before = datetime.now(UTC).replace(microsecond=0)
    plan = decide(await read_cluster(kube, cluster), cluster, [W1.name], before)
    await apply_cluster(kube, plan.actions, lambda _: None)
    (token,) = await kube.tokens()
    assert token.expires == before + timedelta(minutes=minutes)
    async with await as_token(control_plane, token) as kubelet:
        with pytest.raises(ApiError, match=f"system:bootstrap:{token.id}.*cannot list"):
            await kubelet.nodes()


async def test_leftover_tokens_are_removed_and_good_ones_used_again(control_plane: ControlPlane, kube: Kube) -> None:
    cluster = cluster_of(control_plane, W1, W2)
    now = datetime.now(UTC).replace(microsecond=0)
    joined = token_for(W1.name, "aaaaaa", now + timedelta(minutes=15))
    good = token_for(W2.name, "bbbbbb", now + timedelta(minutes=15))
    short = token_for(W2.name, "cccccc", now + timedelta(minutes=1))
    for token in (joined, good, short):
        await kube.create(bootstrap_token.document(token))
    other = bootstrap_token.document(token_for(W1.name, "dddddd", now + timedelta(minutes=15)))
    other["metadata"]["labels"] = {}
    await kube.create(other)
    try:
        plan = await planned(kube, cluster, W2.name)
        await apply_cluster(kube, plan.actions, lambda _: None)
        assert plan.tokens == (good,)
        assert await kube.tokens() == (good,)
        assert await kube.get("Secret", "bootstrap-token-dddddd", namespace="kube-system"), "another's token stays"
    finally:
        await kube.delete("Secret", "bootstrap-token-dddddd", namespace="kube-system")


def token_for(node: str, id_: str, expires: datetime) -> BootstrapToken:
    return BootstrapToken(id=id_, secret="0123456789abcdef", node=node, expires=expires)


async def test_a_cancelled_run_takes_its_tokens_back(control_plane: ControlPlane, kube: Kube) -> None:
    cluster = cluster_of(control_plane, W1, W2)
    plan = await planned(kube, cluster, W1.name, W2.name)
    await apply_cluster(kube, plan.actions, lambda _: None)
    desk = Desk(kube=kube, inventory=csr.inventory(cluster), report=lambda _: None, nodes={W1.name, W2.name})
    run = asyncio.create_task(approve_while(desk, plan.tokens, asyncio.Event()))
    await asyncio.sleep(0.2)
    assert len(await kube.tokens()) == 2
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await kube.tokens() == ()


async def test_a_run_over_a_part_leaves_the_tokens_of_the_rest_to_the_runs_that_made_them(
    control_plane: ControlPlane, kube: Kube
) -> None:
    cluster = cluster_of(control_plane, W1, W2)
    plan = await planned(kube, cluster, W2.name)
    await apply_cluster(kube, plan.actions, lambda _: None)
    mine = decide(await read_cluster(kube, cluster, [W1.name], part=True), cluster, [W1.name], datetime.now(UTC))
    assert [action.verb for action in mine.actions if "bootstrap-token" in action.subject] == ["create"]
    whole = decide(await read_cluster(kube, cluster), cluster, [W1.name], datetime.now(UTC))
    assert [action.verb for action in whole.actions if "bootstrap-token" in action.subject] == ["delete", "create"]
    await kube.delete_token(plan.tokens[0])


async def test_tokens_that_were_handed_over_stay_for_the_next_try(control_plane: ControlPlane, kube: Kube) -> None:
    cluster = cluster_of(control_plane, W1)
    plan = await planned(kube, cluster, W1.name)
    await apply_cluster(kube, plan.actions, lambda _: None)
    desk = Desk(kube=kube, inventory=csr.inventory(cluster), report=lambda _: None, nodes={W1.name})
    ended = asyncio.Event()
    ended.set()
    await approve_while(desk, plan.tokens, ended, handed=True)
    assert [each.id for each in await kube.tokens()] == [plan.tokens[0].id]
    await kube.delete_token(plan.tokens[0])


async def test_tokens_of_a_long_run_do_not_expire_under_it(control_plane: ControlPlane, kube: Kube) -> None:
    cluster, events = cluster_of(control_plane, W1), list[Event]()
    plan = decide(await read_cluster(kube, cluster), cluster, [W1.name], datetime.now(UTC) - timedelta(minutes=9))
    async with approving(kube, cluster, plan, events):
        await asyncio.sleep(0.2)  # the run begins before its tokens are made
        await apply_cluster(kube, plan.actions, events.append)
        await until(lambda: lives_until(kube, datetime.now(UTC) + timedelta(minutes=15)))
    assert await kube.tokens() == ()
    assert not [each for each in events if isinstance(each, Warning_)]


async def lives_until(kube: Kube, moment: datetime) -> bool:
    return all(token.expires > moment for token in await kube.tokens())


async def test_a_token_that_could_not_be_taken_back_is_named(
    control_plane: ControlPlane, kube: Kube, doomed: Doomed, tmp_path: Path
) -> None:
    cluster, events = cluster_of(control_plane, W1), list[Event]()
    plan = await planned(kube, cluster, W1.name)
    await apply_cluster(kube, plan.actions, events.append)
    path = kubeconfig_of(control_plane, tmp_path / "kubeconfig", f"https://{doomed.endpoint}")
    alone = await Kube.connect(path, (), control_plane.ca_cert)
    async with alone, approving(alone, cluster, plan, events):
        doomed.kill()
    texts = [each.text for each in events if isinstance(each, Warning_) and each.subject == W1.name]
    (text,) = texts
    assert f"kubeworker token revoke {plan.tokens[0].id}" in text
    assert plan.tokens[0].secret not in text


# ---------------------------------------------------------------------------------------------------------------
# Forged requests


@pytest.fixture
def cluster_yaml(control_plane: ControlPlane, tmp_path: Path) -> Path:
    """As an operator has it, for two nodes of the control plane on loopback."""
    return write_cluster(control_plane, tmp_path, W1, W2, ca_key=str(control_plane.ca_key))


def kubeworker(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


@dataclass(kw_only=True)
class Forger:
    """Sends requests, and remembers which rule each breaks ("": none)."""

    plane: ControlPlane
    rules: dict[str, str] = field(default_factory=dict)

    async def send(self, client: Kube, rule: str, document: dict[str, Any]) -> str:
        made = await client.create(document)
        name = str(made["metadata"]["name"])
        self.rules[name] = rule
        return name


def names(*more: x509.GeneralName) -> tuple[x509.GeneralName, ...]:
    return (x509.DNSName(W1.name), x509.IPAddress(ip_address(W1.address)), *more)


async def registered(plane: ControlPlane, node: NodeSpec) -> Kube:
    kubelet = await as_node(plane, node.name)
    await kubelet.create(node_document(node.name, node.address))
    return kubelet


async def forge(forger: Forger, kube: Kube, token: BootstrapToken, cluster_yaml: Path) -> None:
    """One request for each way to get a certificate that one should not have."""
    plane, stolen = forger.plane, ec.generate_private_key(ec.SECP256R1())
    async with await registered(plane, W2) as second:
        honest = await forger.send(second, "", serving_request(W2.name, W2.address, key=stolen))
        done = kubeworker("csr", "approve", "--no-compare", "-f", cluster_yaml, "--json")
        assert done.returncode == 0, done.stderr
        assert [each["name"] for each in json.loads(done.stdout)["approved"]] == [honest]
        await until(lambda: issued(kube, honest))
    async with await registered(plane, W1) as first:
        faults: dict[str, dict[str, Any]] = {
            "serving.san_dns": {"sans": names(x509.DNSName(W2.name))},
            "serving.san_ip": {"sans": names(x509.IPAddress(ip_address(W2.address)))},
            "serving.san_email": {"sans": names(x509.RFC822Name("root@example.com"))},
            "serving.san_uri": {"sans": names(x509.UniformResourceIdentifier("spiffe://cluster/admin"))},
            "serving.organization": {"organizations": ("system:nodes", "system:masters")},
            "serving.usages": {"usages": ("digital signature", "client auth")},
            "serving.key_reuse": {"key": stolen},
        }
        for rule, over in faults.items():
            await forger.send(first, rule, serving_request(W1.name, W1.address, **over))
    # In another node's name a node can't even ask: the API server sees to that. A user with the right to can.
    await forger.send(kube, "serving.requester", serving_request(W1.name, W1.address))
    async with await as_token(plane, token) as thief:
        await forger.send(thief, "client.common_name", client_request(W2.name))
        await forger.send(thief, "client.organization", client_request(W1.name, organizations=("system:masters",)))
        await forger.send(thief, "client.node_present", client_request(W1.name))
    mine = token_for(W1.name, "eeeeee", datetime.now(UTC) + timedelta(minutes=15))
    secret = bootstrap_token.document(mine)
    secret["metadata"]["labels"] = {}
    await kube.create(secret)
    async with await as_token(plane, mine) as stranger:
        await forger.send(stranger, "client.requester", client_request(W1.name))
    await kube.delete("Secret", mine.secret_name, namespace="kube-system")


async def test_forged_requests_stay_pending_and_csr_list_names_the_rule(
    control_plane: ControlPlane, kube: Kube, cluster_yaml: Path
) -> None:
    await changes(kube, cluster_of(control_plane, W1, W2))
    token = token_for(W1.name, "ffffff", datetime.now(UTC) + timedelta(minutes=15))
    await kube.create(bootstrap_token.document(token))
    forger = Forger(plane=control_plane)
    await forge(forger, kube, token, cluster_yaml)
    forged = {name: rule for name, rule in forger.rules.items() if rule}

    listed = kubeworker("csr", "list", "-f", cluster_yaml, "--json")
    assert listed.returncode == 0, listed.stderr
    requests = {each["name"]: each for each in json.loads(listed.stdout)["requests"]}
    assert {name: requests[name]["rule"] for name in forged} == forged
    assert {name for name, each in requests.items() if each["approvable"]} == set()

    shown = kubeworker("csr", "list", "-f", cluster_yaml)
    assert all(rule in shown.stdout for rule in forged.values())

    tried = kubeworker("csr", "approve", "--no-compare", "-f", cluster_yaml, "--json")
    assert tried.returncode == 1
    assert json.loads(tried.stdout)["approved"] == []
    assert {each["name"]: each["rule"] for each in json.loads(tried.stdout)["pending"]} == forged
    assert {each.name: each.state for each in await kube.csrs() if each.name in forged} == dict.fromkeys(
        forged, "Pending"
    )


async def test_a_node_may_not_ask_in_another_nodes_name(control_plane: ControlPlane, kube: Kube) -> None:
    async with await registered(control_plane, W1) as first:
        with pytest.raises(ApiError, match="403"):
            await first.create(serving_request(W2.name, W2.address))


async def test_a_key_is_remembered_when_its_request_is_long_gone(
    control_plane: ControlPlane, kube: Kube, cluster_yaml: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with await registered(control_plane, W2) as second:
        request = await second.create(serving_request(W2.name, W2.address, key=key))
    name = request["metadata"]["name"]
    assert kubeworker("csr", "approve", "--no-compare", "-f", cluster_yaml).returncode == 0
    await until(lambda: issued(kube, name))
    await kube.delete("CertificateSigningRequest", name)
    async with await registered(control_plane, W1) as first:
        await first.create(serving_request(W1.name, W1.address, key=key))
    tried = kubeworker("csr", "approve", "--no-compare", "-f", cluster_yaml, "--json")
    assert [each["rule"] for each in json.loads(tried.stdout)["pending"]] == ["serving.key_reuse"]


async def test_what_was_read_is_what_is_approved(control_plane: ControlPlane, kube: Kube) -> None:
    async with await registered(control_plane, W1) as first:
        request = await first.create(serving_request(W1.name, W1.address))
    (read,) = [each for each in await kube.csrs() if each.name == request["metadata"]["name"]]
    await kube.patch({**request, "metadata": {"name": read.name, "labels": {"changed": "meanwhile"}}})
    with pytest.raises(ApiConflict):
        await kube.approve(read, message="stale")


async def test_a_broken_rule_is_said_once_during_a_run(control_plane: ControlPlane, kube: Kube) -> None:
    cluster, events = cluster_of(control_plane, W1), list[Event]()
    plan = await planned(kube, cluster)
    async with approving(kube, cluster, plan, events):
        async with await registered(control_plane, W1) as first:
            await first.create(serving_request(W1.name, W1.address, sans=names(x509.DNSName("kubernetes"))))
        await until(lambda: decided(events))
        await asyncio.sleep(1.5)
    (decision,) = [each for each in events if isinstance(each, CsrDecision)]
    assert (decision.decision, decision.rule, decision.node) == ("pending", "serving.san_dns", W1.name)


async def decided(events: Sequence[Event]) -> bool:
    return any(isinstance(each, CsrDecision) for each in events)
