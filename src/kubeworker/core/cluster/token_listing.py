"""Bootstrap tokens as an operator sees them, whoever made them: never their secrets. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from kubeworker.core.cluster.bootstrap_token import LABEL, MANAGER, NODE_ANNOTATION
from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.nearest import nearest
from kubeworker.errors import UsageError

State: TypeAlias = Literal["valid", "joined", "expired", "unusable"]
"""joined: it still works, but its node has joined already. unusable: kube-apiserver takes it from nobody."""

_PREFIX = "bootstrap-token-"
_ID = re.compile(r"[a-z0-9]{6}")
_WHOLE = re.compile(r"([a-z0-9]{6})\.[a-z0-9]{16}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A bootstrap token's Secret without the secret."""

    id: str
    """The six characters that name it; of a Secret that is named otherwise, its whole name."""
    secret_name: str
    node: str = ""
    """The node that this tool made it for; empty for others' tokens."""
    maker: str = ""
    """kubeworker, or who wrote the Secret first (kubeadm, kubectl-create, ...); empty where the API does not tell."""
    ours: bool = False
    """Made by this tool: its label says so."""
    expires: datetime | None = None
    """None: never, or it is unusable."""
    fault: str = ""
    """Why kube-apiserver does not take it; empty where it does until it expires."""
    groups: tuple[str, ...] = ()
    """What its user belongs to beside system:bootstrappers."""
    description: str = ""

    def seconds_left(self, now: datetime) -> float | None:
        """Until it expires, 0 once it has; None: it never does."""
        return max((self.expires - now).total_seconds(), 0.0) if self.expires else None

    def state(self, now: datetime, joined: Collection[str]) -> State:
        """`joined`: names of the Nodes that exist."""
        if self.fault:
            return "unusable"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "joined" if self.node and self.node in joined else "valid"


def view(secret: Document) -> TokenView:
    """What a Secret of the type bootstrap.kubernetes.io/token tells; token-secret is not even decoded."""
    metadata = secret["metadata"]
    name = str(metadata["name"])
    data = {key: _text(value) for key, value in (secret.get("data") or {}).items() if key != "token-secret"}
    ours = (metadata.get("labels") or {}).get(LABEL) == MANAGER
    expires, fault = _expiration(data.get("expiration", ""))
    return TokenView(
        id=name.removeprefix(_PREFIX) if _ID.fullmatch(name.removeprefix(_PREFIX)) else name,
        secret_name=name,
        node=(metadata.get("annotations") or {}).get(NODE_ANNOTATION, "") if ours else "",
        maker=MANAGER if ours else _first_writer(metadata),
        ours=ours,
        expires=expires,
        fault=fault or _fault(name, data),
        groups=tuple(group for group in data.get("auth-extra-groups", "").split(",") if group),
        description=data.get("description", ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a `token revoke` takes away."""

    tokens: tuple[TokenView, ...]
    gone: tuple[str, ...] = ()
    """Words that mean something, of which there is nothing (any more)."""

    @property
    def foreign(self) -> tuple[TokenView, ...]:
        """Those that others made."""
        return tuple(token for token in self.tokens if not token.ours)


def choose(words: Sequence[str], tokens: Sequence[TokenView], nodes: Collection[str], *, every: bool) -> Chosen:
    """The tokens that ids and nodes' names mean; `every`: all that this tool made. Others' tokens go by id only.

    Raises InputError for a word that is neither, naming what is nearest to it. An id that no token has, and that is
    near to none that there is, means that somebody was quicker.
    """
    if every == bool(words):
        what = "--all and names exclude each other" if every else "it says nothing to revoke"
        raise UsageError(what, subject=_COMMAND, hint="name ids or nodes (kubeworker token list), or give --all")
    if every:
        return Chosen(tokens=tuple(token for token in tokens if token.ours))
    found: dict[str, TokenView] = {}
    gone: list[str] = []
    for word in dict.fromkeys(words):
        meant = _meant(word, tokens)
        found |= {token.secret_name: token for token in meant}
        if not meant:
            _check_known(word, tokens, nodes)
            gone.append(word)
    return Chosen(tokens=tuple(found.values()), gone=tuple(gone))


_COMMAND = "kubeworker token revoke"


def _meant(word: str, tokens: Iterable[TokenView]) -> tuple[TokenView, ...]:
    tokens = tuple(tokens)
    by_id = tuple(token for token in tokens if token.id == word)
    return by_id or tuple(token for token in tokens if token.ours and token.node == word)


def _check_known(word: str, tokens: Iterable[TokenView], nodes: Collection[str]) -> None:
    """InputError for a word that was probably meant otherwise."""
    if word in nodes:
        return
    whole = _WHOLE.fullmatch(word)
    if whole:
        raise UsageError(
            "a whole token was given, with its secret",
            subject=_COMMAND,
            hint=f"the id alone is enough: {_COMMAND} {whole[1]}. The secret is in this shell's history now",
        )
    near = nearest(word, [*(token.id for token in tokens), *nodes])
    if not near and _ID.fullmatch(word):
        return
    hint = f"did you mean {near[0]}?" if near else "kubeworker token list shows ids and nodes"
    raise UsageError(f"there is no token and no node {word!r}", subject=_COMMAND, hint=hint)


def _fault(name: str, data: Mapping[str, str]) -> str:
    """As kube-apiserver's authenticator judges (plugin/pkg/auth/authenticator/token/bootstrap)."""
    if not _ID.fullmatch(name.removeprefix(_PREFIX)) or data.get("token-id") != name.removeprefix(_PREFIX):
        return f"its token-id is not what its Secret is named by ({name})"
    if data.get("usage-bootstrap-authentication") != "true":
        return "it is not for authentication (usage-bootstrap-authentication is not true)"
    return ""


def _expiration(text: str) -> tuple[datetime | None, str]:
    if not text:
        return None, ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None, f"its expiration is no time: {text}"
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)), ""


def _first_writer(metadata: Mapping[str, Any]) -> str:
    """The field manager of the oldest write (metadata.managedFields)."""
    writes = sorted(metadata.get("managedFields") or (), key=lambda write: write.get("time") or "")
    return str(writes[0].get("manager") or "") if writes else ""


def _text(value: str) -> str:
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
