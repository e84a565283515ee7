"""Downloads over HTTP(S), hashed while they stream and resumed where they were cut. Hides httpx2 and stamina."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpx2
import stamina

from kubeworker.errors import ArtifactChanged, ArtifactError, ArtifactMissing, reason

# stamina logs each retry, and Python prints what nobody handles: events and errors say it in our words.
logging.getLogger("stamina").addHandler(logging.NullHandler())

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Bytes done, and in all (0 while unknown)."""

_CHUNK = 1 << 20
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may pass: a busy or restarting server."""


class _Transient(Exception):
    """An answer worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently a request is tried again after a lost connection or a 5xx answer."""

    attempts: int = 5
    first_wait: float = 0.5
    """Seconds; doubled each time, with jitter."""


@dataclass(slots=True)
class Fetcher:
    """An HTTP client for many downloads; an async context manager. Proxies come from the environment."""

    retry: Retry = Retry()
    _client: httpx2.AsyncClient = field(init=False, repr=False)

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        self._client = httpx2.AsyncClient(follow_redirects=True, timeout=httpx2.Timeout(30, connect=10))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self._client.aclose()

    async def text(self, url: str) -> str:
        """A small text file; ArtifactMissing when the server does not have it or can't be reached."""

        async def once() -> str:
            response = await self._client.get(url)
            _judge(response, url)
            return response.text

        return await self._patiently(url, once)

    async def file(self, url: str, partial: Path, *, sha256: str, progress: Progress) -> str:
        """Download to `partial`, which may hold the beginning from an earlier run, and return its sha256.

        With a `sha256` given, other content is refused: the file is removed and ArtifactError names both hashes.
        ArtifactMissing when the server does not have it or can't be reached; what came of it stays for the next try.
        """
        try:
            digest = await self._patiently(url, lambda: self._once(url, partial, progress))
        except OSError as error:
            raise ArtifactError(f"can't be written: {reason(error)}", subject=str(partial), hint=url) from error
        _note(partial).unlink(missing_ok=True)
        if sha256 and digest != sha256:
            partial.unlink()
            raise ArtifactChanged(
                f"the file has sha256 {digest}, its publisher says {sha256}",
                subject=url,
                hint="nothing of it was kept; try again, and look at the mirror or proxy if it stays so",
            )
        return digest

    async def _once(self, url: str, partial: Path, progress: Progress) -> str:
        validator = _validator(partial, url)
        with partial.open("r+b" if validator else "w+b") as file:
            digest, done = _hash_so_far(file) if validator else (hashlib.sha256(), 0)
            headers = {"Accept-Encoding": "identity"}
            if done:
                headers |= {"Range": f"bytes={done}-", "If-Range": validator}
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code == 416:
                    # What is here is longer than the file: begin again.
                    _note(partial).unlink(missing_ok=True)
                    raise _Transient("416 Range Not Satisfiable")
                _judge(response, url)
                if done and not response.headers.get("content-range", "").startswith(f"bytes {done}-"):
                    digest, done = hashlib.sha256(), 0
                    file.seek(0)
                    file.truncate()
                _take_note(partial, url, response.headers)
                length = response.headers.get("content-length", "")
                total = done + int(length) if length.isdigit() else 0
                # No chunk size: what a cut connection had brought would be lost in the client's buffer.
                async for chunk in response.aiter_raw():
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress(done, total)
        return digest.hexdigest()

    async def _patiently(self, url: str, once: Callable[[], Awaitable[T]]) -> T:
        caller = stamina.AsyncRetryingCaller(
            attempts=self.retry.attempts,
            timeout=None,
            wait_initial=self.retry.first_wait,
            wait_jitter=self.retry.first_wait,
            wait_max=10,
        )
        try:
            return await caller((httpx2.TransportError, _Transient), once)
        except httpx2.TransportError as error:
            raise ArtifactMissing(f"{type(error).__name__}: {error or 'no answer'}", subject=url) from error
        except _Transient as error:
            raise ArtifactMissing(str(error), subject=url) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ArtifactMissing(str(error), subject=url) from error


def _judge(response: httpx2.Response, url: str) -> None:
    status = f"{response.status_code} {response.reason_phrase}"
    if response.status_code in _RETRIED:
        raise _Transient(status)
    if response.status_code not in {200, 206}:
        raise ArtifactMissing(status, subject=url)


def _hash_so_far(file: BinaryIO) -> tuple[hashlib._Hash, int]:
    digest, done = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
    return digest, done


# The validator (RFC 9110, 8.8) of the file that a partial download is the beginning of. Without one the rest can't be
# asked for safely: the server's file may have changed in between.


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _take_note(partial: Path, url: str, headers: httpx2.Headers) -> None:
    etag = headers.get("etag", "")
    # If-Range takes no weak ETags (RFC 9110, 13.1.5).
    validator = etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")
    _note(partial).write_text(json.dumps({"url": url, "validator": validator}))


def _validator(partial: Path, url: str) -> str:
    try:
        note = json.loads(_note(partial).read_bytes())
        validator = str(note["validator"]) if note["url"] == url and partial.exists() else ""
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""
    return validator
