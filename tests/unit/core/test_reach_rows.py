"""What is made of how nodes reached each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.test_reachability import ICMP, KUBELET, ROUTED, TCP, TUNNEL, UDP, VXLAN, member, watching

from kubeworker.core.model import SameSegment
from kubeworker.core.preflight.row import Row
from kubeworker.core.reachability import rows as reach_rows
from kubeworker.core.reachability import trials
from kubeworker.core.reachability.probe import Connected, Got, Missing, Outcome, Sent, Via, Watched
from kubeworker.core.reachability.trials import Evidence, Fleet, Need

Broken = dict[tuple[str, str], tuple[Outcome, str]]


def connected(names: str, broken: Broken, *, outside: str = "") -> tuple[Fleet, Evidence]:
    """All of these reach each other on TCP 10250, but for the broken pairs."""
    fleet = trials.fleet([member(name) for name in names], [member(name) for name in outside])
    seen = watching(fleet)
    for each in trials.tries(fleet, seen):
        pair = fleet.members[each.asker].name, fleet.members[each.target].name
        outcome, detail = broken.get(pair, ("ours" if each.ours else "open", ""))
        seen.add(each.asker, Connected(peer=each.target, port=10250, outcome=outcome, detail=detail))
    return fleet, seen


def sent(names: str, *needs: Need, largest: int = 1500, target: str = "") -> tuple[Fleet, Evidence]:
    """Datagrams of these nodes arrive; at `target` up to a size (0: none)."""
    fleet = trials.fleet([member(name, *needs) for name in names])
    seen = watching(fleet)
    tries = trials.tries(fleet, seen)
    while tries:
        for each in tries:
            limit = largest if fleet.members[each.target].name == target else 1500
            seen.add(each.asker, Sent(listen=each.listen, peer=each.target, path_mtu=1500))
            for size in each.sizes:
                if size <= limit:
                    seen.add(each.target, Got(listen=each.listen, peer=each.asker, size=size))
        seen.close(tries)
        tries = trials.narrower(tries, seen)
    return fleet, seen


def wrong(fleet: Fleet, seen: Evidence) -> list[tuple[str, str, str, str]]:
    rows = reach_rows.rows(fleet, seen)
    return [(row.node, row.id, row.status, row.message) for row in rows if row.status != "ok"]


def row_of(rows: tuple[Row, ...], node: str, check: str) -> Row:
    (found,) = (row for row in rows if (row.node, row.id) == (node, check))
    return found


DROPPED: tuple[Outcome, str] = ("timeout", "")


def test_all_well() -> None:
    fleet, seen = connected("abc", {})
    rows = reach_rows.rows(fleet, seen)
    assert {(row.node, row.status, row.message) for row in rows} == {
        (name, "ok", "reaches 2 of 2, reached by 2 of 2") for name in "abc"
    }


def test_one_direction_of_one_pair_is_charged_to_the_target() -> None:
    fleet, seen = connected("abc", {("a", "b"): DROPPED})
    text = "a -> b: no answer within 4 s (dropped by a firewall?)"
    assert wrong(fleet, seen) == [("b", "reach-tcp-10250", "failed", text)]
    assert row_of(reach_rows.rows(fleet, seen), "b", "reach-tcp-10250").fix.startswith("on b: let TCP 10250 in")


def test_a_node_that_nobody_reaches_has_one_row() -> None:
    fleet, seen = connected("abcd", {("a", "b"): DROPPED, ("c", "b"): DROPPED, ("d", "b"): DROPPED})
    text = "a, c, d -> b: no answer within 4 s (dropped by a firewall?)"
    assert wrong(fleet, seen) == [("b", "reach-tcp-10250", "failed", text)]


def test_a_node_that_reaches_nobody_has_one_row() -> None:
    fleet, seen = connected("abcd", {("a", "b"): DROPPED, ("a", "c"): DROPPED, ("a", "d"): DROPPED})
    text = "a -> all 3 others: no answer within 4 s (dropped by a firewall?)"
    assert wrong(fleet, seen) == [("a", "reach-tcp-10250", "failed", text)]
    assert row_of(reach_rows.rows(fleet, seen), "a", "reach-tcp-10250").fix.startswith("on a: let it send")


def test_where_nobody_reaches_anybody_each_is_charged_as_a_target() -> None:
    fleet, seen = connected("abc", {(a, b): DROPPED for a in "abc" for b in "abc" if a != b})
    assert [(node, status) for node, _, status, _ in wrong(fleet, seen)] == [(name, "failed") for name in "abc"]
    assert "b, c -> a:" in wrong(fleet, seen)[0][3]


def test_different_troubles_have_different_rows() -> None:
    fleet, seen = connected("abc", {("a", "b"): DROPPED, ("c", "b"): ("refused", "Connection refused")})
    assert [message for *_, message in wrong(fleet, seen)] == [
        "a -> b: no answer within 4 s (dropped by a firewall?)",
        "c -> b: refused, though something listens there (a firewall that rejects?)",
    ]


@pytest.mark.parametrize(
    ("outcome", "detail", "node", "words"),
    [
        ("no-route", "No route to host", "b", "a -> b: no route to host"),
        ("other", "SSH-2.0-OpenSSH", "b", "a -> b: something else answers (SSH-2.0-OpenSSH)"),
        ("error", "Cannot assign requested address", "a", "a -> b: can't connect: Cannot assign requested address"),
    ],
)
def test_each_trouble_in_its_words(outcome: Outcome, detail: str, node: str, words: str) -> None:
    fleet, seen = connected("abc", {("a", "b"): (outcome, detail)})
    ((name, _, status, message),) = wrong(fleet, seen)
    assert (name, status) == (node, "failed")
    assert message.startswith(words)


def test_a_foreign_process_on_the_port_is_named() -> None:
    fleet, seen = connected("ab", {})
    seen.add(1, Watched(listen=TCP, state="held", detail="nc"))
    assert wrong(fleet, seen) == [
        ("b", "reach-tcp-10250", "warning", "TCP 10250 is held by nc, not by kubelet: the others reach that")
    ]
    assert [row.node for row in reach_rows.rows(fleet, seen)] == ["a", "b"]


def test_kubelet_on_its_port_is_no_matter() -> None:
    fleet, seen = connected("ab", {})
    seen.add(1, Watched(listen=TCP, state="held", detail="kubelet"))
    assert wrong(fleet, seen) == []


def test_an_address_that_is_not_the_machines_own() -> None:
    fleet = trials.fleet([member(name) for name in "abc"])
    seen = watching(fleet)
    seen.add(1, Watched(listen=TCP, state="failed", detail="Cannot assign requested address"))
    for each in trials.tries(fleet, seen):
        seen.add(each.asker, Connected(peer=each.target, port=10250, outcome="ours"))
    rows = [row for row in reach_rows.rows(fleet, seen) if row.node == "b" and row.status != "ok"]
    assert {row.status for row in rows} == {"unknown"}
    assert any(row.fix == "`address` must be an address of the machine's own" for row in rows)


def test_without_perl_nothing_passes_silently() -> None:
    fleet = trials.fleet([member(name) for name in "ab"])
    seen = watching(fleet)
    seen.add(1, Missing())
    fleet = fleet.without_probe(seen.ended)
    for each in trials.tries(fleet, seen):
        seen.add(each.asker, Connected(peer=each.target, port=10250, outcome="refused"))
    row = row_of(reach_rows.rows(fleet, seen), "b", "reach")
    assert (row.status, row.fix) == ("unknown", "apt-get install perl-base")
    assert "ok" not in {row.status for row in reach_rows.rows(fleet, seen)}


def test_a_probe_that_dies_leaves_what_it_should_have_tried_unknown() -> None:
    fleet = trials.fleet([member(name) for name in "ab"])
    seen = watching(fleet)
    seen.add(1, Connected(peer=0, port=10250, outcome="ours"))
    seen.ended[0] = "the connection was lost"
    assert ("b", "reach-tcp-10250", "unknown", "a -> b: not tried: a: the connection was lost") in wrong(fleet, seen)


def test_addresses_of_both_families() -> None:
    fleet = trials.fleet([member("a"), replace(member("b"), address="2001:db8::1")])
    seen = watching(fleet)
    assert trials.tries(fleet, seen) == ()
    text = "not tried: one has an IPv4 address, the other an IPv6 one"
    assert [message for *_, message in wrong(fleet, seen)] == [f"b -> a: {text}", f"a -> b: {text}"]


def test_a_node_outside_the_run_that_does_not_answer_is_a_warning_of_the_asker() -> None:
    fleet, seen = connected("a", {("a", "y"): DROPPED}, outside="xyz")
    text = "a -> y: no answer within 4 s (dropped by a firewall?)"
    assert wrong(fleet, seen) == [("a", "reach-tcp-10250", "warning", text)]


def test_where_none_of_those_outside_is_reached_it_is_a_failure() -> None:
    fleet, seen = connected("a", {("a", "x"): DROPPED, ("a", "y"): DROPPED}, outside="xy")
    assert [(node, status) for node, _, status, _ in wrong(fleet, seen)] == [("a", "failed")]


def test_those_outside_and_those_inside_that_fail_alike_are_told_apart() -> None:
    broken: Broken = {("a", "b"): DROPPED, ("a", "x"): DROPPED}
    fleet, seen = connected("abc", broken, outside="xyz")
    assert [(node, status, message[:7]) for node, _, status, message in wrong(fleet, seen)] == [
        ("a", "warning", "a -> x:"),
        ("b", "failed", "a -> b:"),
    ]


def test_a_node_outside_the_run_that_refuses_shows_nothing() -> None:
    fleet, seen = connected("a", {("a", "x"): ("refused", ""), ("a", "y"): ("refused", "")}, outside="xy")
    ((_, _, status, message),) = wrong(fleet, seen)
    assert status == "unknown"
    assert message == "a -> all 2 others: refused: nothing listens there yet, and it is not in this run"


def test_no_datagram() -> None:
    fleet, seen = sent("abc", VXLAN, TUNNEL, target="b", largest=0)
    assert wrong(fleet, seen) == [
        ("b", "reach-udp-8472", "failed", "a, c -> b: no datagram arrives (dropped by a firewall?)"),
        ("b", "path-mtu", "unknown", "a, c -> b: not measured: UDP 8472 does not pass"),
    ]


def test_datagrams_that_the_nodes_own_filter_keeps_are_the_senders() -> None:
    fleet, seen = sent("abc", VXLAN, target="b", largest=0)
    seen.sent[0, 1, UDP] = [Sent(listen=UDP, peer=1, error="Operation not permitted")]
    assert (
        "a",
        "reach-udp-8472",
        "failed",
        "a -> b: datagrams do not leave the node: Operation not permitted (its own packet filter?)",
    ) in wrong(fleet, seen)


def test_a_probe_that_dies_says_nothing_of_the_packets_to_it() -> None:
    fleet, seen = sent("ab", VXLAN, TUNNEL, target="b", largest=0)
    seen.ended[1] = "the connection was lost"
    texts = {message for node, check, _, message in wrong(fleet, seen) if check != "reach"}
    assert texts == {"a -> b: not tried: b: the connection was lost"}


def test_a_black_hole_and_the_largest_size_that_passes() -> None:
    fleet, seen = sent("abc", VXLAN, TUNNEL, target="b", largest=1450)
    text = "a, c -> b: packets above 1450 bytes are lost, and nobody says so (black hole; 1500 are to pass)"
    assert wrong(fleet, seen) == [("b", "path-mtu", "failed", text)]
    row = row_of(reach_rows.rows(fleet, seen), "b", "path-mtu")
    assert row.fix == (
        "an MTU of 1500 on every interface and switch on the way, or components.cilium.mtu: 1450 (vxlan)"
    )
    good = row_of(reach_rows.rows(fleet, seen), "c", "path-mtu")
    assert good.message == "packets of 1500 bytes pass: reaches 1 of 2, reached by 2 of 2"


@pytest.mark.parametrize(("need", "status"), [(TUNNEL, "failed"), (ROUTED, "warning")])
def test_a_router_that_tells_is_heard_by_pods_and_not_through_a_tunnel(need: Need, status: str) -> None:
    fleet, seen = sent("abc", VXLAN, need, target="b", largest=1400)
    listen = UDP if need is TUNNEL else ICMP
    for asker in (0, 2):
        seen.sent[asker, 1, listen] = [Sent(listen=listen, peer=1, path_mtu=1400)]
    text = "a, c -> b: packets above 1400 bytes pass in fragments only, as a router says"
    assert wrong(fleet, seen) == [("b", "path-mtu", status, text)]


def test_packets_that_do_not_fit_the_nodes_own_interface_are_its_own_matter() -> None:
    fleet, seen = sent("ab", ROUTED, target="b", largest=1400)
    seen.sent[0, 1, ICMP] = [Sent(listen=ICMP, peer=1, too_big=(1500,))]
    text = "a -> b: packets above 1400 bytes do not fit its own interface"
    assert wrong(fleet, seen) == [("a", "path-mtu", "warning", text)]


def test_a_router_between_nodes_of_one_segment() -> None:
    segment = SameSegment(why="bridge")
    fleet = trials.fleet([member(name, segment) for name in "abc"])
    seen = watching(fleet)
    for asker in fleet.members:
        for target in fleet.tried_by(asker):
            router = "192.0.2.1" if target.name == "c" and asker.name == "a" else ""
            seen.add(asker.number, Via(address=target.address, router=router))
    assert wrong(fleet, seen) == [("c", "same-segment", "failed", "a -> c: reached through the router 192.0.2.1")]


def test_the_matrix_has_a_row_for_each_asker() -> None:
    fleet, seen = connected("abc", {("a", "b"): DROPPED}, outside="")
    found = reach_rows.matrix(fleet, seen)
    assert found is not None
    assert found.as_json() == {
        "a": {"a": "-", "b": "10250", "c": "ok"},
        "b": {"a": "ok", "b": "-", "c": "ok"},
        "c": {"a": "ok", "b": "ok", "c": "-"},
    }


def test_a_cell_names_all_that_does_not_pass() -> None:
    fleet, seen = sent("ab", KUBELET, VXLAN, TUNNEL, target="b", largest=1400)
    seen.add(0, Connected(peer=1, port=10250, outcome="timeout"))
    seen.add(1, Connected(peer=0, port=10250, outcome="ours"))
    found = reach_rows.matrix(fleet, seen)
    assert found is not None
    assert found.cells["a"] == ("-", "10250 mtu")


def test_a_large_fleet_has_no_matrix_and_says_that_each_tries_some() -> None:
    fleet, seen = sent("a", VXLAN)
    assert reach_rows.matrix(fleet, seen) is None
    names = [f"n{number}" for number in range(trials.FULL + 1)]
    fleet = trials.fleet([member(name) for name in names])
    seen = watching(fleet)
    for each in trials.tries(fleet, seen):
        seen.add(each.asker, Connected(peer=each.target, port=10250, outcome="ours"))
    assert reach_rows.matrix(fleet, seen) is None
    rows = reach_rows.rows(fleet, seen)
    assert {row.message for row in rows} == {"reaches 16 of 16, reached by 16 of 16 (of 41, each tries some)"}


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("abcdxyz")).filter(lambda pair: pair[0] != pair[1]),
        st.sampled_from([DROPPED, ("refused", ""), ("error", "Permission denied"), ("other", "")]),
    )
)
def test_no_pair_that_fails_is_ever_passed_over(broken: Broken) -> None:
    fleet, seen = connected("abcd", broken, outside="xyz")
    told: set[tuple[str, str]] = set()
    for _, _, _, message in wrong(fleet, seen):
        askers, _, rest = message.partition(" -> ")
        targets = rest.partition(":")[0]
        for asker in askers.split(", "):
            everyone = [other for other in "abcdxyz" if other != asker]
            told.update((asker, target) for target in (everyone if "others" in targets else targets.split(", ")))
    assert told == set(broken)
