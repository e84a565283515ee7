"""Parts of a fleet: who belongs to which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.sharding.shard import FLEET, Shard, is_shard, parse
from kubeworker.errors import UsageError


@given(st.lists(st.text("abcdef0123456789-.", min_size=1), unique=True), st.integers(1, 9))
def test_each_node_belongs_to_exactly_one_part_whoever_else_is_there(names: list[str], count: int) -> None:
    parts = [Shard(index=index, count=count) for index in range(count)]
    assert [sum(name in part for part in parts) for name in names] == [1] * len(names)


def test_parts_are_about_as_large_and_stay_what_they_are() -> None:
    part = parse("0/4")
    assert 200 < sum(f"node-{number}" in part for number in range(1000)) < 300
    # What another version of the tool would assign otherwise, two runs would work on at once.
    assert [number for number in range(12) if f"node-{number}" in part] == [0, 2, 8, 9]


@pytest.mark.parametrize("text", ["", "1", "4/4", "0/0", "-1/4", "1/4/5", "a/b"])
def test_what_is_no_part_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_each_part_has_a_lease_of_its_own_beside_the_fleets() -> None:
    leases = {Shard(index=index, count=3).lease for index in range(3)}
    assert len(leases) == 3
    assert all(map(is_shard, leases))
    assert not is_shard(FLEET)
    assert str(parse("1/3")) == "1/3"
