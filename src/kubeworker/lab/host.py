"""This host as the lab sees it: what it can do, what is installed, and running its commands."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kubeworker.core.artifacts import elf
from kubeworker.core.artifacts.artifact import Architecture
from kubeworker.errors import LabError

NEEDED = (
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("ip", "iproute2"),
    ("ssh", "openssh-client"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("gcc", "gcc"),
)
"""Commands that the lab runs on this host, with the Debian package of each."""
NEEDED_FULL_KERNEL = (("linux.uml", "user-mode-linux"), ("mke2fs", "e2fsprogs"), ("bash", "bash"))
"""The same for machines with a kernel of their own."""
BUSYBOX_PACKAGE = "busybox-static"
"""Its busybox goes into an image; Debian's plain `busybox` needs libc."""
LIBC_ARCHIVE_PACKAGE = "libc6-dev"
"""Has libc.a, for the static `pause`."""
KEYRING_PACKAGE = "debian-archive-keyring"
"""What debootstrap checks Debian's index with; other distributions don't have it from the start."""

_CAP_SYS_RESOURCE = 24
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    command: Sequence[str | Path],
    *,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    subject: str = "this host",
) -> str:
    """Standard output of a command of this host; LabError with its last error lines if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            env={**os.environ, "PATH": _SEARCH, "LC_ALL": "C.UTF-8", **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{words[0]}` took more than {timeout:.0f} s", subject=subject) from error
    except FileNotFoundError as error:
        raise LabError(f"`{words[0]}` is not installed", subject=subject) from error
    if done.returncode:
        tail = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise LabError(f"`{' '.join(words)}` failed with status {done.returncode}: {tail}", subject=subject)
    return done.stdout


def require_root() -> None:
    """LabError unless this process is root: namespaces, bridges and mounts need it."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root", subject="this host", hint="run it as root, or with sudo")


def missing_packages(*, full_kernel: bool = False) -> tuple[str, ...]:
    """Debian packages of the commands that are not installed."""
    needed = (*NEEDED, *(NEEDED_FULL_KERNEL if full_kernel else ()))
    missing = [package for command, package in needed if shutil.which(command, path=_SEARCH) is None]
    if not _is_static(shutil.which("busybox", path=_SEARCH)):
        missing.append(BUSYBOX_PACKAGE)
    if not any(Path("/usr/lib").glob("*/libc.a")):
        missing.append(LIBC_ARCHIVE_PACKAGE)
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.append(KEYRING_PACKAGE)
    return tuple(missing)


def _is_static(program: str | None) -> bool:
    """Whether the program is there and runs without any library, as in an image that holds nothing else."""
    if program is None:
        return False
    content = Path(program).read_bytes()
    headers = elf.parse(lambda offset, length: content[offset : offset + length])
    return headers is not None and headers.static


def install_packages(packages: Sequence[str]) -> None:
    """Install them with apt-get; LabError on another system, or if apt-get fails."""
    if not packages:
        return
    if shutil.which("apt-get", path=_SEARCH) is None:
        raise LabError(
            f"commands are missing that Debian has in: {', '.join(packages)}",
            subject="this host",
            hint="install them with your system's package manager",
        )
    # Another apt may be at work (unattended upgrades): wait for it.
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(install, env=quiet, timeout=900)
    except LabError:
        # Package lists may be absent (fresh images) or too old for the mirror.
        run(["apt-get", "update"], env=quiet, timeout=600)
        run(install, env=quiet, timeout=900)


def architecture() -> Architecture:
    """This host's architecture in Go's spelling; LabError for one that the lab has no binaries for."""
    match platform.machine():
        case "x86_64":
            return "amd64"
        case "aarch64":
            return "arm64"
        case other:
            raise LabError(f"architecture {other} is not supported", subject="this host")


def has_systemd() -> bool:
    """Whether systemd is this host's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def has_sys_resource() -> bool:
    """Whether CAP_SYS_RESOURCE is in the bounding set; without it no OOM score can be lowered."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def has_ipvs() -> bool:
    """Whether the kernel has IPVS, built in or as a module."""
    if Path("/proc/net/ip_vs").exists():
        return True
    modprobe = shutil.which("modprobe", path=_SEARCH)
    if modprobe is None:
        return False
    return subprocess.run([modprobe, "--dry-run", "ip_vs"], capture_output=True, check=False).returncode == 0


def free_inotify_instances() -> int:
    """How many more inotify(7) instances this user can have, in all containers together.

    The limit holds for each user, and a machine's root is this host's. An instance that several processes share
    is counted for each of them.
    """
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    return limit - sum(_inotify_instances(process) for process in Path("/proc").glob("[0-9]*"))


def _inotify_instances(process: Path) -> int:
    try:
        if process.stat().st_uid != os.getuid():
            return 0
        return sum(_points_to(descriptor) == "anon_inode:inotify" for descriptor in (process / "fd").iterdir())
    except OSError:  # it ended meanwhile
        return 0


def _points_to(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
