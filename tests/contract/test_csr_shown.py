"""The last rule: after an approval, what kubelets show is compared with what was issued. Real API, real TLS servers."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.contract.control_plane import ControlPlane, free_port, pem_of
from tests.contract.kubelets import admin, as_node, issued, node_document, serving_request, sweep, until, write_cluster

from kubeworker.core.certificates.csr import KEYS_RECORD
from kubeworker.core.spec import NodeSpec
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(120)

COMMAND = Path(sys.executable).with_name("kubeworker")
GOOD = NodeSpec(name="node-01.example.com", address="10.1.4.1")
ANOTHER = NodeSpec(name="node-02.example.com", address="10.1.4.2")
SILENT = NodeSpec(name="node-03.example.com", address="10.1.4.3")
NODES = (GOOD, ANOTHER, SILENT)


@pytest.fixture
def addresses() -> Iterator[None]:
    """The nodes' addresses are this host's for a while: a node may not have one of 127.0.0.0/8."""
    words = [["ip", "address", verb, f"{node.address}/32", "dev", "lo"] for verb in ("add", "delete") for node in NODES]
    for each in words[: len(NODES)]:
        subprocess.run(each, check=True)
    yield
    for each in words[len(NODES) :]:
        subprocess.run(each, check=True)


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's connection, with the nodes registered; what tests made is gone after each."""
    async with admin(control_plane) as connected:
        for node in NODES:
            await connected.create(node_document(node.name, node.address))
        yield connected
        await sweep(connected)
        await connected.delete("ConfigMap", KEYS_RECORD, namespace="kube-system")


@asynccontextmanager
async def showing(node: NodeSpec, port: int, cert: bytes, key: bytes, folder: Path) -> AsyncIterator[None]:
    """A TLS server at the node's address with this certificate."""
    files = folder / f"{node.name}.pem", folder / f"{node.name}-key.pem"
    for file, text in zip(files, (cert, key), strict=True):
        file.write_bytes(text)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(serve, node.address, port, ssl=context):
        yield


async def ask(plane: ControlPlane, node: NodeSpec, key: ec.EllipticCurvePrivateKey) -> str:
    async with await as_node(plane, node.name) as kubelet:
        made = await kubelet.create(serving_request(node.name, node.address, key=key))
    return str(made["metadata"]["name"])


async def test_what_each_kubelet_shows_is_compared_with_what_was_issued_to_it(
    control_plane: ControlPlane, kube: Kube, addresses: None, tmp_path: Path
) -> None:
    port, key = free_port(), ec.generate_private_key(ec.SECP256R1())
    components = {"kubelet": {"config": {"port": port}}}
    file = write_cluster(control_plane, tmp_path, *NODES, components=components)
    good = await ask(control_plane, GOOD, key)
    for node in (ANOTHER, SILENT):
        await ask(control_plane, node, ec.generate_private_key(ec.SECP256R1()))

    # It is of the same CA, for the same name and address, and yet not the one that was asked for.
    names = (x509.DNSName(ANOTHER.name), x509.IPAddress(ip_address(ANOTHER.address)))
    other = control_plane.authority.server(f"system:node:{ANOTHER.name}", names)
    async with showing(ANOTHER, port, *other, tmp_path):
        command = await asyncio.create_subprocess_exec(
            *(COMMAND, "csr", "approve", "--json", "--json-events", "-f", file),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        certificate = await until(lambda: issued(kube, good))
        (request,) = [each for each in await kube.csrs() if each.name == good]
        assert certificate
        async with showing(GOOD, port, request.certificate, pem_of(key), tmp_path):
            output, events = await command.communicate()

    assert command.returncode == 1, "another certificate than the one issued is a failure"
    done = json.loads(output)
    assert {each["node"] for each in done["approved"]} == {node.name for node in NODES}
    assert done["pending"] == []
    seen = {each["node"]: (each["status"], each["detail"]) for each in done["compared"]}
    assert seen[GOOD.name] == ("shown", f"{GOOD.address}:{port} shows it")
    assert seen[ANOTHER.name][0] == "another"
    assert seen[SILENT.name][0] == "unseen"
    told = {
        each["subject"]: each["text"] for each in map(json.loads, events.splitlines()) if each["event"] == "warning"
    }
    assert "in other hands" in told[ANOTHER.name]
    assert "can't be seen from here" in told[SILENT.name]
    assert GOOD.name not in told
