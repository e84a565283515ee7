from __future__ import annotations

import asyncio

import pytest

from kubeworker.core import limit
from kubeworker.errors import InternalError, NodeUnreachable
from kubeworker.io.fleet import Begun, Failed, Ok, Slots, fan_out


async def test_results_stand_in_the_order_of_the_items() -> None:
    async def work(item: int) -> int:
        await asyncio.sleep(0.01 * (3 - item))
        return item * 10

    assert await fan_out([1, 2, 3], work, limit=3) == {1: Ok(10), 2: Ok(20), 3: Ok(30)}
    assert list(await fan_out([3, 1], work, limit=3)) == [3, 1]


async def test_one_failure_stops_no_other() -> None:
    lost = NodeUnreachable("down", subject="b")

    async def work(name: str) -> str:
        if name == "b":
            raise lost
        await asyncio.sleep(0.02)
        return name

    assert await fan_out(["a", "b", "c"], work, limit=3) == {"a": Ok("a"), "b": Failed(lost), "c": Ok("c")}


async def test_a_bug_is_a_failure_of_its_item() -> None:
    async def work(name: str) -> str:
        return {"a": "fine"}[name]

    outcomes = await fan_out(["a", "b"], work, limit=1)
    assert outcomes["a"] == Ok("fine")
    failed = outcomes["b"]
    assert isinstance(failed, Failed)
    assert type(failed.error) is InternalError
    assert failed.error.subject == "b"
    assert "KeyError" in failed.error.message
    assert isinstance(failed.error.__cause__, KeyError)


async def test_no_more_than_the_limit_run_at_once() -> None:
    running = peak = 0

    async def work(_item: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.005)
        running -= 1

    await fan_out(range(20), work, limit=4)
    assert peak == 4


async def test_cancelling_ends_everything_that_runs() -> None:
    begun, ended = [], []

    async def work(item: int) -> None:
        begun.append(item)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(item)

    task = asyncio.create_task(fan_out([1, 2, 3], work, limit=2))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert begun == sorted(ended) == [1, 2]


async def test_nothing_to_do() -> None:
    async def work(_item: int) -> None: ...

    assert await fan_out([], work, limit=1) == {}


async def test_what_comes_first_is_worked_on_while_the_rest_is_still_to_come() -> None:
    open_slowly, worked_on = asyncio.Event(), asyncio.Event()
    lost = NodeUnreachable("down", subject="lost")

    async def opened(name: str) -> str:
        if name == "slow":
            await open_slowly.wait()
        if name == "lost":
            raise lost
        return name.upper()

    async def work(value: str) -> str:
        if value == "SLOW":
            assert worked_on.is_set()
        worked_on.set()
        # Only what was done on the fast one lets the slow one come.
        open_slowly.set()
        return f"{value}!"

    begun = Begun(["slow", "lost", "fast"], opened)
    async with asyncio.timeout(10):
        outcomes = await begun.then(["slow", "lost", "fast"], work, limit=1)
    assert outcomes == {"slow": Ok("SLOW!"), "lost": Failed(lost), "fast": Ok("FAST!")}
    assert begun.known("fast") == Ok("FAST")
    assert await begun.end() == ("SLOW", "FAST")


async def test_who_stops_waiting_stops_no_work_and_the_end_stops_all_of_it() -> None:
    go_on, ended = asyncio.Event(), []

    async def opened(item: int) -> int:
        try:
            await (go_on.wait() if item == 1 else asyncio.sleep(60))
        finally:
            ended.append(item)
        return item

    begun = Begun([1, 2], opened)
    waiting = asyncio.create_task(begun.outcome(1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    assert await begun.outcome(1) == Ok(1)
    assert await begun.end() == (1,)
    assert ended == [1, 2]


async def test_nothing_that_was_begun_ends_too() -> None:
    async def opened(item: int) -> int:
        return item

    begun: Begun[int, int] = Begun([], opened)
    assert await begun.then([], opened, limit=1) == {}
    assert await begun.end() == ()


async def test_places_are_given_in_turn_and_follow_what_is_learnt() -> None:
    slots = Slots(limit.starting(ceiling=8, first=2))
    running, peak, order = 0, 0, []

    async def work(item: int, *, lose: bool = False) -> None:
        nonlocal running, peak
        async with slots.slot() as slot:
            running += 1
            peak = max(peak, running)
            order.append(item)
            await asyncio.sleep(0.005)
            running -= 1
            if lose:
                slot.lost()

    await asyncio.gather(*(work(item) for item in range(10)))
    assert (peak, order) == (2, list(range(10)))
    slots.learn(slots.limit.gained().gained())
    await asyncio.gather(*(work(item) for item in range(10)))
    assert peak == 4
    await asyncio.gather(*(work(item, lose=True) for item in range(4)))
    peak = 0
    await asyncio.gather(*(work(item) for item in range(4)))
    assert peak == 2, "four losses of one moment are one"


async def test_a_place_is_not_lost_with_one_that_waited_for_it() -> None:
    slots = Slots(limit.starting(ceiling=1, first=1))

    async def hold(seconds: float) -> None:
        async with slots.slot():
            await asyncio.sleep(seconds)

    first = asyncio.create_task(hold(0.02))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(hold(0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await first
    waiting[1].cancel()  # it has been given the place at this moment
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(1):
        await hold(0)
