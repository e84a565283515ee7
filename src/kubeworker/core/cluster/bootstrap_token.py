"""Bootstrap tokens: one per node, living minutes, known as ours by label, so that leftovers are found and removed.

A token proves only that its holder was given it; which node it stands for is our own record (the annotation), which
guarded approval then holds the kubelet to: RBAC binds the generic group, so any token could ask for any node's name.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

NAMESPACE = "kube-system"
BOOTSTRAP_USER = "system:bootstrap:"
"""What the API calls the holder of a token, with the token's id."""
BOOTSTRAP_GROUP = "system:bootstrappers"
TYPE = "bootstrap.kubernetes.io/token"
"""Of the Secret; kube-apiserver takes no other one for a token."""
LABEL = "app.kubernetes.io/managed-by"
MANAGER = "kubeworker"
NODE_ANNOTATION = "kubeworker.io/node"
MINIMUM = timedelta(minutes=10)
"""A token found with less time left than this is replaced, not used again."""
RENEWED = timedelta(minutes=20)
"""What a token that a long run still needs is given, once little more than MINIMUM is left."""
RANDOM_BYTES = 22
"""Bytes of randomness that one token takes: 6 for the id, 16 for the secret."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
"""32 letters of the 36 that a token may hold: one random byte gives one letter without bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapToken:
    """A token issued for one node."""

    id: str
    """Six characters; public: it is the user name system:bootstrap:<id>."""
    secret: str = field(repr=False)
    """Sixteen characters."""
    node: str
    expires: datetime

    @property
    def value(self) -> str:
        """What kubelet presents: `<id>.<secret>`. Never shown."""
        return f"{self.id}.{self.secret}"

    @property
    def secret_name(self) -> str:
        """Name of the Secret in kube-system."""
        return f"bootstrap-token-{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlan:
    """What happens to bootstrap tokens in a run."""

    reuse: tuple[BootstrapToken, ...] = ()
    """Left by an earlier run for a node that still has to join, with enough time left."""
    create: tuple[str, ...] = ()
    """Nodes that need a new one."""
    delete: tuple[BootstrapToken, ...] = ()
    """Ours, and of no use any more: expired or nearly so, or its node has joined."""


def make(randomness: bytes, *, node: str, expires: datetime) -> BootstrapToken:
    """A token of RANDOM_BYTES random bytes: 30 bits of id, 80 bits of secret."""
    if len(randomness) != RANDOM_BYTES:
        raise ValueError(f"a bootstrap token takes {RANDOM_BYTES} random bytes, not {len(randomness)}")
    letters = "".join(_ALPHABET[byte & 31] for byte in randomness)
    return BootstrapToken(id=letters[:6], secret=letters[6:], node=node, expires=expires)


def extra_group(node: str) -> str:
    r"""The token's own group. The pattern \Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z forbids dots."""
    return f"system:bootstrappers:{node.replace('.', ':')}"


def document(token: BootstrapToken, *, profile: Literal["default", "guide"] = "default") -> dict[str, Any]:
    """The Secret (type bootstrap.kubernetes.io/token). Signing is not needed where the CA is shipped."""
    data = {
        "token-id": token.id,
        "token-secret": token.secret,
        "expiration": _time(token.expires),
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": extra_group(token.node),
        "description": f"kubelet-bootstrap-token of {token.node}, made by {MANAGER}",
    }
    if profile == "guide":
        data["usage-bootstrap-signing"] = "true"
    return {
        **reference(token),
        "type": TYPE,
        "metadata": {
            **reference(token)["metadata"],
            "labels": {LABEL: MANAGER},
            "annotations": {NODE_ANNOTATION: token.node},
        },
        "data": {key: _encoded(value) for key, value in data.items()},
    }


def reference(token: BootstrapToken) -> dict[str, Any]:
    """The token's Secret by kind and name alone: enough to delete or to patch it."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": token.secret_name, "namespace": NAMESPACE}}


def renewed(token: BootstrapToken, now: datetime) -> BootstrapToken | None:
    """The same token with a later end; None while it needs none. A later round of a run finds it good for use."""
    left = token.expires - now
    return replace(token, expires=now + RENEWED) if left < MINIMUM + timedelta(minutes=2) else None


def expiration_patch(token: BootstrapToken) -> dict[str, Any]:
    """A merge patch that moves the end of the token in the cluster to that of this value."""
    return {**reference(token), "data": {"expiration": _encoded(_time(token.expires))}}


def found(secret: Mapping[str, Any]) -> BootstrapToken | None:
    """A token of ours in a Secret that was read; None for any other Secret or one that can't be read."""
    metadata = secret["metadata"]
    if secret.get("type") != TYPE or (metadata.get("labels") or {}).get(LABEL) != MANAGER:
        return None
    data = secret.get("data") or {}
    try:
        values = {key: base64.b64decode(value).decode() for key, value in data.items()}
        return BootstrapToken(
            id=values["token-id"],
            secret=values["token-secret"],
            node=metadata["annotations"][NODE_ANNOTATION],
            expires=datetime.fromisoformat(values["expiration"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def plan(joining: Iterable[str], tokens: Iterable[BootstrapToken], now: datetime) -> TokenPlan:
    """Decide: each joining node has exactly one token with enough time left, and nothing else of ours stays."""
    wanted = tuple(dict.fromkeys(joining))
    reuse: dict[str, BootstrapToken] = {}
    delete: list[BootstrapToken] = []
    for token in sorted(tokens, key=lambda token: token.expires, reverse=True):
        if token.node in wanted and token.node not in reuse and token.expires - now >= MINIMUM:
            reuse[token.node] = token
        else:
            delete.append(token)
    return TokenPlan(
        reuse=tuple(reuse[node] for node in wanted if node in reuse),
        create=tuple(node for node in wanted if node not in reuse),
        delete=tuple(delete),
    )


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
