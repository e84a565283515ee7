"""A fleet that is too large for each to try all: its probes are processes of this host, on its loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from kubeworker.core.model import NodeToNode, PathMtu
from kubeworker.core.reachability import rows as reach_rows
from kubeworker.core.reachability import trials
from kubeworker.core.reachability.trials import Member
from kubeworker.errors import NodeUnreachable
from kubeworker.flow.reachability import try_all
from kubeworker.io.node import Node, Result

pytestmark = pytest.mark.timeout(120)

PORT = 20_000 + os.getpid() % 8000
"""Two runs on one host don't meet."""
NEEDS = (
    NodeToNode(protocol="tcp", port=PORT, why="kubelet", process="kubelet"),
    NodeToNode(protocol="udp", port=PORT, why="vxlan"),
    PathMtu(packet=1500, udp_port=PORT, why="vxlan", setting="components.cilium.mtu"),
)


@dataclass(frozen=True)
class Here:
    """A node whose scripts run on this host."""

    name: str

    async def run(
        self,
        script: str,
        *,
        stdin: bytes | AsyncIterable[bytes] = b"",
        timeout: float = 300,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert on_line
        assert not isinstance(stdin, bytes)
        feeding = asyncio.create_task(_feed(process.stdin, stdin))
        try:
            async with asyncio.timeout(timeout):
                async for line in process.stdout:
                    on_line(line.decode().rstrip("\n"))
                errors = await process.stderr.read()
                return Result(stdout="", stderr=errors.decode(), status=await process.wait())
        finally:
            feeding.cancel()
            process.stdin.close()

    def forward(self, host: str, port: int) -> AbstractAsyncContextManager[int]:
        raise NotImplementedError(host, port)

    async def close(self) -> None:
        pass


async def _feed(writer: asyncio.StreamWriter, stdin: AsyncIterable[bytes]) -> None:
    async for chunk in stdin:
        writer.write(chunk)
    writer.close()


async def test_a_large_fleet_with_a_few_that_differ() -> None:
    count = trials.FULL + 4
    names = [f"n{number:02}" for number in range(count)]
    addresses = {name: f"127.0.1.{number + 1}" for number, name in enumerate(names)}
    addresses["n05"] = "192.0.2.5"
    members = [Member(number=0, name=name, address=addresses[name], needs=NEEDS) for name in names]

    def connection(name: str) -> Node:
        if name == "n09":
            raise NodeUnreachable("the connection was lost", subject=name)
        return Here(name)

    with socket.create_server((addresses["n07"], PORT)):
        fleet, seen = await try_all(trials.fleet(members), connection)
    rows = {(row.node, row.id): row for row in reach_rows.rows(fleet, seen)}
    assert reach_rows.matrix(fleet, seen) is None

    odd = {"n05", "n07", "n09"}
    well = {key: row for key, row in rows.items() if key[0] not in odd}
    assert {row.status for row in well.values()} == {"ok"}
    assert all("reached by" in row.message and "each tries some" in row.message for row in well.values())
    assert len(well) == 3 * (count - len(odd))

    own = rows["n05", f"reach-tcp-{PORT}"]
    assert (own.status, own.fix) == ("unknown", "`address` must be an address of the machine's own")
    held = rows["n07", f"reach-tcp-{PORT}"]
    assert held.status == "warning"
    assert "not by kubelet: the others reach that" in held.message
    gone = rows["n09", "reach"]
    assert (gone.status, gone.message[-23:]) == ("unknown", "the connection was lost")
