"""Certificate authorities for unit tests, with every fault that they are to have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.x509.oid import NameOID

from kubeworker.core.certificates.pki import SigningKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_HASHLESS = ed25519.Ed25519PrivateKey


def authority(
    *,
    key: SigningKey | None = None,
    start: datetime = NOW - timedelta(days=30),
    end: datetime = NOW + timedelta(days=3650),
    is_ca: bool | None = True,
    identifier: bool = True,
) -> tuple[bytes, bytes]:
    """Certificate and key in PEM. `is_ca` None leaves the extension out, as `openssl req` of old does."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(start, end - timedelta(days=1)))
        .not_valid_after(end)
    )
    if is_ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    if identifier:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
    certificate = builder.sign(own, None if isinstance(own, _HASHLESS) else hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM), pem_of(own)


def pem_of(key: SigningKey | x25519.X25519PrivateKey) -> bytes:
    """The key, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def encrypted(key: SigningKey) -> bytes:
    """The key under a pass phrase."""
    phrase = serialization.BestAvailableEncryption(b"pass phrase")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, phrase)
