"""Certificates that the tool reads and issues."""

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.unit.authority import NOW, authority, encrypted, pem_of

from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import Ca, SigningKey
from kubeworker.errors import CredentialsError

KEY = ec.generate_private_key(ec.SECP256R1())


def load(cert: bytes, key: bytes, now: datetime = NOW) -> Ca:
    return pki.load_ca(cert, key, now=now, cert_subject="ca.pem", key_subject="ca-key.pem")


def issued(ca: Ca, *, lifetime: timedelta = timedelta(days=365), key: SigningKey = KEY) -> x509.Certificate:
    pem = pki.issue_client(
        ca,
        common_name="system:kube-proxy",
        names={"C": "KR", "ST": "Seoul", "L": "Seoul", "O": "k8s", "OU": "bare-k8s"},
        key=key,
        serial=1234,
        now=NOW,
        lifetime=lifetime,
    )
    return pki.parse_certificate(pem, subject="test")


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ec", "ed25519", "rsa"],
)
def test_an_issued_certificate_is_the_cas_for_whichever_key_it_has(key: SigningKey) -> None:
    ca = load(*authority(key=key))
    certificate = issued(ca)
    assert pki.signed_by(certificate, ca.certificate)
    assert pki.key_matches(pki.key_pem(KEY), certificate)
    assert not pki.signed_by(certificate, load(*authority()).certificate)


def test_the_subject_is_the_guides_in_its_order() -> None:
    subject = issued(load(*authority())).subject
    assert subject.rfc4514_string() == "CN=system:kube-proxy,OU=bare-k8s,O=k8s,L=Seoul,ST=Seoul,C=KR"
    assert [name.oid for name in subject][-1] == NameOID.COMMON_NAME


def test_a_client_certificate_can_be_used_for_nothing_else() -> None:
    extensions = issued(load(*authority())).extensions
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_it_is_valid_a_little_before_now_for_clocks_that_are_behind() -> None:
    certificate = issued(load(*authority()))
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=365)


def test_it_lives_neither_before_nor_after_its_ca() -> None:
    young, old = NOW - timedelta(minutes=1), NOW + timedelta(days=3)
    certificate = issued(load(*authority(start=young, end=old)))
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (young, old)


def test_a_ca_without_a_key_identifier_can_sign_too() -> None:
    ca = load(*authority(identifier=False))
    assert pki.signed_by(issued(ca), ca.certificate)


@pytest.mark.parametrize(
    ("cert", "key", "subject", "message"),
    [
        (b"nonsense", authority()[1], "ca.pem", "holds no PEM certificate"),
        (authority(is_ca=False)[0], authority()[1], "ca.pem", "is not a CA certificate"),
        (authority(is_ca=None)[0], authority()[1], "ca.pem", "is not a CA certificate"),
        (authority(end=NOW - timedelta(days=1))[0], b"", "ca.pem", "expired at 2025-12-31 00:00 UTC"),
        (authority(end=NOW)[0], b"", "ca.pem", "expired at 2026-01-01 00:00 UTC"),
        (authority(start=NOW + timedelta(hours=1))[0], b"", "ca.pem", "is not valid before 2026-01-01 01:00 UTC"),
        (authority()[0], b"nonsense", "ca-key.pem", "holds no usable PEM private key"),
        (authority()[0], encrypted(KEY), "ca-key.pem", "holds no usable PEM private key"),
        (authority()[0], pem_of(x25519.X25519PrivateKey.generate()), "ca-key.pem", "can't sign certificates"),
        (authority()[0], authority()[1], "ca-key.pem", "is not the key of ca.pem"),
    ],
)
def test_a_ca_that_cant_be_used_is_named_with_its_fault(cert: bytes, key: bytes, subject: str, message: str) -> None:
    with pytest.raises(CredentialsError, match=message) as caught:
        load(cert, key)
    assert caught.value.subject == subject
    assert caught.value.exit_code == 3


def test_no_repr_shows_a_key() -> None:
    cert, key = authority()
    assert "PRIVATE" not in repr(load(cert, key))
    assert key.decode().splitlines()[1] not in repr(load(cert, key))


def test_keys_are_written_as_cfssl_writes_them() -> None:
    assert pki.key_pem(rsa.generate_private_key(65537, 2048)).startswith(b"-----BEGIN RSA PRIVATE KEY-----")
    assert pki.key_pem(KEY).startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_key_that_is_no_key_matches_nothing() -> None:
    assert not pki.key_matches(b"nonsense", issued(load(*authority())))
    assert not pki.key_matches(encrypted(KEY), issued(load(*authority())))


def test_a_certificate_of_the_same_name_but_another_key_signed_nothing() -> None:
    first, second = load(*authority()), load(*authority())
    assert first.certificate.subject == second.certificate.subject
    assert not pki.signed_by(issued(first), second.certificate)


def test_the_first_certificate_of_a_bundle_counts() -> None:
    first, second = authority(), authority()
    bundle = first[0] + second[0]
    assert load(bundle, first[1]).certificate.public_bytes(serialization.Encoding.PEM) == first[0]
    assert load(bundle, first[1]).pem == bundle
