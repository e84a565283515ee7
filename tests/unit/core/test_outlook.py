import itertools
from dataclasses import replace
from datetime import date

import pytest

from kubeworker.core import horizon, outlook
from kubeworker.core.outlook import Prospect, Running

TODAY = date(2026, 5, 1)
GOOD = Running(
    kubernetes="1.35.2",
    containerd="2.3.1",
    apiserver="1.35.2",
    cgroup=2,
    proxy_mode="nftables",
    containerd_config=4,
)


def ahead(running: Running, today: date = TODAY) -> dict[str, Prospect]:
    return {each.what: each for each in outlook.outlook(running, today)}


def test_what_is_up_to_date_has_nothing_ahead() -> None:
    assert ahead(GOOD) == {}


def test_what_is_not_known_says_nothing() -> None:
    assert ahead(Running()) == {}


@pytest.mark.parametrize(
    ("change", "what", "state"),
    [
        ({"proxy_mode": "ipvs"}, horizon.IPVS.what, "deprecated"),
        ({"proxy_mode": "ipvs", "kubernetes": "1.33.3", "containerd": "2.1.3"}, horizon.IPVS.what, "ahead"),
        ({"proxy_mode": "ipvs", "kubernetes": "1.40.0"}, horizon.IPVS.what, "fails"),
        ({"cgroup": 1}, horizon.CGROUP_V1.what, "fails"),
        ({"cgroup": 1}, horizon.CONTAINERD_CGROUP_V1.what, "deprecated"),
        ({"kubelet_flags": frozenset({"pod-infra-container-image"})}, horizon.POD_INFRA_IMAGE.what, "fails"),
        (
            {"kubelet_flags": frozenset({"container-runtime-endpoint", "v"})},
            horizon.RUNTIME_ENDPOINT_FLAG.what,
            "deprecated",
        ),
        ({"containerd_keys": frozenset({"bin_dir"})}, horizon.CNI_BIN_DIR.what, "deprecated"),
        ({"containerd_keys": frozenset({"bin_dir"}), "containerd": "2.4.0"}, horizon.CNI_BIN_DIR.what, "fails"),
        ({"containerd_keys": frozenset({"auths"})}, horizon.REGISTRY_CREDENTIALS.what, "deprecated"),
        ({"containerd_keys": frozenset({"mirrors"})}, horizon.REGISTRY_MIRRORS.what, "deprecated"),
        ({"containerd_keys": frozenset({"metrics"})}, horizon.METRICS_SECTION.what, "deprecated"),
        ({"containerd_keys": frozenset({"enable_cdi"})}, horizon.ENABLE_CDI.what, "deprecated"),
        ({"containerd_config": 3}, horizon.CONFIG_V3.what, "deprecated"),
        ({"containerd_config": 2}, horizon.CONFIG_V2.what, "deprecated"),
    ],
)
def test_what_is_used_is_held_against_the_table(change: dict[str, object], what: str, state: str) -> None:
    found = ahead(replace(GOOD, **change))  # type: ignore[arg-type]
    assert found[what].state == state
    assert found[what].source
    assert found[what].way_out


@pytest.mark.parametrize(
    ("kubernetes", "containerd", "fits"),
    [
        ("1.33.3", "2.1.3", True),
        ("1.33.3", "2.0.3", False),
        ("1.33.3", "2.0.4", True),
        ("1.33.3", "2.3.0", True),
        ("1.35.0", "2.1.4", False),
        ("1.35.0", "2.1.5", True),
        ("1.35.0", "2.0.9", False),
        ("1.36.0", "2.1.9", False),
        ("1.99.0", "1.0.0", True),
    ],
)
def test_pairs_are_those_that_containerd_recommends(kubernetes: str, containerd: str, *, fits: bool) -> None:
    found = ahead(Running(kubernetes=kubernetes, containerd=containerd), date(2020, 1, 1))
    assert fits != any(each.state == "unsupported" for each in found.values())


@pytest.mark.parametrize(
    ("kubelet", "apiserver", "says"),
    [
        ("1.33.3", "1.33.0", ""),
        ("1.33.3", "1.36.0", ""),
        ("1.33.3", "1.37.0", "at most"),
        ("1.34.0", "1.33.9", "must not be newer"),
    ],
)
def test_kubelet_may_be_three_minors_older_and_never_newer(kubelet: str, apiserver: str, says: str) -> None:
    found = outlook.outlook(Running(kubernetes=kubelet, apiserver=apiserver), date(2020, 1, 1))
    assert [says in each.when for each in found] == ([True] if says else [])


@pytest.mark.parametrize(
    ("version", "today", "state"),
    [
        ("1.33.3", date(2026, 3, 1), ""),
        ("1.33.3", date(2026, 6, 1), "ahead"),
        ("1.33.3", date(2026, 6, 28), "ahead"),
        ("1.33.3", date(2026, 6, 29), "ended"),
        ("1.20.0", date(2026, 6, 1), "ended"),
        ("1.99.0", date(2026, 6, 1), ""),
    ],
)
def test_the_end_of_a_series_is_told_in_time(version: str, today: date, state: str) -> None:
    found = [each.state for each in outlook.outlook(Running(kubernetes=version), today)]
    assert found == ([state] if state else [])


def test_another_version_is_tried_without_touching_the_api_servers() -> None:
    tried = outlook.against(replace(GOOD, cgroup=1, kubernetes="1.33.3", apiserver="1.33.3"), {"kubernetes": "1.36.0"})
    found = ahead(tried)
    assert found[horizon.CGROUP_V1.what].state == "fails"
    assert found["kubelet 1.36.0 at kube-apiserver 1.33.3"].state == "unsupported"


def test_the_worst_comes_first() -> None:
    states = [each.state for each in outlook.outlook(replace(GOOD, cgroup=1, containerd_config=3), date(2028, 1, 1))]
    assert states == sorted(states, key=outlook.ORDER.index)
    assert states[0] == "fails"


def test_every_end_and_pair_can_be_read() -> None:
    for table in horizon.ENDS.values():
        for name, end in table.items():
            assert date.fromisoformat(end)
            assert horizon.series(f"{name}.0") == name
    for name, fitting in horizon.PAIRS.items():
        assert horizon.series(f"{name}.0") == name
        assert all(horizon.at_least(later, earlier) for earlier, later in itertools.pairwise(fitting))
