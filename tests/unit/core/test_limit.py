"""The adaptive limit, as values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core import limit
from kubeworker.core.limit import starting


def test_a_success_makes_room_for_one_more_so_that_each_round_doubles_it() -> None:
    found = starting(ceiling=64, first=4)
    for expected in (8, 16, 32, 64, 64):
        for _ in range(int(found.allowed)):
            found = found.gained()
        assert found.allowed == expected


def test_a_loss_halves_it_and_the_others_of_the_same_moment_do_not() -> None:
    found = starting(ceiling=64, first=16)
    began = found.epoch
    for _ in range(10):
        found = found.lost(began=began)
    assert found.allowed == 8
    assert found.lost(began=found.epoch).allowed == 4


def test_after_a_loss_a_full_round_of_successes_makes_room_for_one() -> None:
    found = starting(ceiling=64, first=16).lost(began=0)
    for _ in range(8):
        found = found.gained()
    assert 8.5 < found.allowed < 9
    for _ in range(1000):
        found = found.gained()
    assert found.allowed > 40


@given(st.integers(1, 100), st.integers(1, 100), st.lists(st.booleans(), max_size=200))
def test_it_stays_between_one_and_its_ceiling(ceiling: int, first: int, outcomes: list[bool]) -> None:
    found = starting(ceiling=ceiling, first=first)
    for well in outcomes:
        found = found.gained() if well else found.lost(began=found.epoch)
        assert 1 <= found.allowed <= ceiling


def test_waits_grow_up_to_a_bound_and_are_spread_by_half() -> None:
    longest = [limit.wait(tries, 1.0) for tries in range(1, 10)]
    assert longest == sorted(longest)
    assert (longest[0], longest[-1]) == (limit.FIRST_WAIT, limit.LONGEST_WAIT)
    assert limit.wait(3, 0.0) == limit.wait(3, 1.0) / 2
