"""What `verify` makes in the cluster for its time: ServiceAccounts with and without rights, and their removal.

Everything goes again at the end, also after Ctrl-C; what a killed run left behind goes at the start of a later one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.model import Caller
from kubeworker.core.verify import objects as verify_objects
from kubeworker.core.verify.objects import KINDS, LABELS, NAMESPACE, Run
from kubeworker.errors import ApiError, CredentialsError
from kubeworker.flow.checks_http import Identity
from kubeworker.io.fleet import Failed, Ok, fan_out
from kubeworker.io.kube import Kube

Value = TypeVar("Value")

TOKEN_SECONDS = 600
"""The shortest lifetime that the API gives a token."""

RIGHTS_SECONDS = 5.0
"""How long the apiserver may take to see a binding that was just made."""

CLEAN_UP_SECONDS = 8.0
"""Bound for the removal of everything, also after Ctrl-C."""

_LIMIT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who `verify` can speak as, and why not where it can't. Without an API there is only the anonymous caller."""

    anonymous: Identity
    admin: tuple[Identity, ...] = ()
    token: tuple[Identity, ...] = ()
    token_without_rights: tuple[Identity, ...] = ()
    missing: str = field(default="")
    """Why a caller has no identity."""

    def identities(self, caller: Caller) -> tuple[Identity, ...]:
        """The caller's identities, the first to be used first; () when there is none."""
        match caller:
            case "anonymous":
                return (self.anonymous,)
            case "admin":
                return self.admin
            case "token":
                return self.token
            case "token-without-rights":
                return self.token_without_rights


@asynccontextmanager
async def connected(connect: Callable[[], Awaitable[Kube]]) -> AsyncIterator[Kube | ApiError]:
    """The API, or why there is none: half of the checks do without it."""
    try:
        kube = await connect()
    except ApiError as error:
        yield error
        return
    async with kube:
        yield kube


@asynccontextmanager
async def granted(
    kube: Kube | ApiError, run: Run, trust: ssl.SSLContext, kinds: Sequence[str] = KINDS
) -> AsyncIterator[Access]:
    """Identities for all callers; what is made for them, and all else of these kinds, is removed at the end."""
    anonymous = Identity(context=trust)
    if isinstance(kube, ApiError):
        yield Access(anonymous=anonymous, missing=kube.message)
        return
    try:
        await remove_stale(kube, now=datetime.now(UTC), kinds=kinds)
        yield await _access(kube, run, anonymous)
    finally:
        await _shielded(_remove(kube, run, kinds))


async def _access(kube: Kube, run: Run, anonymous: Identity) -> Access:
    """As many identities as can be had, and why the others can't."""
    admin: tuple[Identity, ...] = ()
    try:
        # The kubeconfig's own credentials: a client certificate in the TLS context, or what its header says.
        endpoint = await kube.endpoint()
        admin = (Identity(context=endpoint.tls, authorization=endpoint.authorization),)
        *with_rights, without = await _tokens(kube, run, anonymous.context)
    except (ApiError, CredentialsError) as error:
        return Access(anonymous=anonymous, admin=admin, missing=str(error))
    return Access(anonymous=anonymous, admin=admin, token=tuple(with_rights), token_without_rights=(without,))


async def _tokens(kube: Kube, run: Run, trust: ssl.SSLContext) -> tuple[Identity, ...]:
    """Identities of the two accounts with rights and of the one without, in that order."""
    accounts = (*run.with_rights, run.without_rights)
    documents = {name: verify_objects.service_account(run, name) for name in accounts}
    documents[run.binding] = verify_objects.binding(run)
    await _all(tuple(documents), lambda name: kube.create(documents[name]))
    tokens = await _all(accounts, lambda name: kube.token_request(name, namespace=NAMESPACE, seconds=TOKEN_SECONDS))
    await _await_rights(kube, run)
    return tuple(Identity(context=trust, authorization=f"Bearer {token}") for token in tokens)


async def _all(names: Sequence[str], work: Callable[[str], Awaitable[Value]]) -> tuple[Value, ...]:
    """Side by side; the first failure is raised once all have ended."""
    values = []
    for outcome in (await fan_out(names, work, limit=_LIMIT)).values():
        match outcome:
            case Failed(error=error):
                raise error
            case Ok(value=value):
                values.append(value)
    return tuple(values)


async def _await_rights(kube: Kube, run: Run) -> None:
    """Wait for the binding to be in force: kubelet would remember a refusal that came too early for 30 s."""
    user = f"system:serviceaccount:{NAMESPACE}:{run.with_rights[0]}"
    loop = asyncio.get_running_loop()
    end = loop.time() + RIGHTS_SECONDS
    while loop.time() < end:
        if await kube.allowed(user=user, groups=(), verb="get", group="", resource="nodes", subresource="metrics"):
            return
        await asyncio.sleep(0.1)


async def remove_stale(kube: Kube, *, now: datetime, kinds: Sequence[str] = KINDS) -> None:
    """Remove what a killed run left. A failure to do so is no reason not to verify."""
    try:
        for kind in kinds:
            stale = [each for each in await _found(kube, kind, LABELS) if verify_objects.is_stale(each, now)]
            await fan_out(_names(stale), partial(delete, kube, kind), limit=_LIMIT)
    except ApiError:
        return


async def _remove(kube: Kube, run: Run, kinds: Sequence[str]) -> None:
    """Remove what this run made."""
    for kind in kinds:
        await fan_out(_names(await _found(kube, kind, run.labels)), partial(delete, kube, kind), limit=_LIMIT)


async def delete(kube: Kube, kind: str, name: str) -> None:
    """Remove one object at once. A pod of ours holds nothing: its kubelet ends the container when it sees it gone."""
    await kube.delete(kind, name, namespace=_namespace(kind), grace_seconds=0 if kind == "Pod" else None)


async def _found(kube: Kube, kind: str, labels: dict[str, str]) -> tuple[Document, ...]:
    return await kube.list(kind, namespace=_namespace(kind), labels=labels)


def _namespace(kind: str) -> str:
    return "" if kind == "ClusterRoleBinding" else NAMESPACE


def _names(documents: tuple[Document, ...] | list[Document]) -> tuple[str, ...]:
    return tuple(document["metadata"]["name"] for document in documents)


async def _shielded(work: Awaitable[None]) -> None:
    """Finish `work` within CLEAN_UP_SECONDS even if this task is cancelled meanwhile, then let that go on."""
    task = asyncio.ensure_future(asyncio.wait_for(work, CLEAN_UP_SECONDS))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
    except (ApiError, TimeoutError):
        # What is left carries the label and goes with the next run; the verdicts stand as they are.
        return
