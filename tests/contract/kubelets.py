"""What kubelets and an operator's run do at the API, by hand: requests, Nodes, joining."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.contract.control_plane import ControlPlane

from kubeworker.core.certificates import csr
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.spec import Cluster, ClusterFile, NodeSpec
from kubeworker.flow.csr import Desk
from kubeworker.flow.events import Event
from kubeworker.flow.join import ClusterPlan, approve_while, decide, read_cluster
from kubeworker.io.kube import Kube


@asynccontextmanager
async def admin(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(plane.kubeconfig, (plane.endpoint,), plane.ca_cert) as kube:
        yield kube


async def sweep(kube: Kube) -> None:
    """Requests, bootstrap tokens and Nodes are gone afterwards."""
    for request in await kube.csrs():
        await kube.delete("CertificateSigningRequest", request.name)
    for token in await kube.token_views():
        await kube.delete_token(token)
    for node in await kube.nodes():
        await kube.delete("Node", node.name)


def write_cluster(
    plane: ControlPlane,
    folder: Path,
    *nodes: NodeSpec,
    kubeconfig: Path | None = None,
    ca_key: str = "not-here.pem",
    components: Mapping[str, Any] | None = None,
) -> Path:
    """cluster.yaml as an operator has it; without a CA key, which only a run that changes nodes needs."""
    path = folder / "cluster.yaml"
    document = {
        "cluster": {
            "apiservers": [plane.endpoint],
            "cluster_cidr": "172.30.0.0/16",
            "service_cidr": "10.254.0.0/16",
            "dns_service_ip": "10.254.0.2",
            "ca": {"cert": str(plane.ca_cert), "key": ca_key},
            "kubeconfig": str(kubeconfig or plane.kubeconfig),
        },
        "components": dict(components or {}),
        "nodes": [{"name": node.name, "address": node.address} for node in nodes],
    }
    path.write_text(yaml.safe_dump(document))
    return path


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
    organizations: tuple[str, ...] = ("system:nodes",),
    key: ec.EllipticCurvePrivateKey | None = None,
) -> dict[str, Any]:
    """A CertificateSigningRequest as kubelet makes it."""
    name = x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{node}"),
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
async def approving(kube: Kube, cluster: ClusterFile, plan: ClusterPlan, events: list[Event]) -> AsyncIterator[Desk]:
    """`approve_while` beside the body, as `apply` runs it; its desk."""
    done = asyncio.Event()
    desk = Desk(
        kube=kube,
        inventory=csr.inventory(cluster),
        report=events.append,
        nodes=frozenset(node.name for node in cluster.nodes),
        rejoining=plan.rejoining,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(approve_while(desk, plan.tokens, done))
        try:
            yield desk
        finally:
            done.set()


async def no_tokens(kube: Kube) -> bool:
    return not await kube.tokens()
