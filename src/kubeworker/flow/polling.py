"""Ask again until the answer will do: of an API that may be away for a moment, and of what may still be settling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kubeworker.core.verify.checks import Verdict
from kubeworker.errors import ApiError

POLL_SECONDS = 0.5
FIRST_SECONDS = 0.1
"""The first pauses are shorter, each twice as long as the one before: much of what is waited for is there at once."""

Value = TypeVar("Value")


async def asked_until(
    look: Callable[[], Awaitable[Value]],
    enough: Callable[[Value], bool],
    *,
    seconds: float,
    pause: float = POLL_SECONDS,
) -> Value:
    """Look every `pause` seconds, at first more often, until it is enough, for `seconds` at most: the last answer.

    The last look is at the very end; with 0 seconds the first is the last.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    wait = min(FIRST_SECONDS, pause)
    while True:
        seen = await look()
        left = end - loop.time()
        if enough(seen) or left <= 0:
            return seen
        await asyncio.sleep(min(wait, left))
        wait = min(2 * wait, pause)


async def looked_until(
    look: Callable[[], Awaitable[Value]],
    enough: Callable[[Value], bool],
    *,
    seconds: float,
    pause: float = POLL_SECONDS,
) -> Value | ApiError:
    """The same for a look at the API, which may be away meanwhile: the last answer, or why there was none."""

    async def answered() -> Value | ApiError:
        try:
            return await look()
        except ApiError as error:
            return error

    return await asked_until(
        answered, lambda seen: not isinstance(seen, ApiError) and enough(seen), seconds=seconds, pause=pause
    )


async def settled(look: Callable[[], Awaitable[Verdict]], *, seconds: float, pause: float = 1) -> Verdict:
    """The verdict of a check, again every `pause` seconds (at first more often) for `seconds`, while it fails."""
    return await asked_until(look, lambda verdict: verdict.status == "passed", seconds=seconds, pause=pause)
