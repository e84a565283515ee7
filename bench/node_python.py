"""A whole Python for the bench's machines: Ansible's modules need one. kubeworker does not, and no other lab has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kubeworker.flow import events
from kubeworker.lab import cache, host, rootfs, state


def tree() -> Path:
    """Debian's package `python3` with what it needs beside the machines' root file system, unpacked; made once."""
    folder = state.cache_folder()
    base = rootfs.ensure(folder, events.silent)
    return cache.once(folder / "bench-python" / base.name, lambda target: _make(base, target))


def place(files: Path, disk: Path) -> None:
    """Into a machine's disk before its first boot, by hard links where both lie on one file system."""
    disk.mkdir(parents=True, exist_ok=True)
    disk.chmod(0o755)
    for options in (["--archive", "--link"], ["--archive"]):
        if subprocess.run(["cp", *options, f"{files}/.", f"{disk}/"], capture_output=True, check=False).returncode == 0:
            return
    host.run(["cp", "--archive", f"{files}/.", f"{disk}/"])


def _make(base: Path, target: Path) -> None:
    debs = target.with_name(target.name + ".debs")
    (debs / "partial").mkdir(parents=True)
    try:
        options = (
            f"Dir::State::status={base}/var/lib/dpkg/status",
            f"Dir::Cache::archives={debs}",
            "Debug::NoLocking=1",
            "APT::Sandbox::User=root",
        )
        words = [word for option in options for word in ("-o", option)]
        host.run(["apt-get", *words, "install", "--yes", "--no-install-recommends", "--download-only", "python3"])
        target.mkdir(parents=True, exist_ok=True)
        for deb in sorted(debs.glob("*.deb")):
            host.run(["dpkg-deb", "--extract", deb, target])
    finally:
        shutil.rmtree(debs, ignore_errors=True)
    _merge_usr(target)
    _compile(target)


def _merge_usr(target: Path) -> None:
    """A package may still name /lib, which is a link to /usr/lib on the machines."""
    for name in ("lib", "lib64", "bin", "sbin"):
        if (target / name).is_dir():
            host.run(["cp", "--archive", f"{target / name}/.", f"{target / 'usr' / name}/"])
            shutil.rmtree(target / name)


def _compile(target: Path) -> None:
    """What the package's own script does when it is installed; else the first run of each module would do it."""
    (program,) = target.glob("usr/bin/python3.*[0-9]")
    library = target / "usr/lib" / program.name
    words = [str(program), "-m", "compileall", "-q", "-s", str(target), "-p", "/", str(library)]
    environment = os.environ | {"PYTHONHOME": str(target / "usr")}
    subprocess.run(words, env=environment, capture_output=True, check=False)
