"""A thousand nodes on one host: each a root directory, namespaces and an OpenSSH server of its own, and no processes.

    python -m bench.sim_nodes FOLDER NODES     makes them, says "ready", serves until its standard input ends

A simulated node is made of
- an overlay over the lab's Debian, with everything in it that the tool puts on a node, as it is after an apply;
- a mount, a network (its own address and settings) and a UTS namespace (its host name), which this process holds open;
- an address of 127.0.0.0/8 with a listening socket of this process, which starts a real `sshd -i` inside for each
  connection, as inetd would: with the node's own host key, and with the tool's real shell program as its command.

How it differs from a machine: no process runs between two connections, so `systemctl` is a script that prints what
systemd would say of units that run; the kernel, /proc/1 and /dev are the host's; binaries are hard links to one copy;
sshd does without PAM. The control host can tell none of it apart from machines but by the time they take.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench import sim_site
from bench.sim_site import Site
from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.actions import StartUnit
from kubeworker.core.certificates.pki import Ca
from kubeworker.core.component import Credentials, Facts
from kubeworker.core.desired import Inputs
from kubeworker.core.diff import diff
from kubeworker.core.model import Blob, NodeState
from kubeworker.core.node import probe
from kubeworker.core.node.observed import Observed
from kubeworker.core.spec import NodeSpec
from kubeworker.flow import artifacts, credentials, events
from kubeworker.io import cluster_file
from kubeworker.io.blob_store import BlobStore
from kubeworker.lab import pki as lab_pki
from kubeworker.lab import rootfs

CONTAINER = "simulation"
"""What the nodes call themselves, as a container says in /run/systemd/container: their kernel is the host's."""

_SETTING_UP = 3
"""Nodes that are set up at once."""

_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
PrintLastLog no
LogLevel QUIET
"""

_SYSTEMCTL = """\
#!/bin/sh
[ "$1" = show ] || { echo "systemctl $1: this node is a simulation" >&2; exit 1; }
exec cat /run/units
"""

# Namespaces live as long as something holds them; the caller opens them once this has said "ready". The host's mounts
# are left behind whole by pivot_root(2).
_SET_UP = """\
set -e
cd "$folder"
mount -t overlay overlay -o "lowerdir=$common:$rootfs,upperdir=upper,workdir=work" root
for each in proc sys dev; do mount --rbind "/$each" "root/$each"; done
echo systemd > root/run/init
mount --bind root/run/init root/proc/1/comm
hostname "$name"
ip -batch - <<END
link set lo up
address add $address/16 dev lo
END
echo 1 > /proc/sys/net/ipv4/ip_forward
mkdir -p root/mnt/host
pivot_root root root/mnt/host
umount -l /mnt/host
echo ready
exec cat > /dev/null
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimNode:
    """One node, set up: its address, and its namespaces as open files of this process."""

    address: str
    mount: int
    network: int
    uts: int

    @property
    def server(self) -> list[str]:
        """The command that serves one connection, which it finds as its standard input."""
        files = {"mount": self.mount, "net": self.network, "uts": self.uts}
        inside = [f"--{kind}=/proc/{os.getpid()}/fd/{number}" for kind, number in files.items()]
        return ["nsenter", *inside, "/usr/sbin/sshd", "-i", "-f", "/etc/ssh/simulation"]


def make(site: Site, ca: Ca) -> None:
    """Write every node's own files, and known_hosts with their keys."""
    registry = discover()
    spec = cluster_file.load(site.cluster_file(), registry)
    store = BlobStore.default()
    blobs = asyncio.run(artifacts.resolve(site.cluster_file(), spec, desired.artifacts(spec, registry), store=store))
    proxy = credentials.kube_proxy(site.cluster_file(), ca, now=datetime.now(UTC), lifetime=timedelta(days=365))
    credentials.write(site.cluster_file(), proxy)
    inputs = Inputs(
        cluster=spec,
        registry=registry,
        blobs=blobs,
        archives={},
        local_files={},
        credentials=Credentials(ca_cert=ca.pem, kube_proxy_cert=proxy.cert, kube_proxy_key=proxy.key),
    )
    copies = _copies(site, blobs.values(), store)
    _common(site)
    hosts = []
    states = [(node, _state(inputs, node)) for node in spec.nodes]
    for index, (node, state) in enumerate(states):
        private, public = lab_pki.ssh_key(node.name)
        hosts.append(f"[{sim_site.address(index)}]:{sim_site.PORT} {' '.join(public.split()[:2])}\n")
        root = site.folder / "nodes" / node.name / "upper"
        _write_state(root, state, copies)
        _write(root, "/etc/ssh/ssh_host_ed25519_key", private, mode=0o600)
        _write(root, "/etc/machine-id", f"{hashlib.md5(node.name.encode()).hexdigest()}\n".encode())
        _write(root, "/run/units", _units(state).encode())
        _write(
            root, "/etc/kubernetes/cert/kubelet-client-1.pem", sim_site.client_certificate(ca, node.name), mode=0o600
        )
        (root / "etc/kubernetes/cert/kubelet-client-current.pem").symlink_to("kubelet-client-1.pem")
    # A link changes the ctime of what it leads to, so that no hash counts before the last one is made.
    for node, state in states:
        root = site.folder / "nodes" / node.name / "upper"
        _write(root, f"{probe.HOME}/index", _index(root, state).encode(), mode=0o600)
    site.known_hosts.write_text("".join(hosts))


def _state(inputs: Inputs, node: NodeSpec) -> NodeState:
    return inputs.state(node, Facts(joined=True, container=CONTAINER))


def _copies(site: Site, blobs: Iterable[Blob], store: BlobStore) -> Mapping[str, Path]:
    """One copy of each binary, by hash: the cache's own must not get links, which change its ctime."""
    folder = site.folder / "blobs"
    folder.mkdir()
    made = {}
    for blob in blobs:
        made[blob.sha256] = folder / blob.sha256
        shutil.copyfile(store.path(blob), made[blob.sha256])
        made[blob.sha256].chmod(0o755)
    return made


def _common(site: Site) -> None:
    """A layer between Debian and every node."""
    root = site.folder / "common"
    _write(root, "/etc/ssh/simulation", _SSHD.encode())
    _write(root, "/etc/ssh/authorized_keys", (site.folder / "authorized_keys").read_bytes(), mode=0o600)
    _write(root, "/usr/local/bin/systemctl", _SYSTEMCTL.encode(), mode=0o755)
    _write(root, "/run/systemd/container", CONTAINER.encode())
    _write(root, "/etc/resolv.conf", b"")
    _folder(root, root / "run/sshd")


def _write_state(root: Path, state: NodeState, copies: Mapping[str, Path]) -> None:
    """What an apply leaves, start records included."""
    bare = Observed(clock=0, hostname="", machine_id="", machine="", kernel="", cgroup=2)
    todo = [action for stage in diff(state, bare) for action in stage.actions]
    records = {action.unit.name: action.record for action in todo if isinstance(action, StartUnit)}
    for stage in state.stages:
        for directory in stage.directories:
            place = root / directory.path.lstrip("/")
            _folder(root, place)
            place.chmod(directory.mode)
        for binary in stage.binaries:
            for path in (binary.path, probe.store_path(state.bin_dir, binary.blob.sha256)):
                place = root / path.lstrip("/")
                _folder(root, place.parent)
                if not place.exists():
                    place.hardlink_to(copies[binary.blob.sha256])
        for file in (*stage.files, *(unit.file for unit in stage.units)):
            _write(root, file.path, file.content, mode=file.mode)
        for link in stage.links:
            place = root / link.path.lstrip("/")
            _folder(root, place.parent)
            place.symlink_to(link.target)
        for target in stage.kubeconfigs:
            _write(root, target.path, target.content, mode=0o600)
        for unit in stage.units:
            record = f"{records[unit.name]} {_INVOCATION}\n"
            _write(root, f"{probe.HOME}/started/{unit.name}", record.encode(), mode=0o600)


_INVOCATION = "5" * 32


def _units(state: NodeState) -> str:
    """`systemctl show` of units that run, and of those that must not be there."""
    blocks = []
    for stage in state.stages:
        blocks += [
            f"Id={unit.name}\nLoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n"
            f"NeedDaemonReload=no\nInvocationID={_INVOCATION}\nMainPID=100\nNRestarts=0\n"
            f"FragmentPath={unit.path}\nDropInPaths=\nStateChangeTimestamp=Wed 2026-11-25 10:00:00 UTC\n"
            for unit in stage.units
        ]
        blocks += [
            f"Id={unit.name}\nLoadState=not-found\nActiveState=inactive\nSubState=dead\nUnitFileState=\n"
            "NeedDaemonReload=no\nInvocationID=\nMainPID=0\nNRestarts=0\nFragmentPath=\nDropInPaths=\n"
            for unit in stage.absent_units
        ]
    return "\n".join(blocks)


def _index(root: Path, state: NodeState) -> str:
    lines = []
    for stage in state.stages:
        for binary in stage.binaries:
            for path in (binary.path, probe.store_path(state.bin_dir, binary.blob.sha256)):
                stat = (root / path.lstrip("/")).stat()
                times = "\t".join(f"{ns // 10**9}.{ns % 10**9:09d}" for ns in (stat.st_mtime_ns, stat.st_ctime_ns))
                lines.append(f"{binary.blob.sha256}\t{stat.st_size}\t{times}\t{stat.st_ino}\t{path}\n")
    return "".join(lines)


def _write(root: Path, path: str, content: bytes, *, mode: int = 0o644) -> None:
    place = root / path.lstrip("/")
    _folder(root, place.parent)
    place.write_bytes(content)
    place.chmod(mode)


def _folder(root: Path, folder: Path) -> None:
    """As a Debian system has it: in an overlay the upper folder's mode counts."""
    if not folder.is_dir():
        if folder != root:
            _folder(root, folder.parent)
        folder.mkdir(parents=True)
        folder.chmod(0o755)


def set_up(site: Site, index: int, debian: Path) -> SimNode:
    """Make the node's namespaces and hold them."""
    folder = site.folder / "nodes" / sim_site.name(index)
    for each in ("work", "root"):
        (folder / each).mkdir(exist_ok=True)
    words = {
        "folder": folder,
        "common": site.folder / "common",
        "rootfs": debian,
        "name": sim_site.name(index),
        "address": sim_site.node_address(index),
    }
    command = ["unshare", "--mount", "--net", "--uts", "--propagation", "private", "sh", "-c", _SET_UP]
    environment = {"PATH": os.environ["PATH"]} | {key: str(value) for key, value in words.items()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"{sim_site.name(index)} could not be set up")
        spaces = (os.open(f"/proc/{process.pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "net", "uts"))
        mount, network, uts = spaces
        return SimNode(address=sim_site.address(index), mount=mount, network=network, uts=uts)


def serve(nodes: Iterable[SimNode]) -> None:
    """Answer connections until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how an sshd ended
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for node in nodes:
        listener = socket.create_server((node.address, sim_site.PORT), backlog=8)
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, node.server)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for key, _ in selector.select():
            if not isinstance(key.fileobj, socket.socket):
                return
            with contextlib.suppress(BlockingIOError):
                _answer(key.fileobj, key.data)


def _answer(listener: socket.socket, command: list[str]) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.setblocking(True)
        actions = [(os.POSIX_SPAWN_DUP2, connection.fileno(), each) for each in (0, 1)]
        os.posix_spawnp(command[0], command, dict(os.environ), file_actions=actions, setsigdef=[signal.SIGCHLD])


def _running(site: Site) -> Iterator[SimNode]:
    debian = rootfs.ensure(BlobStore.default().root, events.silent)
    with ThreadPoolExecutor(_SETTING_UP) as pool:
        yield from pool.map(lambda index: set_up(site, index, debian), range(site.nodes))


def main() -> None:
    """Serve the nodes of a site that was made before."""
    folder, nodes, apiserver = sys.argv[1:4]
    serve(_running(Site(folder=Path(folder), nodes=int(nodes), apiserver=apiserver)))


if __name__ == "__main__":
    main()
