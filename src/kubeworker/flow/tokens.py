"""Bootstrap tokens: list those that are in the cluster, take them away. Their secrets are never held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubeworker.core.cluster import token_listing
from kubeworker.core.cluster.token_listing import Chosen, State, TokenView
from kubeworker.core.spec import ClusterFile
from kubeworker.io.kube import Kube


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One token in `token list`."""

    token: TokenView
    state: State
    seconds_left: float | None
    """None: it never expires."""

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form."""
        token = self.token
        return {
            "id": token.id,
            "node": token.node,
            "state": self.state,
            "ttl_seconds": None if self.seconds_left is None else round(self.seconds_left),
            "expires": token.expires.strftime("%Y-%m-%dT%H:%M:%SZ") if token.expires else None,
            "ours": token.ours,
            "made_by": token.maker,
            "fault": token.fault,
            "groups": list(token.groups),
            "description": token.description,
        }


async def listing(kube: Kube) -> tuple[Listed, ...]:
    """Every bootstrap token in the cluster: this tool's first, by node, then those of others."""
    tokens, nodes = await asyncio.gather(kube.token_views(), kube.nodes())
    now, joined = datetime.now(UTC), {node.name for node in nodes}
    return tuple(
        Listed(token=token, state=token.state(now, joined), seconds_left=token.seconds_left(now))
        for token in sorted(tokens, key=lambda token: (not token.ours, token.node, token.id))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What one `token revoke` did."""

    tokens: tuple[TokenView, ...]
    gone: tuple[str, ...]
    """Ids and nodes of which there was no token (any more)."""
    confirmed: bool = True

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form."""
        revoked = [{"id": each.id, "node": each.node, "ours": each.ours} for each in self.tokens]
        return {"confirmed": self.confirmed, "revoked": revoked, "gone": list(self.gone)}


async def revoke(
    kube: Kube,
    cluster: ClusterFile,
    words: Sequence[str],
    *,
    every: bool,
    confirm: Callable[[Chosen], Awaitable[bool]],
) -> Revoked:
    """Delete the tokens that ids and nodes' names mean. Asked is before others' tokens go; InputError: see `choose`."""
    chosen = token_listing.choose(words, await kube.token_views(), [node.name for node in cluster.nodes], every=every)
    if chosen.foreign and not await confirm(chosen):
        return Revoked(tokens=(), gone=(), confirmed=False)
    deleted = [token for token in chosen.tokens if await kube.delete_token(token)]
    missed = tuple(token.id for token in chosen.tokens if token not in deleted)
    return Revoked(tokens=tuple(deleted), gone=(*chosen.gone, *missed))
