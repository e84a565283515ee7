"""The last rule, after an approval: what kubelet shows on its port is the certificate that was issued.

It is what tells that the request came from the kubelet behind the node's address: whoever asked in its name and does
not sit there has a certificate that is never seen there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kubeworker.components import kubelet
from kubeworker.core import desired
from kubeworker.core.certificates import csr
from kubeworker.core.certificates.csr import CsrView
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import KubeworkerError
from kubeworker.flow.checks_http import host_port
from kubeworker.flow.events import Note, Reporter, Warning_
from kubeworker.io import https
from kubeworker.io.fleet import Failed, fan_out
from kubeworker.io.https import NoAnswer

PATIENCE_SECONDS = 30.0
"""How long after its approval another certificate, or none, is no news: kubelet has to fetch it first."""

_LOOKS = 16
"""Nodes looked at side by side."""
_LOOK_SECONDS = 2.0

Look: TypeAlias = Callable[[str], Awaitable[bytes | NoAnswer]]
"""The certificate (DER) that the kubelet of the node of this name shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was seen of one issued certificate."""

    request: CsrView
    status: Literal["shown", "another", "unseen"]
    detail: str

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form."""
        return {
            "name": self.request.name,
            "node": self.request.node,
            "status": self.status,
            "detail": self.detail,
        }


def place(cluster: ClusterFile, name: str) -> tuple[str, int]:
    """Address and port of a node's kubelet."""
    node = cluster.node(name)
    config = desired.config(kubelet.COMPONENT, cluster.as_seen_by(node))
    return node.address, kubelet.port(config)


def from_here(cluster: ClusterFile) -> Look:
    """Over the network, straight to the node's address."""

    async def look(name: str) -> bytes | NoAnswer:
        address, port = place(cluster, name)
        return await https.certificate(address, port, timeout=_LOOK_SECONDS)

    return look


@dataclass(kw_only=True)
class Comparison:
    """Approved serving requests whose certificate has yet to be seen on the node. It remembers only these."""

    cluster: ClusterFile
    look: Look
    patience: float = PATIENCE_SECONDS
    _approved: dict[str, float] = field(default_factory=dict)
    """By request, when it was approved, by the loop's clock."""

    @property
    def waiting(self) -> bool:
        """Whether any is left."""
        return bool(self._approved)

    def expect(self, request: CsrView) -> None:
        """This request was approved."""
        if csr.kind(request) == "serving":
            self._approved[request.name] = asyncio.get_running_loop().time()

    def expect_instead(self, requests: Iterable[CsrView]) -> None:
        """Of the nodes of these requests no others: kubelet has asked anew, and shows what it was given last."""
        known = dict(self._approved)
        self._approved.clear()
        for each in requests:
            self.expect(each)
        self._approved.update({name: since for name, since in known.items() if name in self._approved})

    async def round(self, requests: Iterable[CsrView]) -> tuple[Compared, ...]:
        """Look at each that was issued; those of which there is something to say, once."""
        nodes = {node.name for node in self.cluster.nodes}  # cluster.yaml may have lost one meanwhile
        found = {each.name: each for each in requests if each.name in self._approved and each.node in nodes}
        self._approved = {name: since for name, since in self._approved.items() if name in found}
        issued = tuple(name for name, each in found.items() if each.certificate)
        outcomes = await fan_out(issued, lambda name: self.look(found[name].node), limit=_LOOKS)
        now = asyncio.get_running_loop().time()
        compared = []
        for name, outcome in outcomes.items():
            shown = outcome.error if isinstance(outcome, Failed) else outcome.value
            seen = self._compared(found[name], shown)
            if seen.status == "shown" or now - self._approved[name] >= self.patience:
                compared.append(seen)
        overdue = {name for name, since in self._approved.items() if now - since >= self.patience}
        # One that is not issued by then is told by others: nobody signs.
        for name in overdue | {each.request.name for each in compared}:
            del self._approved[name]
        return tuple(compared)

    def _compared(self, request: CsrView, shown: bytes | NoAnswer | KubeworkerError) -> Compared:
        where = host_port(*place(self.cluster, request.node))
        match shown:
            case bytes() if csr.is_certificate_of(request, shown):
                return Compared(request=request, status="shown", detail=f"{where} shows it")
            case bytes():
                detail = f"{where} shows another certificate than the one that was issued"
                return Compared(request=request, status="another", detail=detail)
            case NoAnswer(reason=reason):
                return Compared(request=request, status="unseen", detail=f"{where}: {reason}")
            case error:
                return Compared(request=request, status="unseen", detail=str(error))


ANOTHER_HINT = (
    "kubelet may not have taken it (on the node: journalctl -u kubelet), or it was not this kubelet that asked: then "
    "the node's client certificate is in other hands"
)


def told(compared: Compared, report: Reporter) -> None:
    """Report it."""
    name, node = compared.request.name, compared.request.node
    match compared.status:
        case "shown":
            report(Note(subject=node, text=f"{name}: {compared.detail}"))
        case "another":
            report(Warning_(subject=node, text=f"{name}: {compared.detail}. {ANOTHER_HINT}"))
        case "unseen":
            report(
                Warning_(subject=node, text=f"{name}: what kubelet shows can't be seen from here: {compared.detail}")
            )
