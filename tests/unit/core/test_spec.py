import pytest
from pydantic import ValidationError

from kubeworker.core.spec import ClusterFile


def document(**changes: object) -> dict[str, object]:
    cluster = {
        "apiservers": ["172.31.39.151:6443", "172.31.32.72:6443"],
        "cluster_cidr": "172.30.0.0/16",
        "service_cidr": "10.254.0.0/16",
        "dns_service_ip": "10.254.0.2",
    }
    nodes = [{"name": "k8s-01", "address": "172.31.39.151"}, {"name": "k8s-02", "address": "172.31.32.72"}]
    return {"cluster": cluster, "nodes": nodes} | changes


def test_defaults_are_the_guides() -> None:
    spec = ClusterFile.model_validate(document())
    assert spec.versions.kubernetes == "1.33.3"
    assert spec.paths.bin_dir == "/opt/k8s/bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": [{"name": "a", "address": "10.1.1.1"}, {"name": "a", "address": "10.1.1.2"}]}, r"nodes.1.name"),
        ({"nodes": [{"name": "a", "address": "10.1.1.1"}, {"name": "b", "address": "10.1.1.1"}]}, r"nodes.1.address"),
        ({"nodes": [{"name": "a", "address": "10.254.1.1"}]}, r"nodes.0.address"),
        ({"nodes": [{"name": "Bad_Name", "address": "10.1.1.1"}]}, "Bad_Name"),
        ({"nodez": []}, "nodez"),
        ({"artifacts": {"delivery": "pull"}}, r"artifacts.mirror: with delivery: pull it must be"),
        ({"artifacts": {"delivery": "pull", "mirror": "/srv/mirror"}}, r"artifacts.mirror: .* URL that nodes fetch"),
        ({"artifacts": {"delivery": "pull", "mirror": "https://a:b@m.example.com"}}, r"artifacts.mirror: .* password"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClusterFile.model_validate(document(**change))
