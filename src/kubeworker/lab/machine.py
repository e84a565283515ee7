"""One machine: its disk, its boot, and its end.

A machine is a systemd-nspawn container with real systemd and real sshd. Its root is an overlay over the shared root
file system, mounted in a mount namespace of the machine's own: when its processes die, however they die, the
mounts are gone. Its processes are found by their control group, its init by its pid namespace; nothing depends on
pid files.

On a host whose init is systemd the machine runs as a transient service with a delegated control group. That
branch follows systemd-nspawn@.service; it was not tried on such a host yet.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kubeworker.errors import LabError
from kubeworker.lab import cgroups, control_plane, host, kernel, network
from kubeworker.lab.state import LabState, Machine

_NSPAWN_RUN = "/run/systemd/nspawn"
_SETUP = "/opt/lab/machine-setup"

# systemd-nspawn leaves these read-only or shared with the host; a node needs them writable or of its own.
SETUP_SCRIPT = """\
#!/bin/sh
# Runs before sysinit.target at each boot.
# runc makes control groups here.
for folder in /sys/fs/cgroup /sys/fs/cgroup/*; do
  if mountpoint -q "$folder"; then mount -o remount,bind,rw "$folder"; fi
done
# A BPF file system of the machine's own, for the network plugin's pinned maps. nspawn's /sys stays read-only: where it
# can be written, networkd waits for a udev that no container has.
if ! mountpoint -q /sys/fs/bpf; then
  mount -o remount,rw /sys
  mkdir -p /sys/fs/bpf
  mount -t bpf bpf /sys/fs/bpf
  mount -o remount,ro /sys
fi
# What the kernel has built in, for modprobe (where the lab wrote it: see lab/kernel.py).
if [ -w "/lib/modules/$(uname -r)/modules.builtin" ]; then depmod; fi
# kubelet, containerd and network plugins need mounts to propagate.
mount --make-rshared /
# Settings without a namespace belong to the host, whose /proc/sys is read-only here. kubelet insists on writing some
# of them: it gets files of the machine's own, with the values that it wants to see kept.
for key in vm/overcommit_memory vm/panic_on_oom vm/swappiness vm/max_map_count kernel/panic kernel/panic_on_oops \\
           kernel/pid_max kernel/keys/root_maxkeys kernel/keys/root_maxbytes fs/file-max fs/nr_open \\
           fs/inotify/max_user_watches fs/inotify/max_user_instances; do
  if [ -e "/proc/sys/$key" ]; then
    mkdir -p "/run/lab-sysctl/${key%/*}"
    cat "/proc/sys/$key" > "/run/lab-sysctl/$key"
    mount --bind "/run/lab-sysctl/$key" "/proc/sys/$key"
  fi
done
# The host may swap; the machine's own swap is none.
if [ "$(wc -l < /proc/swaps)" -gt 1 ]; then
  head -n 1 /proc/swaps > /run/lab-swaps
  mount --bind /run/lab-swaps /proc/swaps
fi
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set lo up
ip address add "$LAB_ADDRESS/24" dev host0
ip link set host0 up
ip route add default via "$LAB_GATEWAY"
"""

_SETUP_UNIT = """\
[Unit]
Description=Lab machine set-up
DefaultDependencies=no
Before=sysinit.target systemd-sysctl.service
[Service]
Type=oneshot
RemainAfterExit=yes
Environment=LAB_ADDRESS={address} LAB_GATEWAY={gateway}
ExecStart=/bin/sh {script}
"""


def disk(
    lab: LabState,
    machine: Machine,
    *,
    setup: str,
    ssh_public: str,
    host_key: tuple[bytes, str],
    pki: Mapping[str, bytes],
) -> None:
    """Write what makes this machine differ from the shared root file system; an existing disk is kept.

    `setup` is the shell script that it runs first at each boot.
    """
    folder = lab.machine_folder(machine)
    upper = folder / "upper"
    if (folder / "complete").exists():
        return
    for name in ("upper", "work", "mnt", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    upper.chmod(0o755)
    files = _files(lab, machine, host_key) | {_SETUP: setup.encode()}
    if machine.is_control_plane:
        files |= control_plane.files(lab, machine, pki)
        for unit in control_plane.units(lab, machine):
            _link(upper, f"/etc/systemd/system/multi-user.target.wants/{unit}", f"/etc/systemd/system/{unit}")
    for path, content in files.items():
        _write(upper, path, content, mode=0o600 if _is_secret(path) else 0o644)
    _link(
        upper, "/etc/systemd/system/sysinit.target.wants/lab-machine.service", "/etc/systemd/system/lab-machine.service"
    )
    for home, owner in (("/root", 0), ("/home/ops", 1000)):
        _write(upper, f"{home}/.ssh/authorized_keys", f"{ssh_public}\n".encode(), mode=0o600)
        for path in (home, f"{home}/.ssh"):
            (upper / path.lstrip("/")).chmod(0o700)
        for path in (home, f"{home}/.ssh", f"{home}/.ssh/authorized_keys"):
            os.chown(upper / path.lstrip("/"), owner, owner)
    (folder / "complete").touch()


def _files(lab: LabState, machine: Machine, host_key: tuple[bytes, str]) -> dict[str, bytes]:
    private, public = host_key
    hosts = "".join(f"{other.address}\t{other.name}\n" for other in lab.machines)
    return {
        "/etc/hostname": f"{machine.name}\n".encode(),
        "/etc/machine-id": f"{machine.machine_id}\n".encode(),
        "/etc/hosts": f"127.0.0.1\tlocalhost\n{hosts}".encode(),
        "/etc/resolv.conf": b"# The lab has no name server; machines know each other from /etc/hosts.\n",
        "/etc/ssh/ssh_host_ed25519_key": private,
        "/etc/ssh/ssh_host_ed25519_key.pub": f"{public}\n".encode(),
        "/etc/systemd/system/lab-machine.service": _SETUP_UNIT.format(
            address=machine.address, gateway=lab.gateway, script=_SETUP
        ).encode(),
    }


def _is_secret(path: str) -> bool:
    return path.endswith(("_key", ".kubeconfig")) or path.startswith(control_plane.PKI)


def _write(upper: Path, path: str, content: bytes, *, mode: int) -> None:
    target = upper / path.lstrip("/")
    _folders(upper, target.parent)
    target.touch(mode=0o600)
    target.write_bytes(content)
    target.chmod(mode)


def _link(upper: Path, path: str, points_to: str) -> None:
    link = upper / path.lstrip("/")
    _folders(upper, link.parent)
    link.unlink(missing_ok=True)
    link.symlink_to(points_to)


def _folders(upper: Path, folder: Path) -> None:
    """Make the folder as a Debian system has it, whatever the caller's umask: in an overlay the upper mode counts."""
    if folder != upper and not folder.is_dir():
        _folders(upper, folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def boot(lab: LabState, machine: Machine, rootfs: Path) -> None:
    """Power on; returns at once. What a dead one left of itself must be gone (`clear`)."""
    for path, content in kernel.machine_files().items():
        _write(lab.machine_folder(machine) / "upper", path, content, mode=0o644)
    launch(lab, machine, _boot_script(lab, machine, rootfs))


def launch(lab: LabState, machine: Machine, script: str) -> None:
    """Start a shell script as the machine's first process, in its own control groups, the leader of a session."""
    console = lab.machine_folder(machine) / "console.log"
    scope = lab.scope(machine)
    if host.has_systemd():
        properties = ("Delegate=yes", "KillMode=mixed", "TasksMax=infinity", f"StandardOutput=append:{console}")
        options = [f"--property={value}" for value in properties]
        host.run(["systemd-run", "--quiet", "--collect", f"--unit={scope}", *options, "/bin/sh", "-c", script])
        return
    groups = cgroups.make(scope)
    # All groups are known before the first move: moving changes what the process would read of itself.
    moves = "".join(f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))}\n" for group in groups)
    # It moves first and forks then: when this returns, the machine's first process can be found by its group.
    detach = shlex.join(["setsid", "--fork", "/bin/sh", "-c", script])
    with console.open("ab") as log:
        subprocess.run(
            ["/bin/sh", "-c", f"set -e\n{moves}exec {detach}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            check=True,
        )


def _boot_script(lab: LabState, machine: Machine, rootfs: Path) -> str:
    folder = lab.machine_folder(machine)
    layers = f"lowerdir={rootfs},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    mounts = (
        ["mount", "-t", "overlay", "overlay", "-o", layers, str(folder / "mnt")],
        # nspawn's locks and propagation folders, which a killed one would leave on the host.
        ["mkdir", "-p", _NSPAWN_RUN],
        ["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", _NSPAWN_RUN],
    )
    prepare = " && ".join(shlex.join(command) for command in mounts)
    # 133: the machine asked for a reboot (systemd-nspawn(1), --keep-unit).
    inner = f"{prepare} && while {shlex.join(_nspawn(lab, machine))}; [ $? -eq 133 ]; do :; done"
    return "exec " + shlex.join(["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", inner])


def _nspawn(lab: LabState, machine: Machine) -> list[str]:
    folder = lab.machine_folder(machine)
    binds = [f"--bind={folder / 'data'}:/data"]  # containerd's snapshots need a plain file system, no overlay
    binds += [f"--bind={device}" for device in ("/dev/fuse", "/dev/kmsg") if Path(device).exists()]
    if machine.is_control_plane:
        binds.append(f"--bind-ro={lab.folder / 'bin'}:{control_plane.BIN}")
    if kernel.has_modules():
        binds.append("--bind-ro=/lib/modules")
    return [
        "env",
        "SYSTEMD_SECCOMP=0",  # runc and kubelet need system calls that nspawn's filter refuses
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--register=no",
        "--keep-unit",
        f"--directory={folder / 'mnt'}",
        f"--machine={lab.nspawn_name(machine)}",
        f"--hostname={machine.name}",
        f"--uuid={machine.machine_id}",
        f"--network-bridge={lab.bridge}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--capability=all",
        *binds,
    ]


def groups(lab: LabState, machine: Machine) -> tuple[Path, ...]:
    """The machine's own control groups."""
    return cgroups.find(lab.scope(machine))


def init_pid(lab: LabState, machine: Machine) -> int | None:
    """This host's pid of the machine's init; None if the machine is off."""
    for pid in sorted(cgroups.pids(groups(lab, machine))):
        if _is_init(pid):
            return pid
    return None


def _is_init(pid: int) -> bool:
    """Whether it is pid 1 exactly one pid namespace below this host's: a pod's pid 1 is deeper."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    # NSpid: the pid in each namespace from this procfs's down to the process's own (proc_pid_status(5)).
    fields = {line.split(":")[0]: line.split(":")[1].split() for line in status.splitlines() if ":" in line}
    ids = fields.get("NSpid", [])
    return len(ids) == 2 and ids[1] == "1" and fields["State"][0] != "Z"


def run(lab: LabState, machine: Machine, script: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root inside the machine, not through its sshd; LabError if the machine is off."""
    pid = init_pid(lab, machine)
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
    return run_by(lab, machine, pid, ["nsenter", f"--target={pid}", *namespaces, "--root", "--wd"], script, timeout)


def run_by(
    lab: LabState, machine: Machine, pid: int | None, way: Sequence[str], script: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a shell script by the command that begins with `way`; LabError where there is no `pid`: it is off."""
    if pid is None:
        raise LabError("the machine is off", subject=machine.name, hint=f"kubeworker lab up --name {lab.name}")
    environment = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
    return subprocess.run(
        [*way, *environment, "/bin/sh", "-s"],
        input=script,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def refresh_manager(lab: LabState, machine: Machine) -> None:
    """Have the controller-manager run as the lab's state says now: its unit may be of an earlier `lab up`."""
    path = f"/etc/systemd/system/{control_plane.MANAGER_UNIT}"
    text = control_plane.units(lab, machine)[control_plane.MANAGER_UNIT]
    script = f"""\
set -e
wanted=$(mktemp)
cat > "$wanted" <<'EOF'
{text}EOF
if cmp -s "$wanted" {path}; then rm "$wanted"; exit 0; fi
chmod 0644 "$wanted"
mv "$wanted" {path}
systemctl daemon-reload
systemctl restart {control_plane.MANAGER_UNIT}
"""
    done = run(lab, machine, script)
    if done.returncode != 0:
        raise LabError(f"{control_plane.MANAGER_UNIT} was not restarted: {done.stderr}", subject=machine.name)


def power_off(lab: LabState, machine: Machine) -> None:
    """Ask the machine's systemd to shut down; does not wait, and does not care if it can't any more."""
    if init_pid(lab, machine) is None:
        return
    try:
        run(lab, machine, "systemctl poweroff --no-block", timeout=10)
    except (LabError, subprocess.TimeoutExpired):
        return  # `clear` ends it


def wait_off(lab: LabState, machine: Machine, limit: float) -> None:
    """Return when no process of the machine is left, at the latest after `limit` seconds."""
    end = time.monotonic() + limit
    while cgroups.pids(groups(lab, machine)) and time.monotonic() < end:
        time.sleep(0.1)


def clear(lab: LabState, machine: Machine) -> None:
    """Remove whatever is left of the machine but its disk: processes, control groups, its network link."""
    clear_scope(lab.scope(machine), lab.link(machine))


def clear_scope(scope: str, link: str) -> None:
    """The same by name alone, for a machine that no `lab.json` tells of any more."""
    found = cgroups.find(scope)
    alive = cgroups.kill(found)
    if alive:
        raise LabError(f"processes {sorted(alive)} don't end", subject=scope, hint="they may hang in the kernel: dmesg")
    stuck = cgroups.remove(found)
    if stuck:
        raise LabError(f"control group {stuck[0]} can't be removed", subject=scope)
    network.remove_link(link)


def console_tail(lab: LabState, machine: Machine, lines: int = 12) -> str:
    """The last lines of the machine's console, for an error message."""
    log = lab.machine_folder(machine) / "console.log"
    if not log.exists():
        return "(no console output)"
    text = log.read_text(errors="replace")
    return "\n".join(line.strip() for line in text.splitlines()[-lines:] if line.strip()) or "(no console output)"
