"""Joining against a real API server and controller-manager: what a kubelet does is done here by hand."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.contract.control_plane import ControlPlane

from kubeworker.core import csr
from kubeworker.core.bootstrap_token import BootstrapToken
from kubeworker.core.spec import Cluster, ClusterFile, NodeSpec
from kubeworker.flow.events import CsrDecision, Event
from kubeworker.flow.join import ClusterPlan, apply_cluster, approve_while, decide, read_cluster
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def admin(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(plane.kubeconfig, (plane.endpoint,), plane.ca_cert) as kube:
        yield kube


def cluster_of(plane: ControlPlane, *nodes: NodeSpec) -> ClusterFile:
    return ClusterFile(
        cluster=Cluster(
            apiservers=(plane.endpoint,),
            cluster_cidr="172.30.0.0/16",
            service_cidr="10.254.0.0/16",
            dns_service_ip="10.254.0.2",
        ),
        nodes=nodes,
    )


def request_document(
    node: str,
    *,
    signer: str,
    usages: tuple[str, ...],
    sans: tuple[x509.GeneralName, ...] = (),
    common_name: str = "",
    key: ec.EllipticCurvePrivateKey | None = None,
) -> dict[str, Any]:
    """A CertificateSigningRequest as kubelet makes it."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name or f"system:node:{node}"),
        ]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    pem = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": f"csr-{node}-"},
        "spec": {"signerName": signer, "usages": list(usages), "request": base64.b64encode(pem).decode()},
    }


def client_request(node: str, **over: Any) -> dict[str, Any]:
    return request_document(node, signer=csr.CLIENT_SIGNER, usages=("digital signature", "client auth"), **over)


def serving_request(node: str, address: str, **over: Any) -> dict[str, Any]:
    sans = (x509.DNSName(node), x509.IPAddress(ip_address(address)))
    usages = ("digital signature", "server auth")
    return request_document(node, **{"signer": csr.SERVING_SIGNER, "usages": usages, "sans": sans, **over})


def node_document(name: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]},
    }


async def until(condition: Callable[[], Any], *, seconds: float = 15) -> Any:
    """Poll an async condition until it is true; its value."""
    async with asyncio.timeout(seconds):
        while not (value := await condition()):
            await asyncio.sleep(0.1)
    return value


async def issued(kube: Kube, name: str) -> str:
    found = await kube.get("CertificateSigningRequest", name)
    assert found is not None
    return str((found.get("status") or {}).get("certificate") or "")


async def as_node(plane: ControlPlane, name: str) -> Kube:
    config = plane.kubeconfig_for(name, common_name=f"system:node:{name}", organizations=("system:nodes",))
    return await Kube.connect(config, (), plane.ca_cert)


async def as_token(plane: ControlPlane, token: BootstrapToken) -> Kube:
    return await Kube.connect(plane.token_kubeconfig(token.id, token.value), (), plane.ca_cert)


async def planned(kube: Kube, cluster: ClusterFile, *joining: str) -> ClusterPlan:
    return decide(await read_cluster(kube, cluster), cluster, joining, datetime.now(UTC))


@asynccontextmanager
async def approving(
    kube: Kube, cluster: ClusterFile, plan: ClusterPlan, events: list[Event]
) -> AsyncIterator[asyncio.Event]:
    """`approve_while` beside the body, as `apply` runs it."""
    done = asyncio.Event()
    names = [node.name for node in cluster.nodes]
    async with asyncio.TaskGroup() as group:
        group.create_task(
            approve_while(
                kube, names, plan.tokens, csr.inventory(cluster), done, events.append, rejoining=plan.rejoining
            )
        )
        try:
            yield done
        finally:
            done.set()


async def test_a_node_joins_under_guarded_approval_and_its_token_is_taken_back(control_plane: ControlPlane) -> None:
    node = NodeSpec(
        name="join-01.example.com", address="10.1.0.1", labels={"zone": "a"}, taints=("dedicated=x:NoSchedule",)
    )
    cluster = cluster_of(control_plane, node)
    events: list[Event] = []
    async with admin(control_plane) as kube:
        plan = await planned(kube, cluster, node.name)
        await apply_cluster(kube, plan.actions, events.append)
        assert [token.node for token in plan.tokens] == [node.name]
        assert plan.token(node.name) not in repr(plan)

        async with approving(kube, cluster, plan, events):
            async with await as_token(control_plane, plan.tokens[0]) as kubelet:
                request = await kubelet.create(client_request(node.name))
                await until(lambda: issued(kubelet, request["metadata"]["name"]))
            assert await kube.tokens(), "the token must live until the node has registered with its certificate"
            async with await as_node(control_plane, node.name) as kubelet:
                await kubelet.create(node_document(node.name, node.address))
                request = await kubelet.create(serving_request(node.name, node.address))
                await until(lambda: issued(kube, request["metadata"]["name"]))
            await until(lambda: no_tokens(kube))

        decisions = [(each.signer, each.decision) for each in events if isinstance(each, CsrDecision)]
        assert decisions == [(csr.CLIENT_SIGNER, "approved"), (csr.SERVING_SIGNER, "approved")]

        again = await planned(kube, cluster)
        assert [action.subject for action in again.actions] == [
            f"Node {node.name}",
            "ConfigMap kube-system/kubeworker-owned",
        ]
        await apply_cluster(kube, again.actions, events.append)
        assert (await planned(kube, cluster)).actions == ()
        await kube.delete("Node", node.name)


async def no_tokens(kube: Kube) -> bool:
    return not await kube.tokens()
