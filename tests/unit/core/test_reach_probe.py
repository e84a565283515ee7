"""The language between the control host and the probes."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from tests.unit.shells import SHELLS

from kubeworker.core.reachability.probe import (
    Connected,
    Got,
    Line,
    Listen,
    Missing,
    Ready,
    Sent,
    Via,
    Watched,
    connect,
    parse,
    script,
    send,
)

TCP, UDP, ICMP = Listen(protocol="tcp", port=10250), Listen(protocol="udp", port=8472), Listen(protocol="icmp")


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("missing", Missing()),
        ("ready\thost0\t1500", Ready(interface="host0", mtu=1500)),
        ("ready\t\t", Ready()),
        ("watched\ttcp/10250\town\t", Watched(listen=TCP, state="own")),
        ("watched\tudp/8472\theld\tcilium-agent", Watched(listen=UDP, state="held", detail="cilium-agent")),
        ("watched\ticmp\tfailed\tPermission denied", Watched(listen=ICMP, state="failed", detail="Permission denied")),
        ("via\t192.0.2.1\t", Via(address="192.0.2.1", router="")),
        ("connected\t3\t10250\ttimeout\t", Connected(peer=3, port=10250, outcome="timeout")),
        ("sent\tudp/8472\t3\t1400\t1450,1500\t", Sent(listen=UDP, peer=3, path_mtu=1400, too_big=(1450, 1500))),
        ("got\ticmp\t0\t1500", Got(listen=ICMP, peer=0, size=1500)),
    ],
)
def test_what_a_probe_says(line: str, meaning: Line) -> None:
    assert parse(line) == meaning


@pytest.mark.parametrize(
    "line", ["", "hello", "got\tudp/8472\tx\t1500", "connected\t3\t10250\tsplendid\t", "watched\tsctp/1\town\t"]
)
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int()'s own words are as good as ours
        parse(line)


def test_orders() -> None:
    assert connect(3, "192.0.2.3", 10250, ours=True) == "connect 3 192.0.2.3 10250 ours\n"
    assert send(ICMP, 3, "192.0.2.3", (200, 1500)) == "send icmp 3 192.0.2.3 200,1500\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_sound(shell: str) -> None:
    text = script(nonce="abc", number=0, address="192.0.2.1", listen=[TCP, UDP, ICMP], via=["192.0.2.2"])
    done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    assert shutil.which("shellcheck"), "scripts/setup installs it"
    done = subprocess.run(
        ["shellcheck", "--shell=sh", "--severity=style", "-"],
        input=script(nonce="abc", number=0, address="192.0.2.1", listen=[TCP], via=["192.0.2.2", "192.0.2.3"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
