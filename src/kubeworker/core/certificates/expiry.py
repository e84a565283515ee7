"""How long a certificate still lasts, and whether whoever renews it is late. Pure.

kubelet renews its own two certificates when 70 to 90 % of their lifetime have passed, each at a random moment between
(client-go util/certificate, jitteryDuration). So few days left say nothing about them: a cluster may sign for minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from cryptography import x509

from kubeworker.core import durations

ROTATES_BY = 0.9
"""Part of the lifetime after which kubelet has asked for the next certificate."""
GRACE = timedelta(minutes=1)
"""For approving and signing it."""
SOON = timedelta(days=30)
"""What nobody renews by itself is due from here on; apply renews kube-proxy's at the same point."""

State: TypeAlias = Literal["good", "soon", "overdue", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """One certificate's lifetime, looked at now."""

    ends: datetime
    left: timedelta
    rotates: bool
    """kubelet renews it by itself."""
    state: State
    """soon: it ends within 30 days, and nobody renews it but an operator. overdue: kubelet should have by now."""

    @property
    def days(self) -> int:
        """Whole days left; negative once it has expired."""
        return self.left.days

    @property
    def text(self) -> str:
        """`364 days`, `8 min`, or `expired`."""
        return "expired" if self.state == "expired" else durations.text(self.left.total_seconds())

    def as_json(self) -> dict[str, str | bool]:
        """The machine-readable form."""
        return {"ends": self.ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "rotates": self.rotates, "state": self.state}


def expiry(certificate: x509.Certificate, now: datetime, *, rotates: bool) -> Expiry:
    """Judge a certificate."""
    ends = certificate.not_valid_after_utc
    return Expiry(ends=ends, left=ends - now, rotates=rotates, state=_state(certificate, now, rotates=rotates))


def renewed_by(certificate: x509.Certificate) -> datetime:
    """When kubelet has asked for the next one at the latest.

    kube-controller-manager backdates what it signs by 5 minutes (pkg/controller/certificates/signer), so of one that it
    signs for 10 minutes, 90 % have passed 8.5 minutes after signing.
    """
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins + (ends - begins) * ROTATES_BY


def _state(certificate: x509.Certificate, now: datetime, *, rotates: bool) -> State:
    if now >= certificate.not_valid_after_utc:
        return "expired"
    if rotates:
        return "overdue" if now > renewed_by(certificate) + GRACE else "good"
    return "soon" if certificate.not_valid_after_utc - now < SOON else "good"
