"""When a certificate wants attention: what kubelet renews by itself does not, unless kubelet is late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.certificates import expiry
from kubeworker.core.certificates.expiry import State

SIGNED = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([])
BACKDATED = timedelta(minutes=5)
"""kube-controller-manager's."""


def signed_for(lifetime: timedelta) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(KEY.public_key())
    builder = builder.serial_number(1).not_valid_before(SIGNED - BACKDATED).not_valid_after(SIGNED + lifetime)
    return builder.sign(KEY, hashes.SHA256())


TEN_MINUTES = signed_for(timedelta(minutes=10))
YEAR = signed_for(timedelta(days=365))


@pytest.mark.parametrize(
    ("minutes", "state"),
    [(0, "good"), (8.5, "good"), (9.4, "good"), (9.6, "overdue"), (10, "expired"), (99, "expired")],
)
def test_a_certificate_of_ten_minutes_is_well_until_kubelet_is_late(minutes: float, state: State) -> None:
    found = expiry.expiry(TEN_MINUTES, SIGNED + timedelta(minutes=minutes), rotates=True)
    assert found.state == state


@pytest.mark.parametrize(
    ("days", "rotates", "state"),
    [
        (300, True, "good"),
        (329, True, "overdue"),
        (334, False, "good"),
        (336, False, "soon"),
        (366, False, "expired"),
    ],
)
def test_of_a_year_only_what_nobody_renews_wants_an_operator(days: float, *, rotates: bool, state: State) -> None:
    assert expiry.expiry(YEAR, SIGNED + timedelta(days=days), rotates=rotates).state == state


@given(
    lifetime=st.floats(min_value=180, max_value=1e8),
    part=st.floats(min_value=0, max_value=expiry.ROTATES_BY),
)
def test_nothing_is_late_before_kubelets_own_deadline(lifetime: float, part: float) -> None:
    certificate = signed_for(timedelta(seconds=int(lifetime)))
    whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    now = certificate.not_valid_before_utc + part * whole
    assert expiry.expiry(certificate, now, rotates=True).state == "good"


def test_what_is_left_is_told_in_a_unit_that_fits() -> None:
    assert expiry.expiry(TEN_MINUTES, SIGNED, rotates=True).text == "10 min"
    assert expiry.expiry(YEAR, SIGNED, rotates=True).text == "365 days"
    assert expiry.expiry(YEAR, SIGNED + timedelta(days=400), rotates=True).text == "expired"
