"""The machines' root file system: Debian by debootstrap, built once per suite and package list, then shared.

Machines are overlays over it, so it must never change after it was built: another package list gives another folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from kubeworker.flow.events import Note, Reporter
from kubeworker.lab import cache, host

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "iproute2", "iptables", "ipset", "conntrack", "nftables",
    "ipvsadm", "kmod", "procps", "ca-certificates", "curl", "socat", "ethtool", "mount", "util-linux", "sudo",
)  # fmt: skip
"""What a plain Debian server has, plus the commands that the tool's preflight asks for."""

DEFAULT_SUITE = "bookworm"

_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "console-getty.service", "getty.target", "systemd-logind.service", "systemd-pstore.service",
    "systemd-ask-password-console.path", "systemd-ask-password-wall.path",
)  # fmt: skip
"""Of no use in a throw-away machine; each would cost memory and inotify instances, of which a host has few."""

_CUSTOMISE = f"""\
set -e
useradd --create-home --shell /bin/bash ops
echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
install -d -m 0700 /root/.ssh
install -d -m 0700 -o ops -g ops /home/ops/.ssh
systemctl mask {" ".join(_MASKED)}
rm -f /etc/ssh/ssh_host_* /etc/machine-id /etc/hostname /etc/resolv.conf /var/cache/apt/archives/*.deb
rm -rf /var/lib/apt/lists/*
mkdir -p /data /opt/lab
"""
_ALONE = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
_RECIPE = 1
"""Counts changes of what is done to the file system beside PACKAGES and _CUSTOMISE."""


def source(indextargets: str) -> tuple[str, str]:
    """Suite and mirror of Debian's own `main` as `apt-get indextargets` tells them.

    Where it names none: bookworm, and no mirror (debootstrap has its own).

    Security and update suites have the same Origin, but their Release's Suite or Codename is not a plain name.
    """
    for paragraph in indextargets.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, flags=re.MULTILINE))
        if (
            fields.get("Origin") == "Debian"
            and fields.get("Label") == "Debian"
            and fields.get("Component") == "main"
            and fields.get("Created-By") == "Packages"
            and re.fullmatch(r"[a-z]+", fields.get("Release", ""))
            and fields.get("Repo-URI", "").startswith("http")
        ):
            return fields["Release"], fields["Repo-URI"].rstrip("/")
    return DEFAULT_SUITE, ""


def key(suite: str) -> str:
    """Name of the folder in the cache: the same exactly where the content would be."""
    text = "\n".join((str(_RECIPE), suite, host.architecture(), *PACKAGES, _CUSTOMISE))
    return f"{suite}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def ensure(folder: Path, report: Reporter) -> Path:
    """The finished root file system, built now if the cache has none (1 to 3 minutes)."""
    suite, mirror = debian()

    def make(target: Path) -> None:
        report(Note(text=f"building the machines' root file system ({suite} from {mirror or 'a mirror of its own'})"))
        debootstrap(suite, mirror, PACKAGES, target)
        customise(target)

    return cache.once(folder / "rootfs" / key(suite), make)


def debian() -> tuple[str, str]:
    """Suite and mirror of this host's Debian, as `source` tells them."""
    return source(_indextargets())


def debootstrap(suite: str, mirror: str, packages: Sequence[str], target: Path) -> None:
    """A minimal Debian with these packages in a new folder.

    In namespaces of its own: debootstrap mounts /proc in the target, and ends, with all that it started, when this
    process does. A killed run leaves neither a mount nor a debootstrap that the next run would have beside its own.
    """
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        suite,
        str(target),
        *([mirror] if mirror else []),
    ]
    host.run([*_ALONE, *command], env=_apt_proxy(), timeout=1800)


def customise(target: Path) -> None:
    """Users, masked units, and no identity: host keys and machine-id are each machine's own."""
    host.run(["chroot", target, "/bin/sh", "-c", _CUSTOMISE])


def _indextargets() -> str:
    return _output_or_nothing(lambda: host.run(["apt-get", "indextargets"]))


def _apt_proxy() -> dict[str, str]:
    """The proxy of apt, which debootstrap's wget would not know of."""
    text = _output_or_nothing(lambda: host.run(["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"]))
    proxy = text.strip()
    return {"http_proxy": proxy} if proxy and "http_proxy" not in os.environ else {}


def _output_or_nothing(call: Callable[[], str]) -> str:
    """A command's output; nothing where apt does not exist (debootstrap runs on other systems too)."""
    return call() if shutil.which("apt-get") else ""
