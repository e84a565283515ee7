"""The smallest HTTP server for a kubelet's probes: yes or no by path, nothing else is read, kept or told."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from kubeworker.errors import UsageError

_SECONDS = 5.0
"""How long one who asks may take."""
_CALLERS = 16
"""At a time: more are turned away, so that they can't use up this process' descriptors."""
_LIMIT = 8 << 10
"""Bytes of a request."""

_STATUS = {True: b"200 OK", False: b"503 Service Unavailable", None: b"404 Not Found"}


@asynccontextmanager
async def serving(port: int, answer: Callable[[str], bool | None]) -> AsyncIterator[None]:
    """Answer on this port of every address while the block runs; `answer` gets a path, and gives None for no such path.

    InputError where the port can't be had.
    """
    callers = 0

    async def handle(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal callers
        callers += 1
        try:
            if callers <= _CALLERS:
                async with asyncio.timeout(_SECONDS):
                    writer.write(_reply(await reader.readuntil(b"\r\n\r\n"), answer))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or asked for nothing
        finally:
            callers -= 1
            writer.close()

    try:
        server = await asyncio.start_server(handle, port=port, limit=_LIMIT)
    except (OSError, OverflowError) as error:
        raise UsageError(f"can't be listened on: {error}", subject=f"port {port}", hint="name a free one") from error
    async with server:
        yield


def _reply(request: bytes, answer: Callable[[str], bool | None]) -> bytes:
    words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    known = answer(words[1].partition("?")[0]) if len(words) == 3 and words[0] in {"GET", "HEAD"} else None
    return b"HTTP/1.1 " + _STATUS[known] + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
