"""Have nodes ask each kube-apiserver, those that have yet to join with a bootstrap token that lives for the check."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.node import joined
from kubeworker.core.node.observed import Observed
from kubeworker.core.node.probe import KUBELET_CLIENT_CERT
from kubeworker.core.preflight.row import Row
from kubeworker.core.reachability import api_reach
from kubeworker.core.reachability.api_reach import Caller
from kubeworker.errors import ApiError, CredentialsError, KubeworkerError, ProbeError
from kubeworker.flow.events import Reporter, Warning_
from kubeworker.flow.session import Session
from kubeworker.io.fleet import Failed, Ok, Outcome, fan_out
from kubeworker.io.kube import Kube

LIFETIME = timedelta(minutes=10)
"""Of a token that nobody could take back. An apply finds it too old to be used, and deletes it."""
_AT_ONCE = 8
"""Requests to the API side by side."""
_SECONDS = 60


async def reach_api(session: Session, seen: Mapping[str, Observed], *, api_token: bool) -> tuple[Row, ...]:
    """Rows `api` and `api-token` of every node that was seen.

    A node that has joined shows its own certificate. With `api_token` the others get a token each, which is deleted
    afterwards, also when this is cancelled; without, or where no API answers the control host, they show nothing.
    """
    now = datetime.now(UTC)
    members = {name for name, observed in seen.items() if joined.has_joined(name, observed, session.ca, now)}
    waiting = [name for name in seen if name not in members]
    async with short_tokens(session.kube, waiting if api_token else (), session.report) as tokens:

        async def work(name: str) -> tuple[Row, ...]:
            return await _ask(session, name, tokens.get(name), has_joined=name in members)

        asked = await fan_out(tuple(seen), work, limit=session.cluster.ssh.concurrency)
    return tuple(row for name, outcome in asked.items() for row in _rows(name, outcome))


def _rows(name: str, outcome: Outcome[tuple[Row, ...]]) -> tuple[Row, ...]:
    match outcome:
        case Ok(value=rows):
            return rows
        case Failed(error=error):
            return (Row(node=name, id="api", status="unknown", message=f"not asked: {error.message}", fix=error.hint),)


async def _ask(
    session: Session, name: str, token: BootstrapToken | KubeworkerError | None, *, has_joined: bool
) -> tuple[Row, ...]:
    caller: Caller = "certificate" if has_joined else "token" if isinstance(token, BootstrapToken) else "nobody"
    apiservers = session.cluster.cluster.apiservers
    script = api_reach.script(apiservers, ca=session.ca.pem, caller=caller, certificate=KUBELET_CLIENT_CERT)
    secret = f"{token.value}\n".encode() if isinstance(token, BootstrapToken) else b""
    done = await session.connection(name).run(script, stdin=secret, timeout=_SECONDS)
    try:
        answers = api_reach.parse(done.stdout)
    except ValueError as error:
        raise ProbeError(str(error), subject=name, hint=done.stderr.strip()) from error
    return tuple(api_reach.rows(name, answers, caller, asked=apiservers, no_token=_why_none(session, token)))


def _why_none(session: Session, token: BootstrapToken | KubeworkerError | None) -> str:
    if isinstance(token, KubeworkerError):
        return token.message
    return session.trouble or "--no-api-token"


@asynccontextmanager
async def short_tokens(
    kube: Kube | None, nodes: Sequence[str], report: Reporter
) -> AsyncIterator[Mapping[str, BootstrapToken | KubeworkerError]]:
    """A token for each node, or why it has none; all of them are deleted at the end, however it comes."""
    if kube is None or not nodes:
        yield {}
        return
    expires = datetime.now(UTC) + LIFETIME
    tokens = {
        node: bootstrap_token.make(secrets.token_bytes(bootstrap_token.RANDOM_BYTES), node=node, expires=expires)
        for node in nodes
    }

    async def create(node: str) -> BootstrapToken:
        await kube.create(bootstrap_token.document(tokens[node]))
        return tokens[node]

    making = asyncio.ensure_future(fan_out(tuple(tokens), create, limit=_AT_ONCE))
    try:
        made = await asyncio.shield(making)
        yield {node: each.value if isinstance(each, Ok) else each.error for node, each in made.items()}
    finally:
        # Cut off, a request could still make its token when the deletion is through.
        await making
        await _delete(kube, tokens, report)


async def _delete(kube: Kube, tokens: Mapping[str, BootstrapToken], report: Reporter) -> None:
    async def delete(node: str) -> None:
        try:
            await kube.delete_token(tokens[node])
        except (ApiError, CredentialsError) as error:
            text = f"its bootstrap token was not deleted: {error.message}. It expires within {LIFETIME.seconds // 60} "
            text += f"minutes; sooner with: kubeworker token revoke {tokens[node].id}"
            report(Warning_(subject=node, text=text))

    await fan_out(tuple(tokens), delete, limit=_AT_ONCE)
