"""Nodes that hang are left behind, and catch up once."""

from __future__ import annotations

import asyncio

from kubeworker.flow.pace import Pace


def pace(*nodes: str, failed: frozenset[str] = frozenset(), patience: float = 0) -> Pace:
    return Pace(going=lambda: {*nodes} - failed, patience=patience, poll=0.02, busy={*nodes})


async def test_all_of_them_are_waited_for_as_long_as_nobody_is_done() -> None:
    running = pace("a", "b")
    waiting = asyncio.create_task(running.keep({"a", "b"}))
    await asyncio.sleep(0.1)  # longer than it takes to look again
    assert not waiting.done()
    for name in ("a", "b"):
        running.leave(name)
    await waiting
    running.fall_behind({"a", "b"})
    assert not running.behind


async def test_one_that_hangs_is_left_behind_and_has_its_next_round_when_it_is_done() -> None:
    running = pace("quick", "slow")
    running.leave("quick")
    await running.keep({"quick", "slow"})
    running.fall_behind({"quick", "slow"})
    assert running.behind == {"slow"}
    waiting = asyncio.create_task(running.caught_up())
    await asyncio.sleep(0)
    running.leave("slow")
    assert await waiting == {"slow"}
    assert not running.behind


async def test_one_that_is_done_while_the_others_have_their_next_round_still_has_its_own() -> None:
    running = pace("quick", "slow")
    running.leave("quick")
    running.fall_behind({"quick", "slow"})
    running.leave("slow")
    assert running.behind == {"slow"}, "it is not busy any more, and has had one round only"
    assert await running.caught_up() == {"slow"}
    assert not running.behind


async def test_one_that_fails_behind_the_others_has_no_next_round() -> None:
    running = pace("quick", "slow", failed=frozenset({"slow"}))
    running.leave("quick")
    running.fall_behind({"quick", "slow"})
    running.leave("slow")
    assert await running.caught_up() == set()
    assert not running.behind


async def test_of_two_behind_the_one_that_is_done_does_not_wait_for_the_other() -> None:
    running = pace("quick", "slow", "slower")
    running.leave("quick")
    running.fall_behind({"quick", "slow", "slower"})
    running.leave("slow")
    assert await running.caught_up() == {"slow"}
    assert running.behind == {"slower"}
