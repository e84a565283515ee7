import pytest

from kubeworker.core import durations


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (86400 * 364 + 5, "364 days")],
)
def test_a_length_of_time_is_told_in_the_largest_unit_of_which_there_are_two(seconds: float, text: str) -> None:
    assert durations.text(seconds) == text
