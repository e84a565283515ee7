"""A Kubernetes control plane of the real binaries, on loopback, for contract tests."""

from __future__ import annotations

import base64
import ipaddress
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """A running etcd, kube-apiserver and kube-controller-manager, with the CA that made their certificates."""

    directory: Path
    server: str
    """https://127.0.0.1:PORT"""
    endpoint: str
    """127.0.0.1:PORT"""
    etcd_url: str
    kubeconfig: Path
    ca_cert: Path
    ca_key: Path
    authority: Authority

    def kubeconfig_for(self, name: str, *, common_name: str, organizations: tuple[str, ...] = ()) -> Path:
        """A kubeconfig with a client certificate that this cluster's CA signed."""
        path = self.directory / f"{name}.kubeconfig"
        cert, key = self.authority.client(common_name, organizations)
        write_kubeconfig(
            path,
            self.server,
            self.authority.cert_pem,
            {
                "client-certificate-data": base64.b64encode(cert).decode(),
                "client-key-data": base64.b64encode(key).decode(),
            },
        )
        return path

    def token_kubeconfig(self, name: str, token: str) -> Path:
        """A kubeconfig that authenticates with a bearer token."""
        path = self.directory / f"{name}.kubeconfig"
        write_kubeconfig(path, self.server, self.authority.cert_pem, {"token": token})
        return path


class Authority:
    """A certificate authority for tests."""

    def __init__(self, common_name: str = "kubernetes") -> None:
        """Make a key and a self-signed CA certificate."""
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.now(UTC)
        self.cert = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.cert_pem = self.cert.public_bytes(serialization.Encoding.PEM)
        self.key_pem = pem_of(self.key)

    def client(self, common_name: str, organizations: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
        """A client certificate and its key, PEM."""
        return self._issue(common_name, organizations, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def server(self, common_name: str, names: tuple[x509.GeneralName, ...]) -> tuple[bytes, bytes]:
        """A server certificate and its key, PEM."""
        return self._issue(common_name, (), x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, names)

    def _issue(
        self,
        common_name: str,
        organizations: tuple[str, ...],
        usage: x509.ObjectIdentifier,
        names: tuple[x509.GeneralName, ...],
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        subject += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, value) for value in organizations]
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), pem_of(key)


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """The private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_kubeconfig(path: Path, server: str, ca: bytes, user: dict[str, str]) -> None:
    """A kubeconfig with one cluster, one user and one context."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()},
            }
        ],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(url: str, context: ssl.SSLContext | None, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until the URL answers 200; fail with the end of the log when the process ends or 60 s pass."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"{url} did not become ready:\n{log.read_text(errors='replace')[-3000:]}")


class Processes:
    """Child processes, ended by pid in reverse order."""

    def __init__(self, directory: Path) -> None:
        """Logs go to `directory`."""
        self.directory = directory
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str | Path) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a command with its output in NAME.log."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        self.running.append(process)
        return process, log

    def stop(self) -> None:
        """End all, the last started first; SIGKILL after 10 s."""
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.running):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


SIGNS_ALL = "cluster-signing"
SIGNS_CLIENTS = "cluster-signing-kubelet-client"
"""What flags of kube-controller-manager that name a signing certificate and key begin with."""


def start_control_plane(
    binaries: Path, directory: Path, processes: Processes, *, signs: str = SIGNS_ALL
) -> ControlPlane:
    """Start etcd, then kube-apiserver, then kube-controller-manager; return once all are ready.

    `signs`: with SIGNS_CLIENTS nobody signs kubelets' serving certificates.
    """
    authority = Authority()
    ca_cert, ca_key = directory / "ca.pem", directory / "ca-key.pem"
    ca_cert.write_bytes(authority.cert_pem)
    ca_key.write_bytes(authority.key_pem)
    loopback = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost"))
    server_cert, server_key = authority.server("kube-apiserver", loopback)
    (directory / "apiserver.pem").write_bytes(server_cert)
    (directory / "apiserver-key.pem").write_bytes(server_key)

    etcd_port, peer_port, manager_port = (free_port() for _ in range(3))
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    etcd = processes.start(
        "etcd",
        binaries / "etcd",
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={etcd_url}",
        f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
    )
    wait_ready(f"{etcd_url}/health", None, *etcd)

    endpoint, _ = start_apiserver(binaries, directory, processes, etcd_url)
    plane = ControlPlane(
        directory=directory,
        server=f"https://{endpoint}",
        endpoint=endpoint,
        etcd_url=etcd_url,
        kubeconfig=directory / "admin.kubeconfig",
        ca_cert=ca_cert,
        ca_key=ca_key,
        authority=authority,
    )
    admin = plane.kubeconfig_for("admin", common_name="admin", organizations=("system:masters",))

    manager = processes.start(
        "kube-controller-manager",
        binaries / "kube-controller-manager",
        f"--kubeconfig={admin}",
        "--bind-address=127.0.0.1",
        f"--secure-port={manager_port}",
        f"--cert-dir={directory}",
        f"--{signs}-cert-file={ca_cert}",
        f"--{signs}-key-file={ca_key}",
        f"--service-account-private-key-file={ca_key}",
        f"--root-ca-file={ca_cert}",
        "--controllers=*,tokencleaner",
        "--use-service-account-credentials",
    )
    insecure = ssl.create_default_context()
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE
    wait_ready(f"https://127.0.0.1:{manager_port}/healthz", insecure, *manager)
    return plane


def start_apiserver(
    binaries: Path,
    directory: Path,
    processes: Processes,
    etcd_url: str,
    *,
    port: int = 0,
    admission: str = "--enable-admission-plugins=NodeRestriction",
    flags: Sequence[str] = (),
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start a kube-apiserver with the certificates in `directory`; its HOST:PORT and process, once it is ready.

    `admission` chooses the plugins beside those that are on by default; `flags` are further ones.
    """
    port = port or free_port()
    ca_key = directory / "ca-key.pem"
    process, log = processes.start(
        f"kube-apiserver-{port}",
        binaries / "kube-apiserver",
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={directory / 'apiserver.pem'}",
        f"--tls-private-key-file={directory / 'apiserver-key.pem'}",
        f"--client-ca-file={directory / 'ca.pem'}",
        f"--service-account-key-file={ca_key}",
        f"--service-account-signing-key-file={ca_key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.254.0.0/16",
        "--authorization-mode=Node,RBAC",
        admission,
        "--enable-bootstrap-token-auth",
        "--endpoint-reconciler-type=none",
        "--allow-privileged=true",
        f"--cert-dir={directory}",
        *flags,
    )
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    wait_ready(f"https://127.0.0.1:{port}/readyz", context, process, log)
    return f"127.0.0.1:{port}", process
