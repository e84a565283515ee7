"""Ask the API again until its answer will do. An API that is away for a moment is no reason to give a run up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kubeworker.errors import ApiError

POLL_SECONDS = 0.5

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
    while True:
        try:
            seen: Value | ApiError = await look()
        except ApiError as error:
            seen = error
        if (not isinstance(seen, ApiError) and enough(seen)) or loop.time() >= end:
            return seen
        await asyncio.sleep(pause)
