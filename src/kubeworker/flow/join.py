"""Let nodes join: plan the cluster's side, approve their certificates while they start, take their tokens back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kubeworker.components import kubelet
from kubeworker.core import bootstrap_token, cluster_objects, csr, desired
from kubeworker.core.bootstrap_token import BootstrapToken
from kubeworker.core.cluster_objects import ObjectAction
from kubeworker.core.csr import Inventory
from kubeworker.core.kube_views import NodeStatus
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiError
from kubeworker.flow.csr import POLL_SECONDS, Desk, Seen
from kubeworker.flow.events import ActionDone, Reporter, Warning_
from kubeworker.io.kube import Kube


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


async def plan_cluster(
    kube: Kube, cluster: ClusterFile, joining: Iterable[str], *, now: datetime, nodes: Collection[str] | None = None
) -> ClusterPlan:
    """Read the cluster's objects and decide what has to change so that `joining` nodes can join.

    `nodes` limits whose labels and taints are looked at; None: every node of cluster.yaml.
    """
    joining = tuple(joining)
    bindings, found_tokens, found, record = await asyncio.gather(
        kube.list("ClusterRoleBinding"), kube.tokens(), kube.nodes(), kube.owned_record()
    )
    present = {node.name for node in found}
    chosen = [node for node in found if nodes is None or node.name in nodes]
    rejoining = frozenset(joining) & present
    tokens = bootstrap_token.plan(joining, found_tokens, now)
    settings = desired.config(kubelet.COMPONENT, cluster)
    expires = now + timedelta(minutes=settings.token_minutes_for(cluster))
    created = tuple(
        bootstrap_token.make(secrets.token_bytes(bootstrap_token.RANDOM_BYTES), node=node, expires=expires)
        for node in tokens.create
    )
    actions = (
        *cluster_objects.binding_actions(
            cluster_objects.bindings(cluster, client_csr=settings.client_csr_for(cluster)), bindings
        ),
        *cluster_objects.token_actions(tokens, created, cluster, rejoining),
        *cluster_objects.node_actions(cluster, chosen, cluster_objects.owned_record(record)),
    )
    return ClusterPlan(
        actions=actions,
        tokens=(*tokens.reuse, *created),
        rejoining=rejoining,
        nodes=found,
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
    if desired.config(kubelet.COMPONENT, cluster).client_csr_for(cluster) == "auto":
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
    desk = Desk(kube=kube, inventory=inventory, report=report, nodes=frozenset(nodes), rejoining=frozenset(rejoining))
    left = list(tokens)
    try:
        while True:
            ending = until.is_set()
            seen = await desk.round(tokens)
            for token in _joined(left, seen, frozenset(rejoining)):
                if await _take_back(kube, token, report):
                    left.remove(token)
            if ending:
                return
            await _pause(until)
    finally:
        for token in left:
            await _take_back(kube, token, report)


def _joined(tokens: Iterable[BootstrapToken], seen: Seen, rejoining: Collection[str]) -> tuple[BootstrapToken, ...]:
    """Tokens of no more use: certificate issued to the token's user, and the Node registered with it.

    A token that goes as soon as the certificate is issued would keep kubelet from fetching it. Of a rejoining node
    the Node says nothing: its token lives until the run's end.
    """
    issued = {request.username for request in seen.requests if request.certificate}
    return tuple(
        token
        for token in tokens
        if csr.BOOTSTRAP_USER + token.id in issued and token.node in seen.nodes and token.node not in rejoining
    )


async def _take_back(kube: Kube, token: BootstrapToken, report: Reporter) -> bool:
    """Delete a token; one that can't be deleted is named, with the way to do it by hand."""
    try:
        await kube.delete_token(token)
    except ApiError as error:
        text = f"its bootstrap token was not deleted: {error.message}. It expires by itself; sooner with: "
        text += f"kubectl --namespace kube-system delete secret {token.secret_name}"
        report(Warning_(subject=token.node, text=text))
        return False
    return True


async def _pause(until: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(POLL_SECONDS):
            await until.wait()
