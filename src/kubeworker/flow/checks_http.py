"""verify's checks that are one HTTP request through a node's SSH connection: kubelet, kube-proxy, apiservers."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kubeworker.core.model import Check, Http, ProxyReaches
from kubeworker.core.verify.checks import Verdict, failed, passed
from kubeworker.flow.polling import settled
from kubeworker.io.https import Answer, NoAnswer, get
from kubeworker.io.node import Node

REQUEST_SECONDS = 5.0
"""How long one request may take."""

SETTLE_SECONDS = 2.5
"""How long a wrong answer is asked again for: a kubelet that was just started, a binding that is just being seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks: a TLS context, with the client certificate if there is one, and an Authorization header or none."""

    context: ssl.SSLContext
    authorization: str = field(default="", repr=False)


async def http(check: Http, node: Node, identities: Sequence[Identity], *, settle: float = SETTLE_SECONDS) -> Verdict:
    """The verdict of an Http check, asked again for `settle` seconds while the answer is wrong.

    Further identities are spares with the same rights: kubelet remembers a refusal for half a minute, so a second
    try as the same user would only hear the first one's answer.
    """
    return await _settled(check, node, check.url, identities, lambda answer: _http_fault(check, answer), settle)


async def proxy_reaches(
    check: ProxyReaches, node: Node, identity: Identity, *, settle: float = SETTLE_SECONDS
) -> Verdict:
    """The verdict of a ProxyReaches check: the apiserver answers, seen from the node, with the address's own name."""
    url = f"https://{check.apiserver}/readyz"
    return await _settled(check, node, url, (identity,), lambda answer: _readyz_fault(check.apiserver, answer), settle)


async def peer_certificate(node: Node, address: str, port: int, identity: Identity) -> bytes | NoAnswer:
    """The certificate (DER) that an https server of the node shows, once it is proved to be valid for the address."""
    answer = await _ask(node, f"https://{host_port(address, port)}/", identity)
    return answer if isinstance(answer, NoAnswer) else answer.peer


def host_port(host: str, port: int) -> str:
    """HOST:PORT as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _settled(
    check: Check,
    node: Node,
    url: str,
    identities: Sequence[Identity],
    fault: Callable[[Answer | NoAnswer], str],
    settle: float,
) -> Verdict:
    turns = itertools.cycle(identities)

    async def look() -> Verdict:
        answer = await _ask(node, url, next(turns))
        if found := fault(answer):
            return failed(check, f"{url}: {found}")
        return passed(check, f"{url}: {answer.status}" if isinstance(answer, Answer) else url)

    return await settled(look, seconds=settle)


async def _ask(node: Node, url: str, identity: Identity) -> Answer | NoAnswer:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    async with node.forward(parts.hostname or "", port) as local:
        return await get(
            url, port=local, context=identity.context, authorization=identity.authorization, timeout=REQUEST_SECONDS
        )


def _http_fault(check: Http, answer: Answer | NoAnswer) -> str:
    match answer:
        case NoAnswer(reason=reason):
            return reason
        case Answer(status=status, body=body) if status != check.status:
            return f"answered {status}, expected {check.status}: {_beginning(body)}"
        case Answer(body=body) if check.contains not in body:
            return f"the answer does not hold {check.contains!r}"
    return ""


def _readyz_fault(apiserver: str, answer: Answer | NoAnswer) -> str:
    match answer:
        case NoAnswer(reason=reason):
            return reason
        # Without --anonymous-auth an apiserver answers 401; with it, RBAC may say 403: both prove that it is alive.
        case Answer(status=200 | 401 | 403):
            return ""
        case Answer(status=status, body=body):
            return f"{apiserver} is not ready: {status}: {_beginning(body)}"


def _beginning(body: str) -> str:
    return " ".join(body.split())[:200]
