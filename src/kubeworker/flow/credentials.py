"""The cluster's CA and kube-proxy's client certificate: read, judged, issued, and kept 0600 beside cluster.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import Ca, CaCertificate
from kubeworker.core.sharding import handed
from kubeworker.core.sharding.handed import Handed
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import CredentialsError, reason
from kubeworker.io.whole_file import write_atomically

RENEW_BEFORE = timedelta(days=30)
"""apply renews kube-proxy's certificate when it has this long left."""

_SUBJECT = {"C": "KR", "ST": "Seoul", "L": "Seoul", "O": "k8s", "OU": "bare-k8s"}
"""The guide's kube-proxy-csr.json."""

_COMMON_NAME = "system:kube-proxy"
"""RBAC's built-in binding system:node-proxier names this user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeProxyCredential:
    """kube-proxy's client certificate for the whole cluster."""

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)
    status: Literal["kept", "issue", "renew"]
    """issue: none was kept; renew: the kept one is no longer good. Both are `write`n by apply only."""
    reason: str
    """For the plan; empty when kept."""


NO_KUBE_PROXY = KubeProxyCredential(cert=b"", key=b"", status="kept", reason="")
"""Where no node has a kube-proxy: there is nothing to issue."""


def directory(cluster_file: Path) -> Path:
    """Where this cluster's own secrets lie: `.kubeworker` beside cluster.yaml."""
    return cluster_file.parent / ".kubeworker"


def handed_over(cluster_file: Path) -> Handed | None:
    """What another control host handed over for a run here (`kubeworker job`); None on a control host."""
    path = directory(cluster_file) / handed.NAME
    try:
        return handed.parse(path.read_text(), subject=str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"can't be read: {error.strerror}", subject=str(path)) from error


def load_ca(cluster: ClusterFile, *, now: datetime) -> Ca:
    """The CA with its key; CredentialsError where a file is missing, expired, no CA, or the two don't match."""
    files = cluster.cluster.ca
    return pki.load_ca(
        _read(files.cert, "cluster.ca.cert"),
        _read(files.key, "cluster.ca.key"),
        now=now,
        cert_subject=files.cert,
        key_subject=files.key,
    )


def load_ca_certificate(cluster: ClusterFile, *, now: datetime) -> CaCertificate:
    """The CA's certificate alone: all that `verify` and `status` need, where the key may lie elsewhere."""
    path = cluster.cluster.ca.cert
    pem = _read(path, "cluster.ca.cert")
    return CaCertificate(certificate=pki.load_ca_certificate(pem, now=now, subject=path), pem=pem)


def kube_proxy(cluster_file: Path, ca: CaCertificate, *, now: datetime, lifetime: timedelta) -> KubeProxyCredential:
    """The kept certificate where it is still good, else a new one that nothing has been told of yet.

    Without the CA's key the new one is empty: enough to see that the nodes have another, and never `write`n.
    """
    kept = _kept(directory(cluster_file))
    if kept is None:
        return _issue(ca, now=now, lifetime=lifetime, status="issue", reason="no certificate was issued yet")
    cert, key = kept
    reason = _fault(cert, key, ca, now)
    if reason:
        return _issue(ca, now=now, lifetime=lifetime, status="renew", reason=reason)
    return KubeProxyCredential(cert=cert, key=key, status="kept", reason="")


def write(cluster_file: Path, credential: KubeProxyCredential) -> None:
    """Keep the pair, key first, so that a run that dies in between leaves a mismatch that the next one sees."""
    place = directory(cluster_file)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        write_secret(place / _KEY, credential.key)
        write_secret(place / _CERT, credential.cert)
    except OSError as error:
        raise CredentialsError(
            f"can't be written: {reason(error)}",
            subject=str(place),
            hint="kube-proxy's client certificate is kept there, beside cluster.yaml",
        ) from error


_CERT = "kube-proxy.pem"
_KEY = "kube-proxy-key.pem"


def _kept(place: Path) -> tuple[bytes, bytes] | None:
    try:
        return (place / _CERT).read_bytes(), (place / _KEY).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"can't be read: {reason(error)}", subject=str(place)) from error


def _fault(cert: bytes, key: bytes, ca: CaCertificate, now: datetime) -> str:
    """Why the kept pair is no longer good; empty when it is."""
    try:
        certificate = pki.parse_certificate(cert, subject=_CERT)
    except CredentialsError as error:
        return f"the kept certificate {error.message}"
    if not pki.key_matches(key, certificate):
        return "the kept key does not belong to the kept certificate"
    if not pki.signed_by(certificate, ca.certificate):
        return "the cluster's CA has changed"
    left = certificate.not_valid_after_utc - now
    # A short-lived CA gives short-lived certificates: renewing one would gain nothing before the CA itself is renewed.
    if left <= timedelta() or (
        left < RENEW_BEFORE and certificate.not_valid_after_utc < ca.certificate.not_valid_after_utc
    ):
        return f"it expires on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def _issue(
    ca: CaCertificate, *, now: datetime, lifetime: timedelta, status: Literal["issue", "renew"], reason: str
) -> KubeProxyCredential:
    if not isinstance(ca, Ca):
        return KubeProxyCredential(cert=b"", key=b"", status=status, reason=reason)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    cert = pki.issue_client(
        ca,
        common_name=_COMMON_NAME,
        names=_SUBJECT,
        key=key,
        serial=x509.random_serial_number(),
        now=now,
        lifetime=lifetime,
    )
    return KubeProxyCredential(cert=cert, key=pki.key_pem(key), status=status, reason=reason)


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialsError(
            f"can't be read: {reason(error)}", subject=path, hint=f"{what} in cluster.yaml names this file"
        ) from error


def write_secret(path: Path, content: bytes) -> None:
    """Mode 0600 from the first byte on, whole or not at all, on disk before it is visible."""
    write_atomically(path, content, mode=0o600)
