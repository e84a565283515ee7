"""Ask the API again until its answer will do. An API that is away for a moment is no reason to give a run up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kubeworker.errors import ApiError

POLL_SECONDS = 0.5

Value = TypeVar("Value")


async def looked_until(
    look: Callable[[], Awaitable[Value]], enough: Callable[[Value], bool], *, seconds: float
) -> Value | ApiError:
    """Look until it is enough, for `seconds` at most: the last answer, or why the last look gave none."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            seen: Value | ApiError = await look()
        except ApiError as error:
            seen = error
        if (not isinstance(seen, ApiError) and enough(seen)) or loop.time() >= end:
            return seen
        await asyncio.sleep(POLL_SECONDS)
