"""Pod networking for nodes of one layer-2 segment."""

import json
from dataclasses import replace

from tests.unit.samples import checks, cluster, files, reloaded, restarted, stage, state, text, units, with_component

from kubeworker.core import desired
from kubeworker.core.component import Facts, Peer
from kubeworker.core.model import NodeCommand

PATHS = ("/etc/cni/net.d/10-kubeworker.conflist", "/etc/kubeworker/routes", "/etc/kubeworker/masquerade.nft")
CONFLIST, ROUTES, MASQUERADE = PATHS
SECOND = Peer(name="k8s-02", address="172.31.32.72", pod_cidr="172.30.1.0/24")
IPV6 = cluster(
    cluster={
        "apiservers": ["[fd00::1]:6443"],
        "cluster_cidr": "fd01::/48",
        "service_cidr": "fd02::/112",
        "dns_service_ip": "fd02::a",
    },
    nodes=[{"name": "k8s-01", "address": "fd00::5"}],
    cni="bridge",
)
KNOWN = Facts(joined=True, pod_cidr="172.30.0.0/24", peers=(SECOND,))


def test_what_needs_the_nodes_pod_cidr_comes_once_it_is_known() -> None:
    before = stage(cluster(cni="bridge"), "bridge_cni")
    assert tuple(each.path for each in before.deferred) == PATHS
    assert before.files == ()
    after = stage(cluster(cni="bridge"), "bridge_cni", facts=KNOWN)
    assert after.deferred == ()
    assert tuple(file.path for file in after.files) == PATHS


def test_pods_get_addresses_of_the_nodes_own_block() -> None:
    document = json.loads(text(state(with_component("bridge_cni", cni="bridge", mtu=1400), facts=KNOWN), CONFLIST))
    bridge, portmap = document["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "172.30.0.0/24"}]]
    assert bridge["mtu"] == 1400
    assert bridge["hairpinMode"] is True
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}}


def test_routes_lead_to_every_other_node_that_has_pods() -> None:
    unjoined = Peer(name="k8s-03", address="172.31.32.73", pod_cidr="")
    facts = Facts(pod_cidr="172.30.0.0/24", peers=(unjoined, SECOND))
    assert text(state(cluster(cni="bridge"), facts=facts), ROUTES).splitlines() == [
        "route flush proto 171",
        "route replace 172.30.1.0/24 via 172.31.32.72 proto 171",
    ]
    route = checks(cluster(cni="bridge"), facts=facts)["bridge_cni.route.k8s-02"]
    assert isinstance(route, NodeCommand)
    assert route.command == ("ip", "-4", "route", "show", "172.30.1.0/24")
    assert route.contains == "via 172.31.32.72 "


def test_a_new_node_reloads_the_routes_and_restarts_nothing() -> None:
    third = Peer(name="k8s-03", address="172.31.32.73", pod_cidr="172.30.2.0/24")
    before = state(cluster(cni="bridge"), facts=KNOWN)
    after = state(cluster(cni="bridge"), facts=Facts(joined=True, pod_cidr="172.30.0.0/24", peers=(SECOND, third)))
    assert reloaded(before, after) == {"kubeworker-routes.service"}
    assert restarted(before, after) == set()


def test_pods_keep_their_address_inside_the_cluster_and_hide_it_outside() -> None:
    rule = "ip saddr 172.30.0.0/24 ip daddr != { 172.30.0.0/16, 224.0.0.0/4 } masquerade"
    assert rule in text(state(cluster(cni="bridge"), facts=KNOWN), MASQUERADE)


def test_a_kernel_without_nf_tables_gets_the_same_rule_for_iptables() -> None:
    facts = replace(KNOWN, masquerade="iptables")
    before, after = state(cluster(cni="bridge")), state(cluster(cni="bridge"), facts=facts)
    rules = text(after, "/etc/kubeworker/masquerade.iptables").splitlines()
    assert rules[-5:-1] == [
        ":KUBEWORKER-MASQUERADE - [0:0]",
        "-A KUBEWORKER-MASQUERADE -d 172.30.0.0/16 -j RETURN",
        "-A KUBEWORKER-MASQUERADE -d 224.0.0.0/4 -j RETURN",
        "-A KUBEWORKER-MASQUERADE -s 172.30.0.0/24 -j MASQUERADE",
    ]
    assert MASQUERADE not in files(after)
    assert sorted(desired.paths(before)) == sorted(desired.paths(after))
    unit = units(after)["kubeworker-routes.service"]
    assert "/etc/kubeworker/masquerade.iptables" in unit.reload_on
    assert MASQUERADE not in unit.reload_on
    assert unit == replace(units(before)["kubeworker-routes.service"], reload_on=unit.reload_on)
    with_v6 = state(IPV6, facts=Facts(pod_cidr="fd01:0:0:1::/64", masquerade="iptables"))
    assert "ip6tables-restore -w --noflush" in units(with_v6)["kubeworker-routes.service"].content


def test_the_unit_undoes_what_it_does() -> None:
    content = units(state(cluster(cni="bridge")))["kubeworker-routes.service"].content
    assert content.count("ExecStart=") == content.count("ExecReload=") == content.count("ExecStop=-") == 4
    assert "nft delete table ip kubeworker" in content
    assert "ip -4 route flush proto 171" in content


def test_ipv6_has_its_own_words() -> None:
    spec = IPV6
    facts = Facts(pod_cidr="fd01:0:0:1::/64")
    assert "ip6 saddr fd01:0:0:1::/64 ip6 daddr != { fd01::/48, ff00::/8 } masquerade" in text(
        state(spec, facts=facts), MASQUERADE
    )
    assert "ip -6 -batch" in units(state(spec))["kubeworker-routes.service"].content


def test_without_bridge_nothing_of_it_is_on_the_node() -> None:
    assert not set(PATHS) & files(state(cluster(), facts=KNOWN)).keys()
