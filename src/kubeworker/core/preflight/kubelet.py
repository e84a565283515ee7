"""What keeps kubelet from starting or joining: whose certificate it has, and what is kept from pods. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction

from cryptography import x509
from cryptography.x509.oid import NameOID

from kubeworker.core.certificates import pki
from kubeworker.core.model import KubeconfigTarget, NodeState, RequireReserved
from kubeworker.core.node.probe import KUBELET_CLIENT_CERT, KUBELET_KUBECONFIG
from kubeworker.core.preflight.row import Checker, Row, size
from kubeworker.errors import CredentialsError


def identity(node: Checker, state: NodeState, *, now: float) -> Iterator[Row]:
    """Whose client certificate kubelet has, at the time `now` (seconds since the epoch).

    With one that has not expired kubelet asks for no other, whoever signed it (client-go's isClientConfigStillValid,
    kubelet's buildClientCertificateManager): the node would never join.
    """
    targets = [target for stage in state.stages for target in stage.kubeconfigs if target.path == KUBELET_KUBECONFIG]
    if not targets:
        return
    pem, key = node.observed.kubelet_client_cert, "client-certificate"
    if not pem:
        yield node.row(key, "ok", "none yet: kubelet asks for one when it joins")
        return
    fix = (
        "where the machine shall leave the other cluster: systemctl stop kubelet, drain and delete it there, then rm "
        f"{KUBELET_CLIENT_CERT} {KUBELET_KUBECONFIG}"
    )
    try:
        certificate = pki.parse_certificate(pem.encode(), subject=node.name)
    except CredentialsError:
        yield node.row(key, "ok", "what there is can't be read: kubelet asks for another when it joins")
        return
    until = certificate.not_valid_after_utc
    if until <= datetime.fromtimestamp(now, UTC):
        yield node.row(key, "ok", f"kubelet's ended on {until:%Y-%m-%d}: it asks for another when it joins")
        return
    wrong = _wrong(node.name, certificate, targets[0])
    wrong = f"{KUBELET_CLIENT_CERT} {wrong}, and until {until:%Y-%m-%d} kubelet asks for no other" if wrong else ""
    yield node.judge(key, good=f"this cluster's, until {until:%Y-%m-%d}", wrong=wrong, fix=fix)


def _wrong(name: str, certificate: x509.Certificate, target: KubeconfigTarget) -> str:
    if not pki.signed_by(certificate, pki.parse_certificate(target.ca, subject="the cluster's CA")):
        return f"is another cluster's (signed by {certificate.issuer.rfc4514_string() or 'nobody'})"
    names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return f"is that of {', '.join(names) or 'nobody'}: a clone?" if names != [f"system:node:{name}"] else ""


def reserved(node: Checker, need: RequireReserved) -> Iterator[Row]:
    """Whether there is as much as is kept from pods (validateNodeAllocatable in kubelet's pkg/kubelet/cm)."""
    seen = node.observed
    memory, cpus = need.memory + need.memory_share * seen.memory, need.cpus
    for key, has, kept, says, fields in (
        (
            "reserved-memory",
            seen.memory,
            memory,
            f"{size(float(memory))} of {size(seen.memory)}",
            "kubeReserved.memory, systemReserved.memory, evictionHard",
        ),
        (
            "reserved-cpus",
            seen.cpus,
            cpus,
            f"{_decimal(cpus)} of {seen.cpus} processors",
            "kubeReserved.cpu, systemReserved.cpu",
        ),
    ):
        if not has:
            yield node.row(key, "unknown", "the node did not say what it has")
            continue
        wrong = f"{says} are to be kept from pods: kubelet refuses to start" if kept > has else ""
        fix = f"give the machine more, or lower {fields} in components.kubelet.config"
        yield node.judge(key, good=f"{says} are kept from pods", wrong=wrong, fix=fix)


def _decimal(value: Fraction) -> str:
    return f"{float(value):g}"
