"""What simulated nodes join: a real etcd and kube-apiserver on loopback, and a folder with cluster.yaml and keys."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from bench.tool import BenchFailed
from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import Ca
from kubeworker.core.cluster.cluster_objects import binding_actions, bindings
from kubeworker.core.spec import Versions
from kubeworker.flow import artifacts
from kubeworker.io import cluster_file
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.kube import Kube
from kubeworker.lab import artifacts as lab_artifacts
from kubeworker.lab import control_plane
from kubeworker.lab import pki as lab_pki

PORT = 2222
"""Where every simulated node's sshd answers, on its own address."""

_AT_ONCE = 16
"""Nodes that are registered at once."""


def name(index: int) -> str:
    """Of a node."""
    return f"sim-{index:04d}"


def address(index: int) -> str:
    """Where a node's sshd answers: 127.1.0.1 and so on, since the whole of 127.0.0.0/8 is this host's own."""
    return str(ipaddress.ip_address("127.1.0.0") + 1 + index)


def node_address(index: int) -> str:
    """The node's own address, inside its network namespace."""
    return str(ipaddress.ip_address("10.99.0.0") + 1 + index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The folder with everything that a control host has."""

    folder: Path
    nodes: int
    apiserver: str
    """HOST:PORT."""

    @property
    def identity(self) -> Path:
        """The private key that every node lets in."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Every node's own host key."""
        return self.folder / "known_hosts"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    def cluster_file(self, nodes: int | None = None) -> Path:
        """The cluster.yaml with the first so many nodes; all by default."""
        return self.folder / f"cluster-{self.nodes if nodes is None else nodes}.yaml"

    def write_cluster(self, nodes: int, **ssh: Any) -> Path:
        """Write that file; `ssh` are further settings of its section."""
        path = self.cluster_file(nodes)
        document = {
            "cluster": {
                "apiservers": [self.apiserver],
                "cluster_cidr": "172.30.0.0/16",
                "service_cidr": "10.254.0.0/16",
                "dns_service_ip": "10.254.0.2",
                "ca": {"cert": "ca.pem", "key": "ca-key.pem"},
                "kubeconfig": self.kubeconfig.name,
            },
            "ssh": {
                "user": "root",
                "port": PORT,
                "identity": self.identity.name,
                "known_hosts": self.known_hosts.name,
                "config": "no-such-file",
                **ssh,
            },
            # What Debian has the sources of, as in the lab.
            "versions": {"nginx": "1.22.1", "crictl": "1.34.0"},
            "artifacts": {"sources": ["cache", "build"], "nginx_source": "debian"},
            "components": {"kube_proxy": {"mode": "nftables"}},
            "cni": "none",
            "nodes": [
                {"name": name(index), "address": node_address(index), "ssh": {"host": address(index)}}
                for index in range(nodes)
            ],
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path


def prepare(folder: Path, nodes: int) -> tuple[Site, Ca]:
    """Keys, certificates and cluster.yaml in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    site = Site(folder=folder, nodes=nodes, apiserver=f"127.0.0.1:{_free_port()}")
    now = datetime.now(UTC)
    made = lab_pki.make(["127.0.0.1"], now)
    for file, content in made.items():
        (folder / file).write_bytes(content)
        (folder / file).chmod(0o600)
    site.kubeconfig.write_bytes(control_plane.kubeconfig(f"https://{site.apiserver}", "admin", made))
    private, public = lab_pki.ssh_key("control-host")
    site.identity.write_bytes(private)
    site.identity.chmod(0o600)
    (folder / "authorized_keys").write_text(f"{public}\n")
    site.write_cluster(nodes)
    ca = pki.load_ca(made["ca.pem"], made["ca-key.pem"], now=now, cert_subject="ca.pem", key_subject="ca-key.pem")
    return site, ca


def client_certificate(ca: Ca, node: str) -> bytes:
    """What a kubelet that has joined holds: certificate and key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = pki.issue_client(
        ca,
        common_name=f"system:node:{node}",
        names={"O": "system:nodes"},
        key=key,
        serial=int.from_bytes(node.encode()[-8:], "big"),
        now=datetime.now(UTC),
        lifetime=timedelta(days=300),
    )
    return certificate + pki.key_pem(key)


class Api:
    """The two processes, ended with the context."""

    def __init__(self, site: Site) -> None:
        """Not started before the context is entered."""
        self._site = site
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Start both and wait until the API is ready."""
        folder, port = self._site.folder, self._site.apiserver.rpartition(":")[2]
        binaries = _binaries(self._site)
        etcd, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
        self._start(
            "etcd",
            binaries["etcd"],
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            "--unsafe-no-fsync",
        )
        self._start(
            "kube-apiserver",
            binaries["kube-apiserver"],
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--client-ca-file={folder / 'ca.pem'}",
            f"--tls-cert-file={folder / 'kubernetes.pem'}",
            f"--tls-private-key-file={folder / 'kubernetes-key.pem'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'sa.pub'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            "--service-cluster-ip-range=10.254.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--enable-bootstrap-token-auth",
            "--endpoint-reconciler-type=none",
        )
        self._await_ready()
        return self

    def __exit__(self, *_: object) -> None:
        """End both, the API first."""
        for process in reversed(self._running):
            process.terminate()
            process.wait()

    def _start(self, name: str, program: Path, *options: str) -> None:
        with (self._site.folder / f"{name}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            )

    def _await_ready(self) -> None:
        trust = ssl.create_default_context(cafile=str(self._site.folder / "ca.pem"))
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"https://{self._site.apiserver}/readyz", timeout=2, context=trust):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise BenchFailed(f"kube-apiserver is not ready: see {self._site.folder / 'kube-apiserver.log'}")


async def register(site: Site) -> None:
    """What joined nodes leave in the cluster: a Node each, and the bindings that let them join."""
    cluster = cluster_file.load(site.cluster_file())
    kube = await Kube.connect(site.kubeconfig, [site.apiserver], site.folder / "ca.pem")
    slots = asyncio.Semaphore(_AT_ONCE)

    async def node(index: int) -> None:
        async with slots:
            await kube.create(_node(index))

    async with kube, asyncio.TaskGroup() as group:
        for action in binding_actions(bindings(cluster, client_csr="guarded"), ()):
            await kube.carry_out(action)
        for index in range(site.nodes):
            group.create_task(node(index))


def _node(index: int) -> Mapping[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name(index), "labels": {"kubernetes.io/hostname": name(index)}},
        "spec": {"podCIDR": str(ipaddress.ip_network((int(ipaddress.ip_address("172.30.0.0")) + 64 * index, 26)))},
    }


def _binaries(site: Site) -> Mapping[str, Path]:
    def wanted(versions: Versions) -> Sequence[Any]:
        return [each for each in lab_artifacts.control_plane(versions) if each.name in {"etcd", "kube-apiserver"}]

    store = BlobStore.default()
    cluster = cluster_file.load(site.cluster_file())
    found = asyncio.run(artifacts.resolve(site.cluster_file(), cluster, tuple(wanted(cluster.versions)), store=store))
    return {each: store.path(blob) for each, blob in found.items()}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
