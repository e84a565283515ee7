"""What each component says must pass between nodes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit import samples

from kubeworker.core.model import NodeToNode, PathMtu, SameSegment
from kubeworker.core.spec import ClusterFile


def declared(spec: ClusterFile) -> tuple[list[str], list[tuple[int, int]], bool]:
    """Ports; (packet, UDP port) of the path MTU; whether a router may not stand in between."""
    needs = [need for stage in samples.state(spec).stages for need in stage.requirements]
    return (
        [f"{need.protocol}/{need.port}" for need in needs if isinstance(need, NodeToNode)],
        [(need.packet, need.udp_port) for need in needs if isinstance(need, PathMtu)],
        any(isinstance(need, SameSegment) for need in needs),
    )


def test_without_a_network_plugin_only_kubelet_is_reached() -> None:
    assert declared(samples.cluster()) == (["tcp/10250"], [], False)


def test_kubelets_port_is_the_one_that_its_config_sets() -> None:
    assert declared(samples.with_component("kubelet", config={"port": 10999}))[0] == ["tcp/10999"]


@pytest.mark.parametrize(("settings", "packet"), [({}, 1500), ({"mtu": 9000}, 9000)])
def test_the_bridge_routes_pods_packets_in_one_segment(settings: dict[str, Any], packet: int) -> None:
    spec = samples.with_component("bridge_cni", cni="bridge", **settings)
    assert declared(spec) == (["tcp/10250"], [(packet, 0)], True)


@pytest.mark.parametrize(
    ("settings", "ports", "mtu", "segment"),
    [
        ({}, ["tcp/4240", "tcp/4244", "udp/8472"], (0, 8472), False),
        ({"mtu": 1400, "hubble": False}, ["tcp/4240", "udp/8472"], (1400, 8472), False),
        ({"routing": "native"}, ["tcp/4240", "tcp/4244"], (0, 0), True),
        (
            {"routing": "native", "values": {"autoDirectNodeRoutes": False}},
            ["tcp/4240", "tcp/4244"],
            (0, 0),
            False,
        ),
        (
            {"values": {"tunnelPort": 4789, "clusterHealthPort": 14240, "hubble": {"listenAddress": ":14244"}}},
            ["tcp/14240", "tcp/14244", "udp/4789"],
            (0, 4789),
            False,
        ),
        (
            {"values": {"healthChecking": False, "encryption": {"enabled": True, "type": "wireguard"}}},
            ["tcp/4244", "udp/51871", "udp/8472"],
            (0, 8472),
            False,
        ),
    ],
)
def test_cilium_by_its_settings(
    settings: dict[str, Any], ports: list[str], mtu: tuple[int, int], *, segment: bool
) -> None:
    spec = samples.with_component("cilium", cni="cilium", **settings)
    assert declared(spec) == (["tcp/10250", *ports], [mtu], segment)
