"""Let nodes join: plan the cluster's side, approve their certificates while they start, take their tokens back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from kubeworker.core import bootstrap_token, cluster_objects, csr
from kubeworker.core.bootstrap_token import BootstrapToken
from kubeworker.core.cluster_objects import ObjectAction
from kubeworker.core.csr import Approve, CsrView, Inventory, Pending, Verdict
from kubeworker.core.kube_views import NodeStatus
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound
from kubeworker.flow.events import ActionDone, CsrDecision, Reporter, Warning_
from kubeworker.io.kube import Kube

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 3.0
"""A broken rule is reported when it has stood this long: a serving request may be a moment older than its Node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """The cluster's side of a run."""

    actions: tuple[ObjectAction, ...] = ()
    """Carried out before the nodes' stages; shown in the plan under "cluster"."""
    tokens: tuple[BootstrapToken, ...] = ()
    """One for each joining node, once `actions` are carried out."""
    rejoining: frozenset[str] = frozenset()
    """Joining nodes whose Node object exists already."""
    nodes: tuple[NodeStatus, ...] = ()
    """All Nodes of the cluster."""
    warnings: tuple[str, ...] = ()

    def token(self, node: str) -> str:
        """The value of the node's bootstrap token; empty where it needs none."""
        return next((token.value for token in self.tokens if token.node == node), "")


async def plan_cluster(kube: Kube, cluster: ClusterFile, joining: Iterable[str], *, now: datetime) -> ClusterPlan:
    """Read the cluster's objects and decide what has to change so that `joining` nodes can join."""
    joining = tuple(joining)
    bindings, found_tokens, nodes, record = await asyncio.gather(
        kube.list("ClusterRoleBinding"), kube.tokens(), kube.nodes(), kube.owned_record()
    )
    present = {node.name for node in nodes}
    rejoining = frozenset(joining) & present
    tokens = bootstrap_token.plan(joining, found_tokens, now)
    expires = now + bootstrap_token.TTL[cluster.profile]
    created = tuple(
        bootstrap_token.make(secrets.token_bytes(bootstrap_token.RANDOM_BYTES), node=node, expires=expires)
        for node in tokens.create
    )
    actions = (
        *cluster_objects.binding_actions(cluster_objects.bindings(cluster), bindings),
        *cluster_objects.token_actions(tokens, created, cluster, rejoining),
        *cluster_objects.node_actions(cluster, nodes, cluster_objects.owned_record(record)),
    )
    return ClusterPlan(
        actions=actions,
        tokens=(*tokens.reuse, *created),
        rejoining=rejoining,
        nodes=nodes,
        warnings=await guarded_warnings(kube, cluster),
    )


async def apply_cluster(kube: Kube, actions: Iterable[ObjectAction], report: Reporter) -> None:
    """Carry out a plan's actions, in its order."""
    loop = asyncio.get_running_loop()
    for action in actions:
        began = loop.time()
        await kube.carry_out(action)
        report(ActionDone(node="", kind=action.kind, subject=action.subject, seconds=loop.time() - began))


async def label_nodes(kube: Kube, cluster: ClusterFile, report: Reporter) -> None:
    """Give nodes that joined in this run their labels and taints."""
    nodes, record = await kube.nodes(), await kube.owned_record()
    await apply_cluster(
        kube, cluster_objects.node_actions(cluster, nodes, cluster_objects.owned_record(record)), report
    )


async def guarded_warnings(kube: Kube, cluster: ClusterFile) -> tuple[str, ...]:
    """What makes `client_csr: guarded` pointless on this cluster, asked of its authorizers themselves."""
    if cluster_objects.client_csr(cluster) == "auto":
        return ()
    groups = (
        csr.BOOTSTRAP_GROUP,
        *(bootstrap_token.extra_group(node.name) for node in cluster.nodes[:1]),
        "system:authenticated",
    )
    allowed = await kube.allowed(
        user=f"{csr.BOOTSTRAP_USER}abcdef",
        groups=groups,
        verb="create",
        group="certificates.k8s.io",
        resource="certificatesigningrequests",
        subresource="nodeclient",
    )
    if not allowed:
        return ()
    bindings, roles = await asyncio.gather(kube.list("ClusterRoleBinding"), kube.list("ClusterRole"))
    return (cluster_objects.guarded_warning(cluster_objects.granting_bindings(bindings, roles, groups)),)


async def approve_while(
    kube: Kube,
    nodes: Collection[str],
    tokens: Sequence[BootstrapToken],
    inventory: Inventory,
    until: asyncio.Event,
    report: Reporter,
    *,
    rejoining: Collection[str] = (),
) -> None:
    """Approve the certificates of these nodes by the rules until the event is set; then take all tokens back.

    Runs beside the nodes' stages. It never raises for the API's sake: a stage that waits for a certificate in vain
    fails by itself, and here is said why. Tokens are deleted on cancellation too.
    """
    desk = _Desk(kube=kube, nodes=frozenset(nodes), tokens=tokens, inventory=inventory, report=report)
    desk.rejoining = frozenset(rejoining)
    try:
        while True:
            ending = until.is_set()
            await desk.round()
            if ending:
                return
            await _pause(until)
    finally:
        await desk.take_back(desk.open_tokens())


async def _pause(until: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(POLL_SECONDS):
            await until.wait()


@dataclass(kw_only=True)
class _Desk:
    """Where requests are judged; remembers what it saw, since the API forgets issued requests after an hour."""

    kube: Kube
    nodes: frozenset[str]
    tokens: Sequence[BootstrapToken]
    inventory: Inventory
    report: Reporter
    rejoining: frozenset[str] = frozenset()
    keys: dict[str, frozenset[str]] = field(default_factory=dict)
    waiting: dict[tuple[str, str], float] = field(default_factory=dict)
    """When (request, broken rule) was first seen; infinity once reported."""
    taken_back: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    async def round(self) -> None:
        """Look once: approve what may be, name what may not, take back the tokens of nodes that have joined."""
        try:
            requests = await self.kube.csrs()
            self._remember(csr.issued_keys(requests))
            pending = [each for each in requests if each.pending and self._concerns(each)]
            present = await self._present(
                {each.node for each in pending} | {token.node for token in self.open_tokens()}
            )
            for request in pending:
                await self._decide(request, present)
            await self.take_back(self._joined(requests, present))
        except ApiError as error:
            self._say(error)

    def open_tokens(self) -> tuple[BootstrapToken, ...]:
        """Tokens not taken back yet."""
        return tuple(token for token in self.tokens if token.id not in self.taken_back)

    async def take_back(self, tokens: Iterable[BootstrapToken]) -> None:
        """Delete tokens; one that can't be deleted is named, with the way to do it by hand."""
        for token in tokens:
            try:
                await self.kube.delete_token(token)
            except ApiError as error:
                text = f"its bootstrap token was not deleted: {error.message}. It expires by itself; sooner with: "
                text += f"kubectl --namespace kube-system delete secret {token.secret_name}"
                self.report(Warning_(subject=token.node, text=text))
            else:
                self.taken_back.add(token.id)

    def _concerns(self, request: CsrView) -> bool:
        """Asked for one of this run's nodes, or with one of this run's tokens (whatever name it asks for)."""
        ours = {csr.BOOTSTRAP_USER + token.id for token in self.tokens}
        return csr.kind(request) != "other" and (request.node in self.nodes or request.username in ours)

    async def _present(self, names: Collection[str]) -> dict[str, NodeStatus]:
        if len(names) > 5:
            return {node.name: node for node in await self.kube.nodes() if node.name in names}
        found = [await self.kube.node(name) for name in sorted(names)]
        return {node.name: node for node in found if node is not None}

    async def _decide(self, request: CsrView, present: dict[str, NodeStatus]) -> None:
        match self._judge(request, present):
            case Approve():
                try:
                    await self.kube.approve(request, message=f"every rule of kubeworker holds for {request.node}")
                except (ApiConflict, ApiNotFound):
                    return  # decided or deleted meanwhile: the next round sees it as it is
                self._remember({csr.request_key(request): frozenset({request.node})})
                self._decision(request, "approved")
            case Pending(rule=rule):
                self._wait(request, rule)

    def _judge(self, request: CsrView, present: dict[str, NodeStatus]) -> Verdict:
        if csr.kind(request) == "serving":
            addresses = {name: frozenset(address for _, address in node.addresses) for name, node in present.items()}
            return csr.verdict_serving(request, self.inventory, self.keys, addresses)
        issued_for = {token.id: token.node for token in self.tokens}
        return csr.verdict_client(request, issued_for, self.inventory, present, self.keys, self.rejoining)

    def _wait(self, request: CsrView, rule: str) -> None:
        now = asyncio.get_running_loop().time()
        since = self.waiting.setdefault((request.name, rule), now)
        if now - since >= PATIENCE_SECONDS:
            self.waiting[request.name, rule] = float("inf")
            self._decision(request, "pending", rule)

    def _decision(self, request: CsrView, decision: str, rule: str = "") -> None:
        self.report(
            CsrDecision(
                name=request.name,
                node=request.node,
                signer=request.signer,
                decision="approved" if decision == "approved" else "pending",
                rule=rule,
            )
        )

    def _joined(self, requests: Iterable[CsrView], present: dict[str, NodeStatus]) -> tuple[BootstrapToken, ...]:
        """Tokens of no more use: certificate issued to the token's user, and the Node registered with it.

        A token that goes as soon as the certificate is issued would keep kubelet from fetching it. Of a rejoining
        node the Node says nothing: its token lives until the run's end.
        """
        issued = {each.username for each in requests if each.certificate}
        return tuple(
            token
            for token in self.open_tokens()
            if csr.BOOTSTRAP_USER + token.id in issued and token.node in present and token.node not in self.rejoining
        )

    def _remember(self, keys: dict[str, frozenset[str]]) -> None:
        for key, owners in keys.items():
            self.keys[key] = self.keys.get(key, frozenset()) | owners

    def _say(self, error: ApiError) -> None:
        text = str(error)
        if text not in self.said:
            self.said.add(text)
            self.report(Warning_(subject="certificates", text=f"requests can't be looked at now: {text}"))
