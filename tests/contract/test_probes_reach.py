"""The probes themselves, as processes of this host on addresses of its loopback: what each hears and says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kubeworker.core.reachability import probe as reach_probe
from kubeworker.core.reachability.probe import Connected, Got, Line, Listen, Missing, Ready, Sent, Watched

PORT = 20_000 + os.getpid() % 8000
"""Two runs on one host don't meet."""
TCP, UDP, ICMP = Listen(protocol="tcp", port=PORT), Listen(protocol="udp", port=PORT), Listen(protocol="icmp")


@dataclass(kw_only=True)
class Probe:
    process: asyncio.subprocess.Process
    address: str
    lines: list[Line] = field(default_factory=list)

    def tell(self, *orders: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(orders).encode())

    async def until(self, holds: Callable[[list[Line]], object], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not holds(self.lines):
                await self._next()

    async def _next(self) -> None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, f"it ended; it had said {self.lines}"
        self.lines.append(reach_probe.parse(line.decode().rstrip("\n")))

    def of(self, kind: type[Line]) -> list[Line]:
        return [line for line in self.lines if isinstance(line, kind)]


@asynccontextmanager
async def probe(
    number: int, address: str, *listen: Listen, nonce: str = "abc", path: str = "", limit: int = reach_probe.LIMIT
) -> AsyncIterator[Probe]:
    text = reach_probe.script(nonce=nonce, number=number, address=address, listen=listen, limit=limit)
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        text,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **({"PATH": path} if path else {})},
    )
    found = Probe(process=process, address=address)
    try:
        await found.until(lambda lines: any(isinstance(line, Ready | Missing) for line in lines))
        yield found
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(5):
            await process.wait()


def listening(listen: Listen, address: str) -> bool:
    """Whether somebody holds the port."""
    kind = socket.SOCK_STREAM if listen.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if listen.protocol == "tcp" else 0)
        try:
            own.bind((address, listen.port))
        except OSError:
            return True
    return False


async def test_two_probes_reach_each_other() -> None:
    async with probe(0, "127.0.0.20", TCP, UDP, ICMP) as a, probe(1, "127.0.0.21", TCP, UDP, ICMP) as b:
        assert a.of(Watched) == [Watched(listen=each, state="own") for each in (TCP, UDP, ICMP)]
        a.tell(
            reach_probe.connect(1, b.address, TCP.port, ours=True),
            reach_probe.send(UDP, 1, b.address, (200, 1500)),
            reach_probe.send(ICMP, 1, b.address, (200, 1500)),
        )
        await a.until(lambda _: len(a.of(Sent)) == 2 and a.of(Connected))
        await b.until(lambda _: len(b.of(Got)) == 4)
        assert a.of(Connected) == [Connected(peer=1, port=TCP.port, outcome="ours")]
        assert all(not line.too_big and not line.error for line in a.of(Sent) if isinstance(line, Sent))
        assert {(line.listen, line.peer, line.size) for line in b.of(Got) if isinstance(line, Got)} == {
            (listen, 0, size) for listen in (UDP, ICMP) for size in (200, 1500)
        }


async def test_ipv6() -> None:
    async with probe(0, "::1", TCP, UDP, ICMP) as own:
        own.tell(
            reach_probe.connect(0, "::1", TCP.port, ours=True),
            reach_probe.send(UDP, 0, "::1", (200, 1500)),
            reach_probe.send(ICMP, 0, "::1", (200, 1500)),
        )
        await own.until(lambda _: len(own.of(Sent)) == 2 and own.of(Connected) and len(own.of(Got)) == 4)
        assert own.of(Connected) == [Connected(peer=0, port=TCP.port, outcome="ours")]


async def test_datagrams_on_a_port_that_is_held_are_heard_and_reach_their_owner_unharmed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("127.0.0.22", UDP.port))
        owner.settimeout(5)
        async with probe(0, "127.0.0.20") as a, probe(1, "127.0.0.22", UDP) as b:
            assert [line.state for line in b.of(Watched) if isinstance(line, Watched)] == ["held"]
            a.tell(reach_probe.send(UDP, 1, b.address, (200,)))
            await b.until(lambda _: b.of(Got))
            assert b.of(Got) == [Got(listen=UDP, peer=0, size=200)]
            # Eight zero bytes: for vxlan that is no header, and it drops the packet (RFC 7348, 5: the I flag).
            assert owner.recv(2000)[:8] == bytes(8)


async def test_datagrams_of_another_run_and_of_others_are_not_taken_for_its_own() -> None:
    async with probe(0, "127.0.0.20", nonce="other") as stranger, probe(1, "127.0.0.21", UDP) as b:
        stranger.tell(reach_probe.send(UDP, 1, b.address, (200,)))
        await stranger.until(lambda _: stranger.of(Sent))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"hello", (b.address, UDP.port))
        b.tell(reach_probe.connect(1, b.address, UDP.port, ours=False))
        await b.until(lambda _: b.of(Connected))
        assert b.of(Got) == []


async def test_a_foreign_service_is_not_taken_for_a_probe() -> None:
    async with await asyncio.start_server(_greet, "127.0.0.23", TCP.port), probe(0, "127.0.0.20") as a:
        a.tell(reach_probe.connect(1, "127.0.0.23", TCP.port, ours=True))
        a.tell(reach_probe.connect(2, "127.0.0.23", TCP.port, ours=False))
        await a.until(lambda _: len(a.of(Connected)) == 2)
        assert sorted(a.of(Connected), key=str) == sorted(
            (
                Connected(peer=1, port=TCP.port, outcome="other", detail="SSH-2.0-Foreign "),
                Connected(peer=2, port=TCP.port, outcome="open"),
            ),
            key=str,
        )


async def _greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-Foreign\r\n")
    await writer.drain()


async def test_another_nodes_probe_on_the_address_is_not_taken_for_the_peers() -> None:
    async with probe(0, "127.0.0.20") as a, probe(5, "127.0.0.21", TCP) as b:
        a.tell(reach_probe.connect(1, b.address, TCP.port, ours=True))
        await a.until(lambda _: a.of(Connected))
        assert a.of(Connected) == [Connected(peer=1, port=TCP.port, outcome="other", detail="kubeworker abc 5 ")]


async def test_a_service_that_says_nothing_is_something_else() -> None:
    with socket.create_server(("127.0.0.24", TCP.port)):
        async with probe(0, "127.0.0.20", limit=1) as a:
            a.tell(reach_probe.connect(1, "127.0.0.24", TCP.port, ours=True))
            await a.until(lambda _: a.of(Connected))
            assert a.of(Connected) == [Connected(peer=1, port=TCP.port, outcome="other")]


async def test_who_holds_a_port_is_named() -> None:
    holder = await asyncio.create_subprocess_exec(
        "perl",
        "-MSocket",
        "-e",
        "socket(S, AF_INET, SOCK_STREAM, 6); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);"
        "bind(S, sockaddr_in(shift, INADDR_ANY)) or die; listen(S, 1);"
        "$| = 1; print qq{on\n}; sleep 60",
        str(TCP.port),
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        await holder.stdout.readline()
        async with probe(0, "127.0.0.20", TCP) as a:
            assert a.of(Watched) == [Watched(listen=TCP, state="held", detail="perl")]
    finally:
        holder.kill()
        await holder.wait()


async def test_refused_and_an_address_that_is_not_its_own() -> None:
    async with probe(0, "127.0.0.20") as a:
        a.tell(reach_probe.connect(1, "127.0.0.25", 1, ours=False))
        await a.until(lambda _: a.of(Connected))
        assert a.of(Connected) == [Connected(peer=1, port=1, outcome="refused", detail="Connection refused")]
    async with probe(0, "192.0.2.1", TCP, UDP, ICMP) as elsewhere:
        assert {line.state for line in elsewhere.of(Watched) if isinstance(line, Watched)} == {"failed"}


async def test_more_connections_than_it_opens_at_once() -> None:
    async with probe(0, "127.0.0.20") as a, probe(1, "127.0.0.21", TCP) as b:
        count = 3 * reach_probe.AT_ONCE
        a.tell(*(reach_probe.connect(1, b.address, TCP.port, ours=True) for _ in range(count)))
        await a.until(lambda _: len(a.of(Connected)) == count)
        assert {line.outcome for line in a.of(Connected) if isinstance(line, Connected)} == {"ours"}


async def test_packets_that_the_interface_does_not_take_are_named() -> None:
    async with probe(0, "127.0.0.20", ICMP) as a:
        a.tell(reach_probe.send(ICMP, 0, a.address, (1500, 65535)))
        mtu = int(Path("/sys/class/net/lo/mtu").read_text())
        await a.until(lambda _: a.of(Sent) and len(a.of(Got)) == (2 if mtu > 65535 else 1))
        (sent,) = a.of(Sent)
        assert isinstance(sent, Sent)
        assert (sent.too_big, sent.error) == (() if mtu >= 65535 else (65535,), "")


async def test_nothing_is_left_when_its_channel_closes() -> None:
    async with probe(0, "127.0.0.20", TCP, UDP) as a:
        assert listening(TCP, a.address)
        assert listening(UDP, a.address)
    assert a.process.returncode == 0
    assert not listening(TCP, a.address)
    assert not listening(UDP, a.address)


async def test_it_ends_by_itself_when_it_is_told_nothing() -> None:
    text = reach_probe.script(nonce="abc", number=0, address="127.0.0.20", listen=[TCP], seconds=1)
    process = await asyncio.create_subprocess_exec("sh", "-c", text, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    async with asyncio.timeout(5):
        assert await process.wait() == -signal.SIGALRM


async def test_without_perl_it_says_so(tmp_path: Path) -> None:
    for name in ("sh", "ip"):
        (tmp_path / name).symlink_to(_command(name))
    async with probe(0, "127.0.0.20", TCP, path=str(tmp_path)) as a:
        assert a.lines == [Missing()]


def _command(name: str) -> str:
    return next(
        f"{folder}/{name}" for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin") if Path(folder, name).exists()
    )


def test_only_what_perl_base_has_is_used() -> None:
    """Debian's perl-base, which every system has, is a part of perl: its own list of files is the measure."""
    from kubeworker.core.reachability.program import PROGRAM

    modules = [line.split()[1].rstrip(";") for line in PROGRAM.splitlines() if line.startswith("use ")]
    listed = subprocess.run(["dpkg", "-L", "perl-base"], capture_output=True, text=True, check=True).stdout
    files: Iterable[str] = listed.splitlines()
    wanted: Sequence[str] = [f"/{module.replace('::', '/')}.pm" for module in modules]
    assert all(any(file.endswith(each) for file in files) for each in wanted), wanted


@pytest.fixture(autouse=True)
def _root() -> None:
    with contextlib.suppress(PermissionError):
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
        return
    pytest.fail("raw sockets need root, as probes have it on nodes")
