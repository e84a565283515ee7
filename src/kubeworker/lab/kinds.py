"""The kinds of machines, and who does for each what the lab asks of a machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubeworker.lab import full_kernel, machine
from kubeworker.lab.state import Kind, LabState, Machine


class Run(Protocol):
    """Runs a shell script as root inside a machine; LabError if it is off."""

    def __call__(
        self, lab: LabState, machine: Machine, script: str, /, *, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Driver:
    setup: str
    """The shell script that sets the machine up at each boot, before sysinit.target."""
    boot: Callable[[LabState, Machine, Path], None]
    """Given the root file system, or the disk image, that all machines of the kind share."""
    pid: Callable[[LabState, Machine], int | None]
    """This host's pid of what the machine's life depends on: its init or its kernel. None: it is off."""
    run: Run
    power_off: Callable[[LabState, Machine], None]
    """Begins to; `machine.clear` does the rest."""


_DRIVERS: Mapping[Kind, _Driver] = {
    "nspawn": _Driver(
        setup=machine.SETUP_SCRIPT,
        boot=machine.boot,
        pid=machine.init_pid,
        run=machine.run,
        power_off=machine.power_off,
    ),
    "full-kernel": _Driver(
        setup=full_kernel.SETUP_SCRIPT,
        boot=full_kernel.boot,
        pid=full_kernel.pid,
        run=full_kernel.run,
        power_off=full_kernel.power_off,
    ),
}


def driver(each: Machine) -> _Driver:
    """Who does it for this machine."""
    return _DRIVERS[each.kind]


def run(lab: LabState, each: Machine, script: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root inside the machine; LabError if the machine is off."""
    return driver(each).run(lab, each, script, timeout=timeout)
