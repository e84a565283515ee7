"""Forged certificate signing requests as values: who asks for what, and what has to stop it.

`test_csr_attacks.py` sends them to a real kube-apiserver. Each breaks one rule of `core/certificates/csr.py` and holds
all others.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from kubeworker.core.certificates import csr
from kubeworker.core.spec import NodeSpec

# ---------------------------------------------------------------------------------------------------------------
# The cluster that is attacked

NODE = NodeSpec(name="k8s-1", address="10.1.3.1")
"""Taken over: the attacker is root on it, and so writes whatever addresses into its Node's status."""
VICTIM = NodeSpec(name="k8s-10", address="10.1.3.10")
JOINING = NodeSpec(name="k8s-3", address="10.1.3.3")
"""Has a bootstrap token and no Node yet."""
MOVED = NodeSpec(name="k8s-4", address="10.1.3.4")
"""Its Node says another address than cluster.yaml."""
ABSENT = NodeSpec(name="k8s-5", address="10.1.3.5")
"""In cluster.yaml, never registered."""
INVENTORY = (NODE, VICTIM, JOINING, MOVED, ABSENT)
STRANGER = NodeSpec(name="k8s-99", address="10.1.3.99")
"""Joined by other means, not in cluster.yaml."""

APISERVER = "10.1.3.100"
SERVICE = "10.254.0.1"
"""The `kubernetes` Service."""
CLAIMED = (NODE.address, VICTIM.address, "127.0.0.1", SERVICE, APISERVER)
"""What NODE's Node object claims for addresses, so that rule 8's second half alone would let them through."""
NODES = {
    NODE.name: CLAIMED,
    VICTIM.name: (VICTIM.address,),
    MOVED.name: ("10.1.3.44",),
    STRANGER.name: (STRANGER.address,),
}
"""The Node objects that exist, with their addresses."""

Asker: TypeAlias = Literal[
    "node",
    "victim",
    "moved",
    "absent",
    "stranger",
    "ungrouped-node",
    "user",
    "user-without-rights",
    "half-approver",
    "token",
    "present-token",
    "gone-token",
    "foreign-token",
    "revoked-token",
    "expired-token",
    "ungrouped-token",
]

ASKERS: Mapping[Asker, str] = {
    "node": f"root on node {NODE.name}, with its client certificate",
    "victim": f"node {VICTIM.name}",
    "moved": f"node {MOVED.name}",
    "absent": f"a client certificate for {ABSENT.name}, which never registered",
    "stranger": f"a node that cluster.yaml lacks, {STRANGER.name}",
    "ungrouped-node": f"a certificate for CN system:node:{NODE.name} without O system:nodes",
    "user": "a user who may create requests",
    "user-without-rights": "a user without rights",
    "half-approver": "a user who may update approvals, not approve for this signer",
    "token": f"the token of {JOINING.name}",
    "present-token": f"a token of {NODE.name}, which has joined",
    "gone-token": "a token of a node that cluster.yaml lost",
    "foreign-token": "a token that somebody else made",
    "revoked-token": f"a token of {JOINING.name}, deleted after it asked",
    "expired-token": f"a token of {JOINING.name} past its end",
    "ungrouped-token": f"a certificate for the user of {JOINING.name}'s token, without its group",
}

TOKENS: Mapping[Asker, tuple[str, str]] = {
    "token": ("aaaaa3", JOINING.name),
    "present-token": ("aaaaa1", NODE.name),
    "gone-token": ("aaaa66", "k8s-66"),
    "foreign-token": ("ffffff", JOINING.name),
    "revoked-token": ("bbbbb3", JOINING.name),
    "expired-token": ("eeeee3", JOINING.name),
}
"""Token id and the node that it was made for."""

# ---------------------------------------------------------------------------------------------------------------
# Requests

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Alter: TypeAlias = Callable[[bytes], bytes]
STOLEN = ec.generate_private_key(ec.SECP256R1())
"""VICTIM's key: its certificate is issued before the attacks begin."""


def fresh() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def names_of(node: NodeSpec, *more: x509.GeneralName) -> tuple[x509.GeneralName, ...]:
    return (x509.DNSName(node.name), x509.IPAddress(ip_address(node.address)), *more)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A CertificateSigningRequest, with every field that an attacker can choose."""

    signer: str
    usages: tuple[str, ...]
    common_name: str
    organizations: tuple[str, ...] = ("system:nodes",)
    unit: str = ""
    """OU"""
    sans: tuple[x509.GeneralName, ...] = ()
    extensions: tuple[x509.ExtensionType, ...] = ()
    key: Callable[[], Key] = fresh
    alter: Alter = bytes
    """Of the finished PEM."""
    expiration_seconds: int | None = None
    name: str = ""
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further fields of the object, that a client has no business to set."""

    def document(self) -> dict[str, Any]:
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in self.organizations]
        subject += [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, self.unit)] if self.unit else []
        subject += [x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)]
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
        for extension in (*((x509.SubjectAlternativeName(self.sans),) if self.sans else ()), *self.extensions):
            builder = builder.add_extension(extension, critical=False)
        pem = self.alter(builder.sign(self.key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        spec = {
            "signerName": self.signer,
            "usages": list(self.usages),
            "request": base64.b64encode(pem).decode(),
            **({"expirationSeconds": self.expiration_seconds} if self.expiration_seconds else {}),
            **self.more.get("spec", {}),
        }
        return {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": self.name} if self.name else {"generateName": "csr-"},
            "spec": spec,
            **({"status": self.more["status"]} if "status" in self.more else {}),
        }


def serving(node: NodeSpec) -> Request:
    """As the node's kubelet asks for its serving certificate."""
    return Request(
        signer=csr.SERVING_SIGNER,
        usages=("digital signature", "server auth"),
        common_name=f"system:node:{node.name}",
        sans=names_of(node),
    )


def client(node: NodeSpec) -> Request:
    """As the node's kubelet asks for its client certificate."""
    return Request(
        signer=csr.CLIENT_SIGNER,
        usages=("digital signature", "client auth"),
        common_name=f"system:node:{node.name}",
    )


def with_broken_signature(pem: bytes) -> bytes:
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der))
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"


def twice(pem: bytes) -> bytes:
    return pem + pem


def weak() -> Key:
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


def bitcoins() -> Key:
    return ec.generate_private_key(ec.SECP256K1())


# ---------------------------------------------------------------------------------------------------------------
# Attacks

Step: TypeAlias = Literal[
    "create",
    "create-then-deny",
    "create-then-revoke",
    "recreate",
    "approve-own",
    "issue-own",
    "approve-denied",
    "replace-spec",
]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attempt at a certificate that one should not have."""

    id: str
    what: str
    """A line of the table."""
    asker: Asker
    request: Request
    rule: str = ""
    """The rule that it breaks; empty: the API server does not take it."""
    api: str = ""
    """What of the API server stops it."""
    says: str = ""
    """Part of what the API server answers."""
    step: Step = "create"
    node_restriction: bool = True
    """False: sent to a kube-apiserver that runs without that plugin (it is not among those that are on by default)."""

    def __str__(self) -> str:
        return self.id


def _shared(kind: str, good: Request, asker: Asker) -> tuple[Attack, ...]:
    """What can be wrong with either kind of request."""

    def attack(rule: str, what: str, **over: Any) -> Attack:
        steps = {key: over.pop(key) for key in ("step", "node_restriction") if key in over}
        words = f"{kind}: {what}"
        request = replace(good, **over)
        return Attack(id=f"{kind}-{rule}", what=words, asker=asker, request=request, rule=f"{kind}.{rule}", **steps)

    server = kind == "serving"
    purpose = good.usages[-1]
    other = "client auth" if server else "server auth"
    return (
        attack("decided", "one that was denied already", step="create-then-deny"),
        # NodeRestriction would not let a node ask in another's name.
        attack(
            "common_name",
            "another node's name as CN",
            common_name=f"system:node:{VICTIM.name}",
            node_restriction=not server,
        ),
        attack(
            "organization", "O system:masters beside system:nodes", organizations=("system:nodes", "system:masters")
        ),
        attack("subject", "OU in the subject", unit="cluster-admins"),
        attack("usages", f"usage {other} too", usages=("digital signature", purpose, other)),
        attack("key", "RSA key of 1024 bits", key=weak, usages=("digital signature", "key encipherment", purpose)),
        attack(
            "extension",
            "extension basicConstraints CA:TRUE",
            extensions=(x509.BasicConstraints(ca=True, path_length=None),),
        ),
        attack("expiration", "lifetime of ten years", expiration_seconds=10 * 365 * 24 * 3600),
        attack("request", "two PEM blocks, of which readers may take either", alter=twice),
        attack("key_reuse", f"the public key of {VICTIM.name}'s certificate", key=lambda: STOLEN),
    )


def _san(rule: str, name: str, what: str, *more: x509.GeneralName) -> Attack:
    return Attack(
        id=f"serving-{rule}-{name}",
        what=f"serving: {what}",
        asker="node",
        request=replace(serving(NODE), sans=names_of(NODE, *more)),
        rule=f"serving.{rule}",
    )


def _ip(name: str, what: str, address: str) -> Attack:
    return _san("san_ip", name, f"{what} as SAN, claimed in its Node's status too", x509.IPAddress(ip_address(address)))


SERVING: tuple[Attack, ...] = (
    *_shared("serving", serving(NODE), "node"),
    Attack(
        id="serving-requester",
        what="serving: a node's certificate, asked for by no node",
        asker="user",
        request=serving(NODE),
        rule="serving.requester",
    ),
    Attack(
        id="serving-requester-forged",
        what="serving: the same with `spec.username: system:node:k8s-1` and its groups in the object",
        asker="user",
        request=replace(
            serving(NODE), more={"spec": {"username": f"system:node:{NODE.name}", "groups": ["system:nodes"]}}
        ),
        rule="serving.requester",
    ),
    Attack(
        id="serving-requester-token",
        what="serving: asked for with a bootstrap token",
        asker="token",
        request=serving(JOINING),
        rule="serving.requester",
    ),
    Attack(
        id="serving-group",
        what="serving: user name of a node, not in its group",
        asker="ungrouped-node",
        request=serving(NODE),
        rule="serving.group",
    ),
    Attack(
        id="serving-node",
        what="serving: a node that is not in cluster.yaml",
        asker="stranger",
        request=serving(STRANGER),
        rule="serving.node",
    ),
    Attack(
        id="serving-san_none",
        what="serving: no DNS name and no address",
        asker="node",
        request=replace(serving(NODE), sans=()),
        rule="serving.san_none",
    ),
    _san("san_dns", "other", "another node's name as SAN", x509.DNSName(VICTIM.name)),
    _san("san_dns", "prefix", "a name with the node's as prefix as SAN", x509.DNSName(f"{NODE.name}.company.example")),
    _san("san_dns", "service", "`kubernetes.default.svc` as SAN", x509.DNSName("kubernetes.default.svc")),
    _san("san_dns", "wildcard", "a wildcard as SAN", x509.DNSName("*.example.com")),
    _ip("other", "another node's address", VICTIM.address),
    _ip("loopback", "127.0.0.1", "127.0.0.1"),
    _ip("service", "the `kubernetes` Service's address", SERVICE),
    _ip("apiserver", "an apiserver's address", APISERVER),
    _san("san_email", "root", "an e-mail address as SAN", x509.RFC822Name("root@example.com")),
    _san("san_uri", "spiffe", "a URI as SAN", x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube-system")),
    _san("san_other", "id", "a registered ID as SAN", x509.RegisteredID(NameOID.COMMON_NAME)),
    Attack(
        id="serving-node_absent",
        what="serving: a node that has no Node object",
        asker="absent",
        request=serving(ABSENT),
        rule="serving.node_absent",
    ),
    Attack(
        id="serving-node_address",
        what="serving: an address that the Node object does not have",
        asker="moved",
        request=serving(MOVED),
        rule="serving.node_address",
    ),
    Attack(
        id="serving-approved-at-creation",
        what="serving: another node's name, with an Approved condition sent along",
        asker="node",
        request=replace(
            serving(NODE),
            sans=names_of(NODE, x509.DNSName(VICTIM.name)),
            more={"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Forged"}]}},
        ),
        rule="serving.san_dns",
    ),
    Attack(
        id="serving-recreated",
        what="serving: a good one that was judged, then deleted and made anew under its name with another node's name",
        asker="node",
        request=replace(serving(NODE), sans=names_of(NODE, x509.DNSName(VICTIM.name)), name="csr-recreated"),
        rule="serving.san_dns",
        step="recreate",
    ),
)

CLIENT: tuple[Attack, ...] = (
    *_shared("client", client(JOINING), "token"),
    Attack(
        id="client-requester",
        what="client: a token that this tool did not make",
        asker="foreign-token",
        request=client(JOINING),
        rule="client.requester",
    ),
    Attack(
        id="client-requester-revoked",
        what="client: asked for before its token was taken back",
        asker="revoked-token",
        request=client(JOINING),
        rule="client.requester",
        step="create-then-revoke",
    ),
    Attack(
        id="client-group",
        what="client: user name of a token, not in its group",
        asker="ungrouped-token",
        request=client(JOINING),
        rule="client.group",
    ),
    Attack(
        id="client-node",
        what="client: the token's node is not in cluster.yaml any more",
        asker="gone-token",
        request=client(NodeSpec(name="k8s-66", address="10.1.3.66")),
        rule="client.node",
    ),
    Attack(
        id="client-san",
        what="client: a DNS name",
        asker="token",
        request=replace(client(JOINING), sans=(x509.DNSName(JOINING.name),)),
        rule="client.san",
    ),
    Attack(
        id="client-node_present",
        what="client: a node that has joined already, to become it too",
        asker="present-token",
        request=client(NODE),
        rule="client.node_present",
    ),
    Attack(
        id="client-renewal",
        what="client: a node's renewal, with another node's name",
        asker="node",
        request=client(VICTIM),
        rule="client.renewal",
        node_restriction=False,
    ),
    Attack(
        id="other-signer",
        what="other: a client certificate for a user's name, from `kube-apiserver-client`",
        asker="node",
        request=replace(
            client(NODE),
            signer="kubernetes.io/kube-apiserver-client",
            common_name="kubernetes-admin",
            organizations=("ops",),
        ),
        rule="other.signer",
    ),
)

API: tuple[Attack, ...] = (
    Attack(
        id="api-other-name-serving",
        what="serving: another node's name as CN",
        asker="node",
        request=replace(serving(NODE), common_name=f"system:node:{VICTIM.name}"),
        api="NodeRestriction (admission)",
        says=f"can only create a node CSR with CN=system:node:{NODE.name}",
    ),
    Attack(
        id="api-other-name-client",
        what="client: a node's renewal, with another node's name",
        asker="node",
        request=client(VICTIM),
        api="NodeRestriction (admission)",
        says=f"can only create a node CSR with CN=system:node:{NODE.name}",
    ),
    Attack(
        id="api-masters",
        what="other: O system:masters, from `kube-apiserver-client`",
        asker="node",
        request=replace(client(NODE), signer="kubernetes.io/kube-apiserver-client", organizations=("system:masters",)),
        api="CertificateSubjectRestriction (admission)",
        says="system:masters group is not allowed",
    ),
    Attack(
        id="api-expired-token",
        what="client: an expired token",
        asker="expired-token",
        request=client(JOINING),
        api="authentication",
        says="(401)",
    ),
    Attack(
        id="api-without-rights",
        what="serving: a node's certificate, asked for by anybody",
        asker="user-without-rights",
        request=serving(NODE),
        api="RBAC",
        says='cannot create resource "certificatesigningrequests"',
    ),
    Attack(
        id="api-curve",
        what="serving: a key on the curve secp256k1",
        asker="node",
        request=replace(serving(NODE), key=bitcoins),
        api="validation",
        says="unsupported elliptic curve",
    ),
    Attack(
        id="api-signature",
        what="serving: signature that does not verify",
        asker="node",
        request=replace(serving(NODE), alter=with_broken_signature),
        api="validation",
        says="ECDSA verification failure",
    ),
    Attack(
        id="api-approve-own",
        what="serving: another node's name, approved by the node itself",
        asker="node",
        request=replace(serving(NODE), sans=names_of(NODE, x509.DNSName(VICTIM.name))),
        api="RBAC",
        says='cannot update resource "certificatesigningrequests/approval"',
        step="approve-own",
    ),
    Attack(
        id="api-approve-half",
        what="serving: another node's name, approved by who has the right to approvals but not to this signer",
        asker="half-approver",
        request=replace(serving(NODE), sans=names_of(NODE, x509.DNSName(VICTIM.name))),
        api="CertificateApproval (admission)",
        says='user not permitted to approve requests with signerName "kubernetes.io/kubelet-serving"',
        step="approve-own",
    ),
    Attack(
        id="api-issue-own",
        what="serving: a certificate of one's own making put into the request's status",
        asker="node",
        request=serving(NODE),
        api="RBAC",
        says='cannot update resource "certificatesigningrequests/status"',
        step="issue-own",
    ),
    Attack(
        id="api-approve-denied",
        what="serving: one that was denied, approved by the administrator all the same",
        asker="node",
        request=serving(NODE),
        api="validation",
        says="mutually exclusive",
        step="approve-denied",
    ),
    Attack(
        id="api-replace-spec",
        what="serving: a good one changed in place, by the administrator, to another node's name",
        asker="node",
        request=serving(NODE),
        api="validation",
        says="",
        step="replace-spec",
    ),
)

ATTACKS: tuple[Attack, ...] = (*SERVING, *CLIENT, *API)

RULES: Mapping[str, str] = {
    "serving.decided": "2",
    "serving.requester": "3",
    "serving.group": "3",
    "serving.node": "9",
    "serving.request": "11",
    "serving.key": "11",
    "serving.common_name": "4",
    "serving.organization": "4",
    "serving.subject": "4",
    "serving.usages": "5",
    "serving.extension": "5",
    "serving.expiration": "10",
    "serving.san_none": "6",
    "serving.san_dns": "7",
    "serving.san_ip": "8",
    "serving.san_email": "6",
    "serving.san_uri": "6",
    "serving.san_other": "6",
    "serving.node_absent": "9",
    "serving.node_address": "8",
    "serving.key_reuse": "",
    "client.decided": "2",
    "client.requester": "3",
    "client.group": "3",
    "client.node": "9",
    "client.request": "11",
    "client.key": "11",
    "client.common_name": "4",
    "client.organization": "4",
    "client.subject": "4",
    "client.usages": "5",
    "client.extension": "5",
    "client.expiration": "10",
    "client.san": "6",
    "client.node_present": "9",
    "client.key_reuse": "",
    "client.renewal": "1",
    "other.signer": "1",
}
"""The rules of `core/certificates/csr.py` that a request can get as far as, with their numbers in docs/security.md.

The API server refuses a signature that does not verify, so the rule `signature` is only met in unit tests.
"""
