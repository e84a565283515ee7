"""Certificate signing requests: list them with their verdicts, approve those that hold every rule."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kubeworker.core import csr
from kubeworker.core.bootstrap_token import BootstrapToken
from kubeworker.core.csr import Approve, CsrView, Inventory, Knowledge, Pending, Verdict
from kubeworker.core.kube_views import NodeStatus
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound
from kubeworker.flow.events import CsrDecision, Reporter, Warning_
from kubeworker.io.kube import Kube

POLL_SECONDS = 0.5
WATCH_SECONDS = 2.0
"""Between two looks of `csr approve --watch`."""
PATIENCE_SECONDS = 3.0
"""A broken rule is reported when it has stood this long: a serving request may be a moment older than its Node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One request in `csr list`."""

    request: CsrView
    verdict: Verdict | None
    """None where it was decided already."""

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form; `rule` and `detail` are empty unless a rule is broken."""
        broken = self.verdict if isinstance(self.verdict, Pending) else None
        return {
            "name": self.request.name,
            "node": self.request.node,
            "signer": self.request.signer,
            "requester": self.request.username,
            "created": self.request.created,
            "state": self.request.state,
            "approvable": isinstance(self.verdict, Approve),
            "rule": broken.rule if broken else "",
            "detail": broken.detail if broken else "",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What one `csr approve` did."""

    approved: tuple[CsrView, ...]
    left: tuple[Listed, ...]
    """Kubelets' requests that stay pending, each with its broken rule."""

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form."""
        approved = [{"name": each.name, "node": each.node, "signer": each.signer} for each in self.approved]
        return {"approved": approved, "pending": [each.as_json() for each in self.left]}


async def connect(cluster: ClusterFile) -> Kube:
    """The cluster's API, as cluster.yaml says how."""
    files = cluster.cluster
    return await Kube.connect(Path(files.kubeconfig), files.apiservers, Path(files.ca.cert))


async def listing(kube: Kube, cluster: ClusterFile) -> tuple[Listed, ...]:
    """Every request in the cluster, oldest first, each pending one judged."""
    requests, nodes, tokens, remembered = await asyncio.gather(
        kube.csrs(), kube.nodes(), kube.tokens(), kube.known_keys()
    )
    known = Knowledge(
        inventory=csr.inventory(cluster),
        issued_keys=csr.owners(csr.joined_keys(remembered, csr.issued_keys(requests))),
        node_addresses=_addresses(nodes),
        tokens={token.id: token.node for token in tokens},
    )
    return tuple(Listed(request=each, verdict=csr.judge(each, known) if each.pending else None) for each in requests)


async def approve(kube: Kube, cluster: ClusterFile, report: Reporter) -> Approved:
    """Approve once what holds every rule."""
    desk = Desk(kube=kube, inventory=csr.inventory(cluster), report=report, nodes=None)
    seen = await desk.look(await kube.tokens())
    return Approved(approved=seen.approved, left=seen.left)


async def watch(kube: Kube, cluster: ClusterFile, report: Reporter) -> None:
    """Approve what holds every rule as it comes, until cancelled; a broken rule is reported once."""
    desk = Desk(kube=kube, inventory=csr.inventory(cluster), report=report, nodes=None)
    while True:
        try:
            tokens = await kube.tokens()
        except ApiError as error:
            desk.say(error)
        else:
            await desk.round(tokens)
        await asyncio.sleep(WATCH_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look at the desk saw and did."""

    requests: tuple[CsrView, ...] = ()
    nodes: Mapping[str, NodeStatus] = field(default_factory=dict)
    """The Nodes that exist, among those that matter for the requests and tokens looked at."""
    approved: tuple[CsrView, ...] = ()
    left: tuple[Listed, ...] = ()


@dataclass(kw_only=True)
class Desk:
    """Where requests are judged and approved. It remembers keys, since the API forgets requests after an hour."""

    kube: Kube
    inventory: Inventory
    report: Reporter
    nodes: Collection[str] | None
    """Only requests of these nodes matter; None: of all nodes."""
    rejoining: frozenset[str] = frozenset()
    _keys: dict[str, tuple[str, ...]] | None = None
    _waiting: dict[tuple[str, str], float] = field(default_factory=dict)
    """When (request, broken rule) was first seen; infinity once reported."""
    _said: set[str] = field(default_factory=set)

    async def round(self, tokens: Collection[BootstrapToken]) -> Seen:
        """Look once, and report; trouble with the API is reported too, not raised."""
        try:
            seen = await self.look(tokens)
        except ApiError as error:
            self.say(error)
            return Seen()
        now = asyncio.get_running_loop().time()
        for each in seen.left:
            if isinstance(each.verdict, Pending):
                since = self._waiting.setdefault((each.request.name, each.verdict.rule), now)
                if now - since >= PATIENCE_SECONDS:
                    self._waiting[each.request.name, each.verdict.rule] = float("inf")
                    self._decision(each.request, "pending", each.verdict.rule)
        return seen

    async def look(self, tokens: Collection[BootstrapToken]) -> Seen:
        """Approve what holds every rule. `tokens` are those that this tool has made."""
        requests = await self.kube.csrs()
        await self._learn(csr.issued_keys(requests))
        pending = [each for each in requests if each.pending and self._concerns(each, tokens)]
        concerned = {each.node for each in pending} | {token.node for token in tokens}
        # Only names of cluster.yaml are asked for: a request may name anything.
        present = {node.name: node for node in await self.kube.nodes(concerned & self.inventory.nodes.keys())}
        approved, left = [], []
        for request in pending:
            verdict = csr.judge(request, self._knowledge(tokens, present))
            if isinstance(verdict, Pending):
                left.append(Listed(request=request, verdict=verdict))
            elif await self._approve(request):
                approved.append(request)
        return Seen(requests=requests, nodes=present, approved=tuple(approved), left=tuple(left))

    def say(self, error: ApiError) -> None:
        """Report trouble with the API, each kind once."""
        text = str(error)
        if text not in self._said:
            self._said.add(text)
            self.report(Warning_(subject="certificates", text=f"requests can't be looked at now: {text}"))

    def _concerns(self, request: CsrView, tokens: Collection[BootstrapToken]) -> bool:
        """A kubelet's, for one of these nodes or by one of these tokens (whatever name it asks for)."""
        if csr.kind(request) == "other":
            return False
        ours = {csr.BOOTSTRAP_USER + token.id for token in tokens}
        return self.nodes is None or request.node in self.nodes or request.username in ours

    def _knowledge(self, tokens: Collection[BootstrapToken], present: Mapping[str, NodeStatus]) -> Knowledge:
        return Knowledge(
            inventory=self.inventory,
            issued_keys=csr.owners(self._keys or {}),
            node_addresses=_addresses(present.values()),
            tokens={token.id: token.node for token in tokens},
            rejoining=self.rejoining,
        )

    async def _approve(self, request: CsrView) -> bool:
        try:
            await self.kube.approve(request, message=f"every rule of kubeworker holds for {request.node}")
        except (ApiConflict, ApiNotFound):
            return False  # decided or deleted meanwhile: the next look sees it as it is
        self._decision(request, "approved")
        await self._learn({request.node: (csr.request_key(request),)})
        return True

    async def _learn(self, keys: csr.Keys) -> None:
        """Keep what is new, here and in the cluster's record."""
        if self._keys is None:
            self._keys = await self.kube.known_keys()
        merged = csr.joined_keys(self._keys, keys)
        new = {node: several for node, several in merged.items() if self._keys.get(node) != several}
        if new:
            self._keys = merged
            await self.kube.remember_keys(new)

    def _decision(self, request: CsrView, decision: Literal["approved", "pending"], rule: str = "") -> None:
        self.report(
            CsrDecision(name=request.name, node=request.node, signer=request.signer, decision=decision, rule=rule)
        )


def _addresses(nodes: Iterable[NodeStatus]) -> dict[str, frozenset[str]]:
    return {node.name: frozenset(address for _, address in node.addresses) for node in nodes}
