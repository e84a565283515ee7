"""A real OpenSSH sshd on loopback, and a fake node: asyncssh's server in this process that runs the same shell."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from kubeworker.core.spec import NodeSpec, NodeSsh, Ssh


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Something to log in to."""

    folder: Path
    port: int
    pid: int = 0

    @property
    def identity(self) -> Path:
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def ssh(self, **fields: Any) -> Ssh:
        """How it is reached without any file of the user's own."""
        known: dict[str, Any] = {
            "user": getpass.getuser(),
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "config": str(self.folder / "no-config"),
        }
        return Ssh(**(known | fields))

    def node(self, **fields: Any) -> NodeSpec:
        return NodeSpec(name="n1", address="127.0.0.1", ssh=NodeSsh(**({"port": self.port} | fields)))

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def sessions(self) -> int:
        """Commands that were started: one channel each."""
        return len(re.findall(r"Starting session: command", self.log()))


def make_key(path: Path, *, passphrase: str = "") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def openssh(folder: Path, *, options: str = "") -> Iterator[Server]:
    """An sshd of the test's own with a host key and one authorised key; gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    make_key(folder / "host")
    make_key(folder / "id")
    (folder / "authorized").write_text((folder / "id.pub").read_text())
    port = free_port()
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"LogLevel DEBUG\n{options}\n"
    )
    key = (folder / "host.pub").read_text().split(" ", 2)
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    # Privilege separation wants its folder (sshd(8)); a machine whose sshd never ran has none.
    Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", folder / "config", "-E", folder / "log"]) as daemon:
        try:
            _await_port(port)
            yield Server(folder=folder, port=port, pid=daemon.pid)
        finally:
            daemon.terminate()


def _await_port(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")


@asynccontextmanager
async def in_process(folder: Path) -> AsyncIterator[Server]:
    """The fake: asyncssh's server, which runs each command by this machine's sh."""
    folder.mkdir(parents=True, exist_ok=True)
    make_key(folder / "host")
    make_key(folder / "id")
    (folder / "log").touch()

    async def work(process: asyncssh.SSHServerProcess[bytes]) -> None:
        with (folder / "log").open("a") as log:
            log.write("Starting session: command\n")
        command = process.command
        assert command is not None
        child = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert child.stdin
        assert child.stdout
        assert child.stderr
        feeding = asyncio.create_task(_pump_in(process.stdin, child.stdin))
        await asyncio.gather(_pump_out(child.stdout, process.stdout), _pump_out(child.stderr, process.stderr))
        process.exit(await child.wait())
        feeding.cancel()

    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(folder / "host")],
        authorized_client_keys=str(folder / "id.pub"),
        process_factory=work,
        server_factory=_Forwarding,
        encoding=None,
    )
    port = listener.get_port()
    key = (folder / "host.pub").read_text().split(" ", 2)
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    try:
        yield Server(folder=folder, port=port)
    finally:
        listener.close()
        await listener.wait_closed()


async def _pump_in(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    # A command may end before it has read all; its client may be gone.
    with contextlib.suppress(OSError, asyncssh.Error):
        while chunk := await source.read(65536):
            sink.write(chunk)
            await sink.drain()
        sink.close()


async def _pump_out(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    while chunk := await source.read(65536):
        with contextlib.suppress(OSError, asyncssh.Error):
            sink.write(chunk)


class _Forwarding(asyncssh.SSHServer):
    def connection_requested(self, *_where: object) -> bool:
        return True
