"""Certificates that a component's chart is given: from an authority of its own, kept 0600 beside cluster.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import Ca
from kubeworker.core.component import Certificate, KeyPair
from kubeworker.errors import CredentialsError, reason
from kubeworker.flow.credentials import RENEW_BEFORE, directory, write_secret

CA_LIFETIME = timedelta(days=3650)
CA_RENEW_BEFORE = timedelta(days=365)
"""The authority is replaced this long before its end, and every certificate with it."""

CA = "ca"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartCredentials:
    """The key pairs of one component's chart, `ca` among them."""

    component: str
    pairs: Mapping[str, KeyPair] = field(repr=False)
    issued: Mapping[str, str] = field(default_factory=dict)
    """By name, why a pair is new; apply `write`s these."""


def load(
    cluster_file: Path, component: str, wanted: Sequence[Certificate], *, now: datetime, lifetime: timedelta
) -> ChartCredentials:
    """The kept pairs where they are still good, else new ones that nothing has been told of yet."""
    if not wanted:
        return ChartCredentials(component=component, pairs={})
    place = _place(cluster_file, component)
    issued: dict[str, str] = {}
    kept_ca = _kept(place, CA)
    fault = _ca_fault(kept_ca, now)
    if kept_ca is None or fault:
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        ca = pki.self_signed_ca(
            common_name=f"{component} CA", key=key, serial=serial, now=now, lifetime=max(CA_LIFETIME, 2 * lifetime)
        )
        issued[CA] = fault
        ca_pair = KeyPair(cert=ca.pem, key=pki.key_pem(key))
    else:
        ca_pair = kept_ca
        ca = pki.load_ca(
            kept_ca.cert,
            kept_ca.key,
            now=now,
            cert_subject=str(place / "ca.pem"),
            key_subject=str(place / "ca-key.pem"),
        )
    pairs = {CA: ca_pair}
    for want in wanted:
        kept = _kept(place, want.name)
        why = _fault(kept, want, ca, now)
        if kept is None or why:
            pairs[want.name], issued[want.name] = _issue(want, ca, now, lifetime), why
        else:
            pairs[want.name] = kept
    return ChartCredentials(component=component, pairs=pairs, issued=issued)


def write(cluster_file: Path, credentials: ChartCredentials) -> None:
    """Keep the new pairs, each key first: a run that dies in between leaves a mismatch that the next one sees."""
    if not credentials.issued:
        return
    place = _place(cluster_file, credentials.component)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in credentials.issued:
            write_secret(place / f"{name}-key.pem", credentials.pairs[name].key)
            write_secret(place / f"{name}.pem", credentials.pairs[name].cert)
    except OSError as error:
        text = f"can't be written: {reason(error)}"
        hint = f"certificates of {credentials.component} are kept there, beside cluster.yaml"
        raise CredentialsError(text, subject=str(place), hint=hint) from error


def _place(cluster_file: Path, component: str) -> Path:
    return directory(cluster_file) / component


def _kept(place: Path, name: str) -> KeyPair | None:
    try:
        return KeyPair(cert=(place / f"{name}.pem").read_bytes(), key=(place / f"{name}-key.pem").read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"can't be read: {reason(error)}", subject=str(place / f"{name}.pem")) from error


def _ca_fault(kept: KeyPair | None, now: datetime) -> str:
    if kept is None:
        return "none was made yet"
    certificate, why = _readable(kept)
    if certificate is None:
        return why
    left = certificate.not_valid_after_utc - now
    return f"it expires on {certificate.not_valid_after_utc:%Y-%m-%d}" if left < CA_RENEW_BEFORE else ""


def _fault(kept: KeyPair | None, want: Certificate, ca: Ca, now: datetime) -> str:
    """Why the kept pair is no longer good; empty when it is."""
    if kept is None:
        return "none was issued yet"
    certificate, why = _readable(kept)
    if certificate is None:
        return why
    if not pki.signed_by(certificate, ca.certificate):
        return "its authority has changed"
    if pki.dns_names(certificate) != want.dns_names:
        return f"it is not for {', '.join(want.dns_names)}"
    if certificate.not_valid_after_utc - now < RENEW_BEFORE:
        return f"it expires on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def _readable(kept: KeyPair) -> tuple[x509.Certificate | None, str]:
    """The certificate, or why the pair can't be used."""
    try:
        certificate = pki.parse_certificate(kept.cert, subject="it")
    except CredentialsError as error:
        return None, f"the kept one {error.message}"
    if not pki.key_matches(kept.key, certificate):
        return None, "the kept key does not belong to the kept certificate"
    return certificate, ""


def _issue(want: Certificate, ca: Ca, now: datetime, lifetime: timedelta) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    cert = pki.issue_peer(
        ca,
        common_name=want.common_name,
        dns_names=want.dns_names,
        key=key,
        serial=x509.random_serial_number(),
        now=now,
        lifetime=lifetime,
    )
    return KeyPair(cert=cert, key=pki.key_pem(key))
