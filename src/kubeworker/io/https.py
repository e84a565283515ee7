"""HTTP requests to one address of a node through a local forwarded port (hides httpx2).

No answer is a value here, not an error: verify's checks are about whether something answers, and how.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import httpx2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `peer` is the server's certificate (DER) of an https request."""

    status: int
    body: str = field(repr=False)
    peer: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """Nothing came back, and why: refused, closed, timed out, or a server certificate that is not to be trusted."""

    reason: str
    untrusted: bool = False
    """It was the certificate."""


def tls_context(ca: bytes, *, cert: bytes = b"", key: bytes = b"") -> ssl.SSLContext:
    """Trust this CA only (PEM), and show this client certificate (PEM) if there is one."""
    context = ssl.create_default_context(cadata=ca.decode())
    # kube-controller-manager's and cfssl's certificates lack extensions that Python >= 3.13 insists on by default.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if cert:
        # The ssl module reads keys from files only; this one is 0600 and gone at the end of the block.
        with tempfile.NamedTemporaryFile(prefix="kubeworker-") as file:
            file.write(cert.rstrip() + b"\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


async def get(
    url: str, *, port: int, context: ssl.SSLContext, authorization: str = "", timeout: float = 5
) -> Answer | NoAnswer:
    """GET `url` over a connection to 127.0.0.1:`port`, which leads to the URL's address.

    The server's certificate must be valid for the URL's host, though the connection goes to loopback. `timeout` is
    for the whole exchange, in seconds.
    """
    parts = urlsplit(url)
    local = urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}"))
    headers = {"Host": parts.netloc} | ({"Authorization": authorization} if authorization else {})
    peer = b""
    try:
        async with (
            asyncio.timeout(timeout),
            httpx2.AsyncClient(verify=context, trust_env=False, timeout=None) as client,
            client.stream("GET", local, headers=headers, extensions={"sni_hostname": parts.hostname or ""}) as response,
        ):
            tls = response.extensions["network_stream"].get_extra_info("ssl_object")
            if tls is not None:
                peer = tls.getpeercert(binary_form=True) or b""
            body = (await response.aread()).decode(errors="replace")
            return Answer(status=response.status_code, body=body, peer=peer)
    except TimeoutError:
        return NoAnswer(reason=f"no answer within {timeout:g} s")
    except httpx2.HTTPError as error:
        if problem := _certificate_problem(error):
            return NoAnswer(reason=f"the server's certificate is not to be trusted: {problem}", untrusted=True)
        return NoAnswer(reason=_reason(error))


async def certificate(host: str, port: int, *, timeout: float = 5) -> bytes | NoAnswer:
    """The certificate (DER) that a TLS server shows, whoever signed it: for a caller that knows which it must be.

    The handshake proves that the server holds the certificate's key. `timeout` is for all of it, in seconds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except TimeoutError:
        return NoAnswer(reason=f"no answer within {timeout:g} s")
    except OSError as error:  # ssl.SSLError is one
        return NoAnswer(reason=f"connection failed: {error.strerror or error}")
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    writer.transport.abort()  # nothing was asked, so there is nothing to say goodbye to
    return shown


def _certificate_problem(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return ""


def _reason(error: httpx2.HTTPError) -> str:
    """The library's message without OpenSSL's source position."""
    text = str(error).partition(" (_ssl.c")[0]
    # A port that nobody holds looks so: the node's sshd closes the forwarded connection without a word.
    silent = not text or isinstance(error, httpx2.RemoteProtocolError)
    return "connection refused or closed" if silent else f"connection failed: {text}"
