"""Whether nodes are Ready, as the API says: between the batches of a run, and at its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

from kubeworker.components import kubelet
from kubeworker.core import actions
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.errors import ApiError, JoinFailed
from kubeworker.flow.plan import NodePlan
from kubeworker.flow.polling import looked_until

READY_SECONDS = 120
"""How long a node that has a network plugin may take to become Ready."""

RESTART_SECONDS = 60
"""How long one that was Ready may take to be so again after its kubelet was restarted; a few are usual."""

Look = Callable[[], Awaitable[tuple[NodeStatus, ...]]]

Starts = Mapping[str, str]
"""By node, when its kubelet was started anew (RFC 3339, by the node's own clock, as heartbeats are).

What the former process said last is of the past. It may say it again at any moment until it ends.
"""


def restarts_kubelet(plan: NodePlan) -> bool:
    """Whether the node's kubelet starts anew, by itself or after containerd."""
    every = (action for stage in plan.stages for action in stage.actions)
    return any(actions.kind(each) in {"start", "restart"} and actions.subject(each) == kubelet.UNIT for each in every)


def is_ready(node: NodeStatus, starts: Starts) -> bool:
    """Ready, and said so after its restart."""
    return node.ready and node.heartbeat >= starts.get(node.name, "")


async def unready(
    look: Look, names: Collection[str], starts: Starts, *, seconds: float = READY_SECONDS
) -> dict[str, JoinFailed]:
    """Wait until all of these are Ready; those that are not, each with why. `look` reads them."""
    wanted = frozenset(names)
    seen = await looked_until(
        look, lambda nodes: wanted <= {node.name for node in nodes if is_ready(node, starts)}, seconds=seconds
    )
    if isinstance(seen, ApiError):
        text = f"whether it is Ready is not known: the API can't be asked: {seen.message}"
        hint = "run apply again once it answers"
        return {name: JoinFailed(text, subject=name, hint=hint) for name in sorted(wanted)}
    found = {node.name: node for node in seen}
    return {
        name: _failed(name, found.get(name), seconds)
        for name in sorted(wanted)
        if name not in found or not is_ready(found[name], starts)
    }


def _failed(name: str, node: NodeStatus | None, seconds: float) -> JoinFailed:
    match node:
        case None:
            why = "it has not registered"
        case NodeStatus(ready=True):
            why = "kubelet has not reported since its restart"
        case NodeStatus(reason=why):
            pass
    hint = f"look at it: kubectl describe node {name}; kubeworker verify --node {name}"
    return JoinFailed(f"not Ready after {seconds:.0f} s: {why}", subject=name, hint=hint)
