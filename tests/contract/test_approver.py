"""The approver as it runs unattended: with the rights of its ServiceAccount, which are those it uses and no others.

A kube-apiserver with an audit log tells what it asked for. The pod itself can't run here: what a container would have
mounted lies in a folder, and the command is the container's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.contract.control_plane import ControlPlane, Processes, start_apiserver, write_kubeconfig
from tests.contract.kubelets import admin, as_node, as_token, client_request, node_document, serving_request, sweep
from tests.contract.test_certificates import token, watching
from tests.contract.test_csr_attacks import decided

from kubeworker.core.certificates import approver, csr
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.spec import NodeSpec
from kubeworker.errors import ApiError
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(180)

COMMAND = Path(sys.executable).with_name("kubeworker")
NODES = tuple(NodeSpec(name=f"node-{number}.example.com", address=f"10.1.5.{number}") for number in range(1, 8))
"""More than the few that are asked for one by one."""
JOINING = NodeSpec(name="node-9.example.com", address="10.1.5.9")
USER = f"system:serviceaccount:{approver.NAMESPACE}:{approver.NAME}"
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
}

Right = tuple[str, str, str, str]
"""API group, resource, name ("": any), verb."""


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A kube-apiserver that writes down what the approver asks for."""

    plane: ControlPlane
    log: Path

    def rights(self) -> set[Right]:
        """What was asked for, and granted; names only where the resource is one of names."""
        seen = set()
        for line in self.log.read_text().splitlines():
            event = json.loads(line)
            reference = event.get("objectRef") or {}
            if "resource" not in reference:
                continue  # /readyz, which every authenticated user may ask
            assert event["responseStatus"]["code"] < 400, event
            resource = "/".join(filter(None, (reference["resource"], reference.get("subresource", ""))))
            name = reference.get("name", "") if resource in {"configmaps", "leases"} else ""
            seen.add((reference.get("apiGroup", ""), resource, name, event["verb"]))
        return seen


@pytest.fixture(scope="module")
def audited(control_plane: ControlPlane, binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audited")
    policy, log = folder / "policy.yaml", folder / "audit.log"
    policy.write_text(yaml.safe_dump(POLICY))
    processes = Processes(control_plane.directory)
    try:
        endpoint, _ = start_apiserver(
            binaries,
            control_plane.directory,
            processes,
            control_plane.etcd_url,
            flags=(f"--audit-policy-file={policy}", f"--audit-log-path={log}"),
        )
        yield Audited(plane=replace(control_plane, server=f"https://{endpoint}", endpoint=endpoint), log=log)
    finally:
        processes.stop()


def manifest(plane: ControlPlane, folder: Path) -> str:
    """What the command prints, for a cluster.yaml as an operator has it."""
    file = folder / "cluster.yaml"
    document = {
        "cluster": {
            "apiservers": [plane.endpoint],
            "cluster_cidr": "172.30.0.0/16",
            "service_cidr": "10.254.0.0/16",
            "dns_service_ip": "10.254.0.2",
        },
        "nodes": [{"name": node.name, "address": node.address} for node in (*NODES, JOINING)],
    }
    file.write_text(yaml.safe_dump(document))
    return service("--kind", "deployment", "--image", "registry.example.com/kubeworker:1", "-f", str(file))


def service(*words: str) -> str:
    """What `csr service` prints."""
    command = [str(COMMAND), "csr", "service", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def kubectl(binaries: Path, plane: ControlPlane, *words: str, stdin: str) -> None:
    command = [str(binaries / "kubectl"), f"--kubeconfig={plane.kubeconfig}", *words]
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True, timeout=60)


@pytest.fixture
async def kube(control_plane: ControlPlane, binaries: Path, audited: Audited, tmp_path: Path) -> AsyncIterator[Kube]:
    """The administrator's connection; the manifest is applied by the real kubectl, and gone after the test."""
    text = manifest(audited.plane, tmp_path)
    async with admin(control_plane) as connected:
        kubectl(binaries, control_plane, "apply", "--server-side", "--filename=-", stdin=text)
        yield connected
        await sweep(connected)
        kubectl(binaries, control_plane, "delete", "--wait=false", "--filename=-", stdin=text)


async def mounted(kube: Kube, plane: ControlPlane, folder: Path) -> Path:
    """What kubelet would mount into the pod, with the folder in place of its root; the cluster.yaml in it."""
    config = await kube.get("ConfigMap", approver.NAME, namespace=approver.NAMESPACE)
    assert config is not None
    folder.mkdir()
    (folder / "token").write_text(await kube.token_request(approver.NAME, namespace=approver.NAMESPACE))
    (folder / "ca.crt").write_bytes(plane.authority.cert_pem)
    for name, text in config["data"].items():
        here = text.replace(approver.ACCOUNT, str(folder)).replace(approver.FOLDER, str(folder))
        (folder / name).write_text(here)
    return folder / "cluster.yaml"


async def ask(plane: ControlPlane, node: NodeSpec, **over: Any) -> str:
    async with await as_node(plane, node.name) as kubelet:
        made = await kubelet.create(serving_request(node.name, node.address, **over))
    return str(made["metadata"]["name"])


def granted(documents: Iterable[Mapping[str, Any]]) -> set[Right]:
    """The rights in the manifest's roles."""
    return {
        (group, resource, name, verb)
        for each in documents
        for rule in each.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


async def rules(kube: Kube, namespace: str) -> set[Right]:
    """What the API server itself says that this user may do (SelfSubjectRulesReview)."""
    answer = await kube.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        subject="my rights",
        body={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        },
        content_type="application/json",
    )
    assert not answer["status"]["incomplete"]
    return granted([{"rules": answer["status"]["resourceRules"]}])


async def test_the_rights_in_the_manifest_are_those_that_the_approver_uses_and_no_others(
    control_plane: ControlPlane, kube: Kube, audited: Audited, binaries: Path, tmp_path: Path
) -> None:
    for node in NODES:
        await kube.create(node_document(node.name, node.address))
    # A joining node's own request is not this approver's: it must neither approve it nor stumble over it.
    await kube.create(bootstrap_token.document(token(JOINING.name, "abcdef", 15)))
    await kube.create(joining_binding())
    async with await as_token(control_plane, token(JOINING.name, "abcdef", 15)) as kubelet:
        client = (await kubelet.create(client_request(JOINING.name)))["metadata"]["name"]
    file = await mounted(kube, control_plane, tmp_path / "pod")

    with watching(file, "--serving-only") as watcher:
        alone = await ask(control_plane, NODES[0])
        watcher.until(lambda: alone in watcher.approved(), "one request")
        bad = await ask(control_plane, NODES[1], usages=("digital signature", "client auth"))
        many = {await ask(control_plane, node) for node in NODES}
        watcher.until(lambda: many <= watcher.approved(), "those of many nodes")
        # One that somebody denied: whoever should have signed is asked for.
        denied = await kube.create({**serving_request(NODES[2].name, NODES[2].address)})
        path = f"/apis/certificates.k8s.io/v1/certificatesigningrequests/{denied['metadata']['name']}/approval"
        await kube.request("PUT", path, subject="denial", body=decided(denied, "Denied"))
        lease = ("coordination.k8s.io", "leases", "kube-controller-manager", "get")
        watcher.until(lambda: lease in audited.rights(), "the Lease")
        troubles = [each["text"] for each in watcher.events("warning") if each["subject"] == "certificates"]
    assert troubles == [], "it had every right that it needed"
    left = {each.name: each.state for each in await kube.csrs() if each.name in {client, bad}}
    assert left == {client: "Pending", bad: "Pending"}

    documents = list(yaml.safe_load_all(manifest(audited.plane, tmp_path)))
    signer = ("certificates.k8s.io", "signers", csr.SERVING_SIGNER, "approve")
    # The right to a signer is asked for by the admission plugin CertificateApproval, not by a request of its own.
    assert granted(documents) - {signer} == audited.rights()
    await kube.delete("ClusterRoleBinding", "approver-test-bootstrap")


def joining_binding() -> dict[str, Any]:
    rbac = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "approver-test-bootstrap"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:node-bootstrapper"},
        "subjects": [{"apiGroup": rbac, "kind": "Group", "name": "system:bootstrappers"}],
    }


async def test_its_service_account_may_do_nothing_beyond_the_manifest(
    control_plane: ControlPlane, kube: Kube, audited: Audited, tmp_path: Path
) -> None:
    bare = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bare", "namespace": "kube-system"}}
    await kube.create(bare)
    clients = []
    for name in (approver.NAME, "bare"):
        config = tmp_path / f"{name}.kubeconfig"
        value = await kube.token_request(name, namespace="kube-system")
        write_kubeconfig(config, control_plane.server, control_plane.authority.cert_pem, {"token": value})
        clients.append(await Kube.connect(config, (), control_plane.ca_cert))
    ours, anybodys = clients
    documents = list(yaml.safe_load_all(manifest(audited.plane, tmp_path)))
    everywhere = granted(each for each in documents if each["kind"] == "ClusterRole")
    try:
        for namespace, expected in (("kube-system", granted(documents)), ("default", everywhere)):
            assert await rules(ours, namespace) - await rules(anybodys, namespace) == expected

        made = await kube.create(user_request())
        with pytest.raises(ApiError, match=r'not permitted .* signerName "kubernetes.io/kube-apiserver-client"'):
            await ours.approve(csr.view(made), message="not mine to approve")
        for refused in (ours.token_views(), ours.create(config_map()), ours.delete("Node", NODES[0].name)):
            with pytest.raises(ApiError, match="403"):
                await refused
    finally:
        for client in clients:
            await client.close()
        await kube.delete("ServiceAccount", "bare", namespace="kube-system")


def user_request() -> dict[str, Any]:
    """For a client certificate of any user's. (An administrator's for a node's kube-controller-manager approves.)"""
    request = client_request(JOINING.name)
    return {**request, "spec": {**request["spec"], "signerName": "kubernetes.io/kube-apiserver-client"}}


def config_map() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "namespace": "kube-system"}}


def test_the_systemd_unit_is_one_that_systemd_takes_and_rates_as_well_confined(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "cluster.yaml"
    manifest(control_plane, tmp_path)
    text = service("--kind", "systemd", "--user", "root", "-f", str(file))
    unit = tmp_path / f"{approver.NAME}.service"
    unit.write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(unit)]
    assert subprocess.run(security, capture_output=True, timeout=60, check=False).returncode == 0
    (command,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart=")]
    assert command == f"{COMMAND} csr approve --watch --serving-only -f {file}"
