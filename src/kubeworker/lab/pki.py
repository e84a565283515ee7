"""The lab's certificates: one CA for the cluster, as in the guide, and what the control plane shows and signs with."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeworker.lab.state import FIRST_SERVICE_IP

VALIDITY = dt.timedelta(days=5 * 365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who a certificate is for and what it may be used for."""

    common_name: str
    organization: str = ""
    names: tuple[str, ...] = ()
    """DNS names and IP addresses."""
    server: bool = False
    client: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate with its private key, both PEM."""

    cert: bytes
    key: bytes = field(repr=False)


KUBERNETES_NAMES = (
    "127.0.0.1",  # kubelet and kube-proxy reach the apiserver through the node's local proxy
    FIRST_SERVICE_IP,
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster",
    "kubernetes.default.svc.cluster.local",
)


def subjects(control_plane: Sequence[str]) -> dict[str, Subject]:
    """Every certificate of the lab but the CA's, by file name without suffix; `control_plane` are addresses."""
    return {
        "kubernetes": Subject(
            common_name="kubernetes-master",
            organization="kubeworker lab",
            names=(*KUBERNETES_NAMES, *control_plane),
            server=True,
            client=True,
        ),
        "etcd": Subject(common_name="etcd", names=("127.0.0.1", *control_plane), server=True, client=True),
        "etcd-client": Subject(common_name="kube-apiserver-etcd-client", client=True),
        "admin": Subject(common_name="admin", organization="system:masters", client=True),
        "kube-controller-manager": Subject(common_name="system:kube-controller-manager", client=True),
        "kube-scheduler": Subject(common_name="system:kube-scheduler", client=True),
    }


def make(control_plane: Sequence[str], now: dt.datetime) -> Mapping[str, bytes]:
    """All key and certificate files by file name: ca.pem, ca-key.pem, NAME.pem, NAME-key.pem, sa.key, sa.pub."""
    authority = make_authority("kubernetes-ca", now)
    files = {"ca.pem": authority.cert, "ca-key.pem": authority.key}
    for name, subject in subjects(control_plane).items():
        pair = issue(authority, subject, now)
        files |= {f"{name}.pem": pair.cert, f"{name}-key.pem": pair.key}
    account = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    files["sa.key"] = _private_pem(account)
    files["sa.pub"] = account.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return files


def issue(authority: Pair, subject: Subject, now: dt.datetime, *, lasts: dt.timedelta = VALIDITY) -> Pair:
    """A new key with a certificate for the subject, signed by the CA."""
    issuer = x509.load_pem_x509_certificate(authority.cert)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, rsa.RSAPrivateKey)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name)]
    if subject.organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.organization))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * subject.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * subject.client
    builder = (
        _builder(x509.Name(attributes), issuer.subject, key.public_key(), now, lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if subject.names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in subject.names]), critical=False
        )
    return Pair(cert=_pem(builder.sign(signer, hashes.SHA256())), key=_private_pem(key))


def ssh_key(comment: str) -> tuple[bytes, str]:
    """A new ed25519 key in OpenSSH's format: the private file and the public line."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, f"{public.decode()} {comment}"


def make_authority(common_name: str, now: dt.datetime) -> Pair:
    """A new certificate authority."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        _builder(name, name, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(cert=_pem(certificate), key=_private_pem(key))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey,
    now: dt.datetime,
    lasts: dt.timedelta = VALIDITY,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
