"""Who tries whom, what is tried, and how the largest packet is searched for."""

from __future__ import annotations

from collections import Counter

import pytest

from kubeworker.core.model import NodeToNode, PathMtu, SameSegment
from kubeworker.core.reachability import trials
from kubeworker.core.reachability.probe import SMALL, Connected, Got, Listen, Missing, Ready, Sent, Watched
from kubeworker.core.reachability.trials import FULL, NEIGHBOURS, OUTSIDE, Evidence, Fleet, Member, Need, Try

KUBELET = NodeToNode(protocol="tcp", port=10250, why="kubelet", process="kubelet")
VXLAN = NodeToNode(protocol="udp", port=8472, why="vxlan")
TUNNEL = PathMtu(packet=0, udp_port=8472, why="vxlan", setting="components.cilium.mtu")
ROUTED = PathMtu(packet=1500, why="routed", setting="components.bridge_cni.mtu")
TCP, UDP, ICMP = Listen(protocol="tcp", port=10250), Listen(protocol="udp", port=8472), Listen(protocol="icmp")


def member(name: str, *needs: Need) -> Member:
    return Member(number=0, name=name, address=f"192.0.2.{sum(name.encode())}", needs=needs or (KUBELET,))


def watching(fleet: Fleet) -> Evidence:
    """Every probe listens on all that it is to watch."""
    seen = Evidence()
    for number, watched in trials.listens(fleet).items():
        seen.add(number, Ready(interface="eth0", mtu=1500))
        for listen in watched:
            seen.add(number, Watched(listen=listen, state="own"))
    return seen


@pytest.mark.parametrize("count", [2, 3, FULL])
def test_in_a_small_fleet_each_tries_all_others(count: int) -> None:
    assert all(trials.around(count, n) == tuple(i for i in range(count) if i != n) for n in range(count))


@pytest.mark.parametrize("count", [FULL + 1, FULL + 2, 100, 1000])
def test_in_a_large_fleet_each_tries_some_and_is_tried_by_as_many(count: int) -> None:
    chosen = [trials.around(count, number) for number in range(count)]
    assert all(len(set(targets)) == NEIGHBOURS and number not in targets for number, targets in enumerate(chosen))
    assert set(Counter(target for targets in chosen for target in targets).values()) == {NEIGHBOURS}
    assert chosen == [trials.around(count, number) for number in range(count)]


def test_a_large_fleets_tries_go_both_ways_and_to_its_far_end() -> None:
    targets = trials.around(1000, 0)
    assert {1, 999, 499, 501} <= set(targets)
    assert all(0 in trials.around(1000, target) for target in targets)


def test_nodes_outside_the_run_are_a_few_from_all_over() -> None:
    assert trials.beyond(1, 3, 0) == (1, 2, 3)
    assert trials.beyond(1, 800, 0) == tuple(range(1, 801, 100))
    assert len(trials.beyond(2, 1000, 1)) == OUTSIDE
    assert trials.beyond(5, 0, 0) == ()


def test_only_some_of_a_large_rest_are_looked_at_at_all() -> None:
    assert trials.spread(range(1000), 4) == (0, 250, 500, 750)
    assert trials.spread("abc", 4) == ("a", "b", "c")


def test_a_node_alone_watches_nothing() -> None:
    fleet = trials.fleet([member("a", KUBELET, VXLAN, TUNNEL)])
    assert trials.listens(fleet) == {0: ()}
    assert fleet.targets == ((),)


def test_a_node_watches_its_own_ports_and_where_large_packets_come_in() -> None:
    fleet = trials.fleet([member("a", KUBELET, VXLAN, TUNNEL), member("b", KUBELET, ROUTED)])
    assert trials.listens(fleet) == {0: (TCP, UDP, ICMP), 1: (TCP, UDP)}


def test_the_size_is_that_of_the_askers_interface() -> None:
    fleet = trials.fleet([member("a", VXLAN, TUNNEL), member("b", VXLAN, TUNNEL)])
    seen = watching(fleet)
    seen.add(1, Ready(interface="eth0", mtu=9000))
    assert trials.tries(fleet, seen) == (
        Try(asker=0, target=1, listen=UDP, sizes=(SMALL, 1500)),
        Try(asker=1, target=0, listen=UDP, sizes=(SMALL, 9000)),
    )


def test_a_port_that_is_held_need_not_answer_as_a_probe() -> None:
    fleet = trials.fleet([member("a"), member("b")])
    seen = watching(fleet)
    seen.add(1, Watched(listen=TCP, state="held", detail="kubelet"))
    assert [each.ours for each in trials.tries(fleet, seen)] == [False, True]
    assert trials.order(fleet, trials.tries(fleet, seen)[0]).split()[0] == "connect"


def test_where_a_node_can_not_listen_nobody_tries() -> None:
    fleet = trials.fleet([member("a"), member("b")])
    seen = watching(fleet)
    seen.add(1, Watched(listen=TCP, state="failed", detail="Cannot assign requested address"))
    assert [(each.asker, each.target) for each in trials.tries(fleet, seen)] == [(1, 0)]


def test_nodes_outside_the_run_are_tried_on_tcp_ports_only() -> None:
    fleet = trials.fleet([member("a", KUBELET, VXLAN, TUNNEL)], [member("b", KUBELET, VXLAN, TUNNEL)])
    tries = trials.tries(fleet, watching(fleet))
    assert tries == (Try(asker=0, target=1, listen=TCP),)


def test_a_node_without_perl_is_tried_and_does_not_try() -> None:
    fleet = trials.fleet([member("a"), member("b")])
    seen = watching(fleet)
    seen.add(1, Missing())
    fleet = fleet.without_probe(seen.ended)
    tries = trials.tries(fleet, seen)
    assert [(each.asker, each.target) for each in tries] == [(0, 1)]


@pytest.mark.parametrize("size", [1500, 9000, 65000])
@pytest.mark.parametrize("largest", [SMALL, 1280, 1404, 1450, 1499])
def test_the_search_ends_at_the_largest_packet(size: int, largest: int) -> None:
    seen = Evidence()
    tries: tuple[Try, ...] = (Try(asker=0, target=1, listen=UDP, sizes=(SMALL, size)),)
    rounds = 0
    while tries:
        rounds += 1
        (each,) = tries
        assert len(each.sizes) <= 2 * trials.STEPS
        for sent in each.sizes:
            if sent <= largest:
                seen.add(1, Got(listen=UDP, peer=0, size=sent))
        seen.close(tries)
        tries = trials.narrower(tries, seen)
    assert seen.span(0, 1, UDP) == (largest, largest + 1)
    assert rounds <= 5


def test_nothing_is_searched_where_all_or_nothing_arrives() -> None:
    whole, nothing = (Try(asker=0, target=target, listen=UDP, sizes=(SMALL, 1500)) for target in (1, 2))
    seen = Evidence()
    seen.add(1, Got(listen=UDP, peer=0, size=SMALL))
    seen.add(1, Got(listen=UDP, peer=0, size=1500))
    seen.close([whole, nothing])
    assert trials.narrower([whole, nothing], seen) == ()


def test_a_round_is_over_when_every_probe_has_said_how_it_went() -> None:
    tries = [Try(asker=0, target=1, listen=TCP), Try(asker=0, target=1, listen=UDP, sizes=(SMALL,))]
    seen = Evidence()
    seen.add(0, Connected(peer=1, port=10250, outcome="open"))
    assert not seen.answered(tries, 1)
    seen.add(0, Sent(listen=UDP, peer=1))
    assert seen.answered(tries, 1)
    assert not seen.answered(tries[1:], 2)
    assert not seen.arrived(tries[1:])
    seen.add(1, Got(listen=UDP, peer=0, size=SMALL))
    assert seen.arrived(tries[1:])


def test_a_probe_that_has_ended_is_not_waited_for() -> None:
    seen = Evidence()
    seen.ended[0] = "the connection was lost"
    assert seen.answered([Try(asker=0, target=1, listen=TCP)], 1)


def test_a_segment_is_looked_at_where_it_matters() -> None:
    segment = SameSegment(why="bridge")
    fleet = trials.fleet([member("a", KUBELET, segment), member("b")])
    assert f"for peer in {fleet.members[1].address};" in trials.script(fleet, fleet.members[0], (), "nonce")
    assert "for peer in '';" in trials.script(fleet, fleet.members[1], (), "nonce")
