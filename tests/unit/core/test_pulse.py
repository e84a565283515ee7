from __future__ import annotations

from kubeworker.core.pulse import STUCK_SECONDS, Pulse


def test_one_that_goes_round_is_alive_though_no_api_answers() -> None:
    silent = Pulse(seen=100.0)
    assert silent.alive(101.0)
    assert not silent.ready(101.0)
    assert Pulse(seen=100.0, answered=True).ready(101.0)


def test_one_that_has_been_still_for_too_long_is_neither() -> None:
    still = Pulse(seen=100.0, answered=True)
    assert still.alive(100.0 + STUCK_SECONDS - 1)
    assert not still.alive(100.0 + STUCK_SECONDS)
    assert not still.ready(100.0 + STUCK_SECONDS)
