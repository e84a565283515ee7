"""What no tool can be faster than, measured beside it: bare connections, and the same bytes in one tar each."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import asyncssh

from bench.tool import BenchFailed
from kubeworker.lab import LabState, Machine, ssh_command

# As cheap as the machines' sshd takes them: a floor must not lose time in a costlier exchange.
_KEY_EXCHANGES = ("curve25519-sha256",)
_CIPHERS = ("aes128-gcm@openssh.com",)


def openssh(lab: LabState, machines: Sequence[Machine], command: str = "true") -> None:
    """`ssh NODE COMMAND` for all machines at once, by xargs."""
    *ssh, _ = ssh_command(lab, machines[0])
    addresses = "\n".join(each.address for each in machines)
    words = ["xargs", "-P", str(len(machines)), "-I", "{}", *ssh, "root@{}", command]
    done = subprocess.run(words, input=addresses, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchFailed(f"ssh by xargs: {done.stderr}")


def bare_asyncssh(lab: LabState, machines: Sequence[Machine], command: str = "true") -> None:
    """The same by asyncssh alone, all at once, in this process: connect, log in, one command, close."""
    key = asyncssh.read_private_key(lab.ssh_identity)
    hosts = asyncssh.read_known_hosts(str(lab.known_hosts))

    async def one(machine: Machine) -> None:
        async with asyncssh.connect(
            machine.address,
            username="root",
            client_keys=[key],
            known_hosts=hosts,
            config=None,
            agent_path=None,
            gss_kex=False,
            gss_auth=False,
            kex_algs=_KEY_EXCHANGES,
            encryption_algs=_CIPHERS,
            compression_algs=("none",),
        ) as connection:
            done = await connection.run(command)
            if done.exit_status:
                raise BenchFailed(f"{machine.name}: `{command}` ended with status {done.exit_status}")

    async def every() -> None:
        async with asyncio.TaskGroup() as group:
            for machine in machines:
                group.create_task(one(machine))

    asyncio.run(every())


def tar_streams(lab: LabState, machines: Sequence[Machine], archive: Path, *, at_once: int) -> None:
    """The compressed archive to each machine through `ssh`, unpacked there; `at_once` machines at a time."""
    folder = "/opt/bench-floor"
    *ssh, _ = ssh_command(lab, machines[0])
    # The tool's own choice of cipher: the streams differ in nothing but who sends them.
    send = f"{' '.join(ssh)} -c {_CIPHERS[0]} root@{{}} 'mkdir -p {folder} && tar -xzf - -C {folder}' < {archive}"
    words = ["xargs", "-P", str(at_once), "-I", "{}", "sh", "-c", send]
    addresses = "\n".join(each.address for each in machines)
    done = subprocess.run(words, input=addresses, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchFailed(f"tar through ssh: {done.stderr}")


def archive(members: Iterable[Path], end: bytes, target: Path) -> Path:
    """The tool's own compressed members as one .tar.gz."""
    with target.open("wb") as out:
        for member in members:
            out.write(member.read_bytes())
        out.write(end)
    return target
