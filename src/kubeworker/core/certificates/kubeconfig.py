"""kubeconfig documents as `kubectl config` writes them for the guide: one cluster, one user, one context."""

from __future__ import annotations

import base64
from typing import Any

from kubeworker.core.formats import yaml


def with_token(*, server: str, ca: bytes, user: str, token: str) -> bytes:
    """A kubeconfig that authenticates by bearer token (the guide's kubelet-bootstrap.kubeconfig)."""
    return _document(server, ca, user, {"token": token})


def with_certificate(*, server: str, ca: bytes, user: str, cert: bytes, key: bytes) -> bytes:
    """A kubeconfig with an embedded client certificate (the guide's kube-proxy.kubeconfig); all PEM."""
    return _document(server, ca, user, {"client-certificate-data": _data(cert), "client-key-data": _data(key)})


def with_certificate_file(*, server: str, ca: bytes, user: str, path: str) -> bytes:
    """A kubeconfig that names a file with client certificate and key, as kubelet's own does (it rotates the file)."""
    return _document(server, ca, user, {"client-certificate": path, "client-key": path})


def _document(server: str, ca: bytes, user: str, credentials: dict[str, str]) -> bytes:
    cluster = {"certificate-authority-data": _data(ca), "server": server}
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": cluster}],
        "contexts": [{"name": "default", "context": {"cluster": "kubernetes", "user": user}}],
        "current-context": "default",
        "preferences": {},
        "users": [{"name": user, "user": credentials}],
    }
    return yaml.dump(document).encode()


def _data(pem: bytes) -> str:
    return base64.b64encode(pem).decode()
