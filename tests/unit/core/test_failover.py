"""What a drill makes of what it saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.api_proxy import failover
from kubeworker.core.api_proxy.failover import CASES, Client, Drill, Gap, Proxy, Result

WELL = Client(gap=Gap(seconds=0.3), after=0.2, noise=0.1)
RESULT = Result(
    case="hung",
    apiserver="k8s-02",
    held=12.0,
    recovery=0.2,
    kept=WELL,
    dial=WELL,
    watch=0.3,
    before={"k8s-01": 3, "k8s-02": 4},
    during={"k8s-01": 7, "k8s-02": 0},
    after={"k8s-01": 4, "k8s-02": 3},
    even=12.25,
    leases={"k8s-02": 10.2, "worker-01": 10.4},
    not_ready=(),
    reloads={"k8s-02": (1763976264.5,), "worker-01": (1763976265.5,)},
)
PROXY = Proxy(node="worker-01", listen="127.0.0.1:8443", balance="least_conn", probe=True, ping_seconds=(10, 5))


def with_gap(seconds: float, *, ended: bool = True) -> Client:
    return replace(WELL, gap=Gap(seconds=seconds, ended=ended))


def test_the_gap_is_the_longest_one_that_has_a_part_of_the_fault_in_it() -> None:
    answers = [0, 1, 5, 6, 9, 20, 21, 60]
    # 1..5 begins before the fault; 9..20 ends after it; 21..60 lies behind it.
    assert failover.longest_gap(answers, begin=4, end=10, seen_until=61) == Gap(seconds=11)
    assert failover.longest_gap(answers, begin=4, end=6.5, seen_until=61) == Gap(seconds=4)


def test_a_gap_that_nobody_saw_end_is_said_to_be_open() -> None:
    assert failover.longest_gap([0, 1, 2], begin=2.5, end=30, seen_until=40) == Gap(seconds=38, ended=False)
    assert failover.longest_gap([], begin=2.5, end=30, seen_until=40) == Gap(seconds=37.5, ended=False)
    assert Gap(seconds=38, ended=False).text == "over 38 s"


@given(st.lists(st.floats(0, 100), min_size=2), st.floats(0, 50), st.floats(0, 50))
def test_no_gap_is_longer_than_what_was_seen(times: list[float], begin: float, length: float) -> None:
    answers = sorted(times)
    gap = failover.longest_gap(answers, begin, begin + length, seen_until=101)
    assert 0 <= gap.seconds <= 101 - min(answers[0], begin)


def test_pauses_are_only_those_between_two_answers_in_the_time_asked_for() -> None:
    assert failover.longest_pause([0, 3, 4, 6, 50], 1, 10) == 2
    assert failover.longest_pause([0, 50], 1, 10) == 0


@pytest.mark.parametrize(
    ("sessions", "over"),
    [((3, 4), False), ((2, 5), False), ((1, 6), True), ((0, 7), True), ((0, 0), False), ((2, 2, 4), False)],
)
def test_one_and_a_half_times_its_fair_share_is_allowed(sessions: tuple[int, ...], *, over: bool) -> None:
    assert failover.over({f"k8s-{index}": count for index, count in enumerate(sessions)}) is over


def test_sessions_are_even_from_the_first_look_after_which_none_was_over() -> None:
    fair, unfair = {"a": 3, "b": 3}, {"a": 6, "b": 0}
    looks = [(1.0, fair), (2.0, unfair), (3.0, fair), (4.0, unfair), (5.0, fair), (6.0, fair)]
    assert failover.even_since(looks, 2.0) == 5.0
    assert failover.even_since(looks[:4], 2.0) is None
    assert failover.even_since(looks, 5.5) == 6.0


def test_a_lease_that_is_not_renewed_any_more_ages_until_nobody_looks() -> None:
    assert failover.oldest({100.0, 110.0, 121.0}, 125.0) == 11.0
    assert failover.oldest({100.0, 110.0}, 155.0) == 45.0


def test_nodes_that_reload_in_the_same_second_of_the_clock_are_named() -> None:
    reloads = {"a": (10.1, 44.9), "b": (11.0,), "c": (44.0,)}
    assert failover.same_second(reloads) == (("a", "c"),)


def test_a_good_case_misses_no_aim() -> None:
    assert RESULT.missed == ()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (replace(RESULT, kept=with_gap(6.1)), "the kept connection was without an answer for 6.1 s; the aim is 6 s"),
        (replace(RESULT, case="stopped", kept=with_gap(1.2)), "without an answer for 1.2 s; the aim is 1 s"),
        (replace(RESULT, kept=with_gap(5.0, ended=False)), "without an answer for over 5 s"),
        (replace(RESULT, not_ready=("worker-01",)), "NotReady: worker-01"),
        (replace(RESULT, even=None), "not spread again within 60 s"),
        (replace(RESULT, reloads={"a": (5.1,), "b": (5.9,)}), "a and b reloaded kube-nginx in the same second"),
    ],
)
def test_each_aim_is_missed_by_itself(result: Result, said: str) -> None:
    (missed,) = result.missed
    assert said in missed


def test_a_drill_says_which_case_missed_what() -> None:
    results = (RESULT, replace(RESULT, case="unready", not_ready=("worker-01",)))
    drill = Drill(lab="try", proxy=PROXY, nodes=("k8s-02", "worker-01"), results=results)
    assert drill.missed == (("unready", "NotReady: worker-01"),)
    document = drill.as_json()
    assert document["met"] is False
    assert [case["missed"] for case in document["cases"]] == [[], ["NotReady: worker-01"]]
    assert document["cases"][0]["reloads"]["worker-01"] == ["2025-11-24T09:24:25.500+00:00"]


def test_drills_stand_side_by_side_case_by_case() -> None:
    results = tuple(replace(RESULT, case=case) for case in CASES)
    drill = Drill(lab="try", proxy=PROXY, nodes=(), results=results)
    head, _, *rows = failover.table({"default": drill, "guide": drill}).splitlines()
    assert head.startswith("| case | proxy | longest gap, kept connection |")
    assert [tuple(row.split(" | ")[:2]) for row in rows] == [
        (f"| {case}", title) for case in CASES for title in ("default", "guide")
    ]
    assert {row.count("|") for row in rows} == {head.count("|")}


def test_the_page_has_the_table_that_the_code_makes_of_both_proxies() -> None:
    page = (Path(__file__).parents[3] / "docs" / "failover.md").read_text("utf-8")
    written = page.split("<!-- failover: scripts/failover LAB --write -->")[1].split("<!-- end of failover -->")[0]
    results = tuple(replace(RESULT, case=case) for case in CASES)
    drill = Drill(lab="try", proxy=PROXY, nodes=(), results=results)
    made = failover.table({"default": drill, "guide": drill}).splitlines()
    found = [line for line in written.splitlines() if line.startswith("|")]
    assert found[:2] == made[:2], "run scripts/failover LAB --write"
    assert [line.split(" | ")[:2] for line in found[2:]] == [line.split(" | ")[:2] for line in made[2:]]
