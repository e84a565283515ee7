"""Let nodes join: plan the cluster's side, approve their certificates while they start, take their tokens back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kubeworker.components import kubelet
from kubeworker.core import desired
from kubeworker.core.cluster import bootstrap_token, cluster_objects
from kubeworker.core.cluster.bootstrap_token import BOOTSTRAP_GROUP, BOOTSTRAP_USER, BootstrapToken
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import Document, NodeStatus
from kubeworker.core.sharding.handed import Handed
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound, ApiUnreachable, CredentialsError
from kubeworker.flow.events import ActionDone, Reporter, Warning_
from kubeworker.flow.polling import FIRST_SECONDS, POLL_SECONDS
from kubeworker.io.kube import Kube
from kubeworker.io.objects import Objects

if TYPE_CHECKING:
    from kubeworker.flow.csr import Desk, Seen  # a plan approves nothing


LOOKS = 5
"""How often an object is looked at again that others change at the same time, as controllers do with a new Node."""


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
    """The Nodes that were read."""
    warnings: tuple[str, ...] = ()

    def token(self, node: str) -> str:
        """The value of the node's bootstrap token; empty where it needs none."""
        return next((token.value for token in self.tokens if token.node == node), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReading:
    """What the API said, all that a plan's cluster side is decided on."""

    bindings: tuple[Document, ...] = ()
    """Those ClusterRoleBindings of `cluster_objects.bindings` that exist."""
    tokens: tuple[BootstrapToken, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()
    labelled: frozenset[str] = frozenset()
    """Nodes whose labels and taints are this run's to look at."""
    owned: Mapping[str, str] = field(default_factory=dict)
    handed: bool = False
    """The tokens were handed over: none are made or taken away, and bindings are somebody else's."""
    warnings: tuple[str, ...] = ()


async def read_cluster(
    kube: Kube,
    cluster: ClusterFile,
    nodes: Collection[str] | None = None,
    *,
    part: bool = False,
    handed: Handed | None = None,
) -> ClusterReading:
    """Read all of it. `nodes`: a run for these only; None: for every node of cluster.yaml. `part`: other runs may be
    at work on the rest meanwhile, so that the tokens of those nodes are none of this one's business.

    With what was `handed` over, neither Secrets nor bindings are read. A run for a few nodes reads those Nodes only,
    unless `cni: bridge` needs everybody's podCIDR for its routes.
    """
    names = frozenset(node.name for node in cluster.nodes) if nodes is None else frozenset(nodes)
    asked = None if nodes is None or cluster.cni == "bridge" else names

    async def bindings() -> tuple[Document, ...]:
        if handed is not None:
            return ()
        found = [await kube.get("ClusterRoleBinding", each["metadata"]["name"]) for each in _bindings(cluster)]
        return tuple(each for each in found if each is not None)

    async def records() -> tuple[tuple[BootstrapToken, ...], dict[str, str]]:
        owned = cluster_objects.owned_record(await kube.owned_record())
        tokens = await kube.tokens() if handed is None else handed.tokens
        return tuple(token for token in tokens if not part or token.node in names), owned

    async def rest() -> tuple[tuple[NodeStatus, ...], tuple[str, ...]]:
        return await kube.nodes(asked), await guarded_warnings(kube, cluster) if handed is None else ()

    # Three at a time, not all: each further connection costs a handshake, and the nodes' probes take longer than this.
    async with asyncio.TaskGroup() as group:
        roles = group.create_task(bindings())
        ours = group.create_task(records())
        seen = group.create_task(rest())
    tokens, owned = ours.result()
    found, warnings = seen.result()
    return ClusterReading(
        bindings=roles.result(),
        tokens=tokens,
        nodes=found,
        labelled=names,
        owned=owned,
        handed=handed is not None,
        warnings=warnings,
    )


def decide(
    reading: ClusterReading,
    cluster: ClusterFile,
    joining: Iterable[str],
    now: datetime,
    *,
    randomness: Callable[[int], bytes] = secrets.token_bytes,
) -> ClusterPlan:
    """What has to change in the cluster so that `joining` nodes can join and all others have what they should."""
    joining = tuple(joining)
    rejoining = frozenset(joining) & {node.name for node in reading.nodes}
    tokens = bootstrap_token.plan(joining, reading.tokens, now)
    labelled = [node for node in reading.nodes if node.name in reading.labelled]
    if reading.handed:
        return ClusterPlan(
            actions=cluster_objects.node_actions(cluster, labelled, reading.owned),
            tokens=tokens.reuse,
            rejoining=rejoining,
            nodes=reading.nodes,
            warnings=(
                *reading.warnings,
                *(
                    f"{node} has to join, and no token for it was handed over: render the Job again"
                    for node in tokens.create
                ),
            ),
        )
    expires = now + timedelta(minutes=desired.config(kubelet.COMPONENT, cluster).token_minutes_for(cluster))
    created = tuple(
        bootstrap_token.make(randomness(bootstrap_token.RANDOM_BYTES), node=node, expires=expires)
        for node in tokens.create
    )
    return ClusterPlan(
        actions=(
            *cluster_objects.binding_actions(_bindings(cluster), reading.bindings),
            *cluster_objects.token_actions(tokens, created, cluster, rejoining),
            *cluster_objects.node_actions(cluster, labelled, reading.owned),
        ),
        tokens=(*tokens.reuse, *created),
        rejoining=rejoining,
        nodes=reading.nodes,
        warnings=reading.warnings,
    )


def _bindings(cluster: ClusterFile) -> tuple[dict[str, Any], ...]:
    client_csr = desired.config(kubelet.COMPONENT, cluster).client_csr_for(cluster)
    return cluster_objects.bindings(cluster, client_csr=client_csr)


async def apply_cluster(api: Kube | Objects, actions: Iterable[ObjectAction], report: Reporter) -> int:
    """Carry out a plan's actions, in its order; `Objects` does those that are server-side applies.

    How many there were to do: another run may have been quicker, and what it made is then looked at, not made again.
    """
    loop, count = asyncio.get_running_loop(), 0
    for action in actions:
        began = loop.time()
        done = await _carried_out(api, action)
        if done is not None:
            report(ActionDone(node="", kind=done.kind, subject=done.subject, seconds=loop.time() - began))
            count += 1
    return count


async def _carried_out(api: Kube | Objects, action: ObjectAction, *, looks: int = LOOKS) -> ObjectAction | None:
    """What was done in the end; None: somebody else has done it.

    What was to be made or changed is never deleted instead: that is for the next plan to show.
    """
    try:
        await api.carry_out(action)
    except ApiConflict:
        if not looks or action.again is None or not isinstance(api, Kube):
            raise
        now = action.again(await api.present(action.document))
        if now is None:
            return None
        if now.verb == "recreate" and action.verb != "recreate":
            raise
        return await _carried_out(api, now, looks=looks - 1)
    return action


async def label_nodes(kube: Kube, cluster: ClusterFile, names: Collection[str], report: Reporter) -> None:
    """Give these nodes, which joined in this run, their labels and taints."""
    nodes, record = await asyncio.gather(kube.nodes(names), kube.owned_record())
    await apply_cluster(
        kube, cluster_objects.node_actions(cluster, nodes, cluster_objects.owned_record(record)), report
    )


async def guarded_warnings(kube: Kube, cluster: ClusterFile) -> tuple[str, ...]:
    """What makes `client_csr: guarded` pointless on this cluster, asked of its authorizers themselves."""
    if desired.config(kubelet.COMPONENT, cluster).client_csr_for(cluster) == "auto":
        return ()
    groups = (
        BOOTSTRAP_GROUP,
        *(bootstrap_token.extra_group(node.name) for node in cluster.nodes[:1]),
        "system:authenticated",
    )
    allowed = await kube.allowed(
        user=f"{BOOTSTRAP_USER}abcdef",
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
    desk: Desk, tokens: Sequence[BootstrapToken], until: asyncio.Event, *, handed: bool = False
) -> None:
    """Approve the certificates of the desk's nodes by the rules until the event is set; then take all tokens back.

    Runs beside the nodes' stages. It never raises for the API's sake: a stage that waits for a certificate in vain
    fails by itself, and `desk.troubles` says why. Tokens live as long as the run, and are deleted on cancellation too.
    Those that were `handed` over are left to nodes that have not joined, until they expire: a part of the fleet that
    failed is tried once more, and that run can't make others.
    """
    from kubeworker.flow.csr import Seen

    owners = {token.id: token.node for token in tokens}
    left = list(tokens)
    loop = asyncio.get_running_loop()
    try:
        while True:
            ending, began = until.is_set(), loop.time()
            seen = await desk.round(owners) or Seen()
            for token in _joined(left, seen, desk.rejoining):
                if await _take_back(desk, token) is None:
                    left.remove(token)
            if ending:
                return
            left = [await _kept_alive(desk, token) for token in left]
            await _pause(until, 2 * (loop.time() - began))
    finally:
        away: ApiUnreachable | None = None
        for token in () if handed else left:
            if away is not None:
                _left_behind(desk, token, away)  # each try would take seconds
            elif isinstance(error := await _take_back(desk, token), ApiUnreachable):
                away = error


def _joined(tokens: Iterable[BootstrapToken], seen: Seen, rejoining: Collection[str]) -> tuple[BootstrapToken, ...]:
    """Tokens of no more use: certificate issued to the token's user, and the Node registered with it.

    A token that goes as soon as the certificate is issued would keep kubelet from fetching it. Of a rejoining node
    the Node says nothing: its token lives until the run's end.
    """
    issued = {request.username for request in seen.requests if request.certificate}
    return tuple(
        token
        for token in tokens
        if BOOTSTRAP_USER + token.id in issued and token.node in seen.nodes and token.node not in rejoining
    )


async def _kept_alive(desk: Desk, token: BootstrapToken) -> BootstrapToken:
    """The token, with a later end where it nears it: a run over many nodes may take longer than a token lives."""
    longer = bootstrap_token.renewed(token, datetime.now(UTC))
    if longer is None:
        return token
    try:
        await desk.kube.patch(bootstrap_token.expiration_patch(longer))
    except ApiNotFound:
        return token  # not made yet, or removed by somebody
    except ApiError as error:
        desk.say(error)
        return token
    return longer


async def _take_back(desk: Desk, token: BootstrapToken) -> ApiError | CredentialsError | None:
    """Delete a token; one that can't be deleted is named, with the way to do it by hand."""
    try:
        await desk.kube.delete_token(token)
    except (ApiError, CredentialsError) as error:
        _left_behind(desk, token, error)
        return error
    return None


def _left_behind(desk: Desk, token: BootstrapToken, error: ApiError | CredentialsError) -> None:
    text = f"its bootstrap token was not deleted: {error.message}. It expires by itself; sooner with: "
    text += f"kubeworker token revoke {token.id}"
    desk.report(Warning_(subject=token.node, text=text))


async def _pause(until: asyncio.Event, seconds: float) -> None:
    """A kubelet waits for each look; one that takes long, for the many requests, is not made so often."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(POLL_SECONDS, max(FIRST_SECONDS, seconds))):
            await until.wait()
