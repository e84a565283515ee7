"""The bench's pure parts: what is measured on machines is `make bench`."""

from __future__ import annotations

import socket
import struct

import pytest

from bench import chart, converged, page, payload
from bench.connections import opened
from bench.result import Part, Row, decode, encode, ratio
from bench.tool import Timed


def row(**changed: object) -> Row:
    values: dict[str, object] = {"workload": "converged", "what": "kubeworker", "n": 50, "seconds": (1.0, 3.0, 2.0)}
    return Row(**(values | changed))  # type: ignore[arg-type]


def test_a_part_survives_its_file() -> None:
    part = Part(name="fleet", rows=(row(ratios={"floor": 0.5}, met=False, measured={"cpu": 1.5}),), about={"n": 1})
    assert decode(encode(part)) == part


def test_a_ratio_is_of_medians() -> None:
    assert ratio(row(), row(seconds=(4.0,))) == 0.5


def test_a_row_without_seconds_has_no_median() -> None:
    with pytest.raises(ValueError, match="no seconds"):
        _ = row(seconds=()).median


@pytest.mark.parametrize(("tool", "met"), [(0.9, True), (1.7, False), (4.0, False)])
def test_the_converged_aim_holds_against_both_floors(tool: float, met: bool) -> None:  # noqa: FBT001
    seconds = {converged.TOOL: tool, converged.OPENSSH: 5.0, converged.ASYNCSSH: 1.0, converged.COMMAND: 2.0}
    made = converged.rows(50, {name: [Timed(seconds=value, cpu=0.5)] for name, value in seconds.items()})
    assert made[0].what == converged.TOOL
    assert made[0].met is met
    assert made[0].measured == {"cpu_ms_per_node": 10.0}


def test_one_template_stands_for_nodes_that_differ_in_name_and_address() -> None:
    texts = {"w1": "--name=w1 --ip=10.0.0.1", "w2": "--name=w2 --ip=10.0.0.2"}
    found = payload.template(texts, {"w1": "10.0.0.1", "w2": "10.0.0.2"})
    assert found == "--name={{ node_name }} --ip={{ node_ip }}"


def test_nodes_that_differ_otherwise_have_no_template() -> None:
    assert payload.template({"w1": "a", "w2": "b"}, {"w1": "10.0.0.1", "w2": "10.0.0.2"}) is None


def packet(*, port: int = 22, flags: int = 0x02) -> bytes:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, socket.IPPROTO_TCP, 0)
    ip += socket.inet_aton("10.77.0.1") + socket.inet_aton("10.77.0.11")
    return ip + struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 0x50, flags, 1024, 0, 0)


def test_a_syn_to_the_port_opens_a_connection() -> None:
    assert opened(packet(), 22) == "10.77.0.11"


@pytest.mark.parametrize("other", [packet(port=6443), packet(flags=0x12), packet(flags=0x10), b"", packet()[:30]])
def test_other_packets_open_none(other: bytes) -> None:
    assert not opened(other, 22)


def test_the_chart_has_a_bar_for_each_row_with_seconds() -> None:
    rows = [row(), row(what="xargs & ssh", kind="floor", seconds=(5.0,)), row(what="none", seconds=())]
    drawn = chart.svg(rows)
    assert drawn.count('height="16"') == 2
    assert "xargs &amp; ssh" in drawn


def test_the_page_says_which_aims_were_missed() -> None:
    part = Part(name="fleet", rows=(row(aim="at most 1.5 x", met=False), row(what="floor")), about={"processors": 2})
    text = page.text([part])
    assert "| kubeworker | 50 | 2.00 (3) |  | at most 1.5 x | **no** |  |" in text
    assert "processors: 2" in text
