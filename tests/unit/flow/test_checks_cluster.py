"""What kubelet shows at its port, beside what the cluster issued for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubeworker.core.certificates.csr import CLIENT_SIGNER, SERVING_SIGNER, CsrView
from kubeworker.core.model import ServingCertificate
from kubeworker.core.spec import NodeSpec
from kubeworker.flow.checks_cluster import judge_shown
from kubeworker.io.https import NoAnswer

CHECK = ServingCertificate(id="kubelet.serving_cert_in_use", port=10250)
NODE = NodeSpec(name="w1", address="10.1.0.1")
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(serial: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "system:node:w1")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(serial).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(KEY, hashes.SHA256())


def der(serial: int) -> bytes:
    return SHOWN[serial].public_bytes(serialization.Encoding.DER)


SHOWN = {serial: certificate(serial) for serial in (1, 2)}


def issued(serial: int, *, name: str = "", user: str = "system:node:w1", signer: str = SERVING_SIGNER) -> CsrView:
    pem = SHOWN[serial].public_bytes(serialization.Encoding.PEM)
    return CsrView(
        name=name or f"csr-{serial}",
        signer=signer,
        username=user,
        request=b"",
        certificate=pem,
        created=f"2026-01-01T00:00:0{serial}Z",
    )


def pending() -> CsrView:
    return CsrView(
        name="csr-9", signer=SERVING_SIGNER, username="system:node:w1", request=b"", created="2026-01-01T00:00:09Z"
    )


def test_the_newest_issued_certificate_must_be_the_one_that_is_shown() -> None:
    requests = [issued(2), issued(1), pending()]
    assert judge_shown(CHECK, NODE, der(2), requests).status == "passed"
    old = judge_shown(CHECK, NODE, der(1), requests)
    assert (old.status, old.detail) == (
        "failed",
        "10.1.0.1:10250 shows another certificate than csr-2, the newest of w1",
    )


def test_requests_of_others_and_for_other_uses_say_nothing() -> None:
    requests = [issued(2, user="system:node:w2"), issued(2, signer=CLIENT_SIGNER)]
    assert judge_shown(CHECK, NODE, der(1), requests).status == "passed"


def test_what_the_api_has_forgotten_is_not_held_against_kubelet() -> None:
    assert judge_shown(CHECK, NODE, der(1), []).status == "passed"


def test_no_answer_fails_with_its_reason() -> None:
    verdict = judge_shown(CHECK, NODE, NoAnswer(reason="connection refused or closed"), [issued(1)])
    assert (verdict.status, verdict.detail) == ("failed", "10.1.0.1:10250: connection refused or closed")
