"""Waiting for the API to say what is hoped for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kubeworker.errors import ApiError, ApiUnreachable
from kubeworker.flow.polling import asked_until, looked_until

AWAY = ApiUnreachable("no kube-apiserver answers")


def answers(*each: int | ApiError) -> tuple[Callable[[], Awaitable[int]], list[int]]:
    """A look that gives these, the last one again and again, and the list of how often it was asked."""
    calls: list[int] = []

    async def look() -> int:
        calls.append(len(calls))
        answer = each[min(len(calls), len(each)) - 1]
        if isinstance(answer, ApiError):
            raise answer
        return answer

    return look, calls


async def test_an_api_that_is_away_for_a_moment_is_asked_again() -> None:
    look, calls = answers(1, AWAY, 3)
    assert await looked_until(look, lambda seen: seen == 3, seconds=5, pause=0.01) == 3
    assert len(calls) == 3


async def test_what_never_comes_ends_with_the_last_answer_or_the_last_trouble() -> None:
    look, calls = answers(1)
    assert await looked_until(look, lambda seen: seen == 3, seconds=0.05, pause=0.06) == 1
    assert len(calls) == 2
    look, _ = answers(1, AWAY)
    assert await looked_until(look, lambda seen: seen == 3, seconds=0.05, pause=0.06) is AWAY


async def test_the_last_look_is_at_the_end_and_with_no_time_there_is_one() -> None:
    look, calls = answers(1, 2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await asked_until(look, lambda seen: seen == 3, seconds=0.05, pause=60) == 2
    assert len(calls) == 2
    assert loop.time() - began < 5
    look, calls = answers(1)
    assert await asked_until(look, lambda seen: seen == 3, seconds=0) == 1
    assert len(calls) == 1
