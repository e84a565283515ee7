"""Control groups of the lab's machines, in cgroup v1 hierarchies and in v2.

Each machine runs in a group of its own in every hierarchy, below the group that the caller is in and never at a
root: the caller's limits and accounting keep holding, and no machine's kubelet sees another's pods. The group's
name is also how a machine's processes are found after a crash.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def own_groups() -> tuple[Path, ...]:
    """Folders of the groups that this process is in, one for each mounted hierarchy (cgroups(7))."""
    folders = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:
            top = ROOT / controllers.removeprefix("name=")
        else:
            top = ROOT / "unified" if (ROOT / "unified").is_dir() else ROOT
        if (top / "cgroup.procs").exists():
            folders.append(top / path.lstrip("/"))
    return tuple(folders)


def make(name: str) -> tuple[Path, ...]:
    """Create a group of that name below each of the caller's own; returns their folders."""
    made = []
    for parent in own_groups():
        group = parent / name
        group.mkdir(exist_ok=True)
        # A new cpuset group has no processors and no memory until told (cpuset(7)), and takes no process.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (group / "cgroup.clone_children").exists() and (group / setting).exists():
                (group / setting).write_text((parent / setting).read_text())
        if (group / "cpuset.cpus").exists() and (group / "cgroup.clone_children").exists():
            (group / "cgroup.clone_children").write_text("1")
        made.append(group)
    return tuple(made)


def find(prefix: str) -> tuple[Path, ...]:
    """Every group whose name begins so, in every hierarchy, wherever it hangs."""
    found: list[Path] = []
    for folder, children, _ in os.walk(ROOT):
        ours = [child for child in children if child.startswith(prefix)]
        found += [Path(folder) / child for child in ours]
        children[:] = [child for child in children if child not in ours]
    return tuple(found)


def pids(groups: tuple[Path, ...]) -> frozenset[int]:
    """The processes in these groups and in all groups below them."""
    members: set[int] = set()
    for group in groups:
        for folder, _, files in os.walk(group):
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):  # the group was removed, or (v2, threaded) can't be read
                    members.update(int(line) for line in (Path(folder) / "cgroup.procs").read_text().split())
    members.discard(0)  # a process of another pid namespace
    return frozenset(members)


def kill(groups: tuple[Path, ...], *, limit: float = 20) -> frozenset[int]:
    """SIGKILL every process in the groups until none is left; returns those alive after `limit` seconds."""
    end = time.monotonic() + limit
    while (members := pids(groups)) and time.monotonic() < end:
        for pid in members:
            _kill_member(pid, groups)
        time.sleep(0.05)
    return members


def _kill_member(pid: int, groups: tuple[Path, ...]) -> None:
    """SIGKILL the process if it still is in one of the groups: a pid read a moment ago may be another's now."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _in_groups(pid, groups):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _in_groups(pid: int, groups: tuple[Path, ...]) -> bool:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    paths = [line.split(":", 2)[2].split("/") for line in lines]
    return any(group.name in parts for group in groups for parts in paths)


def remove(groups: tuple[Path, ...], *, limit: float = 10) -> tuple[Path, ...]:
    """Remove the groups with all below them; returns those that are still there after `limit` seconds."""
    end = time.monotonic() + limit
    left = groups
    while left:
        for group in left:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # EBUSY while the last process is being reaped
                    Path(folder).rmdir()
        left = tuple(group for group in left if group.exists())
        if not left or time.monotonic() > end:
            break
        time.sleep(0.05)
    return left
