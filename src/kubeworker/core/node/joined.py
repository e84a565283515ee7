"""Whether a node has joined: it holds a client certificate for its own name that the cluster's CA signed."""

from __future__ import annotations

from datetime import datetime

from cryptography.x509.oid import NameOID

from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import CaCertificate
from kubeworker.core.node.observed import Observed
from kubeworker.errors import CredentialsError


def has_joined(node: str, observed: Observed, ca: CaCertificate, now: datetime) -> bool:
    """True while the node's own certificate is good; a node without one needs a bootstrap token."""
    if not observed.kubelet_client_cert:
        return False
    try:
        certificate = pki.parse_certificate(observed.kubelet_client_cert.encode(), subject=node)
    except CredentialsError:
        return False
    names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    valid = certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
    return valid and names == [f"system:node:{node}"] and pki.signed_by(certificate, ca.certificate)
