"""Each rule for approving kubelets' requests, broken alone: the request stays pending and the rule is named."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.certificates import csr
from kubeworker.core.certificates.csr import Approve, CsrView, Inventory, Knowledge, Pending, Verdict
from kubeworker.core.spec import Cluster, ClusterFile, NodeSpec

NODE, ADDRESS = "worker-01.example.com", ip_address("10.1.0.1")
OTHER, OTHER_ADDRESS = "worker-02.example.com", ip_address("10.1.0.2")
TOKEN = "abc234"
INVENTORY = Inventory(
    nodes={NODE: ADDRESS, OTHER: OTHER_ADDRESS},
    apiservers=frozenset({ip_address("10.1.0.9")}),
    service_cidr=ip_network("10.254.0.0/16"),
)

P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
RSA_1024, RSA_2048 = (rsa.generate_private_key(public_exponent=65537, key_size=bits) for bits in (1024, 2048))

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


def subject(
    common_name: str = f"system:node:{NODE}", *organizations: str
) -> tuple[tuple[x509.ObjectIdentifier, str], ...]:
    return (
        *((NameOID.ORGANIZATION_NAME, each) for each in organizations or ("system:nodes",)),
        (NameOID.COMMON_NAME, common_name),
    )


def pem(
    *,
    names: tuple[tuple[x509.ObjectIdentifier, str], ...] = subject(),
    sans: tuple[x509.GeneralName, ...] = (),
    key: Key = P256,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    )
    for extension in (*((x509.SubjectAlternativeName(sans),) if sans else ()), *extensions):
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def with_broken_signature(request: bytes) -> bytes:
    parsed = x509.load_pem_x509_csr(request)
    der = bytearray(parsed.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der))
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"


OWN_SANS: tuple[x509.GeneralName, ...] = (x509.DNSName(NODE), x509.IPAddress(ADDRESS))

OWN_KEY = csr.public_key_id(x509.load_pem_x509_csr(pem()))
"""The id of the key that `pem` uses."""

SERVING = CsrView(
    name="csr-1",
    signer=csr.SERVING_SIGNER,
    username=f"system:node:{NODE}",
    groups=("system:nodes", "system:authenticated"),
    usages=("digital signature", "server auth"),
    request=pem(sans=OWN_SANS),
)
CLIENT = CsrView(
    name="csr-2",
    signer=csr.CLIENT_SIGNER,
    username=f"system:bootstrap:{TOKEN}",
    groups=("system:bootstrappers", "system:authenticated"),
    usages=("digital signature", "client auth"),
    request=pem(),
)
SERVING_KNOWN = Knowledge(
    inventory=INVENTORY,
    issued_keys={},
    node_addresses={NODE: frozenset({str(ADDRESS), NODE}), OTHER: frozenset({str(OTHER_ADDRESS)})},
    tokens={},
)
CLIENT_KNOWN = Knowledge(inventory=INVENTORY, issued_keys={}, node_addresses={}, tokens={TOKEN: NODE, "other2": OTHER})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One rule and the least that breaks it; `change` of the request, `known` of what it is judged against."""

    rule: str
    says: str
    """Part of the detail."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `pem` that differ from a good request's."""
    altered: Callable[[bytes], bytes] | None = None
    change: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.rule}-{self.says}".rstrip("-").replace(" ", "_")


def san(*more: x509.GeneralName) -> dict[str, Any]:
    return {"sans": (*OWN_SANS, *more)}


def ip(text: str) -> x509.IPAddress:
    return x509.IPAddress(ip_address(text))


SHARED = [
    Case(rule="decided", change={"conditions": ("Denied",)}, says="Denied"),
    Case(rule="decided", change={"certificate": b"issued"}, says="Issued"),
    Case(rule="signature", altered=with_broken_signature, says="does not verify"),
    Case(rule="key", request={"key": ec.generate_private_key(ec.SECP256K1())}, says="secp256k1"),
    Case(rule="key", request={"key": ed448.Ed448PrivateKey.generate()}, says="no RSA, ECDSA or Ed25519"),
    Case(rule="common_name", request={"names": subject(f"system:node:{OTHER}")}, says=OTHER),
    Case(rule="common_name", request={"names": subject("kubernetes-admin")}, says="kubernetes-admin"),
    Case(rule="common_name", request={"names": ((NameOID.ORGANIZATION_NAME, "system:nodes"),)}, says="missing"),
    Case(
        rule="common_name",
        request={"names": (*subject(), (NameOID.COMMON_NAME, f"system:node:{OTHER}"))},
        says=f"system:node:{NODE}, system:node:{OTHER}",
    ),
    Case(
        rule="organization",
        request={"names": subject(f"system:node:{NODE}", "system:masters")},
        says="[system:masters]",
    ),
    Case(
        rule="organization",
        request={"names": subject(f"system:node:{NODE}", "system:nodes", "system:masters")},
        says="system:nodes, system:masters",
    ),
    Case(rule="organization", request={"names": ((NameOID.COMMON_NAME, f"system:node:{NODE}"),)}, says="[]"),
    Case(rule="subject", request={"names": (*subject(), (NameOID.LOCALITY_NAME, "Seoul"))}, says="carries L"),
    Case(rule="subject", request={"names": (*subject(), (NameOID.ORGANIZATIONAL_UNIT_NAME, "x"))}, says="carries OU"),
    Case(rule="usages", change={"usages": ("digital signature",)}, says="[digital signature]"),
    Case(rule="usages", change={"usages": ("digital signature", "server auth", "client auth")}, says="client auth"),
    Case(
        rule="usages",
        change={"usages": ("digital signature", "key encipherment", "any")},
        says="key encipherment",
    ),
    Case(
        rule="extension",
        request={"extensions": (x509.BasicConstraints(ca=True, path_length=None),)},
        says="2.5.29.19",
    ),
    Case(
        rule="extension",
        request={"extensions": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),)},
        says="2.5.29.37",
    ),
    Case(rule="expiration", change={"expiration_seconds": csr.MAX_SECONDS + 1}, says="367 days"),
    Case(rule="request", altered=lambda _: b"", says="not exactly one PEM block"),
    Case(rule="request", altered=lambda good: good + good, says="not exactly one PEM block"),
    Case(rule="request", altered=lambda good: good.replace(b"\nMI", b"\nAA"), says="can't be read"),
    Case(rule="key_reuse", known={"issued_keys": {OWN_KEY: frozenset({OTHER})}}, says=OTHER),
    Case(rule="key_reuse", known={"issued_keys": {OWN_KEY: frozenset({NODE, OTHER})}}, says=OTHER),
]

SERVING_ONLY = [
    Case(rule="requester", change={"username": "system:serviceaccount:default:default"}, says="serviceaccount"),
    Case(rule="requester", change={"username": f"system:bootstrap:{TOKEN}"}, says="no node"),
    Case(rule="group", change={"groups": ("system:authenticated",)}, says="not in group system:nodes"),
    Case(rule="node", change={"username": "system:node:stranger"}, says="not a node of cluster.yaml"),
    Case(rule="usages", change={"usages": ("digital signature", "client auth")}, says="client auth"),
    Case(
        rule="usages", change={"usages": ("digital signature", "key encipherment", "server auth")}, says="encipherment"
    ),
    Case(
        rule="usages", request={"key": RSA_2048}, says="not exactly [digital signature, key encipherment, server auth]"
    ),
    Case(
        rule="key",
        request={"key": RSA_1024},
        change={"usages": ("key encipherment", "digital signature", "server auth")},
        says="1024 bits",
    ),
    Case(rule="san_none", request={"sans": ()}, says="no DNS name and no address"),
    Case(rule="san_dns", request=san(x509.DNSName(OTHER)), says=OTHER),
    Case(rule="san_dns", request=san(x509.DNSName("kubernetes.default.svc")), says="kubernetes.default.svc"),
    Case(rule="san_dns", request=san(x509.DNSName("*.example.com")), says="*.example.com"),
    Case(rule="san_ip", request=san(ip(str(OTHER_ADDRESS))), says=str(OTHER_ADDRESS)),
    Case(rule="san_ip", request=san(ip("127.0.0.1")), says="loopback"),
    Case(rule="san_ip", request=san(ip("::1")), says="loopback"),
    Case(rule="san_ip", request=san(ip("0.0.0.0")), says="0.0.0.0"),
    Case(rule="san_ip", request=san(ip("10.254.0.1")), says="service address"),
    Case(rule="san_ip", request=san(ip("10.1.0.9")), says="apiserver"),
    Case(rule="san_ip", request=san(x509.IPAddress(ip_network("10.1.0.0/24"))), says="network"),
    Case(rule="san_email", request=san(x509.RFC822Name("root@example.com")), says="root@example.com"),
    Case(rule="san_uri", request=san(x509.UniformResourceIdentifier("spiffe://x/y")), says="spiffe://x/y"),
    Case(rule="san_other", request=san(x509.RegisteredID(NameOID.COMMON_NAME)), says="RegisteredID"),
    Case(rule="node_absent", known={"node_addresses": {}}, says="no Node"),
    Case(rule="node_address", known={"node_addresses": {NODE: frozenset({"10.1.0.77"})}}, says=str(ADDRESS)),
]

CLIENT_ONLY = [
    Case(rule="requester", change={"username": "system:bootstrap:nobody"}, says="no token issued by this tool"),
    Case(rule="group", change={"groups": ("system:authenticated",)}, says="system:bootstrappers"),
    Case(rule="node", known={"tokens": {TOKEN: "stranger"}}, says="not a node of cluster.yaml"),
    Case(rule="common_name", change={"username": "system:bootstrap:other2"}, says=f"not system:node:{OTHER}"),
    Case(rule="usages", change={"usages": ("digital signature", "server auth")}, says="server auth"),
    Case(
        rule="key",
        request={"key": RSA_1024},
        change={"usages": ("key encipherment", "digital signature", "client auth")},
        says="1024 bits",
    ),
    Case(rule="san", request={"sans": (x509.DNSName(NODE),)}, says="no names or addresses"),
    Case(rule="node_present", known={"node_addresses": {NODE: frozenset()}}, says="exists already"),
]


def broken(case: Case, good: CsrView, known: Knowledge, sans: tuple[x509.GeneralName, ...]) -> Verdict:
    """The verdict on a good request with the case's one fault."""
    request = pem(**({"sans": sans} | dict(case.request)))
    request = case.altered(request) if case.altered else request
    return csr.judge(replace(good, request=request, **case.change), replace(known, **case.known))


@pytest.mark.parametrize("case", [*SHARED, *SERVING_ONLY], ids=str)
def test_a_serving_request_that_breaks_one_rule_stays_pending(case: Case) -> None:
    verdict = broken(case, SERVING, SERVING_KNOWN, OWN_SANS)
    assert isinstance(verdict, Pending)
    assert verdict.rule == f"serving.{case.rule}"
    assert case.says in verdict.detail


@pytest.mark.parametrize("case", [*SHARED, *CLIENT_ONLY], ids=str)
def test_a_client_request_that_breaks_one_rule_stays_pending(case: Case) -> None:
    verdict = broken(case, CLIENT, CLIENT_KNOWN, ())
    assert isinstance(verdict, Pending)
    assert verdict.rule == f"client.{case.rule}"
    assert case.says in verdict.detail


@pytest.mark.parametrize(
    ("request_", "change"),
    [
        ({}, {}),
        ({"sans": OWN_SANS[:1]}, {}),
        ({"sans": OWN_SANS[1:]}, {}),
        ({"key": RSA_2048}, {"usages": ("key encipherment", "digital signature", "server auth")}),
        ({"key": P384}, {}),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, {}),
        ({}, {"expiration_seconds": csr.MAX_SECONDS}),
        ({"names": tuple(reversed(subject()))}, {}),
    ],
    ids=["as kubelet makes it", "name only", "address only", "RSA", "P-384", "Ed25519", "a year", "CN before O"],
)
def test_a_serving_request_that_holds_every_rule_is_approved(request_: dict[str, Any], change: dict[str, Any]) -> None:
    good = replace(SERVING, request=pem(**({"sans": OWN_SANS} | request_)), **change)
    assert csr.judge(good, SERVING_KNOWN) == Approve()


def test_a_client_request_that_holds_every_rule_is_approved() -> None:
    assert csr.judge(CLIENT, CLIENT_KNOWN) == Approve()


def test_a_node_that_rejoins_may_bootstrap_though_it_exists() -> None:
    known = replace(CLIENT_KNOWN, node_addresses={NODE: frozenset()}, rejoining=frozenset({NODE}))
    assert csr.judge(CLIENT, known) == Approve()


def test_a_key_may_serve_its_own_node_again() -> None:
    known = replace(SERVING_KNOWN, issued_keys={OWN_KEY: frozenset({NODE})})
    assert csr.judge(SERVING, known) == Approve()


@pytest.mark.parametrize(
    ("signer", "username"),
    [
        ("kubernetes.io/kube-apiserver-client", f"system:bootstrap:{TOKEN}"),
        ("kubernetes.io/kube-apiserver-client", "admin"),
        ("kubernetes.io/legacy-unknown", f"system:node:{NODE}"),
        ("example.com/signer", f"system:node:{NODE}"),
        (csr.CLIENT_SIGNER, "admin"),
    ],
)
def test_other_requests_are_never_approved(signer: str, username: str) -> None:
    for good, known in ((SERVING, SERVING_KNOWN), (CLIENT, CLIENT_KNOWN)):
        verdict = csr.judge(replace(good, signer=signer, username=username), known)
        assert isinstance(verdict, Pending)
        assert verdict.rule == "other.signer"


def test_a_nodes_renewal_of_its_client_certificate_is_left_to_the_controller_manager() -> None:
    verdict = csr.judge(replace(CLIENT, username=f"system:node:{NODE}"), CLIENT_KNOWN)
    assert isinstance(verdict, Pending)
    assert verdict.rule == "client.renewal"
    assert "node-client-cert-renewal" in verdict.detail


def test_every_broken_rule_is_told_in_the_order_of_judging() -> None:
    several = replace(
        SERVING, usages=("digital signature",), expiration_seconds=csr.MAX_SECONDS + 1, request=pem(**san(ip("::1")))
    )
    rules = [each.rule for each in csr.broken_rules(several, SERVING_KNOWN)]
    # An address of nobody's is none of the Node's either.
    assert rules == ["serving.usages", "serving.expiration", "serving.san_ip", "serving.node_address"]
    assert csr.judge(several, SERVING_KNOWN) == next(csr.broken_rules(several, SERVING_KNOWN))
    assert list(csr.broken_rules(SERVING, SERVING_KNOWN)) == []


def test_a_request_without_a_node_to_compare_it_with_is_judged_no_further() -> None:
    stranger = replace(SERVING, username="system:node:stranger", usages=())
    assert [each.rule for each in csr.broken_rules(stranger, SERVING_KNOWN)] == ["serving.node"]


def test_the_keys_that_a_token_got_certificates_for_are_known_by_its_user() -> None:
    other = replace(CLIENT, name="csr-3", request=pem(key=P384))
    unreadable = replace(CLIENT, request=b"nonsense")
    keys = csr.token_keys([CLIENT, other, SERVING, unreadable])
    assert keys == {CLIENT.username: frozenset({csr.request_key(CLIENT), csr.request_key(other)})}


NAMES: list[x509.GeneralName] = [
    *OWN_SANS,
    x509.DNSName(OTHER),
    x509.DNSName(f"{NODE}."),
    x509.DNSName(NODE.partition(".")[0]),
    x509.DNSName(f"x.{NODE}"),
    x509.DNSName(str(ADDRESS)),
    ip(str(OTHER_ADDRESS)),
    ip(f"::ffff:{ADDRESS}"),
    x509.RFC822Name(f"root@{NODE}"),
    x509.UniformResourceIdentifier(f"https://{NODE}/"),
]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
def test_only_the_nodes_own_name_and_address_are_approved(sans: list[x509.GeneralName]) -> None:
    verdict = csr.judge(replace(SERVING, request=pem(sans=tuple(sans))), SERVING_KNOWN)
    assert isinstance(verdict, Approve) == set(OWN_SANS).issuperset(sans)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_request_are_no_crash(noise: bytes) -> None:
    body = base64.encodebytes(noise)
    request = b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"
    for raw in (noise, request):
        verdict = csr.judge(replace(SERVING, request=raw), SERVING_KNOWN)
        assert isinstance(verdict, Pending)
        assert verdict.rule == "serving.request"


def certificate(common_name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_the_keys_of_issued_kubelet_certificates_are_known_by_node() -> None:
    mine = replace(SERVING, certificate=certificate(f"system:node:{NODE}", P256))
    theirs = replace(CLIENT, certificate=certificate(f"system:node:{OTHER}", P256))
    foreign = replace(SERVING, signer="example.com/signer", certificate=certificate("system:node:x", P256))
    unreadable = replace(SERVING, certificate=b"nonsense")
    keys = csr.issued_keys([mine, theirs, foreign, unreadable, SERVING])
    assert keys == {NODE: (OWN_KEY,), OTHER: (OWN_KEY,)}
    assert csr.owners(keys) == {OWN_KEY: frozenset({NODE, OTHER})}


def test_a_certificate_with_a_key_that_cant_be_read_stops_nobody() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{OTHER}")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(ed25519.Ed25519PrivateKey.generate().public_key())
    odd = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(P256, hashes.SHA256())
    der = odd.public_bytes(serialization.Encoding.DER).replace(b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x7f")
    text = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    assert x509.load_pem_x509_certificate(text).serial_number == 1
    mine = replace(SERVING, certificate=certificate(f"system:node:{NODE}", P256))
    assert csr.issued_keys([replace(SERVING, certificate=text), mine]) == {NODE: (OWN_KEY,)}


def test_the_newest_key_of_a_node_comes_last() -> None:
    newer = replace(SERVING, created="2", certificate=certificate(f"system:node:{NODE}", P256))
    older = replace(SERVING, created="1", certificate=certificate(f"system:node:{NODE}", P384))
    keys = csr.issued_keys([newer, older])
    assert keys == {NODE: (csr.public_key_id(x509.load_pem_x509_certificate(older.certificate)), OWN_KEY)}
    assert csr.joined_keys(keys, {NODE: (OWN_KEY, "new"), OTHER: ("x",)}) == {NODE: (*keys[NODE], "new"), OTHER: ("x",)}


def test_of_each_node_the_newest_keys_are_kept_whatever_order_they_are_learned_in() -> None:
    issued = {NODE: tuple("abcdef")}
    recorded = csr.kept_keys(issued)
    assert recorded == {NODE: tuple("cdef")}
    assert csr.kept_keys(csr.joined_keys(recorded, issued)) == recorded


@pytest.mark.parametrize(
    ("request_", "node"),
    [
        (SERVING, NODE),
        (CLIENT, NODE),
        (replace(CLIENT, request=b""), ""),
        (replace(CLIENT, request=pem(names=subject("admin"))), ""),
        (replace(CLIENT, request=pem(names=(*subject(), (NameOID.COMMON_NAME, "system:node:x")))), ""),
    ],
)
def test_a_request_belongs_to_the_node_that_asks_or_is_asked_for(request_: CsrView, node: str) -> None:
    assert request_.node == node


def test_an_object_of_the_api_as_a_value() -> None:
    seen = csr.view(
        {
            "metadata": {"name": "csr-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "signerName": SERVING.signer,
                "username": SERVING.username,
                "groups": list(SERVING.groups),
                "usages": list(SERVING.usages),
                "request": base64.b64encode(SERVING.request).decode(),
                "expirationSeconds": 3600,
            },
            "status": {"conditions": [{"type": "Approved"}], "certificate": base64.b64encode(b"pem").decode()},
        }
    )
    expected = replace(
        SERVING, created="2026-01-01T00:00:00Z", expiration_seconds=3600, conditions=("Approved",), certificate=b"pem"
    )
    assert seen == expected
    assert (seen.state, seen.pending) == ("Approved,Issued", False)


def test_the_inventory_is_what_cluster_yaml_says() -> None:
    cluster = ClusterFile(
        cluster=Cluster(
            apiservers=("10.1.0.9:6443", "api.example.com:6443", "[fd00::9]:6443"),
            cluster_cidr="172.30.0.0/16",
            service_cidr="10.254.0.0/16",
            dns_service_ip="10.254.0.2",
        ),
        nodes=(NodeSpec(name=NODE, address=str(ADDRESS)), NodeSpec(name=OTHER, address=str(OTHER_ADDRESS))),
    )
    apiservers = frozenset({ip_address("10.1.0.9"), ip_address("fd00::9")})
    assert csr.inventory(cluster) == replace(INVENTORY, apiservers=apiservers)
