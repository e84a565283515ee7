"""A request that was decided and has no certificate: which of several reasons it is, and what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kubeworker.core.certificates import csr, issuing
from kubeworker.core.certificates.csr import CsrView
from kubeworker.core.certificates.issuing import SIGNING_SECONDS
from kubeworker.core.cluster.kube_views import LeaseStatus

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
APPROVED = CsrView(
    name="csr-1",
    signer=csr.SERVING_SIGNER,
    username="system:node:w1",
    request=b"",
    conditions=("Approved",),
    created="2026-11-25T11:59:00Z",
    decided="2026-11-25T11:59:10Z",
)


def test_signing_may_take_a_moment() -> None:
    assert issuing.halted(APPROVED, SIGNING_SECONDS - 1) is None


@pytest.mark.parametrize(
    ("signer", "flags"),
    [(csr.SERVING_SIGNER, "kubelet-serving"), (csr.CLIENT_SIGNER, "kubelet-client")],
)
def test_approved_and_never_issued_names_the_flags_that_are_missing(signer: str, flags: str) -> None:
    found = issuing.halted(replace(APPROVED, signer=signer), 90, "; k8s-01 leads")
    assert found is not None
    assert found.rule == "signer.unissued"
    assert found.detail == f"approved 90 s ago and never issued: nobody signs for {signer}; k8s-01 leads"
    assert "--cluster-signing-cert-file and --cluster-signing-key-file" in found.hint
    assert f"--cluster-signing-{flags}-cert-file" in found.hint


def test_a_signer_of_somebody_elses_has_a_controller_of_its_own() -> None:
    found = issuing.halted(replace(APPROVED, signer="example.com/signer"), 90)
    assert found is not None
    assert "cluster-signing" not in found.hint


@pytest.mark.parametrize(
    ("conditions", "rule", "says"),
    [
        (("Approved", "Failed"), "signer.failed", "SignerValidationFailure: usages did not match"),
        (("Denied",), "denied", "SignerValidationFailure: usages did not match"),
    ],
)
def test_failed_and_denied_are_told_at_once_with_what_was_said(
    conditions: tuple[str, ...], rule: str, says: str
) -> None:
    found = issuing.halted(replace(APPROVED, conditions=conditions, reason=says), 0)
    assert found is not None
    assert found.rule == rule
    assert says in found.detail


@pytest.mark.parametrize("change", [{"certificate": b"pem"}, {"conditions": ()}])
def test_what_is_issued_or_pending_is_not_halted(change: dict[str, object]) -> None:
    assert issuing.halted(replace(APPROVED, **change), 3600) is None  # type: ignore[arg-type]


def lease(holder: str = "k8s-01_abc", ago: float | None = 2) -> LeaseStatus:
    renewed = None if ago is None else NOW - timedelta(seconds=ago)
    return LeaseStatus(name="kcm", namespace="kube-system", holder=holder, renewed=renewed, resource_version="1")


def test_who_should_have_signed_is_named() -> None:
    assert issuing.leader(lease(), NOW) == "; k8s-01_abc leads"
    assert issuing.leader(None, NOW).startswith("; no kube-controller-manager holds")
    assert issuing.leader(lease(holder=""), NOW).startswith("; no kube-controller-manager holds")
    assert issuing.leader(lease(ago=300), NOW).endswith("and was last seen 5 min ago")


def test_a_condition_is_read_with_its_time_and_its_words() -> None:
    condition = {"type": "Failed", "reason": "R", "message": "m", "lastUpdateTime": "2026-11-25T11:59:10Z"}
    document = {
        "metadata": {"name": "csr-1"},
        "spec": {"signerName": csr.SERVING_SIGNER},
        "status": {"conditions": [{"type": "Approved", "lastUpdateTime": None}, condition]},
    }
    read = csr.view(document)
    assert (read.conditions, read.decided, read.reason) == (("Approved", "Failed"), "2026-11-25T11:59:10Z", "R: m")


def test_only_the_newest_request_of_a_node_for_a_purpose_counts() -> None:
    older = replace(APPROVED, name="csr-0", created="2026-11-25T11:00:00Z")
    other = replace(APPROVED, username="system:node:w2")
    client = replace(APPROVED, signer=csr.CLIENT_SIGNER, created="2026-11-25T12:00:00Z")
    assert issuing.newest([APPROVED, older, other, client]) == (APPROVED, other, client)
    assert issuing.newest_serving([older, APPROVED, other, client], "w1") == APPROVED
    assert issuing.newest_serving([client], "w1") is None
