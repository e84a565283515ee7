"""What becomes of a request that was decided: issued, denied, failed, or approved and never signed. Pure.

Approving and signing are two controllers' work. A kube-controller-manager without a signing key approves as usual, and
then nothing happens: no condition tells, and its cleaner never removes such a request (pkg/controller/certificates).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from kubeworker.core.certificates.csr import CLIENT_SIGNER, NODE_USER, SERVING_SIGNER, CsrView
from kubeworker.core.cluster.kube_views import LeaseStatus
from kubeworker.core.durations import text as duration

SIGNING_SECONDS = 20.0
"""Signing takes a moment; a change of leader about 15 s (--leader-elect-lease-duration). Later than this nobody does
it."""

LEADER = "kube-controller-manager"
"""The Lease in kube-system of the controller-manager that leads; none with --leader-elect=false."""

_LEADER_STALE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted:
    """Decided, and there is no certificate. `rule` is as stable as the rules for approval."""

    rule: str
    """signer.unissued, signer.failed or denied."""
    detail: str
    hint: str


def halted(request: CsrView, seconds: float, leader: str = "") -> Halted | None:
    """Why a decided request has no certificate, `seconds` after the decision; None where all is well so far."""
    if request.certificate or not request.conditions:
        return None
    said = f": {request.reason}" if request.reason else ""
    if "Failed" in request.conditions:
        return Halted(
            rule="signer.failed",
            detail=f"the signer refused it{said}",
            hint="kubelet asks anew by itself; the log of kube-controller-manager has more",
        )
    if "Denied" in request.conditions:
        return Halted(
            rule="denied",
            detail=f"somebody denied it{said}",
            hint="this tool never denies; kubelet asks anew by itself, and is denied again while somebody does",
        )
    if seconds < SIGNING_SECONDS:
        return None
    return Halted(
        rule="signer.unissued",
        detail=f"approved {duration(seconds)} ago and never issued: nobody signs for {request.signer}{leader}",
        hint=_way_out(request.signer),
    )


def leader(lease: LeaseStatus | None, now: datetime) -> str:
    """Which controller-manager should have signed, as the end of `Halted.detail`."""
    if lease is None or not lease.holder:
        return f"; no {LEADER} holds the Lease kube-system/{LEADER}"
    age = (now - lease.renewed).total_seconds() if lease.renewed else float("inf")
    if age > _LEADER_STALE_SECONDS:
        when = f", and was last seen {duration(age)} ago" if lease.renewed else ""
        return f"; {lease.holder} holds the Lease kube-system/{LEADER}{when}"
    return f"; {lease.holder} leads"


def newest(requests: Iterable[CsrView]) -> tuple[CsrView, ...]:
    """The last request of each node for each purpose, in the order given: an older one says nothing any more."""
    last: dict[tuple[str, str], CsrView] = {}
    for request in requests:
        key = (request.node, request.signer)
        if key not in last or (request.created, request.name) >= (last[key].created, last[key].name):
            last[key] = request
    return tuple(last.values())


def newest_serving(requests: Iterable[CsrView], node: str) -> CsrView | None:
    """The last request of this node for its serving certificate."""
    return next(iter(newest(each for each in requests if _is_serving(each, node))), None)


def _is_serving(request: CsrView, node: str) -> bool:
    return request.signer == SERVING_SIGNER and request.username == NODE_USER + node


_OWN_FLAGS = {SERVING_SIGNER: "kubelet-serving", CLIENT_SIGNER: "kubelet-client"}
"""Signer -> what its flags of kube-controller-manager are named by (app/options/csrsigningcontroller.go)."""


def _way_out(signer: str) -> str:
    if signer not in _OWN_FLAGS:
        return "is the controller that signs for it running?"
    own = f"--cluster-signing-{_OWN_FLAGS[signer]}"
    return (
        f"start every {LEADER} with --cluster-signing-cert-file and --cluster-signing-key-file (the cluster's CA), or, "
        f"where it has flags for single signers, with {own}-cert-file and {own}-key-file too; its log says "
        "`Skipping CSR signer controller`, or why it can't sign"
    )
