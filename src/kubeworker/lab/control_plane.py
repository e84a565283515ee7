"""The control plane as files on its machines: certificates, kubeconfigs and systemd units, as in the guide.

Each of the two machines has a kube-apiserver on its own address, and beside it a controller-manager and a scheduler
that use the local apiserver and elect a leader. etcd runs on the first machine only, with TLS and client
certificates, reachable from the second.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from kubeworker.lab.state import CLUSTER_CIDR, SERVICE_CIDR, LabState, Machine

BIN = "/opt/lab/bin"
"""Where the lab's binaries are bound into control plane machines, read-only."""
PKI = "/etc/kubernetes/pki"
MANAGER_UNIT = "kube-controller-manager.service"
_CONFIG = "/etc/kubernetes"
_APISERVER_FILES = (
    "kubernetes.pem",
    "kubernetes-key.pem",
    "etcd-client.pem",
    "etcd-client-key.pem",
    "sa.key",
    "sa.pub",
)


def files(lab: LabState, machine: Machine, pki: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every file of the control plane on this machine, by absolute path; all belong to root only."""
    server = f"https://{machine.address}:6443"
    wanted = {f"{PKI}/{name}": pki[name] for name in ("ca.pem", "ca-key.pem", *_APISERVER_FILES)}
    for user in ("kube-controller-manager", "kube-scheduler"):
        wanted[f"{_CONFIG}/{user}.kubeconfig"] = kubeconfig(server, user, pki)
    if _has_etcd(lab, machine):
        wanted |= {f"{PKI}/{name}": pki[name] for name in ("etcd.pem", "etcd-key.pem")}
    for name, text in units(lab, machine).items():
        wanted[f"/etc/systemd/system/{name}"] = text.encode()
    return wanted


def units(lab: LabState, machine: Machine) -> dict[str, str]:
    """The units of this machine's part of the control plane, by name."""
    texts = {
        "kube-apiserver.service": _unit("Kubernetes API server", _apiserver(lab, machine), notify=True),
        MANAGER_UNIT: _unit("Kubernetes controller manager", _controller_manager(lab)),
        "kube-scheduler.service": _unit("Kubernetes scheduler", _scheduler()),
    }
    if _has_etcd(lab, machine):
        texts["etcd.service"] = _unit("etcd", _etcd(machine), notify=True)
    return texts


def kubeconfig(server: str, user: str, pki: Mapping[str, bytes]) -> bytes:
    """A kubeconfig with everything inside; `user` names the certificate's files."""
    encoded = {name: base64.b64encode(pki[name]).decode() for name in ("ca.pem", f"{user}.pem", f"{user}-key.pem")}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": encoded["ca.pem"]}}],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": encoded[f"{user}.pem"],
                    "client-key-data": encoded[f"{user}-key.pem"],
                },
            }
        ],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }
    # JSON is YAML, and every reader of a kubeconfig takes it.
    return (json.dumps(document, indent=2) + "\n").encode()


def _has_etcd(lab: LabState, machine: Machine) -> bool:
    return machine.name == lab.control_plane[0].name


def _etcd(machine: Machine) -> tuple[str, ...]:
    client = f"https://{machine.address}:2379"
    peer = "http://127.0.0.1:2380"  # a single member has no peers; the port stays on loopback
    return (
        f"{BIN}/etcd",
        f"--name={machine.name}",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={machine.name}={peer}",
        f"--cert-file={PKI}/etcd.pem",
        f"--key-file={PKI}/etcd-key.pem",
        f"--trusted-ca-file={PKI}/ca.pem",
        "--client-cert-auth",
        # A lab survives killed processes, not power cuts; without this a busy disk costs etcd its leader.
        "--unsafe-no-fsync",
    )


def _apiserver(lab: LabState, machine: Machine) -> tuple[str, ...]:
    return (
        f"{BIN}/kube-apiserver",
        f"--etcd-servers=https://{lab.control_plane[0].address}:2379",
        f"--etcd-cafile={PKI}/ca.pem",
        f"--etcd-certfile={PKI}/etcd-client.pem",
        f"--etcd-keyfile={PKI}/etcd-client-key.pem",
        f"--advertise-address={machine.address}",
        f"--bind-address={machine.address}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--client-ca-file={PKI}/ca.pem",
        f"--tls-cert-file={PKI}/kubernetes.pem",
        f"--tls-private-key-file={PKI}/kubernetes-key.pem",
        f"--kubelet-certificate-authority={PKI}/ca.pem",
        f"--kubelet-client-certificate={PKI}/kubernetes.pem",
        f"--kubelet-client-key={PKI}/kubernetes-key.pem",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={PKI}/sa.pub",
        f"--service-account-signing-key-file={PKI}/sa.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--enable-bootstrap-token-auth",
        "--allow-privileged=true",
        "--profiling=false",
    )


def _controller_manager(lab: LabState) -> tuple[str, ...]:
    return (
        f"{BIN}/kube-controller-manager",
        f"--kubeconfig={_CONFIG}/kube-controller-manager.kubeconfig",
        "--bind-address=127.0.0.1",
        "--leader-elect=true",
        "--controllers=*,bootstrapsigner,tokencleaner",
        "--use-service-account-credentials",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={CLUSTER_CIDR}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--cluster-signing-cert-file={PKI}/ca.pem",
        f"--cluster-signing-key-file={PKI}/ca-key.pem",
        *((f"--cluster-signing-duration={lab.signing_duration}",) if lab.signing_duration else ()),
        f"--root-ca-file={PKI}/ca.pem",
        f"--service-account-private-key-file={PKI}/sa.key",
        "--profiling=false",
    )


def _scheduler() -> tuple[str, ...]:
    return (
        f"{BIN}/kube-scheduler",
        f"--kubeconfig={_CONFIG}/kube-scheduler.kubeconfig",
        "--bind-address=127.0.0.1",
        "--leader-elect=true",
        "--profiling=false",
    )


def _unit(description: str, command: tuple[str, ...], *, notify: bool = False) -> str:
    # A stopping apiserver waits up to a minute for its clients' watches; no lab needs that.
    # No start limit: the second machine's apiserver waits for etcd on the first, however long that takes.
    return f"""\
[Unit]
Description={description}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type={"notify" if notify else "simple"}
ExecStart={" ".join(command)}
Restart=always
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=2
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""
