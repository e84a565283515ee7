"""What a node looks like, as the probe's answer says: frozen values, and the strict reading of that answer.

Line protocol (`probe.script` writes it): the first line is `kubeworker-probe 1`, the last `end`; what comes before
the first is a login shell's noise and is skipped. Every other line is a word, a tab, and that word's fields separated
by tabs; a free name stands last, anything freer is base64. A line that does not fit makes the whole answer invalid.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from kubeworker.core import applied
from kubeworker.core.applied import Applied
from kubeworker.errors import ProbeError

HEADER = "kubeworker-probe 1"
HASHING = "hashing"
"""The line of a probe that has binaries to hash, before it does: that takes as long as its disk makes it."""

FileKind: TypeAlias = Literal["file", "directory", "link", "other"]
ModuleState: TypeAlias = Literal["loaded", "builtin", "available", "missing"]

_KINDS: Mapping[int, FileKind] = {0x8: "file", 0x4: "directory", 0xA: "link"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFile:
    """A path that exists."""

    path: str
    kind: FileKind
    mode: int
    owner: str
    size: int
    sha256: str = ""
    """Of regular files; empty where it could not be read."""
    content: bytes | None = field(default=None, repr=False)
    """Only of text files whose hash is not the desired one (for the diff), up to the probe's limit."""
    target: str = ""
    """Of links."""
    modified: float = 0.0
    """When its content was last changed (mtime): seconds since the epoch."""
    changed: float = 0.0
    """When its content, mode, owner or name was last changed (ctime)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """What the tool wrote after the unit's last good start."""

    restart: str
    """Digest of the inputs whose change needs a restart."""
    reload: str
    """Digest of the inputs whose change needs a reload."""
    invocation: str
    """systemd's InvocationID of that start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenUnit:
    """`systemctl show` of one unit, and the tool's start record of it."""

    name: str
    load_state: str = "not-found"
    active_state: str = "inactive"
    sub_state: str = "dead"
    file_state: str = ""
    """enabled, disabled, masked, ...; empty where there is no unit file."""
    need_daemon_reload: bool = False
    invocation: str = ""
    main_pid: int = 0
    restarts: int = 0
    fragment: str = ""
    dropins: tuple[str, ...] = ()
    """Paths of the drop-ins that systemd has loaded."""
    record: StartRecord | None = None
    since: str = ""
    """When it came into its present state, as systemd says it (in UTC); empty where it never had another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Free space and inodes below a path (of the nearest parent that exists)."""

    path: str
    free: int
    """Bytes that an unprivileged process may still use."""
    inodes: int | None
    """Free inodes; None where the file system does not count them (btrfs)."""
    mount: str
    """Where the file system is mounted: paths with the same mount share the space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening TCP socket, or a UDP socket, on a port that preflight asked about."""

    port: int
    address: str
    pid: int
    process: str
    unit: str
    """The systemd unit the process belongs to; empty where it belongs to none."""
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """An address of an interface that is up, of global scope."""

    address: str
    link: str
    mac: str
    """Empty where the interface has none (a tunnel)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletKubeconfig:
    """The public part of the kubeconfig that kubelet wrote for itself."""

    server: str = ""
    ca_data: str = ""
    """certificate-authority-data, base64 PEM."""
    ca_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One node as it was at `clock`. Mappings hold only what exists."""

    clock: float
    """The node's clock when the probe ran: seconds since the epoch."""
    hostname: str
    machine_id: str
    machine: str
    """uname -m."""
    kernel: str
    """uname -r."""
    cgroup: int
    """1 or 2."""
    container: str = ""
    """The container manager (systemd-nspawn, lxc); empty on a machine of its own."""
    files: Mapping[str, SeenFile] = field(default_factory=dict)
    """By path: managed paths, blobs of the store, and the units' drop-ins."""
    units: Mapping[str, SeenUnit] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, ModuleState] = field(default_factory=dict)
    swaps: tuple[str, ...] = ()
    fstab_swaps: tuple[str, ...] = ()
    disks: Mapping[str, Disk] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    commands: frozenset[str] = frozenset()
    proxy_modes: Mapping[str, str] = field(default_factory=dict)
    """kube-proxy mode -> "yes" or the reason why the kernel can't."""
    masquerade: str = ""
    """nft or iptables: what the kernel takes rules from that hide source addresses; empty: neither, or not asked."""
    leftovers: frozenset[str] = frozenset()
    """Names of the leftovers that are there."""
    traces: Mapping[str, str] = field(default_factory=dict)
    """By name, what was found of that which a plan warns of."""
    marked: frozenset[str] = frozenset()
    """Paths of the files that bear the mark of a `Marked`."""
    remains: frozenset[str] = frozenset()
    """Hidden files beside managed ones, of a run that was killed."""
    applied: Mapping[str, Applied] = field(default_factory=dict)
    """By component, what was applied last; only for telling who has changed what since."""
    unfinished: float = 0.0
    """When a stage began whose run died on the node (seconds since the epoch); 0: none did."""
    images: frozenset[str] | None = None
    """References in containerd's k8s.io namespace; None where containerd did not answer."""
    kubelet_client_cert: str = ""
    """PEM certificate (never the key) of kubelet's current client identity."""
    kubelet_kubeconfig: KubeletKubeconfig = KubeletKubeconfig()
    resolv_conf: str = "/etc/resolv.conf"
    """The resolv.conf for pods: systemd-resolved's own list where /etc/resolv.conf names its stub."""
    nameservers: tuple[str, ...] = ()
    """Of /etc/resolv.conf."""
    addresses: tuple[NodeAddress, ...] = ()
    product_uuid: str = ""
    """The firmware's name for the machine (/sys/class/dmi/id/product_uuid); empty where it has none."""
    init: str = "systemd"
    """Process 1."""
    memory: int = 0
    """Bytes; 0: not known."""
    cpus: int = 0
    """Processors that are on; 0: not known."""
    survey: Mapping[str, tuple[str, ...]] | None = None
    """What only `preflight` looks at, by kind (core/node/survey.py); None where it was not looked at."""

    @property
    def architecture(self) -> str:
        """The machine in Go's spelling; uname's own word where that is no other."""
        return {"x86_64": "amd64", "aarch64": "arm64"}.get(self.machine, self.machine)

    def sha256(self, path: str) -> str:
        """Hash of the regular file at that path; empty where there is none."""
        seen = self.files.get(path)
        return seen.sha256 if seen is not None and seen.kind == "file" else ""


def parse(node: str, stdout: str) -> Observed:
    """Read the probe's answer; ProbeError (naming the node) where it is incomplete or not understood."""
    try:
        return _Reading().read(_body(stdout))
    except (ValueError, KeyError, IndexError) as error:
        raise ProbeError(
            f"the probe's answer was not understood: {error}",
            subject=node,
            hint=f"does `ssh {node} true` print anything? A login script must not; sh must be POSIX.",
        ) from error


def _body(stdout: str) -> Iterator[str]:
    lines = stdout.split("\n")
    try:
        start = lines.index(HEADER)
    except ValueError:
        raise ValueError(f"no line {HEADER!r} in {stdout[:200]!r}") from None
    if lines[-1] == "":
        lines.pop()
    if lines[-1] != "end":
        raise ValueError(f"it ends with {lines[-1][:200]!r}")
    return iter(lines[start + 1 : -1])


class _Reading:
    """Collects lines; one method for each word of the protocol."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.stats: dict[str, list[str]] = {}
        self.hashes: dict[str, str] = {}
        self.contents: dict[str, bytes] = {}
        self.targets: dict[str, str] = {}
        self.units: dict[str, dict[str, str]] = {}
        self.records: dict[str, StartRecord] = {}
        self.sysctls: dict[str, str] = {}
        self.modules: dict[str, ModuleState] = {}
        self.swaps: list[str] = []
        self.fstab_swaps: list[str] = []
        self.disks: dict[str, Disk] = {}
        self.sockets: list[tuple[str, str, int, list[tuple[int, str]]]] = []
        self.pid_units: dict[int, str] = {}
        self.commands: set[str] = set()
        self.proxy_modes: dict[str, str] = {}
        self.leftovers: set[str] = set()
        self.traces: dict[str, str] = {}
        self.marked: set[str] = set()
        self.remains: set[str] = set()
        self.applied: dict[str, list[str]] = {}
        self.images: set[str] | None = None
        self.kubeconfig: dict[str, str] = {}
        self.nameservers: list[str] = []
        self.has_resolved_list = False
        self.addresses: list[NodeAddress] = []
        self.survey: dict[str, list[str]] | None = None

    def read(self, lines: Iterator[str]) -> Observed:
        for line in lines:
            word, _, rest = line.partition("\t")
            self._line(word, rest, lines)
        values = self.values
        return Observed(
            clock=float(values["clock"]),
            hostname=values["hostname"],
            machine_id=values["machine-id"],
            machine=values["machine"],
            kernel=values["kernel"],
            cgroup=int(values["cgroup"]),
            container=values["container"],
            files={path: self._file(path, stat) for path, stat in self.stats.items()},
            units={name: self._unit(name, shown) for name, shown in self.units.items()},
            sysctls=self.sysctls,
            modules=self.modules,
            swaps=tuple(self.swaps),
            fstab_swaps=tuple(self.fstab_swaps),
            disks=self.disks,
            listeners=tuple(self._listener(*socket) for socket in self.sockets),
            commands=frozenset(self.commands),
            proxy_modes=self.proxy_modes,
            masquerade=values.get("masquerade", ""),
            leftovers=frozenset(self.leftovers),
            traces=self.traces,
            marked=frozenset(self.marked),
            remains=frozenset(self.remains),
            applied=self._applied(),
            unfinished=float(values.get("unfinished", "0")),
            images=None if self.images is None else frozenset(self.images),
            kubelet_client_cert=_pem(values.get("client-cert", "")),
            kubelet_kubeconfig=KubeletKubeconfig(
                server=self.kubeconfig.get("server", ""),
                ca_data=self.kubeconfig.get("certificate-authority-data", ""),
                ca_file=self.kubeconfig.get("certificate-authority", ""),
            ),
            resolv_conf=self._resolv_conf(),
            nameservers=tuple(self.nameservers),
            addresses=tuple(self.addresses),
            product_uuid=values.get("product-uuid", ""),
            init=values.get("init", "systemd"),
            memory=1024 * int(values.get("memory") or 0),
            cpus=_cpus(values.get("cpus", "")),
            survey=None if self.survey is None else {kind: tuple(found) for kind, found in self.survey.items()},
        )

    def _line(self, word: str, rest: str, lines: Iterator[str]) -> None:
        match word:
            case "clock" | "hostname" | "machine-id" | "machine" | "kernel" | "cgroup" | "container":
                self.values[word] = rest
            case "client-cert" | "masquerade" | "unfinished" | "init" | "memory" | "cpus" | "product-uuid":
                self.values[word] = rest
            case "s":
                self._stat(rest)
            case "hash":
                digest, path = rest.split("\t", 1)
                if not _SHA256.fullmatch(digest):
                    raise ValueError(f"hash {rest[:200]!r}")
                self.hashes[path] = digest
            case "content":
                encoded, path = rest.split("\t", 1)
                self.contents[path] = _decode(encoded)
            case "target":
                encoded, path = rest.split("\t", 1)
                self.targets[path] = _decode(encoded).decode("utf-8", "surrogateescape")
            case "units":
                self._show(lines)
            case "record":
                name, restart, reload, invocation = rest.split("\t")
                self.records[name] = StartRecord(restart=restart, reload=reload, invocation=invocation)
            case "sysctl":
                key, value = rest.split("\t", 1)
                self.sysctls[key] = " ".join(value.split())
            case "module":
                name, state = rest.split("\t")
                if state not in ("loaded", "builtin", "available", "missing"):
                    raise ValueError(f"module {rest!r}")
                self.modules[name] = cast("ModuleState", state)
            case "swap":
                self.swaps.append(rest)
            case "fstab-swap":
                self.fstab_swaps.append(rest)
            case "disk":
                free, inodes, mount, path = rest.split("\t", 3)
                count = int(inodes) if inodes.isdigit() else None
                self.disks[path] = Disk(path=path, mount=mount, free=int(free), inodes=count)
            case "socket":
                self._socket(rest)
            case "pid":
                pid, cgroup = rest.split("\t", 1)
                self.pid_units[int(pid)] = _unit_of(cgroup)
            case "command":
                self.commands.add(rest)
            case "proxy-mode":
                mode, answer = rest.split("\t", 1)
                self.proxy_modes[mode] = answer
            case "leftover":
                self.leftovers.add(rest)
            case "trace":
                name, found = rest.split("\t", 1)
                self.traces[name] = found.strip()
            case "marked":
                self.marked.add(rest)
            case "remains":
                self.remains.add(rest)
            case "applied":
                name, line = rest.split("\t", 1)
                self.applied.setdefault(name, []).append(line)
            case "images":
                self.images = set()
            case "image":
                if self.images is None:
                    raise ValueError("image before images")
                self.images.add(rest)
            case "kubeconfig":
                key, value = rest.split("\t", 1)
                self.kubeconfig[key] = value.strip("\"'")
            case "nameserver":
                self.nameservers.append(rest)
            case "addresses":
                self._addresses(lines)
            case "survey":
                self.survey = self.survey or {}
                kind, _, found = rest.partition("\t")
                self.survey.setdefault(kind, []).append(found)
            case "hashing":
                pass
            case "resolved-list":
                self.has_resolved_list = True
            case _:
                raise ValueError(f"line {f'{word} {rest}'[:200]!r}")

    def _stat(self, rest: str) -> None:
        *fields, path = rest.split("\t", 6)
        self.stats[path] = fields

    def _show(self, lines: Iterator[str]) -> None:
        shown: dict[str, str] = {}
        for line in lines:
            if line in ("", "units-end"):
                if shown:
                    self.units[shown["Id"]] = shown
                shown = {}
            if line == "units-end":
                return
            key, equals, value = line.partition("=")
            if line and not equals:
                raise ValueError(f"unit property {line[:200]!r}")
            if line:
                shown[key] = value
        raise ValueError("the units are cut off")

    def _addresses(self, lines: Iterator[str]) -> None:
        """`ip addr show`: `2: eth0@if3: <...`, then `link/ether MAC brd ...` and `inet ADDRESS/LENGTH ...` lines."""
        link = mac = ""
        for line in lines:
            if line == "addresses-end":
                return
            fields = line.split()
            if line[:1].isdigit():
                link, mac = fields[1].rstrip(":").partition("@")[0], ""
            elif fields[0] == "link/ether":
                mac = fields[1]
            elif fields[0] in ("inet", "inet6"):
                self.addresses.append(NodeAddress(address=fields[1].partition("/")[0], link=link, mac=mac))
        raise ValueError("the addresses are cut off")

    def _socket(self, rest: str) -> None:
        """`ss -Hltunp`: Netid State Recv-Q Send-Q Local:Port Peer:Port users:(("name",pid=1,fd=2))."""
        protocol, *fields = rest.split(None, 6)
        address, _, port = fields[3].rpartition(":")
        users = fields[5] if len(fields) > 5 else ""
        holders = re.findall(r'"((?:[^"\\]|\\.)*)",pid=([0-9]+)', users)
        known = [(int(pid), name) for name, pid in holders]
        self.sockets.append((protocol, address.strip("[]"), int(port), known))

    def _listener(self, protocol: str, address: str, port: int, holders: list[tuple[int, str]]) -> Listener:
        """Of several holders one whose unit is known: a child that was just forked may be gone by now."""
        known = (each for each in holders if self.pid_units.get(each[0]))
        pid, process = next(known, holders[0] if holders else (0, ""))
        unit = self.pid_units.get(pid, "")
        return Listener(port=port, address=address, pid=pid, process=process, unit=unit, protocol=protocol)

    def _file(self, path: str, stat: list[str]) -> SeenFile:
        raw, owner, size, mtime, ctime, _inode = stat
        bits = int(raw, 16)
        return SeenFile(
            path=path,
            kind=_KINDS.get(bits >> 12, "other"),
            mode=bits & 0o7777,
            owner=owner,
            size=int(size),
            modified=float(mtime),
            changed=float(ctime),
            sha256=self.hashes.get(path, ""),
            content=self.contents.get(path),
            target=self.targets.get(path, ""),
        )

    def _unit(self, name: str, shown: Mapping[str, str]) -> SeenUnit:
        return SeenUnit(
            name=name,
            load_state=shown["LoadState"],
            active_state=shown["ActiveState"],
            sub_state=shown["SubState"],
            file_state=shown["UnitFileState"],
            need_daemon_reload=shown["NeedDaemonReload"] == "yes",
            invocation=shown.get("InvocationID", ""),
            main_pid=int(shown.get("MainPID") or 0),
            restarts=int(shown.get("NRestarts") or 0),
            fragment=shown.get("FragmentPath", ""),
            dropins=tuple(shown.get("DropInPaths", "").split()),
            record=self.records.get(name),
            since=shown.get("StateChangeTimestamp", ""),
        )

    def _applied(self) -> dict[str, Applied]:
        records = (applied.parse(name, lines) for name, lines in self.applied.items())
        return {record.component: record for record in records if record is not None}

    def _resolv_conf(self) -> str:
        # 127.0.0.53 and .54 are systemd-resolved's stubs (systemd-resolved.service(8)): inside a pod they would be
        # the pod's own loopback, and CoreDNS would forward to itself.
        stub = any(server in ("127.0.0.53", "127.0.0.54") for server in self.nameservers)
        return "/run/systemd/resolve/resolv.conf" if stub and self.has_resolved_list else "/etc/resolv.conf"


def _cpus(online: str) -> int:
    """How many processors a list such as 0-3,6 names (cpu/online in sysfs)."""
    ranges = (each.partition("-") for each in online.split(",") if each)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _decode(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64 {encoded[:80]!r}: {error}") from error


def _pem(body: str) -> str:
    if not body:
        return ""
    lines = (body[start : start + 64] for start in range(0, len(body), 64))
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))


def _unit_of(cgroup: str) -> str:
    """The unit in a cgroup path: the last element that is a service or scope; empty for a login session or none."""
    for element in reversed(cgroup.split("/")):
        if element.endswith((".service", ".scope")):
            return element
    return ""
