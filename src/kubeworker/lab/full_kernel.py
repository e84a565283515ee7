"""One machine with a kernel of its own: user-mode-linux, a Linux kernel that runs as a process of this host.

It needs no virtualisation support and no loop device. Its disk is a copy-on-write file over the shared image; what it
has written is there again after a reboot, and after its process was killed. Its memory is a file in a tmpfs that only
its own processes see, and its network interface a tap device on the lab's bridge. As every machine it is found by its
control group.
"""

from __future__ import annotations

import shlex
import subprocess
import tarfile
from pathlib import Path

from kubeworker.errors import LabError
from kubeworker.io.whole_file import replacing
from kubeworker.lab import cgroups, host, machine, network, ssh, xstate
from kubeworker.lab.full_kernel_image import BOOT
from kubeworker.lab.state import LabState, Machine

KERNEL = "/usr/bin/linux.uml"
MEMORY_MIB = 2048
"""What the machine takes for its memory: of this host's it takes what it has touched."""
ARCHITECTURE = "amd64"
"""Debian has the kernel for no other that the lab knows."""

SETUP_SCRIPT = """\
#!/bin/sh
# Runs before sysinit.target at each boot.
ip link set lo up
ip link set vec0 up
ip address add "$LAB_ADDRESS/24" dev vec0
ip route add default via "$LAB_GATEWAY"
# cAdvisor reads the clock speed there and kubelet ends without it. This kernel tells none; BogoMIPS are twice as many.
bogomips=$(sed -n 's/^bogomips[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/cpuinfo | head -n 1)
sed "s|^bogomips|cpu MHz\\t\\t: $((bogomips / 2)).000\\n&|" /proc/cpuinfo > /run/lab-cpuinfo
mount --bind /run/lab-cpuinfo /proc/cpuinfo
"""

# At a reboot the kernel starts itself again by the name that it was called by, with every file still open that it had:
# a tap device can't be opened twice. So it is called by the name of this script.
VM_SCRIPT = f"""\
#!/bin/bash
for link in /proc/self/fd/*; do
  number=${{link##*/}}
  if [ "$number" -gt 2 ]; then eval "exec $number>&-"; fi
done
exec -a "$0" {KERNEL} "$@"
"""


def boot(lab: LabState, each: Machine, image: Path) -> None:
    """Power on; returns at once. What a dead one left of itself must be gone (`clear`)."""
    folder = lab.machine_folder(each)
    program = folder / "vm"
    program.write_text(VM_SCRIPT)
    program.chmod(0o700)
    if not seed(folder).exists():
        write_seed(folder)
    network.ensure_tap(lab.link(each), lab.bridge)
    memory = folder / "mnt"
    # The kernel adds to its memory's file what its own text takes.
    size = f"size={2 * MEMORY_MIB}m,mode=0700"
    environment = (f"TMPDIR={memory}", f"HOME={memory}", f"LD_PRELOAD={xstate.library(image.parent)}")
    script = " && ".join(
        (
            shlex.join(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(memory)]),
            shlex.join(["exec", "env", *environment, str(program), *options(lab, each, image)]),
        )
    )
    machine.launch(
        lab, each, "exec " + shlex.join(["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script])
    )


def options(lab: LabState, each: Machine, image: Path) -> tuple[str, ...]:
    """The kernel's command line (https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html)."""
    folder = lab.machine_folder(each)
    disk = folder / "disk.cow"
    # The file knows what it lies over: after an upgrade of the lab another image may be the current one.
    over = str(disk) if disk.exists() else f"{disk},{image}"
    return (
        f"mem={MEMORY_MIB}M",
        f"umid={each.name}",
        f"uml_dir={folder / 'mnt'}/",
        f"ubd0={over}",
        f"ubd1r={seed(folder)}",
        "root=/dev/ubda",
        "rw",
        f"init={BOOT}",
        f"vec0:transport=tap,ifname={lab.link(each)},depth=128,gro=1",
        "net.ifnames=0",
        # Its console is this process's output.
        "con0=null,fd:1",
        "con=null",
        "ssl=null",
    )


def seed(folder: Path) -> Path:
    """The machine's second disk: an archive with its own files, its host key among them."""
    return folder / "seed.tar"


def write_seed(folder: Path) -> None:
    """Write it, by rename, from what makes the machine differ (`upper`)."""
    with replacing(seed(folder), mode=0o600) as file, tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(folder / "upper", arcname=".")


def pid(lab: LabState, each: Machine) -> int | None:
    """The kernel's process; None if the machine is off.

    Its helpers, and the processes that run the programs inside, are called alike, but it leads the session, from
    before it becomes the kernel until after a reboot.
    """
    return next((member for member in sorted(cgroups.pids(machine.groups(lab, each))) if _leads(member)), None)


def _leads(member: int) -> bool:
    try:
        text = Path(f"/proc/{member}/stat").read_text()
    except OSError:
        return False
    # State, parent, process group and session follow the name in brackets (proc_pid_stat(5)).
    state, _, _, session = text.rpartition(")")[2].split()[:4]
    return state != "Z" and int(session) == member


def run(lab: LabState, each: Machine, script: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root inside the machine, through its sshd; LabError if the machine is off."""
    return machine.run_by(lab, each, pid(lab, each), ssh.command(lab, each), script, timeout)


def power_off(lab: LabState, each: Machine) -> None:
    """Pull the plug: it is done to machines that are removed with their disk, and a clean end takes a minute."""
    machine.clear(lab, each)


def require_host() -> None:
    """LabError where such machines can't run."""
    if host.architecture() != ARCHITECTURE:
        raise LabError(
            f"Debian has user-mode-linux for {ARCHITECTURE} only", subject="--full-kernel", hint="use --workers"
        )
