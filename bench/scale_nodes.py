"""A converged apply to simulated nodes: a thousand for cost and memory, fifty beside bare connections, one for `plan`.

What simulated nodes are, and how they differ from machines: sim_nodes.py. Figures of the control host are those of the
command as a whole: processor seconds of the process, and the most memory that it had resident (getrusage(2)).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import sim_nodes, sim_site
from bench.result import Part, Row, circumstances, ratio
from bench.sim_site import PORT, Api, Site
from bench.tool import COMMAND, BenchFailed, Timed, compile_bytecode, converged, timed

WORK = Path("build/bench/simulation")
SIZES = (50, 100, 250, 500, 1000)
"""Nodes of the runs that show how cost grows."""
SMALL = 50
REPEAT = 7
LIMIT_MS = 15
LIMIT_MB = 400

_BARE = """
import asyncio, sys
import asyncssh{imports}

async def one(address, slots):
    async with slots, asyncssh.connect(
        address, {port}, username="root", client_keys=[key], known_hosts=hosts, config=None, agent_path=None,
        gss_kex=False, gss_auth=False, kex_algs=("curve25519-sha256",), encryption_algs=("aes128-gcm@openssh.com",),
        compression_algs=("none",),
    ) as connection:
        assert (await connection.run("true")).exit_status == 0

async def every():
    slots = asyncio.Semaphore(64)
    await asyncio.gather(*(one(address, slots) for address in sys.argv[3:]))

key, hosts = asyncssh.read_private_key(sys.argv[1]), asyncssh.read_known_hosts(sys.argv[2])
asyncio.run(every())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a child process cost."""

    seconds: float
    cpu: float
    resident_mb: float


def main() -> Part:
    """The part of `make bench`."""
    with simulation(WORK, max(SIZES)) as site:
        for size in (1, *SIZES):
            site.write_cluster(size)
            _command(site, size)  # the first look hashes what the nodes' index does not have
        rows = (*_growth(site), *_small(site), *_one(site))
    return Part(
        name="simulated",
        rows=rows,
        about=circumstances("make bench ONLY=scale", simulated_nodes=max(SIZES)),
    )


@contextmanager
def simulation(folder: Path, nodes: int) -> Iterator[Site]:
    """So many nodes that are as an apply leaves them, and the API that they have joined."""
    site, ca = sim_site.prepare(folder.absolute(), nodes)
    try:
        with Api(site):
            asyncio.run(sim_site.register(site))
            sim_nodes.make(site, ca)
            words = [sys.executable, "-m", "bench.sim_nodes", str(site.folder), str(nodes), site.apiserver]
            with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
                assert server.stdout
                if server.stdout.readline() != b"ready\n":
                    raise BenchFailed("the simulated nodes could not be set up")
                yield site
    finally:
        shutil.rmtree(site.folder, ignore_errors=True)


def _growth(site: Site) -> Iterator[Row]:
    """The whole command for more and more nodes, and bare connections to as many."""
    for size in SIZES:
        runs = [_command(site, size) for _ in range(3)]
        bare = [_cost(_bare(site, size)) for _ in range(3)]
        last = size == max(SIZES)
        cpu = statistics.median(run.cpu for run in runs)
        resident = max(run.resident_mb for run in runs)
        yield Row(
            workload="simulated",
            what="kubeworker apply, nothing to do",
            n=size,
            seconds=tuple(run.seconds for run in runs),
            aim=f"linear; at most {LIMIT_MS} ms of CPU a node, under {LIMIT_MB} MB" if last else "",
            met=1000 * cpu / size <= LIMIT_MS and resident < LIMIT_MB if last else None,
            measured={"cpu_ms_per_node": _ms(cpu, size), "cpu_s": round(cpu, 2), "resident_mb": round(resident)},
        )
        cpu = statistics.median(run.cpu for run in bare)
        yield Row(
            workload="simulated",
            what="bare asyncssh: connect and true",
            n=size,
            seconds=tuple(run.seconds for run in bare),
            kind="floor",
            measured={
                "cpu_ms_per_node": _ms(cpu, size),
                "cpu_s": round(cpu, 2),
                "resident_mb": round(max(run.resident_mb for run in bare)),
            },
        )


def _small(site: Site) -> Iterator[Row]:
    """Fifty nodes, without the start of a process: the tool and both floors take turns."""
    path = site.write_cluster(SMALL)
    tool: list[Timed] = []
    openssh: list[Timed] = []
    bare: list[Timed] = []
    connect = _bare_here(site, SMALL)
    converged(path)
    for _ in range(REPEAT):
        tool.append(timed(lambda: converged(path)))
        openssh.append(timed(lambda: _openssh(site, SMALL)))
        bare.append(timed(connect))
    floors = [
        _row("simulated-50", "ssh NODE true by xargs -P", openssh, "floor"),
        _row("simulated-50", "bare asyncssh: connect and true", bare, "floor"),
    ]
    yield _row("simulated-50", "kubeworker, nothing to do", tool, "tool", floors)
    yield from floors


def _one(site: Site) -> Iterator[Row]:
    """`plan` on one node beside a script that imports the same two libraries and makes one connection."""
    compile_bytecode()
    path = site.write_cluster(1)
    tool: list[Cost] = []
    script: list[Cost] = []
    for _ in range(REPEAT):
        tool.append(_cost([str(COMMAND), "plan", "-f", str(path)]))
        script.append(_cost(_bare(site, 1, imports=", lightkube, httpx2")))
    rows = [
        Row(
            workload="plan-one",
            what=what,
            n=1,
            seconds=tuple(run.seconds for run in runs),
            kind=kind,
            measured={"cpu_ms": _ms(statistics.median(run.cpu for run in runs), 1)},
        )
        for what, runs, kind in (
            ("kubeworker plan", tool, "tool"),
            ("a script: imports, one connection", script, "floor"),
        )
    ]
    yield _judged(rows[0], [rows[1]], "at most 1.2 x a script that imports and connects", (1.2,))
    yield rows[1]


def _row(workload: str, what: str, runs: list[Timed], kind: str, floors: list[Row] | None = None) -> Row:
    row = Row(
        workload=workload,
        what=what,
        n=SMALL,
        seconds=tuple(run.seconds for run in runs),
        kind=kind,
        measured={"cpu_ms_per_node": _ms(statistics.median(run.cpu for run in runs), SMALL)},
    )
    return _judged(row, floors, "at most 0.6 x ssh by xargs, 1.5 x bare asyncssh", (0.6, 1.5)) if floors else row


def _judged(row: Row, floors: list[Row], aim: str, limits: tuple[float, ...]) -> Row:
    ratios = {floor.what: ratio(row, floor) for floor in floors}
    met = all(value <= limit for value, limit in zip(ratios.values(), limits, strict=True))
    return Row(
        workload=row.workload,
        what=row.what,
        n=row.n,
        seconds=row.seconds,
        kind=row.kind,
        ratios=ratios,
        aim=aim,
        met=met,
        measured=row.measured,
    )


def _ms(seconds: float, nodes: int) -> float:
    return round(1000 * seconds / nodes, 2)


def _command(site: Site, size: int) -> Cost:
    return _cost([str(COMMAND), "apply", "--yes", "-f", str(site.cluster_file(size))])


def _bare(site: Site, size: int, imports: str = "") -> list[str]:
    program = _BARE.format(port=PORT, imports=imports)
    addresses = [sim_site.address(index) for index in range(size)]
    return [sys.executable, "-c", program, str(site.identity), str(site.known_hosts), *addresses]


def _bare_here(site: Site, size: int) -> Callable[[], object]:
    """The same in this process, which is up already."""
    program = compile(_BARE.format(port=PORT, imports=""), "bare", "exec")

    def connect() -> None:
        before = sys.argv
        sys.argv = ["bare", str(site.identity), str(site.known_hosts), *map(sim_site.address, range(size))]
        try:
            exec(program, {"__name__": "bare"})  # the very program of the other rows
        finally:
            sys.argv = before

    return connect


def _openssh(site: Site, size: int) -> None:
    options = ["-F", "none", "-i", str(site.identity), "-o", f"UserKnownHostsFile={site.known_hosts}"]
    ssh = ["ssh", *options, "-o", "BatchMode=yes", "-p", str(PORT), "root@{}", "true"]
    addresses = "\n".join(sim_site.address(index) for index in range(size))
    words = ["xargs", "-P", str(size), "-I", "{}", *ssh]
    done = subprocess.run(words, input=addresses, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchFailed(f"ssh by xargs: {done.stderr}")


def _cost(command: list[str]) -> Cost:
    """Run it; BenchFailed where it fails. Memory is the process's own, its children's left out."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchFailed(f"`{command[0]}` ended with status {process.returncode}: {said[-2000:]}")
    return Cost(seconds=seconds, cpu=usage.ru_utime + usage.ru_stime, resident_mb=usage.ru_maxrss / 1024)
