"""Ask again until the answer will do: of an API that may be away for a moment, and of what may still be settling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from kubeworker.core.verify.checks import Verdict
from kubeworker.errors import ApiError

POLL_SECONDS = 0.5
FIRST_SECONDS = 0.1
"""The first pauses are shorter, each twice as long as the one before: much of what is waited for is there at once."""

Value = TypeVar("Value")


async def looked_until(
    look: Callable[[], Awaitable[Value]],
    enough: Callable[[Value], bool],
    *,
    seconds: float,
    pause: float = POLL_SECONDS,
) -> Value | ApiError:
    """Look every `pause` seconds until it is enough, for `seconds` at most: the last answer, or why there was none."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    waits = _waits(pause)
    while True:
        try:
            seen: Value | ApiError = await look()
        except ApiError as error:
            seen = error
        if (not isinstance(seen, ApiError) and enough(seen)) or loop.time() >= end:
            return seen
        await asyncio.sleep(next(waits))


async def settled(look: Callable[[], Awaitable[Verdict]], *, seconds: float, pause: float = 1) -> Verdict:
    """The verdict of a check, again every `pause` seconds (at first more often) for `seconds`, while it fails."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    waits = _waits(pause)
    while True:
        verdict = await look()
        wait = next(waits)
        if verdict.status == "passed" or loop.time() + wait > end:
            return verdict
        await asyncio.sleep(wait)


def _waits(longest: float) -> Iterator[float]:
    wait = min(FIRST_SECONDS, longest)
    while True:
        yield wait
        wait = min(2 * wait, longest)
