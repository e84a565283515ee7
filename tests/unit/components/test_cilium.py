"""Cilium's values, what does not fit together, and what a plan warns of."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.unit.samples import cluster, state

from kubeworker.components import cilium
from kubeworker.components.cilium import Config
from kubeworker.core import desired
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.component import Facts, KeyPair
from kubeworker.core.model import RequirePort, Stage, WarnOfTraces
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


# ---------------------------------------------------------------------------------------------------------------
# On nodes


def stage(*, ready: bool, **settings: Any) -> Stage:
    wanted = state(spec(**settings), facts=Facts(network_ready=ready))
    (found,) = (each for each in wanted.stages if each.component == "cilium")
    return found


def test_the_bridge_goes_once_ciliums_agent_is_ready() -> None:
    (before,), (after,) = (stage(ready=ready).absent_units for ready in (False, True))
    assert before.waits_for == "Cilium's agent on the node is Ready"
    assert after.waits_for == ""
    assert "/etc/cni/net.d/10-kubeworker.conflist" in after.paths


def test_all_that_the_bridge_has_on_a_node_is_named() -> None:
    """Compared with what that component itself says, so that neither can change alone."""
    bridge = state(cluster(cni="bridge"), facts=Facts(pod_cidr="172.30.1.0/24"))
    (made,) = (each for each in bridge.stages if each.component == "bridge_cni")
    (gone,) = stage(ready=True).absent_units
    assert [unit.name for unit in made.units] == [gone.name]
    assert {file.path for file in made.files} <= set(gone.paths)
    assert {absent.path for absent in made.absent} <= set(gone.paths)


def looked(name: str, place: Path) -> str:
    """What a trace's shell prints where `place` stands for the root of the file system."""
    (found,) = (each for each in stage(ready=True).requirements if isinstance(each, WarnOfTraces) and each.name == name)
    text = found.look.replace("/etc/cni", f"{place}/etc/cni").replace("/sys/class", f"{place}/sys/class")
    return subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=False).stdout.strip()


def test_other_plugins_configuration_is_found_and_ciliums_own_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "etc/cni/net.d"
    assert looked("cni-config", tmp_path) == ""
    folder.mkdir(parents=True)
    for name in ("05-cilium.conflist", "10-kubeworker.conflist", "10-flannel.conflist.cilium_bak", "notes.txt"):
        (folder / name).touch()
    assert looked("cni-config", tmp_path) == ""
    for name in ("03-a b.conf", "10-calico.conflist"):
        (folder / name).touch()
    assert looked("cni-config", tmp_path) == "03-a b.conf 10-calico.conflist"


def test_other_plugins_interfaces_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/net"
    for name in ("lo", "eth0", "cilium_host"):
        (folder / name).mkdir(parents=True)
    assert looked("cni-links", tmp_path) == ""
    for name in ("flannel.1", "cali12345"):
        (folder / name).mkdir()
    assert looked("cni-links", tmp_path) == "flannel.1 cali12345"


def test_pods_on_the_bridge_are_counted(tmp_path: Path) -> None:
    assert looked("bridge-pods", tmp_path) == ""
    (tmp_path / "sys/class/net/kw0/brif").mkdir(parents=True)
    assert looked("bridge-pods", tmp_path) == ""
    for name in ("veth1", "veth2"):
        (tmp_path / "sys/class/net/kw0/brif" / name).mkdir(parents=True)
    assert looked("bridge-pods", tmp_path) == "2"


def test_a_plan_says_what_becomes_of_other_configuration() -> None:
    def message(**settings: Any) -> str:
        first = stage(ready=True, **settings).requirements[0]
        assert isinstance(first, WarnOfTraces)
        return first.message

    assert message().endswith("renames them to *.cilium_bak")
    assert "takes the first by name" in message(values={"cni": {"exclusive": False}})


def test_nodes_that_nobody_brings_to_a_service_are_warned_of() -> None:
    def warned_of(replacement: bool) -> tuple[str, ...]:  # noqa: FBT001 - one case each
        settings = {"kube_proxy": {"enabled": False}, "cilium": {"kube_proxy_replacement": replacement}}
        return desired.warnings(cluster(cni="cilium", components=settings), (cilium.COMPONENT,))

    assert "nodes do not" in warned_of(replacement=False)[0]
    assert warned_of(replacement=True) == ()


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        ({}, {4240, 4244, 9879, 9890, 9878, 9964, 8472}),
        ({"l7Proxy": False}, {4240, 4244, 9879, 9890, 8472}),
        ({"envoy": {"enabled": False}}, {4240, 4244, 9879, 9890, 9964, 8472}),
        (
            {"envoy": {"healthPort": 1, "prometheus": {"port": "2"}, "debug": {"admin": {"enabled": True}}}},
            {4240, 4244, 9879, 9890, 1, 2, 9901, 8472},
        ),
        ({"prometheus": {"enabled": True}, "l7Proxy": False}, {4240, 4244, 9879, 9890, 9962, 8472}),
    ],
)
def test_every_port_of_agent_and_envoy_must_be_free_as_the_values_turn_them_on(
    given: dict[str, Any], ports: set[int]
) -> None:
    needs = stage(ready=True, values=given).requirements
    assert {need.port for need in needs if isinstance(need, RequirePort)} == ports
