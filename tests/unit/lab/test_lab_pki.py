from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping

import asyncssh
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeworker.core.certificates import pki as product
from kubeworker.lab import pki

NOW = dt.datetime(2030, 1, 2, 3, 4, tzinfo=dt.UTC)
ADDRESSES = ("10.77.0.11", "10.77.0.12")


@pytest.fixture(scope="module")
def made() -> Mapping[str, bytes]:
    return pki.make(ADDRESSES, NOW)


def certificate(made: Mapping[str, bytes], name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(made[f"{name}.pem"])


def builder(made: Mapping[str, bytes]) -> verification.PolicyBuilder:
    return verification.PolicyBuilder().store(verification.Store([certificate(made, "ca")])).time(NOW)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.254.0.1", *ADDRESSES])
def test_the_apiservers_certificate_is_good_for_every_address_it_is_reached_at(
    made: Mapping[str, bytes], address: str
) -> None:
    verifier = builder(made).build_server_verifier(x509.IPAddress(ipaddress.ip_address(address)))
    verifier.verify(certificate(made, "kubernetes"), [])


def test_it_is_good_for_no_other_address(made: Mapping[str, bytes]) -> None:
    verifier = builder(made).build_server_verifier(x509.IPAddress(ipaddress.ip_address("10.77.0.13")))
    with pytest.raises(verification.VerificationError):
        verifier.verify(certificate(made, "kubernetes"), [])


def test_the_tool_takes_the_ca_and_its_key(made: Mapping[str, bytes]) -> None:
    product.load_ca(made["ca.pem"], made["ca-key.pem"], now=NOW, cert_subject="ca", key_subject="key")


@pytest.mark.parametrize("name", sorted(pki.subjects(ADDRESSES)))
def test_every_certificate_is_the_cas_and_has_its_own_key(made: Mapping[str, bytes], name: str) -> None:
    found = certificate(made, name)
    assert product.signed_by(found, certificate(made, "ca"))
    assert product.key_matches(made[f"{name}-key.pem"], found)
    assert found.not_valid_before_utc < NOW < found.not_valid_after_utc


def test_client_certificates_serve_nobody(made: Mapping[str, bytes]) -> None:
    for name in ("admin", "etcd-client", "kube-scheduler", "kube-controller-manager"):
        usages = certificate(made, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_administrator_is_in_the_group_that_may_do_everything(made: Mapping[str, bytes]) -> None:
    (group,) = certificate(made, "admin").subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert group.value == "system:masters"


def test_the_service_account_keys_are_a_pair(made: Mapping[str, bytes]) -> None:
    private = serialization.load_pem_private_key(made["sa.key"], password=None)
    assert private.public_key() == serialization.load_pem_public_key(made["sa.pub"])


def test_ssh_keys_are_in_openssh_form() -> None:
    private, line = pki.ssh_key("a comment")
    key = asyncssh.import_private_key(private)
    assert key.convert_to_public().export_public_key().split()[:2] == line.encode().split()[:2]
    assert line.endswith(" a comment")
