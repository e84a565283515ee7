"""Runs programs on the control host. Hides asyncio's subprocesses: a cancelled call leaves no process behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended."""

    status: int
    """Exit status; negative: the signal that killed it; 127: there is no such program."""
    output: str
    """Standard output and standard error together, in the order they were written."""

    def tail(self, lines: int = 15) -> str:
        """The last lines, for an error message."""
        return "\n".join(self.output.rstrip().splitlines()[-lines:])


async def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> Finished:
    """Run a program to its end, without standard input; TimeoutError when it takes longer than `timeout` seconds."""
    try:
        process = await _start(command, env, cwd)
    except FileNotFoundError:
        return Finished(status=127, output=f"{command[0]}: not found")
    except OSError as error:
        return Finished(status=126, output=f"{command[0]}: {error.strerror}")
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    finally:
        await _end(process)
    return Finished(status=process.returncode or 0, output=output.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What a program made of its input."""

    status: int
    """As in `Finished`."""
    stdout: bytes = field(repr=False)
    stderr: str


async def pipe(command: Sequence[str], stdin: bytes, *, env: Mapping[str, str], cwd: Path, timeout: float) -> Filtered:
    """Run a program over this input, the two outputs apart; TimeoutError as in `run`."""
    try:
        process = await _start(command, env, cwd, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    except OSError as error:
        return Filtered(status=126, stdout=b"", stderr=f"{command[0]}: {error.strerror}")
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await process.communicate(stdin)
    finally:
        await _end(process)
    return Filtered(status=process.returncode or 0, stdout=stdout, stderr=stderr.decode("utf-8", "replace"))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        # The whole group: a compiler's children would go on.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _start(
    command: Sequence[str],
    env: Mapping[str, str] | None,
    cwd: Path | None,
    *,
    stdin: int = asyncio.subprocess.DEVNULL,
    stderr: int = asyncio.subprocess.STDOUT,
) -> asyncio.subprocess.Process:
    for _ in range(20):
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
        # A child that another thread is just starting still holds the freshly written binary open.
        await asyncio.sleep(0.05)
    raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))
