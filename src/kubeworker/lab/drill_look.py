"""What nodes' proxies do, seen in this host's /proc: no process is started on the nodes, which are busy enough.

Machines with a kernel of their own show nothing there, and are left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from kubeworker.core.api_proxy.failover import Sessions
from kubeworker.core.node import proc
from kubeworker.errors import LabError
from kubeworker.lab import cgroups, machine
from kubeworker.lab.state import LabState, Machine

_PORT = 6443
_TICKS = os.sysconf("SC_CLK_TCK")
_PROXY = "kube-nginx"
_PROBE = "kube-nginx-probe"[:15]  # proc_pid_comm(5)

Connection: TypeAlias = tuple[str, int, str]
"""Node, local port, address of the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All nodes at one moment."""

    at: float
    """time.monotonic()"""
    connections: frozenset[Connection]
    """From nodes' kube-nginx to kube-apiservers."""
    workers: Mapping[str, Mapping[int, float]]
    """By node, kube-nginx's worker processes, and since when each runs: seconds since the epoch."""


class Lookout:
    """Looks at the nodes of a lab."""

    def __init__(self, lab: LabState) -> None:
        """Finds their control groups, which takes a moment."""
        self._lab = lab
        # Any one hierarchy has all of a machine's processes.
        self._groups = {each.name: machine.groups(lab, each)[:1] for each in lab.machines if each.kind == "nspawn"}
        found = {name: self._processes(name) for name in self._groups}
        self.nodes = tuple(name for name, processes in found.items() if _PROXY in processes.values())
        """Those with a kube-nginx."""
        self.probed = tuple(name for name in self.nodes if _PROBE in found[name].values())
        """Those of them with a probe."""

    def look(self) -> Look:
        """What there is to see now."""
        at = time.monotonic()
        connections: set[Connection] = set()
        workers: dict[str, dict[int, float]] = {name: {} for name in self.nodes}
        for name in self.nodes:
            for pid, command in self._processes(name).items():
                if command != _PROXY:
                    continue
                with contextlib.suppress(OSError):  # it ended meanwhile
                    # Two of them while one that is told to end has a successor.
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"nginx: worker"):
                        workers[name][pid] = _started(pid)
                        connections |= {(name, *each) for each in _connections(pid)}
        return Look(at=at, connections=frozenset(connections), workers=workers)

    def environment(self, name: str, command: str) -> Mapping[str, str]:
        """The environment of a process of that machine; empty where there is no such process."""
        for pid, found in self._processes(name).items():
            if found == command:
                return proc.environment(Path(f"/proc/{pid}/environ").read_bytes())
        return {}

    def proxy_config(self, name: str) -> str:
        """The configuration that the node's kube-nginx was started with; LabError where there is none."""
        for pid, command in self._processes(name).items():
            title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split() if command == _PROXY else []
            if "-c" in title:
                return Path(f"/proc/{pid}/root{title[title.index('-c') + 1]}").read_text()
        raise LabError("no kube-nginx runs there", subject=name)

    def left_out(self, name: str, control_plane: tuple[Machine, ...]) -> tuple[str, ...]:
        """Machines whose kube-apiserver kube-nginx does not use: by its probe's list, and by what was loaded of it.

        Between the two are moments: a list is written, and the reload that cuts sessions comes then.
        """
        (listed,) = re.findall(r"^\s*include ([^;]+);", self.proxy_config(name), re.MULTILINE)
        path = Path(f"/proc/{self.a_pid(name)}/root{listed}")
        lists = [each.read_text() if each.exists() else "" for each in (path, path.with_name("loaded.conf"))]
        servers = ((server.name, f"server {server.address}:{_PORT}") for server in control_plane)
        return tuple(name for name, line in servers if not all(line in text for text in lists))

    def a_pid(self, name: str) -> int:
        """This host's pid of a process in the machine's network name space; LabError if the machine is off."""
        pid = machine.init_pid(self._lab, self._lab.machine(name))
        if pid is None:
            raise LabError("the machine is off", subject=name, hint=f"kubeworker lab up --name {self._lab.name}")
        return pid

    def _processes(self, name: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for pid in sorted(cgroups.pids(self._groups[name])):
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found


def sessions(before: Look, now: Look, control_plane: tuple[Machine, ...]) -> Sessions:
    """By machine of each kube-apiserver, the connections that are in both looks: none that lives but a moment."""
    lasting = before.connections & now.connections
    return {server.name: sum(address == server.address for _, _, address in lasting) for server in control_plane}


def _connections(pid: int) -> frozenset[tuple[int, str]]:
    """Local port and API server of each connection of the process."""
    table = proc.established(Path(f"/proc/{pid}/net/tcp").read_text(), _PORT)
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return frozenset(table[inode] for inode in proc.socket_inodes(links) if inode in table)


def _started(pid: int) -> float:
    """When the process began, in seconds since the epoch, to a hundredth."""
    since_boot = proc.start_ticks(Path(f"/proc/{pid}/stat").read_text()) / _TICKS
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
