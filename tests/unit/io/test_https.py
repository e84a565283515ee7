from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trustme

from kubeworker.io.https import Answer, NoAnswer, get, tls_context


@asynccontextmanager
async def server(
    context: ssl.SSLContext | None, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", wait: float = 0
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A real server on loopback that remembers each request's head."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await asyncio.sleep(wait)
        writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1], heads


def server_context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


async def test_the_certificate_is_checked_against_the_urls_address_not_the_loopback_port() -> None:
    ca = trustme.CA()
    trust = tls_context(ca.cert_pem.bytes())
    async with server(server_context(ca, "192.0.2.7")) as (port, heads):
        answer = await get("https://192.0.2.7:10250/healthz", port=port, context=trust)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body) == (200, "ok")
        assert answer.peer
        assert b"Host: 192.0.2.7:10250\r\n" in heads[0]
        other = await get("https://192.0.2.8:10250/healthz", port=port, context=trust)
    assert isinstance(other, NoAnswer)
    assert "not to be trusted" in other.reason


async def test_another_ca_is_not_trusted() -> None:
    async with server(server_context(trustme.CA(), "192.0.2.7")) as (port, _):
        answer = await get("https://192.0.2.7/", port=port, context=tls_context(trustme.CA().cert_pem.bytes()))
    assert isinstance(answer, NoAnswer)
    assert "not to be trusted" in answer.reason


async def test_a_client_certificate_is_shown() -> None:
    ca = trustme.CA()
    serving = server_context(ca, "192.0.2.7")
    ca.configure_trust(serving)
    serving.verify_mode = ssl.CERT_REQUIRED
    client = ca.issue_cert("admin.example")
    trust = tls_context(
        ca.cert_pem.bytes(),
        cert=client.cert_chain_pems[0].bytes(),
        key=client.private_key_pem.bytes(),
    )
    async with server(serving) as (port, _):
        assert isinstance(await get("https://192.0.2.7/", port=port, context=trust), Answer)
        bare = tls_context(ca.cert_pem.bytes())
        assert isinstance(await get("https://192.0.2.7/", port=port, context=bare), NoAnswer)


async def test_credentials_go_into_the_authorization_header() -> None:
    async with server(None) as (port, heads):
        await get(
            "http://192.0.2.7:10249/metrics",
            port=port,
            context=ssl.create_default_context(),
            authorization="Bearer t0k3n",
        )
    assert b"authorization: bearer t0k3n\r\n" in heads[0].lower()


async def test_a_refused_and_a_silent_port_are_no_answers() -> None:
    context = ssl.create_default_context()
    async with server(None) as (port, _):
        pass
    refused = await get("http://192.0.2.7/", port=port, context=context)
    assert isinstance(refused, NoAnswer)
    assert "connection" in refused.reason
    async with server(None, wait=2) as (port, _):
        silent = await get("http://192.0.2.7/", port=port, context=context, timeout=0.2)
    assert silent == NoAnswer(reason="no answer within 0.2 s")
