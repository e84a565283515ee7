"""Certificates as values: the cluster's CA and client certificates that it signs.

Pure: keys, serial numbers and the clock come from the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeworker.errors import CredentialsError

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

_BACKDATED = timedelta(minutes=5)
"""Certificates start this much before now, as cfssl's and kubeadm's do, for nodes whose clock is a little behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaCertificate:
    """A certificate authority to check against: enough for all that only looks."""

    certificate: x509.Certificate = field(repr=False)
    pem: bytes = field(repr=False)
    """The certificate file as the operator gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ca(CaCertificate):
    """A certificate authority that can sign."""

    key: SigningKey = field(repr=False)


def parse_certificate(pem: bytes, *, subject: str) -> x509.Certificate:
    """The first certificate of a PEM file; CredentialsError naming `subject` where there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        hint = "it must be a PEM file that begins with -----BEGIN CERTIFICATE-----"
        raise CredentialsError("holds no PEM certificate", subject=subject, hint=hint) from error


def load_ca_certificate(pem: bytes, *, now: datetime, subject: str) -> x509.Certificate:
    """The CA's certificate, checked: it is a CA and valid now."""
    certificate = parse_certificate(pem, subject=subject)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise CredentialsError(
            "is not a CA certificate (basicConstraints CA:TRUE is missing)",
            subject=subject,
            hint="cluster.ca.cert must name the CA that signed the API servers' certificates",
        )
    if now >= certificate.not_valid_after_utc:
        raise CredentialsError(
            f"expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            subject=subject,
            hint="renew the cluster's CA first; every certificate that it signed is void too",
        )
    if now + _BACKDATED < certificate.not_valid_before_utc:
        raise CredentialsError(
            f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            subject=subject,
            hint="check this machine's clock",
        )
    return certificate


def load_ca(cert_pem: bytes, key_pem: bytes, *, now: datetime, cert_subject: str, key_subject: str) -> Ca:
    """The CA with its key, checked as `load_ca_certificate` does, and that the two belong together."""
    certificate = load_ca_certificate(cert_pem, now=now, subject=cert_subject)
    try:
        key = _private_key(key_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError: the key is encrypted. The library's text never holds key material.
        raise CredentialsError(
            f"holds no usable PEM private key: {error}",
            subject=key_subject,
            hint="cluster.ca.key must name the CA's unencrypted private key in PEM form",
        ) from error
    if not isinstance(key, SigningKey):
        hint = "the CA's key must be RSA, ECDSA or EdDSA"
        raise CredentialsError(f"a {type(key).__name__} can't sign certificates", subject=key_subject, hint=hint)
    if _spki(key.public_key()) != _spki(certificate.public_key()):
        raise CredentialsError(
            f"is not the key of {cert_subject}",
            subject=key_subject,
            hint="cluster.ca.cert and cluster.ca.key must be one pair; "
            f"compare: openssl x509 -in {cert_subject} -noout -pubkey; openssl pkey -in {key_subject} -pubout",
        )
    return Ca(certificate=certificate, key=key, pem=cert_pem)


def issue_client(
    ca: Ca, *, common_name: str, names: dict[str, str], key: SigningKey, serial: int, now: datetime, lifetime: timedelta
) -> bytes:
    """A client certificate in PEM, not outliving the CA.

    `names` is cfssl's entry of that name (any of C, ST, L, O, OU); `serial` a fresh random number.
    """
    subject = x509.Name(
        [x509.NameAttribute(_OIDS[short], value) for short, value in names.items()]
        + [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return _sign(ca, subject, key.public_key(), usage, None, serial=serial, now=now, lifetime=lifetime)


def _sign(
    ca: Ca,
    subject: x509.Name,
    public: CertificatePublicKeyTypes,
    usage: x509.ExtendedKeyUsage,
    names: x509.SubjectAlternativeName | None,
    *,
    serial: int,
    now: datetime,
    lifetime: timedelta,
) -> bytes:
    """The certificate in PEM; it is not valid before the CA nor after it."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(max(now - _BACKDATED, ca.certificate.not_valid_before_utc))
        .not_valid_after(min(now + lifetime, ca.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_CLIENT_USAGE, critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority(ca.certificate), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    digest = None if isinstance(ca.key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return builder.sign(ca.key, digest).public_bytes(serialization.Encoding.PEM)


def self_signed_ca(
    *, common_name: str, key: ec.EllipticCurvePrivateKey, serial: int, now: datetime, lifetime: timedelta
) -> Ca:
    """A certificate authority of a component's own."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Ca(certificate=certificate, key=key, pem=certificate.public_bytes(serialization.Encoding.PEM))


def issue_peer(
    ca: Ca,
    *,
    common_name: str,
    dns_names: tuple[str, ...],
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    now: datetime,
    lifetime: timedelta,
) -> bytes:
    """A certificate in PEM for both ends of mutual TLS, not outliving the CA."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    names = x509.SubjectAlternativeName([x509.DNSName(each) for each in dns_names])
    return _sign(ca, subject, key.public_key(), _BOTH_ENDS, names, serial=serial, now=now, lifetime=lifetime)


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether `ca` issued `certificate` (names and signature; dates are not looked at)."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def key_matches(key_pem: bytes, certificate: x509.Certificate) -> bool:
    """Whether this PEM private key belongs to the certificate."""
    try:
        key = _private_key(key_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return _spki(key.public_key()) == _spki(certificate.public_key())


def key_pem(key: SigningKey) -> bytes:
    """The private key as cfssl writes it: PEM, unencrypted (PKCS#1 for RSA)."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL
        if isinstance(key, rsa.RSAPrivateKey)
        else serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
}

_CLIENT_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_encipherment=True,
    content_commitment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    key_encipherment=False,
    content_commitment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)

_BOTH_ENDS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def _private_key(pem: bytes) -> PrivateKeyTypes:
    """Read a key without proving its primes again.

    That proof takes 55 ms for RSA 2048, at every run, of a key that the operator or this tool made. Whether the key
    belongs to its certificate is compared by the public half.
    """
    return serialization.load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)


def _authority(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _spki(public: object) -> bytes:
    encoded: bytes = public.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
