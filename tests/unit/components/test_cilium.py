"""Cilium's values, what does not fit together, and what a plan warns of."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.samples import cluster

from kubeworker.components import cilium
from kubeworker.components.cilium import Config
from kubeworker.core import desired
from kubeworker.core.component import KeyPair
from kubeworker.core.kube_views import NodeStatus
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import SpecError

PAIR = KeyPair(cert=b"CERT", key=b"KEY")
PAIRS = dict.fromkeys(("ca", "hubble-server", "hubble-relay", "hubble-ui", "hubble-metrics"), PAIR)


def spec(**settings: Any) -> ClusterFile:
    return cluster(cni="cilium", components={"cilium": settings})


def values(spec_: ClusterFile) -> dict[str, Any]:
    return cilium.values(spec_, desired.config(cilium.COMPONENT, spec_), PAIRS)


def refused(spec_: ClusterFile) -> SpecError:
    with pytest.raises(SpecError) as caught:
        desired.validate_components(spec_, (cilium.COMPONENT,))
    return caught.value


def test_agents_reach_the_api_through_their_nodes_own_proxy() -> None:
    assert {key: values(spec())[key] for key in ("k8sServiceHost", "k8sServicePort", "kubeProxyReplacement")} == {
        "k8sServiceHost": "127.0.0.1",
        "k8sServicePort": 8443,
        "kubeProxyReplacement": "false",
    }
    moved = cluster(cni="cilium", components={"kube_nginx": {"listen": "127.0.0.1:9443"}})
    assert values(moved)["k8sServicePort"] == 9443


def test_kube_proxys_work_is_done_by_cilium_where_asked() -> None:
    assert values(spec(kube_proxy_replacement=True))["kubeProxyReplacement"] == "true"


def test_the_operators_own_values_come_last() -> None:
    own = {"operator": {"replicas": 1}, "bpf": {"masquerade": True}, "rollOutCiliumPods": None}
    made = values(spec(values=own))
    assert made["operator"] == {"replicas": 1, "rollOutPods": True}
    assert made["bpf"] == {"masquerade": True}
    assert "rollOutCiliumPods" not in made


def test_one_node_gets_one_operator() -> None:
    one = cluster(cni="cilium", nodes=[{"name": "a", "address": "10.1.1.1"}])
    assert values(one)["operator"]["replicas"] == 1
    assert values(spec())["operator"]["replicas"] == 2


def test_native_routing_knows_which_addresses_stay_as_they_are() -> None:
    made = values(spec(routing="native", mtu=9000))
    assert made["routingMode"] == "native"
    assert made["ipv4NativeRoutingCIDR"] == "172.30.0.0/16"
    assert made["autoDirectNodeRoutes"] is True
    assert made["MTU"] == 9000
    assert "tunnelProtocol" not in made


def test_a_pool_of_cilium_s_own_is_cut_of_the_cluster_cidr() -> None:
    made = values(spec(ipam="cluster-pool", pool_mask=26))["ipam"]
    assert made == {
        "mode": "cluster-pool",
        "operator": {"clusterPoolIPv4PodCIDRList": ["172.30.0.0/16"], "clusterPoolIPv4MaskSize": 26},
    }


def test_an_ipv6_cluster_has_ipv6_values() -> None:
    six = cluster(
        cni="cilium",
        cluster={
            "apiservers": ["[fd00::1]:6443"],
            "cluster_cidr": "fd01::/112",
            "service_cidr": "fd02::/112",
            "dns_service_ip": "fd02::a",
        },
        nodes=[{"name": "a", "address": "fd00::2"}],
        components={"cilium": {"routing": "native"}},
    )
    made = values(six)
    assert (made["ipv4"], made["ipv6"]) == ({"enabled": False}, {"enabled": True})
    assert made["ipv6NativeRoutingCIDR"] == "fd01::/112"
    assert made["k8s"] == {"requireIPv6PodCIDR": True}


def test_hubbles_certificates_are_handed_over_and_the_authoritys_key_is_not() -> None:
    made = values(spec())
    assert made["hubble"]["tls"] == {"auto": {"enabled": False}, "server": {"cert": "Q0VSVA==", "key": "S0VZ"}}
    assert made["tls"] == {"ca": {"cert": "Q0VSVA=="}}
    assert values(spec(hubble=False))["hubble"] == {"enabled": False}


def test_hubbles_names_follow_the_clusters() -> None:
    config = Config(values={"cluster": {"name": "eu.one"}})
    names = {each.name: each.dns_names for each in cilium.COMPONENT.certificates(spec(), config)}
    assert names["hubble-server"] == ("*.eu-one.hubble-grpc.cilium.io",)


@pytest.mark.parametrize(
    ("settings", "field", "word"),
    [
        ({"values": {"kubeProxyReplacement": "true"}}, "values", "kube_proxy_replacement"),
        ({"values": {"ipam": {"mode": "eni"}}}, "values", "ipam.mode is set by the field ipam"),
        ({"values": {"MTU": 1400}}, "values", "MTU is set by the field mtu"),
        ({"values": {"hubble": {"enabled": False}}}, "values", "hubble.enabled"),
        ({"values": {"hubble": {"tls": {"auto": {"method": "cronJob"}}}}}, "values", "issues Hubble's certificates"),
        ({"pool_mask": 26}, "pool_mask", "no meaning"),
        ({"ipam": "cluster-pool", "pool_mask": 8}, "pool_mask", "can't be cut"),
        ({"ipam": "cluster-pool", "pool_mask": 16}, "pool_mask", "1 blocks of /16"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], field: str, word: str) -> None:
    error = refused(spec(**settings))
    assert error.subject == f"components.cilium.{field}"
    assert word in error.message
    assert error.hint


def test_a_node_can_not_have_a_cilium_of_its_own() -> None:
    nodes = [{"name": "a", "address": "10.1.1.1", "components": {"cilium": {"hubble": False}}}]
    assert refused(cluster(cni="cilium", nodes=nodes)).message == "holds for the whole cluster"


def test_an_api_address_of_the_operators_own_is_warned_of() -> None:
    (text,) = desired.warnings(spec(values={"k8sServiceHost": "10.9.9.9"}), (cilium.COMPONENT,))
    assert "k8sServiceHost is '10.9.9.9'" in text


def warned(spec_: ClusterFile, *nodes: NodeStatus) -> tuple[str, ...]:
    return desired.node_warnings(spec_, (cilium.COMPONENT,), nodes)


def test_a_node_outside_cluster_yaml_is_named_since_its_agent_has_no_proxy() -> None:
    stranger = NodeStatus(name="stranger", pod_cidr="172.30.9.0/24")
    (text,) = warned(spec(), stranger)
    assert text.startswith("stranger: in the cluster but not in cluster.yaml")
    assert warned(spec(values={"nodeSelector": {"cilium": "yes"}}), stranger) == ()
    assert warned(cluster(), stranger) == ()


def test_nodes_without_a_pod_cidr_are_named_where_it_is_needed() -> None:
    bare = NodeStatus(name="k8s-01")
    (text,) = warned(spec(), bare)
    assert "--allocate-node-cidrs" in text
    assert warned(spec(ipam="cluster-pool"), bare) == ()
