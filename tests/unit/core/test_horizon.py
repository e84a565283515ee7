import pytest

from kubeworker.core.horizon import CNI_BIN_DIR, CONFIG_V3, IPVS, TABLE, at_least, warning


@pytest.mark.parametrize(
    ("version", "floor", "answer"),
    [
        ("1.33.3", "1.33.3", True),
        ("1.33.10", "1.33.9", True),
        ("1.9.0", "1.10.0", False),
        ("2.1.0-rc.1", "2.1.0", True),
        ("1.35.0+build.5", "1.35.0", True),
    ],
)
def test_versions_compare_by_number(version: str, floor: str, *, answer: bool) -> None:
    assert at_least(version, floor) is answer


def test_a_warning_says_what_happens_when_and_the_way_out() -> None:
    assert warning(IPVS, "1.33.3") == (
        "kubernetes 1.35 deprecates and 1.40 removes or switches off kube-proxy mode ipvs: "
        "components.kube_proxy.mode: nftables (GA since 1.33)"
    )
    assert warning(IPVS, "1.40.0").startswith("kube-proxy mode ipvs is gone or off by default since kubernetes 1.40")
    assert warning(CONFIG_V3, "2.3.0").startswith("containerd 2.3 deprecates containerd config version 3")


def test_every_entry_can_be_compared_and_has_a_source() -> None:
    assert CNI_BIN_DIR in TABLE
    for entry in TABLE:
        assert entry.source
        assert entry.way_out
        assert at_least(entry.removed or "99.0.0", entry.deprecated)
