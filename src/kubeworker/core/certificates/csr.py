"""Which certificate signing requests of kubelets are safe to approve: pure rules over what was read.

Kubernetes approves no serving certificate by itself (kubernetes#73356), and blind approval hands out identities
(ekco GHSA-x7j5-fww5-mqmv): a request is approved only when every rule holds. One that breaks a rule stays pending,
and the first broken rule is named. Rule ids are stable: scripts and alarms may name them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from kubeworker.core.cluster.bootstrap_token import BOOTSTRAP_GROUP, BOOTSTRAP_USER
from kubeworker.core.spec import ClusterFile

SERVING_SIGNER = "kubernetes.io/kubelet-serving"
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
NODE_GROUP = "system:nodes"
NODE_USER = "system:node:"
MAX_SECONDS = 367 * 24 * 3600
"""Longest lifetime that may be asked for, in seconds: a year and a day of grace (postfinance's cap)."""

KEYS_KEPT = 4
"""Keys of each node that are kept for long: client and serving, before and after a renewal. So the record of 3000 nodes
fits in one ConfigMap."""

KEYS_RECORD = "kubeworker-issued-keys"
"""ConfigMap in kube-system: by node, the ids of the public keys that certificates were last issued for."""

Keys: TypeAlias = Mapping[str, Sequence[str]]
"""By node, ids of public keys (`public_key_id`), the newest last."""

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class CsrView:
    """A CertificateSigningRequest as the API server holds it."""

    name: str
    signer: str
    username: str
    """Who asked, as the API server authenticated them (spec.username can't be forged)."""
    groups: tuple[str, ...] = ()
    usages: tuple[str, ...] = ()
    request: bytes = field(repr=False)
    """PEM of the PKCS#10 request."""
    expiration_seconds: int | None = None
    """None: the signer's own duration."""
    conditions: tuple[str, ...] = ()
    """Types: Approved, Denied, Failed."""
    decided: str = ""
    """RFC 3339: when the last of the conditions was set, by the API server's clock; empty while there is none."""
    reason: str = ""
    """What the last condition says: `SignerValidationFailure: usages did not match`."""
    certificate: bytes = field(default=b"", repr=False)
    """PEM; empty until issued."""
    created: str = ""
    """RFC 3339."""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The object that was read: exactly this one is approved (its resourceVersion goes with the approval)."""

    @property
    def pending(self) -> bool:
        """Nobody has decided on it and nothing was issued."""
        return not self.conditions and not self.certificate

    @property
    def state(self) -> str:
        """As `kubectl get csr` shows it: Pending, or Approved, Denied, Failed, Issued joined by commas."""
        parts = (*self.conditions, *(("Issued",) if self.certificate else ()))
        return ",".join(parts) if parts else "Pending"

    @property
    def node(self) -> str:
        """The node whose identity is used or asked for; empty where there is none."""
        if self.username.startswith(NODE_USER):
            return self.username.removeprefix(NODE_USER)
        try:
            names = _values(_parsed(self.request), NameOID.COMMON_NAME)
        except ValueError:
            return ""
        return names[0].removeprefix(NODE_USER) if len(names) == 1 and names[0].startswith(NODE_USER) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What cluster.yaml says of the nodes: the only source of names and addresses that a certificate may carry."""

    nodes: Mapping[str, Address]
    """Node address by node name."""
    apiservers: frozenset[Address]
    service_cidr: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Approve:
    """Every rule holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """It stays pending: the first broken rule, and what was seen."""

    rule: str
    detail: str


Verdict: TypeAlias = Approve | Pending


def view(document: Mapping[str, Any]) -> CsrView:
    """The API's JSON object as a value."""
    spec, status = document["spec"], document.get("status") or {}
    conditions = tuple(status.get("conditions") or ())
    return CsrView(
        name=document["metadata"]["name"],
        signer=spec["signerName"],
        username=spec.get("username", ""),
        groups=tuple(spec.get("groups") or ()),
        usages=tuple(spec.get("usages") or ()),
        request=_decoded(spec.get("request", "")),
        expiration_seconds=spec.get("expirationSeconds"),
        conditions=tuple(condition["type"] for condition in conditions),
        decided=conditions[-1].get("lastUpdateTime") or "" if conditions else "",
        reason=": ".join(filter(None, (conditions[-1].get(key) for key in ("reason", "message"))))
        if conditions
        else "",
        certificate=_decoded(status.get("certificate") or ""),
        created=document["metadata"].get("creationTimestamp") or "",
        document=document,
    )


def inventory(cluster: ClusterFile) -> Inventory:
    """What cluster.yaml gives. An apiserver given by name adds no address: a SAN must be the node's own anyway."""
    hosts = (endpoint.rpartition(":")[0].strip("[]") for endpoint in cluster.cluster.apiservers)
    return Inventory(
        nodes={node.name: ipaddress.ip_address(node.address) for node in cluster.nodes},
        apiservers=frozenset(address for host in hosts if (address := _address(host)) is not None),
        service_cidr=ipaddress.ip_network(cluster.cluster.service_cidr),
    )


def public_key_id(key: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (DER), lower-case hex: the same key always has the same id."""
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def request_key(csr: CsrView) -> str:
    """The id of the public key in a request that was judged to be readable."""
    return public_key_id(_parsed(csr.request))


def is_certificate_of(csr: CsrView, shown: bytes) -> bool:
    """Whether a certificate (DER) is the one that was issued for this request."""
    # Bytes, not fields: a certificate that no parser here reads is compared as well.
    body = csr.certificate.partition(b"-----BEGIN CERTIFICATE-----")[2].partition(b"-----END")[0]
    return shown != b"" and _decoded(body.decode(errors="replace")) == shown


def issued_keys(csrs: Iterable[CsrView]) -> dict[str, tuple[str, ...]]:
    """By node, public keys that kubelet certificates were issued for, the newest last.

    A certificate that can't be read here is passed over: no node may stop the approver by having an odd one issued.
    """
    keys: dict[str, list[str]] = {}
    for csr in sorted(csrs, key=lambda csr: (csr.created, csr.name)):
        if not csr.certificate or csr.signer not in {SERVING_SIGNER, CLIENT_SIGNER}:
            continue
        try:
            certificate = x509.load_pem_x509_certificate(csr.certificate)
            key, names = public_key_id(certificate), certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except (ValueError, UnsupportedAlgorithm):
            continue
        for name in names:
            keys.setdefault(str(name.value).removeprefix(NODE_USER), []).append(key)
    return {node: tuple(dict.fromkeys(several)) for node, several in keys.items()}


def token_keys(approved: Iterable[CsrView]) -> dict[str, frozenset[str]]:
    """By bootstrap token's user, public keys of its requests that were approved."""
    keys: dict[str, frozenset[str]] = {}
    for csr in approved:
        if kind(csr) != "client":
            continue
        try:
            key = request_key(csr)
        except ValueError:
            continue  # approved by somebody else's rules
        keys[csr.username] = keys.get(csr.username, frozenset()) | {key}
    return keys


def joined_keys(known: Keys, more: Keys) -> dict[str, tuple[str, ...]]:
    """Both; `more` is the newer knowledge, and its order is kept: a key in both takes its place there."""
    return {
        node: (*(key for key in known.get(node, ()) if key not in newer), *dict.fromkeys(newer))
        for node in dict.fromkeys((*known, *more))
        for newer in (more.get(node, ()),)
    }


def kept_keys(keys: Keys) -> dict[str, tuple[str, ...]]:
    """The last KEYS_KEPT of each node: all that is kept for long."""
    return {node: tuple(several[-KEYS_KEPT:]) for node, several in keys.items()}


def owners(keys: Keys) -> dict[str, frozenset[str]]:
    """Nodes by key."""
    found: dict[str, frozenset[str]] = {}
    for node, several in keys.items():
        for key in several:
            found[key] = found.get(key, frozenset()) | {node}
    return found


Kind: TypeAlias = Literal["serving", "client", "renewal", "other"]


def kind(csr: CsrView) -> Kind:
    """Which rules a request falls under.

    A node's renewal of its client certificate is kube-controller-manager's to approve (csrapproving, by the
    ClusterRoleBinding node-client-cert-renewal); "other" is nobody's here. Both are listed, and never touched.
    """
    if csr.signer == SERVING_SIGNER:
        return "serving"
    if csr.signer == CLIENT_SIGNER and csr.username.startswith(BOOTSTRAP_USER):
        return "client"
    if csr.signer == CLIENT_SIGNER and csr.username.startswith(NODE_USER):
        return "renewal"
    return "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What requests are judged against."""

    inventory: Inventory
    issued_keys: Mapping[str, frozenset[str]]
    """Nodes by the id of each public key that was issued to them."""
    node_addresses: Mapping[str, frozenset[str]]
    """Status addresses by name of the Node objects that exist."""
    tokens: Mapping[str, str]
    """Node by id of each bootstrap token that this tool has made for it."""
    rejoining: frozenset[str] = frozenset()
    """Nodes that may bootstrap again though their Node object exists."""


def judge(csr: CsrView, known: Knowledge) -> Verdict:
    """Judge by the rules that the request falls under; one that is no kubelet's is never approved."""
    return next(broken_rules(csr, known), Approve())


def broken_rules(csr: CsrView, known: Knowledge) -> Iterator[Pending]:
    """Every rule that the request breaks, in the order of judging.

    A rule that leaves nothing to judge the rest by ends it: another signer, no node that asks, no readable request.
    """
    match kind(csr):  # by the signer first: no rule below lets another signer's request through
        case "serving":
            for rule, detail in _serving_broken(csr, known.inventory, known.issued_keys, known.node_addresses):
                yield Pending(rule=f"serving.{rule}", detail=detail)
        case "client":
            for rule, detail in _client_broken(csr, known):
                yield Pending(rule=f"client.{rule}", detail=detail)
        case "renewal":
            yield Pending(rule="client.renewal", detail=_RENEWAL)
        case "other":
            yield Pending(rule="other.signer", detail=f"{csr.signer} by {csr.username} is not this tool's to approve")


_RENEWAL = (
    "kube-controller-manager approves a node's own renewal: it needs its csrapproving controller and the "
    "ClusterRoleBinding node-client-cert-renewal, which apply makes"
)


Broken: TypeAlias = Iterator[tuple[str, str]]


def _serving_broken(
    csr: CsrView,
    inventory: Inventory,
    issued: Mapping[str, frozenset[str]],
    node_addresses: Mapping[str, frozenset[str]],
) -> Broken:
    yield from _decided_broken(csr)
    if not csr.username.startswith(NODE_USER):
        yield "requester", f"requested by {csr.username}, which is no node"
        return
    if NODE_GROUP not in csr.groups:
        yield "group", f"{csr.username} is not in group {NODE_GROUP}"
    node = csr.username.removeprefix(NODE_USER)
    if node not in inventory.nodes:
        yield "node", f"{node} is not a node of cluster.yaml"
        return
    try:
        request = _parsed(csr.request)
    except ValueError as error:
        yield "request", f"the request can't be read: {error}"
        return
    yield from _request_broken(request, csr, csr.username, "server auth")
    yield from _san_broken(request, node, inventory)
    if node not in node_addresses:
        yield "node_absent", f"there is no Node {node} yet"
    else:
        for address in _san_addresses(request):
            if str(address) not in node_addresses[node]:
                yield "node_address", f"{address} is not among the addresses in Node {node}'s status"
    yield from _key_reuse_broken(request, node, issued)


def _client_broken(csr: CsrView, known: Knowledge) -> Broken:
    yield from _decided_broken(csr)
    token = csr.username.removeprefix(BOOTSTRAP_USER)
    if token not in known.tokens:
        yield "requester", f"requested by {csr.username}, which no token issued by this tool stands for"
        return
    if BOOTSTRAP_GROUP not in csr.groups:
        yield "group", f"{csr.username} is not in group {BOOTSTRAP_GROUP}"
    node = known.tokens[token]
    if node not in known.inventory.nodes:
        yield "node", f"{node} is not a node of cluster.yaml"
        return
    try:
        request = _parsed(csr.request)
    except ValueError as error:
        yield "request", f"the request can't be read: {error}"
        return
    yield from _request_broken(request, csr, NODE_USER + node, "client auth")
    if _sans(request):
        yield "san", "a client certificate carries no names or addresses"
    if node in known.node_addresses and node not in known.rejoining:
        yield "node_present", f"Node {node} exists already and is not being rejoined"
    yield from _key_reuse_broken(request, node, known.issued_keys)


def _decided_broken(csr: CsrView) -> Broken:
    if not csr.pending:
        yield "decided", f"it is {csr.state} already"


def _request_broken(request: x509.CertificateSigningRequest, csr: CsrView, common_name: str, purpose: str) -> Broken:
    if not request.is_signature_valid:
        yield "signature", "the request's signature does not verify: the sender may not hold the key"
    yield from _key_broken(request)
    yield from _subject_broken(request, common_name)
    yield from _usages_broken(request, csr, purpose)
    for extension in request.extensions:
        if extension.oid != ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            yield "extension", f"it asks for the extension {extension.oid.dotted_string}, which kubelet does not"
    if csr.expiration_seconds is not None and csr.expiration_seconds > MAX_SECONDS:
        yield "expiration", f"{csr.expiration_seconds} s are asked for, more than {MAX_SECONDS} s (367 days)"


def _key_broken(request: x509.CertificateSigningRequest) -> Broken:
    match request.public_key():
        case rsa.RSAPublicKey() as key:
            if key.key_size < 2048:
                yield "key", f"RSA of {key.key_size} bits; at least 2048 are needed"
        case ec.EllipticCurvePublicKey() as key:
            if key.curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
                yield "key", f"the curve {key.curve.name} is not one of P-256, P-384, P-521"
        case ed25519.Ed25519PublicKey():
            pass
        case key:
            yield "key", f"{type(key).__name__} is no RSA, ECDSA or Ed25519 key"


def _subject_broken(request: x509.CertificateSigningRequest, common_name: str) -> Broken:
    names = _values(request, NameOID.COMMON_NAME)
    if names != (common_name,):
        yield "common_name", f"CN is {', '.join(names) or 'missing'}, not {common_name}"
    organizations = _values(request, NameOID.ORGANIZATION_NAME)
    if organizations != (NODE_GROUP,):
        yield "organization", f"O is [{', '.join(organizations)}], not exactly [{NODE_GROUP}]"
    for attribute in request.subject:
        if attribute.oid not in {NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME}:
            yield "subject", f"the subject carries {attribute.rfc4514_attribute_name}, which kubelet's does not"


def _usages_broken(request: x509.CertificateSigningRequest, csr: CsrView, purpose: str) -> Broken:
    # kubelet asks for key encipherment with RSA keys only (pkg/kubelet/certificate/kubelet.go, bootstrap.go).
    wanted = {"digital signature", purpose}
    if isinstance(request.public_key(), rsa.RSAPublicKey):
        wanted.add("key encipherment")
    if set(csr.usages) != wanted:
        yield "usages", f"usages are [{', '.join(csr.usages)}], not exactly [{', '.join(sorted(wanted))}]"


def _san_broken(request: x509.CertificateSigningRequest, node: str, inventory: Inventory) -> Broken:
    names = _sans(request)
    if not any(isinstance(name, x509.DNSName | x509.IPAddress) for name in names):
        yield "san_none", "it carries no DNS name and no address"
    for name in names:
        match name:
            case x509.DNSName(value=value):
                if value != node:
                    yield "san_dns", f"{value} is not the name of {node}"
            case x509.IPAddress(value=value):
                if problem := _address_problem(value, node, inventory):
                    yield "san_ip", problem
            case x509.RFC822Name(value=value):
                yield "san_email", f"it carries the e-mail address {value}"
            case x509.UniformResourceIdentifier(value=value):
                yield "san_uri", f"it carries the URI {value}"
            case _:
                yield "san_other", f"it carries a {type(name).__name__}"


def _address_problem(value: object, node: str, inventory: Inventory) -> str:
    own = inventory.nodes[node]
    match value:
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            if value.is_loopback or value.is_unspecified:
                return f"{value} is a loopback address"
            if value in inventory.service_cidr:
                return f"{value} is a service address"
            if value != own and value in inventory.apiservers:
                return f"{value} is an apiserver's address"
            return "" if value == own else f"{value} is not the address of {node} ({own})"
        case _:
            return f"{value} is a network, not an address"


def _key_reuse_broken(
    request: x509.CertificateSigningRequest, node: str, issued: Mapping[str, frozenset[str]]
) -> Broken:
    others = issued.get(public_key_id(request), frozenset()) - {node}
    if others:
        yield "key_reuse", f"its public key was issued to {', '.join(sorted(others))}"


def _parsed(request: bytes) -> x509.CertificateSigningRequest:
    """The PKCS#10 request; ValueError where any part of it that the rules look at can't be read.

    The signer (Go's crypto/x509) and these rules must see the same names. Where the two parsers could differ (a
    second PEM block, a second or Microsoft's extension attribute), the request is refused: kubelet makes none.
    """
    if request.count(b"-----BEGIN") != 1:
        raise ValueError("it is not exactly one PEM block")
    try:
        parsed = x509.load_pem_x509_csr(request)
        # Parsed lazily: what can't be read must fail here, not in the middle of the rules.
        _ = parsed.extensions, parsed.public_key(), tuple(parsed.subject), parsed.is_signature_valid
        attributes = [attribute.oid for attribute in parsed.attributes]
    except (ValueError, UnsupportedAlgorithm, x509.UnsupportedGeneralNameType, x509.DuplicateExtension) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if attributes not in ([], [_EXTENSION_REQUEST]):
        raise ValueError("it carries more than one extension request")
    return parsed


def _values(request: x509.CertificateSigningRequest, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in request.subject.get_attributes_for_oid(oid))


def _sans(request: x509.CertificateSigningRequest) -> tuple[x509.GeneralName, ...]:
    try:
        extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(extension.value)


def _san_addresses(request: x509.CertificateSigningRequest) -> tuple[object, ...]:
    return tuple(name.value for name in _sans(request) if isinstance(name, x509.IPAddress))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return b""


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
