"""What a lab is, as values: its name, folder, network and machines, and how they are kept on disk.

A lab lives in `<labs folder>/<name>/`, by default `$XDG_STATE_HOME/kubeworker/labs/<name>/`. Everything that must
be found again after a crash (bridge, machine names, control groups) is derived from the folder's path, so that a
lab whose `lab.json` is lost can still be taken down.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kubeworker.core.nearest import meant
from kubeworker.errors import LabError, UsageError

CONTROL_PLANE = ("k8s-01", "k8s-02")
"""The guide's two machines: each has a kube-apiserver, a controller-manager and a scheduler, and is a node too."""

CLUSTER_CIDR = "172.30.0.0/16"
SERVICE_CIDR = "10.254.0.0/16"
DNS_SERVICE_IP = "10.254.0.2"
FIRST_SERVICE_IP = "10.254.0.1"
"""ClusterIP of the `kubernetes` Service: the first address of the service network."""

FULL_KERNEL_FROM = 91
"""The numbers of full-kernel machines begin here, so that a lab can grow by workers too."""
MAX_WORKERS = FULL_KERNEL_FROM - 1 - len(CONTROL_PLANE)
MAX_FULL_KERNEL = 9
"""A machine's number has two digits in the names of its control group and network link."""

STATE_DIR_VARIABLE = "KUBEWORKER_LABS"
"""Environment variable that names the labs folder."""

Role = Literal["control-plane", "worker"]
Kind = Literal["nspawn", "full-kernel"]
"""nspawn: a container with this host's kernel; full-kernel: a kernel of its own (user-mode-linux)."""
Cni = Literal["bridge", "cilium"]
"""The network plugin that a lab's cluster.yaml names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of a lab."""

    name: str
    """Host name, and node name in the cluster."""
    index: int
    """Counts from 1; the last part of its address is 10 more."""
    address: str
    roles: tuple[Role, ...]
    machine_id: str
    """/etc/machine-id: 32 hex digits, unique."""
    kind: Kind = "nspawn"

    @property
    def is_control_plane(self) -> bool:
        """Whether it runs a kube-apiserver."""
        return "control-plane" in self.roles


@dataclass(frozen=True, slots=True, kw_only=True)
class LabState:
    """A lab as `lab.json` keeps it, and as tests use it."""

    name: str
    folder: Path
    subnet: str
    """A /24 of its own; its first address is the bridge's, on this host."""
    machines: tuple[Machine, ...]
    cni: Cni = "bridge"
    signing_duration: str = ""
    """How long certificates last that kube-controller-manager signs (10m); empty: its own default, a year."""
    binaries: dict[str, str] = field(default_factory=dict)
    """Versions by name that the control plane runs (as named when it was brought up)."""

    @property
    def id(self) -> str:
        """Six hex digits that tell labs on one host apart (interface names have at most 15 characters)."""
        return lab_id(self.folder)

    @property
    def bridge(self) -> str:
        """The bridge's interface name."""
        return bridge_name(self.id)

    @property
    def gateway(self) -> str:
        """The bridge's address on this host."""
        return str(ipaddress.ip_network(self.subnet)[1])

    @property
    def cluster_yaml(self) -> Path:
        """The cluster.yaml that describes this lab to the tool."""
        return self.folder / "cluster.yaml"

    @property
    def kubeconfig(self) -> Path:
        """Admin kubeconfig (group system:masters)."""
        return self.folder / "admin.kubeconfig"

    @property
    def ca(self) -> Path:
        """The cluster CA's certificate; its key lies beside it as ca-key.pem."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The cluster CA's private key."""
        return self.folder / "ca-key.pem"

    @property
    def ssh_identity(self) -> Path:
        """Private key that root and `ops` of every machine accept."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The machines' host keys."""
        return self.folder / "known_hosts"

    @property
    def control_plane(self) -> tuple[Machine, ...]:
        """The machines that run a kube-apiserver."""
        return tuple(machine for machine in self.machines if machine.is_control_plane)

    @property
    def apiservers(self) -> tuple[str, ...]:
        """HOST:PORT of each kube-apiserver."""
        return tuple(f"{machine.address}:6443" for machine in self.control_plane)

    def machine(self, name: str) -> Machine:
        """The machine of that name; LabError if there is none."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise LabError(
            f"there is no machine {name!r}",
            subject=f"lab {self.name}",
            hint=meant(name, [machine.name for machine in self.machines], alike=True),
        )

    def nspawn_name(self, machine: Machine) -> str:
        """The container's name, unique on this host."""
        return f"kw{self.id}-{machine.index:02d}"

    def link(self, machine: Machine) -> str:
        """The machine's network link on this host: systemd-nspawn names a veth so, and a tap device is named alike."""
        return f"vb-{self.nspawn_name(machine)}"

    def scope(self, machine: Machine) -> str:
        """Name of the machine's own control group in every hierarchy, and of its unit on a systemd host."""
        return f"{scope_prefix(self.id)}{machine.index:02d}"

    def machine_folder(self, machine: Machine) -> Path:
        """Holds the machine's disks (`upper`, `work`, `data`) and its console's log."""
        return self.folder / "machines" / machine.name


def labs_folder(override: Path | None = None) -> Path:
    """Where labs are kept: the argument, else $KUBEWORKER_LABS, else the XDG state folder."""
    if override is not None:
        return override.absolute()
    if STATE_DIR_VARIABLE in os.environ:
        return Path(os.environ[STATE_DIR_VARIABLE]).absolute()
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base).absolute() / "kubeworker" / "labs"


def cache_folder() -> Path:
    """Where root file systems are kept across labs: the XDG cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "kubeworker"


def lab_folder(name: str, labs: Path) -> Path:
    """The folder of the lab of that name; InputError for a name that can't be one."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise UsageError(
            f"{name!r} can't be a lab's name", hint="use 1 to 32 lower-case letters, digits and inner hyphens"
        )
    return labs / name


def lab_id(folder: Path) -> str:
    """Six hex digits derived from the lab's folder, and so from its name."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:6]


def bridge_name(identity: str) -> str:
    """Interface name of a lab's bridge."""
    return f"kwbr-{identity}"


def scope_prefix(identity: str) -> str:
    """What the names of all control groups of a lab begin with."""
    return f"kubeworker-{identity}-"


def check_workers(count: int) -> None:
    """InputError for a number of plain workers that no lab can have."""
    if not 0 <= count <= MAX_WORKERS:
        raise UsageError(f"a lab can't have {count} workers", hint=f"--workers takes 0 to {MAX_WORKERS}")


def check_full_kernel(count: int) -> None:
    """InputError for a number of full-kernel machines that no lab can have."""
    if not 0 <= count <= MAX_FULL_KERNEL:
        raise UsageError(
            f"a lab can't have {count} full-kernel machines", hint=f"--full-kernel takes 0 to {MAX_FULL_KERNEL}"
        )


def check_signing_duration(text: str) -> None:
    """InputError for what kube-controller-manager's --cluster-signing-duration should not be."""
    parts = re.findall(r"(\d+)(h|m|s)", text)
    seconds = sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or not text:
        raise UsageError(f"{text!r} is no duration", subject="--signing-duration", hint="for example 10m, 8h or 1h30m")
    # It backdates by 5 minutes, and kubelet counts 70 to 90 % from there: of less, the next request is due at once.
    if seconds < 180:
        raise UsageError(
            f"with {text} kubelet would ask for the next certificate as soon as it has one",
            subject="--signing-duration",
            hint="at least 3m",
        )


def plan_machines(
    subnet: str, workers: int, known: tuple[Machine, ...] = (), *, full_kernel: int = 0
) -> tuple[Machine, ...]:
    """The machines of a lab with that many plain workers and full-kernel ones; those known keep their identity."""
    network = ipaddress.ip_network(subnet)
    plain = (*CONTROL_PLANE, *(f"worker-{number:02d}" for number in range(1, workers + 1)))
    full = tuple(f"fk-{number:02d}" for number in range(1, full_kernel + 1))
    by_name = {machine.name: machine for machine in known}
    return tuple(
        by_name.get(name)
        or Machine(
            name=name,
            index=index,
            address=str(network[10 + index]),
            roles=("control-plane", "worker") if name in CONTROL_PLANE else ("worker",),
            machine_id=uuid.uuid4().hex,
            kind="full-kernel" if name in full else "nspawn",
        )
        for index, name in (*enumerate(plain, start=1), *enumerate(full, start=FULL_KERNEL_FROM))
    )


def choose_subnet(used: tuple[str, ...]) -> str:
    """The first 10.77.N.0/24 that overlaps none of the networks in use; LabError if all do."""
    taken = [ipaddress.ip_network(network, strict=False) for network in used]
    for number in range(256):
        candidate = ipaddress.ip_network(f"10.77.{number}.0/24")
        if not any(network.version == 4 and network.overlaps(candidate) for network in taken):
            return str(candidate)
    raise LabError("all of 10.77.0.0/16 is in use", hint="take a lab down: kubeworker lab down --name NAME")


def encode(state: LabState) -> str:
    """`lab.json`."""
    document = asdict(state) | {"folder": str(state.folder)}
    return json.dumps(document, indent=2) + "\n"


def decode(text: str) -> LabState:
    """The lab that `lab.json` describes; ValueError, KeyError or TypeError if it is no such file."""
    document: dict[str, Any] = json.loads(text)
    machines = tuple(Machine(**machine | {"roles": tuple(machine["roles"])}) for machine in document["machines"])
    return LabState(**document | {"folder": Path(document["folder"]), "machines": machines})


def save(state: LabState) -> None:
    """Write `lab.json`, by rename."""
    state.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = state.folder / ".lab.json"
    temporary.write_text(encode(state))
    temporary.rename(state.folder / "lab.json")


def load(folder: Path) -> LabState | None:
    """The lab kept in the folder; None if there is none, or if a killed run left the file unusable."""
    try:
        return decode((folder / "lab.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise LabError("may not be read", subject=str(folder), hint="run it as the user that owns the lab") from error
    except (ValueError, KeyError, TypeError):
        return None
