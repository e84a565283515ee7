"""kubeworker as the bench measures it: inside this process, which is up already, and as a whole command."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import kubeworker
from kubeworker.flow import events
from kubeworker.flow.apply import ApplyReport, Options, apply
from kubeworker.flow.events import ActionDone, Event, StageStarted, Transfer
from kubeworker.flow.plan import Plan, plan
from kubeworker.flow.session import Request

LIMIT = 600.0
"""Seconds that a rival may take."""
COMMAND = Path(sys.executable).with_name("kubeworker")


class BenchFailed(Exception):
    """What was to be measured did not happen: no number of it would mean anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What some work cost this process."""

    seconds: float
    cpu: float
    """Processor seconds, children that ended included."""


def compile_bytecode() -> None:
    """As pip leaves an installed package: where PYTHONDONTWRITEBYTECODE is set, each start would compile the source."""
    compileall.compile_dir(str(Path(kubeworker.__file__).parent), quiet=1)


def timed(work: Callable[[], object]) -> Timed:
    """Do it once."""
    before, began = _cpu(), time.perf_counter()
    work()
    return Timed(seconds=time.perf_counter() - began, cpu=_cpu() - before)


def _cpu() -> float:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in usage)


@dataclass(kw_only=True)
class Phases:
    """How far a first deploy had come when, on the last of its nodes: seconds, heard from the run's events."""

    first: float = 0.0
    """The first byte of artifacts left."""
    last: float = 0.0
    """The last one had left."""
    received: float = 0.0
    """Everything was unpacked, hashed and in the nodes' stores: the first stages begin."""
    started: float = 0.0
    """The last unit was started and healthy."""
    began: float = field(default_factory=time.perf_counter)
    _staged: set[str] = field(default_factory=set)

    def hear(self, event: Event) -> None:
        """A run's event."""
        now = time.perf_counter() - self.began
        match event:
            case Transfer(node=node) if node:
                self.first = self.first or now
                self.last = now
            case StageStarted(node=node) if node not in self._staged:
                self._staged.add(node)
                self.received = now
            case ActionDone(kind="start"):
                self.started = now
            case _:
                pass


def apply_once(
    cluster_file: Path, nodes: tuple[str, ...] = (), report: Callable[[Event], None] = events.silent
) -> ApplyReport:
    """One `apply`; BenchFailed unless every node is well."""

    async def yes(_plan: Plan) -> bool:
        return True

    done = asyncio.run(apply(Request(cluster_file=cluster_file, nodes=nodes), Options(), yes, report))
    if done.exit_code:
        failed = [f"{node.name}: {node.error}" for node in done.nodes if node.error]
        raise BenchFailed("apply failed: " + "; ".join(failed[:5]))
    return done


def converged(cluster_file: Path) -> None:
    """One `apply` that has nothing to do; BenchFailed where it has."""
    done = apply_once(cluster_file)
    if done.plan.changes:
        raise BenchFailed(f"not converged: {done.plan.changes} changes are due")


def converged_command(cluster_file: Path) -> None:
    """The same as a command, its start included."""
    run([str(COMMAND), "apply", "--yes", "-f", str(cluster_file)])


def look(cluster_file: Path) -> Plan:
    """What every node should have, and what it has."""
    return asyncio.run(plan(Request(cluster_file=cluster_file), events.silent))


class Stopped(BenchFailed):
    """A command that was ended at its limit: it would have taken longer."""


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None, limit: float = LIMIT) -> str:
    """A command's output; BenchFailed with its last lines if it fails, Stopped after `limit` seconds.

    It and all that it has started end with this call, however that ends.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=env,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Stopped(f"`{' '.join(command[:4])}` was stopped after {limit:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        tail = "\n".join(output.splitlines()[-25:])
        raise BenchFailed(f"`{' '.join(command[:4])}` ended with status {process.returncode}:\n{tail}")
    return output
