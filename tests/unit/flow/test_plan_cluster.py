"""What a plan reads of the settings in cluster.yaml: kubelet's own config is the one place that says them."""

from datetime import UTC, datetime, timedelta

import pytest

from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.spec import ClusterFile
from kubeworker.flow import join

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cluster(**changes: object) -> ClusterFile:
    return ClusterFile.model_validate(
        {
            "cluster": {
                "apiservers": ["10.1.0.1:6443"],
                "cluster_cidr": "172.30.0.0/16",
                "service_cidr": "10.254.0.0/16",
                "dns_service_ip": "10.254.0.2",
            },
            "nodes": [{"name": "w1", "address": "10.1.0.2"}],
        }
        | changes
    )


def planned(spec: ClusterFile) -> join.ClusterPlan:
    """In a cluster that holds nothing yet."""
    return join.decide(join.ClusterReading(), spec, ["w1"], NOW)


@pytest.mark.parametrize(
    ("changes", "minutes"),
    [
        ({}, 20),
        ({"profile": "guide"}, 24 * 60),
        ({"components": {"kubelet": {"token_minutes": 45}}}, 45),
        ({"profile": "guide", "components": {"kubelet": {"token_minutes": 45}}}, 45),
    ],
)
def test_a_token_lives_as_long_as_kubelets_setting_says(changes: dict[str, object], minutes: int) -> None:
    (token,) = planned(cluster(**changes)).tokens
    assert token.expires - NOW == timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("changes", "automatic"),
    [
        ({}, False),
        ({"profile": "guide"}, True),
        ({"components": {"kubelet": {"client_csr": "auto"}}}, True),
        ({"profile": "guide", "components": {"kubelet": {"client_csr": "guarded"}}}, False),
    ],
)
def test_the_automatic_binding_follows_kubelets_setting(changes: dict[str, object], *, automatic: bool) -> None:
    subjects = {action.subject for action in planned(cluster(**changes)).actions}
    assert ("ClusterRoleBinding auto-approve-csrs-for-group" in subjects) is automatic


def test_a_token_of_this_run_is_still_good_for_its_later_rounds() -> None:
    shortest = cluster(components={"kubelet": {"token_minutes": 15}})
    (token,) = planned(shortest).tokens
    assert token.expires - NOW > bootstrap_token.MINIMUM
