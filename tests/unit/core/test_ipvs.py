"""kube-proxy's virtual servers in ipvs mode: read from the kernel, computed from the API, compared."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from kubeworker.core.model import VirtualServers
from kubeworker.core.verify import ipvs
from kubeworker.core.verify.ipvs import NodeView, Seen, VirtualServer, Wanted
from kubeworker.flow.checks_ipvs import ServicesView, judge

CHECK = VirtualServers(id="kube_proxy.ipvs")
HERE = NodeView(name="k8s-01", zone="east")
NODE_IP = "172.31.39.151"


def ip(text: str) -> ipvs.Ip:
    return ipaddress.ip_address(text)


def target(text: str) -> ipvs.Endpoint:
    host, _, port = text.rpartition(":")
    return ip(host.strip("[]")), int(port)


ANSWER = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
FWM  00000007 wrr
  -> 0A4D0009:0050      Masq    3      0          0
TCP  0AFE0001:01BB rr
  -> 0A4D0002:192B      Masq    1      2          0
  -> 0A4D0001:192B      Masq    1      0          0
UDP  0AFE0002:0035 rr persistent 2700000 FFFFFFFF
  -> AC1E0005:0035      Masq    0      0          0
TCP  [fd00:0000:0000:0000:0000:0000:0000:0001]:01BB wlc ops
  -> [fd01:0000:0000:0000:0000:0000:0000:0002]:20FB      Masq    1      0          0
SCTP 0AFE0003:1388 rr
==
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
1: lo    inet6 ::1/128 scope host \\       valid_lft forever preferred_lft forever
2: host0@if7    inet 10.77.0.11/16 brd 10.77.255.255 scope global host0\\       valid_lft forever preferred_lft forever
2: host0@if7    inet6 fe80::1/64 scope link \\       valid_lft forever preferred_lft forever
3: cni0    inet 172.30.1.1/24 brd 172.30.1.255 scope global cni0\\       valid_lft forever preferred_lft forever
4: ppp0    inet 192.0.2.1 peer 192.0.2.2/32 scope global ppp0\\       valid_lft forever preferred_lft forever
9: kube-ipvs0    inet 10.254.0.1/32 scope global kube-ipvs0\\       valid_lft forever preferred_lft forever
==
4
6
==
3908230969376
4295869290
3909239805930
4295869543
"""


def test_the_kernels_table_is_read_with_its_hexadecimal_addresses() -> None:
    seen = ipvs.parse(ANSWER)
    assert [(ipvs.place(each), each.scheduler, each.persistent) for each in seen.servers] == [
        ("TCP 10.254.0.1:443", "rr", 0),
        ("UDP 10.254.0.2:53", "rr", 10800),
        ("TCP [fd00::1]:443", "wlc", 0),
        ("SCTP 10.254.0.3:5000", "rr", 0),
    ]
    assert [dict(each.servers) for each in seen.servers] == [
        {target("10.77.0.2:6443"): 1, target("10.77.0.1:6443"): 1},
        {target("172.30.0.5:53"): 0},
        {target("[fd01::2]:8443"): 1},
        {},
    ]


def test_addresses_are_told_apart_from_those_of_services() -> None:
    seen = ipvs.parse(ANSWER)
    assert seen.addresses == {ip("10.77.0.11"), ip("172.30.1.1"), ip("192.0.2.1")}
    assert seen.bound == {ip("10.254.0.1")}
    assert seen.families == {4, 6}


@pytest.mark.parametrize(
    "answer", ["", "TCP  0AFE00:01BB rr\n==\n==\n4\n==\n", "TCP  10.254.0.1:443 rr\n==\n==\n4\n==\n"]
)
def test_an_answer_that_is_none_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"values to unpack|has the address"):
        ipvs.parse(answer)


# ---------------------------------------------------------------------------------------------------------------
# What the API asks for


def service(
    name: str = "web", *, status: dict[str, Any] | None = None, labels: Any = None, **spec: Any
) -> dict[str, Any]:
    known = {"clusterIP": "10.254.0.9", "ports": [{"port": 80, "protocol": "TCP"}], "type": "ClusterIP"}
    metadata = {"name": name, "namespace": "default", "labels": labels or {}}
    return {"metadata": metadata, "spec": known | spec, "status": status or {}}


def endpoint(address: str, *, node: str = "k8s-02", zones: tuple[str, ...] = (), **conditions: bool) -> dict[str, Any]:
    hints = {"hints": {"forZones": [{"name": zone} for zone in zones]}} if zones else {}
    return {"addresses": [address], "nodeName": node, "conditions": conditions, **hints}


def slice_(*endpoints: dict[str, Any], service: str = "web", port: int = 8080, **fields: Any) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service, **fields.pop("labels", {})}
    return {
        "metadata": {"name": f"{service}-abc", "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        "endpoints": list(endpoints),
        **fields,
    }


def seen(*servers: VirtualServer, families: frozenset[int] = frozenset({4}), bound: tuple[str, ...] = ()) -> Seen:
    return Seen(servers=servers, addresses=frozenset({ip(NODE_IP)}), bound=frozenset(map(ip, bound)), families=families)


def wanted(
    services: list[Any], slices: list[Any], *, look: Seen | None = None, check: VirtualServers = CHECK
) -> tuple[Wanted, ...]:
    return ipvs.wanted(services, slices, HERE, look or seen(), check)


def rows(*args: Any, **how: Any) -> dict[str, set[str]]:
    """`TCP 10.254.0.9:80` -> its endpoints."""
    return {
        ipvs.place(each.server): {f"{address}:{port}" for address, port in each.server.servers}
        for each in wanted(*args, **how)
    }


A, B = "172.30.1.2", "172.30.2.2"


def test_a_cluster_ip_sends_to_every_ready_endpoint() -> None:
    slices = [slice_(endpoint(A, node="k8s-01", ready=True), endpoint(B), endpoint("172.30.2.3", ready=False))]
    assert rows([service()], slices) == {"TCP 10.254.0.9:80": {f"{A}:8080", f"{B}:8080"}}


def test_endpoints_belong_to_the_port_of_their_name_and_protocol() -> None:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    named = [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354, "protocol": "TCP"}]
    found = wanted([service(ports=ports)], [slice_(endpoint(A), ports=named)])
    assert {each.service: (ipvs.place(each.server), *each.server.servers) for each in found} == {
        "default/web:dns": ("UDP 10.254.0.9:53", target(f"{A}:5353")),
        "default/web:dns-tcp": ("TCP 10.254.0.9:53", target(f"{A}:5354")),
    }


@pytest.mark.parametrize(
    "left_out",
    [
        service(clusterIP="None"),
        service(clusterIP=""),
        service(type="ExternalName"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service(labels={"service.kubernetes.io/headless": ""}),
        service(clusterIP="fd00::9"),
    ],
    ids=["headless", "no ClusterIP", "ExternalName", "another proxy's", "headless label", "a family not served"],
)
def test_services_that_are_not_kube_proxys_have_no_virtual_server(left_out: dict[str, Any]) -> None:
    assert rows([left_out], [slice_(endpoint(A))]) == {}


def test_slices_of_another_proxy_or_family_or_kind_do_not_count() -> None:
    slices = [
        slice_(endpoint(A), labels={"service.kubernetes.io/service-proxy-name": "other"}),
        slice_(endpoint(A), labels={"service.kubernetes.io/headless": ""}),
        slice_(endpoint("fd01::2"), addressType="IPv6"),
        slice_(endpoint("example.org"), addressType="FQDN"),
        slice_(endpoint(A), service="other"),
    ]
    assert rows([service()], slices) == {"TCP 10.254.0.9:80": set()}


def test_internal_traffic_policy_local_lists_the_nodes_own_endpoint_alone() -> None:
    """The guide's hubble-peer row."""
    hubble = service(internalTrafficPolicy="Local")
    slices = [slice_(endpoint(A, node="k8s-01"), endpoint(B, node="k8s-02"))]
    assert rows([hubble], slices) == {"TCP 10.254.0.9:80": {f"{A}:8080"}}
    assert rows([hubble], [slice_(endpoint(B, node="k8s-02"))]) == {"TCP 10.254.0.9:80": set()}


def test_a_node_port_is_on_every_address_of_the_node_and_external_local_keeps_to_it() -> None:
    local = service(type="NodePort", externalTrafficPolicy="Local", ports=[{"port": 80, "nodePort": 30080}])
    slices = [slice_(endpoint(A, node="k8s-01"), endpoint(B))]
    assert rows([local], slices) == {
        "TCP 10.254.0.9:80": {f"{A}:8080", f"{B}:8080"},
        f"TCP {NODE_IP}:30080": {f"{A}:8080"},
    }


def test_without_a_local_endpoint_external_local_takes_all() -> None:
    """kubernetes#97081: pods of the node may still use it."""
    local = service(type="NodePort", externalTrafficPolicy="Local", ports=[{"port": 80, "nodePort": 30080}])
    assert rows([local], [slice_(endpoint(B))])[f"TCP {NODE_IP}:30080"] == {f"{B}:8080"}


def test_internal_local_falls_back_only_where_the_service_is_reached_from_outside_too() -> None:
    local = service(type="NodePort", internalTrafficPolicy="Local", ports=[{"port": 80, "nodePort": 30080}])
    assert rows([local], [slice_(endpoint(B))])["TCP 10.254.0.9:80"] == {f"{B}:8080"}


def test_node_ports_keep_to_the_blocks_that_were_configured() -> None:
    node_port = service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    elsewhere = VirtualServers(id="x", node_port_addresses=("10.0.0.0/8",))
    assert f"TCP {NODE_IP}:30080" not in rows([node_port], [slice_()], check=elsewhere)
    here = VirtualServers(id="x", node_port_addresses=("172.31.0.0/16",))
    assert f"TCP {NODE_IP}:30080" in rows([node_port], [slice_()], check=here)
    # Blocks of one family say nothing of the other's (NewNodePortAddresses).
    sixes = VirtualServers(id="x", node_port_addresses=("fd00::/8",))
    assert f"TCP {NODE_IP}:30080" in rows([node_port], [slice_()], check=sixes)


def test_external_and_load_balancer_addresses_have_virtual_servers_but_not_those_that_proxy() -> None:
    ingress = [{"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "lb.example.org"}]
    each = service(
        type="LoadBalancer", externalIPs=["192.0.2.5", NODE_IP], status={"loadBalancer": {"ingress": ingress}}
    )
    found = wanted([each], [slice_(endpoint(A))])
    assert {ipvs.place(row.server): row.bind for row in found} == {
        "TCP 10.254.0.9:80": True,
        "TCP 192.0.2.5:80": True,
        "TCP 192.0.2.7:80": True,
        # It is on a device of the node already.
        f"TCP {NODE_IP}:80": False,
    }


@pytest.mark.parametrize(
    ("endpoints", "chosen"),
    [
        ([endpoint(A, ready=False, serving=True, terminating=True), endpoint(B, ready=True)], {B}),
        ([endpoint(A, ready=False, serving=True, terminating=True), endpoint(B, ready=False, serving=False)], {A}),
        ([endpoint(A, ready=False, serving=False, terminating=True)], set()),
        ([endpoint(A), endpoint(A)], {A}),
    ],
    ids=["ready before draining", "draining where none is ready", "neither", "twice the same"],
)
def test_draining_endpoints_serve_where_none_is_ready(endpoints: list[Any], chosen: set[str]) -> None:
    assert rows([service()], [slice_(*endpoints)]) == {"TCP 10.254.0.9:80": {f"{each}:8080" for each in chosen}}


def test_a_draining_endpoint_of_the_node_comes_before_ready_ones_elsewhere_under_a_local_policy() -> None:
    local = service(internalTrafficPolicy="Local")
    slices = [slice_(endpoint(A, node="k8s-01", ready=False, serving=True, terminating=True), endpoint(B))]
    assert rows([local], slices) == {"TCP 10.254.0.9:80": {f"{A}:8080"}}


@pytest.mark.parametrize(
    ("endpoints", "chosen"),
    [
        ([endpoint(A, zones=("east",)), endpoint(B, zones=("west",))], {A}),
        ([endpoint(A, zones=("east",)), endpoint(B)], {A, B}),
        ([endpoint(A, zones=("west",)), endpoint(B, zones=("west",))], {A, B}),
        ([endpoint(A, zones=("east",)), endpoint(B, zones=("west",)), endpoint("172.30.3.3", ready=False)], {A}),
    ],
    ids=["the zone's own", "one has no hint", "none for this zone", "hints of unready ones don't matter"],
)
def test_topology_hints(endpoints: list[Any], chosen: set[str]) -> None:
    assert rows([service()], [slice_(*endpoints)]) == {"TCP 10.254.0.9:80": {f"{each}:8080" for each in chosen}}


def test_session_affinity_and_scheduler() -> None:
    config = {"clientIP": {"timeoutSeconds": 600}}
    sticky = service(sessionAffinity="ClientIP", sessionAffinityConfig=config)
    (row,) = wanted([sticky], [], check=VirtualServers(id="x", scheduler="wlc"))
    assert (row.server.persistent, row.server.scheduler) == (600, "wlc")


def test_a_dual_stack_service_has_one_in_each_family() -> None:
    both = service(clusterIP="10.254.0.9", clusterIPs=["10.254.0.9", "fd00::9"])
    slices = [slice_(endpoint(A)), slice_(endpoint("fd01::2"), addressType="IPv6")]
    assert rows([both], slices, look=seen(families=frozenset({4, 6}))) == {
        "TCP 10.254.0.9:80": {f"{A}:8080"},
        "TCP [fd00::9]:80": {"fd01::2:8080"},
    }
    assert rows([both], slices) == {"TCP 10.254.0.9:80": {f"{A}:8080"}}


# ---------------------------------------------------------------------------------------------------------------
# Compared


def has(place: str, *targets: str, scheduler: str = "rr", persistent: int = 0, weight: int = 1) -> VirtualServer:
    address, port = target(place)
    servers = dict.fromkeys(map(target, targets), weight)
    return VirtualServer(
        protocol="TCP", address=address, port=port, scheduler=scheduler, persistent=persistent, servers=servers
    )


API = ServicesView(
    services=(service("kubernetes", clusterIP="10.254.0.1", ports=[{"name": "https", "port": 443}]),),
    slices=(
        slice_(
            endpoint("10.77.0.1"),
            endpoint("10.77.0.2"),
            service="kubernetes",
            ports=[{"name": "https", "port": 6443, "protocol": "TCP"}],
        ),
    ),
)
KUBERNETES = "TCP 10.254.0.1:443 (default/kubernetes:https)"
GOOD = has("10.254.0.1:443", "10.77.0.1:6443", "10.77.0.2:6443")


def verdict(*servers: VirtualServer, bound: tuple[str, ...] = ("10.254.0.1",), check: VirtualServers = CHECK) -> str:
    found = judge(check, HERE, API, seen(*servers, bound=bound))
    return f"{found.status}: {found.detail}"


def test_agreement_names_every_apiserver_behind_the_kubernetes_service() -> None:
    assert verdict(GOOD).splitlines()[0] == (
        "passed: 1 virtual servers are as the API's Services and EndpointSlices say; default/kubernetes:https  "
        "TCP 10.254.0.1:443 rr -> 10.77.0.1:6443, 10.77.0.2:6443"
    )


@pytest.mark.parametrize(
    ("servers", "fault"),
    [
        ((), f"{KUBERNETES}: missing"),
        (
            (has("10.254.0.1:443", "10.77.0.1:6443"),),
            f"{KUBERNETES}: lacks 10.77.0.2:6443",
        ),
        (
            (has("10.254.0.1:443", "10.77.0.1:6443", "10.77.0.2:6443", "10.77.0.3:6443"),),
            f"{KUBERNETES}: sends to 10.77.0.3:6443, which is no endpoint of it for this node",
        ),
        (
            (has("10.254.0.1:443", "10.77.0.1:6443", "10.77.0.2:6443", scheduler="sh"),),
            f"{KUBERNETES}: scheduler sh, expected rr",
        ),
        (
            (has("10.254.0.1:443", "10.77.0.1:6443", "10.77.0.2:6443", persistent=60),),
            f"{KUBERNETES}: session affinity 60 s, expected 0 s",
        ),
        ((GOOD, has("10.254.7.7:80", f"{A}:8080")), "TCP 10.254.7.7:80: of no Service"),
    ],
    ids=["missing", "lacks one", "one too many", "scheduler", "affinity", "of no Service"],
)
def test_each_difference_is_named(servers: tuple[VirtualServer, ...], fault: str) -> None:
    assert verdict(*servers) == f"failed: {fault}"


def test_an_address_that_is_on_no_device_is_named() -> None:
    assert verdict(GOOD, bound=()) == (f"failed: {KUBERNETES}: 10.254.0.1 is not on kube-ipvs0")


def test_one_that_drains_is_no_fault_and_an_endpoint_without_weight_is() -> None:
    draining = {**GOOD.servers, target("10.77.0.9:6443"): 0}
    assert (
        verdict(VirtualServer(protocol="TCP", address=ip("10.254.0.1"), port=443, scheduler="rr", servers=draining))[:6]
        == "passed"
    )
    idle = {**GOOD.servers, target("10.77.0.2:6443"): 0}
    assert verdict(VirtualServer(protocol="TCP", address=ip("10.254.0.1"), port=443, scheduler="rr", servers=idle)) == (
        f"failed: {KUBERNETES}: 10.77.0.2:6443 gets no connections (weight 0)"
    )


def test_virtual_servers_of_others_are_left_out_where_that_was_configured() -> None:
    foreign = has("192.0.2.9:80")
    assert verdict(GOOD, foreign).startswith("failed")
    assert verdict(GOOD, foreign, check=VirtualServers(id="x", exclude=("192.0.2.0/24",))).startswith("passed")


def test_a_long_table_is_cut() -> None:
    many = [service(f"web-{number}", clusterIP=f"10.254.1.{number}") for number in range(50)]
    lines = ipvs.summary(wanted(many, [])).splitlines()
    assert lines[-1] == "and 10 more"
    assert len(lines) == 42
