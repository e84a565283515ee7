"""Bring a lab up, down, and tell how it is: each verb as a table of contents."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import fcntl
import re
import shutil
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kubeworker.errors import LabError
from kubeworker.flow.events import Note, Reporter, Warning_, silent
from kubeworker.io.whole_file import write_atomically
from kubeworker.lab import (
    artifacts,
    cgroups,
    cilium,
    cilium_images,
    cluster_yaml,
    control_plane,
    drill_client,
    full_kernel_image,
    host,
    images,
    kinds,
    machine,
    network,
    pki,
    registry,
    rootfs,
    state,
)
from kubeworker.lab import full_kernel as full_kernel_machine
from kubeworker.lab.artifacts import ETCD, KUBERNETES_COMMANDS
from kubeworker.lab.state import Cni, Kind, LabState, Machine

BOOT_LIMIT = 120.0
"""Seconds until a machine's sshd must answer (2 to 6 are usual)."""
API_LIMIT = 180.0
"""Seconds until every kube-apiserver must be ready (about 10 are usual)."""
INOTIFY_BOOT, INOTIFY_CONTROL_PLANE, INOTIFY_NODE = 4, 6, 8
"""inotify instances of a machine: idle; a control plane's beside that; a node's beside that (counted in /proc/*/fd)."""
POWER_OFF_LIMIT = 10.0
"""Seconds for a clean shutdown before the machine's processes are killed."""

_SUBNET_LOCK = Path("/run/kubeworker-lab.lock")


def up(
    name: str = "default",
    *,
    binaries: Mapping[str, Path] | None = None,
    workers: int | None = None,
    full_kernel: int | None = None,
    cni: Cni | None = None,
    signing_duration: str | None = None,
    labs: Path | None = None,
    report: Reporter = silent,
) -> LabState:
    """Bring the lab up, or back to what it should be; does nothing to what runs already.

    `workers` is the number of plain machines, `full_kernel` of those with a kernel of their own, `cni` the network
    plugin that cluster.yaml names, `signing_duration` how long signed certificates last (10m); None keeps what the lab
    has (0, 0, bridge and a year for a new one). `binaries` holds what `lab.artifacts.control_plane` lists, by name; by
    default they come from the sources in the lab's cluster.yaml.
    """
    folder = state.lab_folder(name, state.labs_folder(labs))
    state.check_workers(workers or 0)
    state.check_full_kernel(full_kernel or 0)
    if signing_duration is not None:
        state.check_signing_duration(signing_duration)
    host.require_root()
    with _locked(folder, report):
        lab = _prepare(folder, workers, full_kernel, cni, signing_duration)
        if _missing_binaries(lab):
            found = asyncio.run(artifacts.fetch(lab.cluster_yaml, report)) if binaries is None else binaries
            _place_binaries(lab, found)
        _place_cni_images(lab, report)
        bases = _bases({each.kind for each in lab.machines}, report)
        off = tuple(each for each in lab.machines if kinds.driver(each).pid(lab, each) is None)
        for each in off:
            machine.clear(lab, each)
        if off:
            _check_inotify(lab, off, report)
        for each in off:
            report(Note(subject=each.name, text=f"booting at {each.address}"))
            kinds.driver(each).boot(lab, each, bases[each.kind])
        for each in lab.machines:
            _wait_for_ssh(lab, each)
        for each in lab.control_plane:
            machine.refresh_manager(lab, each)
            _wait_for_apiserver(lab, each)
        return lab


def prepare(*, cni: Cni = "bridge", report: Reporter = silent) -> None:
    """Fill the caches with all that a lab with this network plugin and the tool's work on it need, but boot nothing."""
    host.require_root()
    host.install_packages(host.missing_packages())
    _bases(_possible_kinds(report), report)
    subnet = "10.77.0.0/24"
    with tempfile.TemporaryDirectory(prefix="kubeworker-lab-") as folder:
        lab = LabState(
            name="prepare",
            folder=Path(folder),
            subnet=subnet,
            machines=state.plan_machines(subnet, workers=0),
            cni=cni,
        )
        lab.cluster_yaml.write_text(cluster_yaml.render(lab, _traits(), ()))
        asyncio.run(artifacts.fetch(lab.cluster_yaml, report, workers_too=True))
        asyncio.run(artifacts.fetch(lab.cluster_yaml, report, registry.artifacts))
        asyncio.run(artifacts.fetch(lab.cluster_yaml, report, drill_client.artifacts))
        _cni_images(lab, report)


def down(name: str = "default", *, labs: Path | None = None, report: Reporter = silent) -> None:
    """Take the lab down and remove its folder: nothing of it is left, whatever state it was in, or if it never was."""
    folder = state.lab_folder(name, state.labs_folder(labs))
    host.require_root()
    if not folder.parent.is_dir():
        return
    with _locked(folder, report):
        lab = state.load(folder)
        if lab is None:
            report(Note(subject=f"lab {name}", text="there is no such lab; what may be left of one is removed"))
        else:
            report(Note(subject=f"lab {name}", text=f"powering off {len(lab.machines)} machines"))
            _power_off(lab, lab.machines)
        _clear_by_name(state.lab_id(folder))
        if folder.exists():
            shutil.rmtree(folder)
    _lock_path(folder).unlink(missing_ok=True)


def renew(lab: LabState, name: str, *, report: Reporter = silent) -> None:
    """Pull the machine's plug and boot it with a new disk, as if it had been installed again; its host key is new.

    LabError for a machine of the control plane: etcd's data would be lost.
    """
    each = lab.machine(name)
    if each.is_control_plane:
        raise LabError("it belongs to the control plane", subject=name, hint=f"kubeworker lab down --name {lab.name}")
    with _locked(lab.folder, report):
        machine.clear(lab, each)
        shutil.rmtree(lab.machine_folder(each))
    up(lab.name, labs=lab.folder.parent, report=report)


def names(labs: Path | None = None) -> tuple[str, ...]:
    """Names of all labs in the labs folder, down ones that a killed run left behind too."""
    folder = state.labs_folder(labs)
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) if folder.is_dir() else ()


def find(name: str = "default", *, labs: Path | None = None) -> LabState:
    """The lab of that name; LabError if there is none."""
    folder = state.lab_folder(name, state.labs_folder(labs))
    lab = state.load(folder)
    if lab is None:
        raise LabError("there is no such lab", subject=f"lab {name}", hint=f"kubeworker lab up --name {name}")
    return lab


def running(lab: LabState) -> dict[str, bool]:
    """By machine name, whether the machine is on."""
    return {each.name: kinds.driver(each).pid(lab, each) is not None for each in lab.machines}


# ---------------------------------------------------------------------------------------------------------------


def _prepare(
    folder: Path, workers: int | None, full_kernel: int | None, cni: Cni | None, signing_duration: str | None
) -> LabState:
    known = state.load(folder)
    if full_kernel:
        full_kernel_machine.require_host()
    had = any(each.kind == "full-kernel" for each in known.machines) if known else False
    host.install_packages(host.missing_packages(full_kernel=bool(full_kernel) or had))
    lab = _reserve(folder, known, workers, full_kernel, cni, signing_duration)
    _remove_surplus(known, lab)
    _write_files(lab)
    return lab


@contextlib.contextmanager
def _locked(folder: Path, report: Reporter) -> Iterator[None]:
    """One `up` or `down` of a lab at a time; a killed one leaves no lock behind (flock)."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        with _lock_path(folder).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(Note(subject=f"lab {folder.name}", text="waiting for another `lab up` or `lab down` to end"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            # `down` removes the lock file: a lock on a removed file protects nothing.
            if _lock_path(folder).exists() and _lock_path(folder).stat().st_ino == _inode(lock.fileno()):
                yield
                return


def _inode(descriptor: int) -> int:
    return Path(f"/proc/self/fd/{descriptor}").stat().st_ino


def _lock_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _possible_kinds(report: Reporter) -> frozenset[Kind]:
    """Kinds of machines that this host can run; their packages are installed."""
    try:
        full_kernel_machine.require_host()
        host.install_packages(host.missing_packages(full_kernel=True))
    except LabError as error:
        report(Warning_(subject="full-kernel machines", text=f"not on this host: {error.message}"))
        return frozenset({"nspawn"})
    return frozenset({"nspawn", "full-kernel"})


def _bases(wanted: Collection[Kind], report: Reporter) -> dict[Kind, Path]:
    """What machines of these kinds boot from, made now where the cache has none."""
    cache = state.cache_folder()
    bases: dict[Kind, Path] = {"nspawn": rootfs.ensure(cache, report)}
    if "full-kernel" in wanted:
        bases["full-kernel"] = full_kernel_image.ensure(cache, bases["nspawn"], report)
    return bases


def _reserve(
    folder: Path,
    known: LabState | None,
    workers: int | None,
    full_kernel: int | None,
    cni: Cni | None,
    signing_duration: str | None,
) -> LabState:
    """The lab with its subnet, recorded, and its bridge up. Labs of other users are seen by their bridges' routes."""
    with _SUBNET_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if known is None:
            _clear_by_name(state.lab_id(folder))
            others = (state.load(other) for other in folder.parent.iterdir() if other.is_dir())
            used = (*network.used_networks(), *(other.subnet for other in others if other is not None))
            subnet = state.choose_subnet(used)
            lab = LabState(
                name=folder.name,
                folder=folder,
                subnet=subnet,
                machines=state.plan_machines(subnet, workers or 0, full_kernel=full_kernel or 0),
                cni=cni or "bridge",
                signing_duration=signing_duration or "",
            )
        else:
            full = sum(each.kind == "full-kernel" for each in known.machines)
            plain = len(known.machines) - len(known.control_plane) - full
            machines = state.plan_machines(
                known.subnet,
                plain if workers is None else workers,
                known.machines,
                full_kernel=full if full_kernel is None else full_kernel,
            )
            signing_duration = signing_duration or known.signing_duration
            lab = replace(known, machines=machines, cni=cni or known.cni, signing_duration=signing_duration)
        state.save(lab)
        network.ensure_bridge(lab.bridge, lab.gateway)
    return lab


def _remove_surplus(known: LabState | None, lab: LabState) -> None:
    surplus = () if known is None else tuple(each for each in known.machines if each not in lab.machines)
    _power_off(lab, surplus)
    for each in surplus:
        machine.clear(lab, each)
        shutil.rmtree(lab.machine_folder(each), ignore_errors=True)


def _power_off(lab: LabState, machines: tuple[Machine, ...]) -> None:
    for each in machines:
        kinds.driver(each).power_off(lab, each)
    end = time.monotonic() + POWER_OFF_LIMIT
    for each in machines:
        machine.wait_off(lab, each, end - time.monotonic())


def _clear_by_name(identity: str) -> None:
    """Everything that belongs to a lab of that id, found by names alone."""
    prefix = state.scope_prefix(identity)
    scopes = {group.name for group in cgroups.find(prefix)}
    interfaces = {f"{prefix}{link.rpartition('-')[2]}" for link in network.links(f"vb-kw{identity}-")}
    for scope in scopes | interfaces:
        number = scope.removeprefix(prefix).partition(".")[0]
        machine.clear_scope(scope, f"vb-kw{identity}-{number}")
    network.remove_link(state.bridge_name(identity))


def _write_files(lab: LabState) -> None:
    """Keys, certificates, images, disks and cluster.yaml: what exists is kept."""
    certificates = _certificates(lab)
    ssh_public = _ssh_identity(lab)
    host_keys = {each.name: _host_key(lab, each) for each in lab.machines}
    lines = [f"{each.address} {host_keys[each.name][1]}" for each in lab.machines]
    lab.known_hosts.write_text("\n".join(lines) + "\n")
    for each in lab.machines:
        setup = kinds.driver(each).setup
        machine.disk(lab, each, setup=setup, ssh_public=ssh_public, host_key=host_keys[each.name], pki=certificates)
    archives = tuple(lab.folder / "images" / name for name in ("pause.tar", "busybox.tar"))
    if not all(path.exists() for path in archives):
        images.write(lab.folder / "images")
    # busybox before Cilium's: verify takes the first that is no pause image for its pods.
    names = (*(path.name for path in archives), *(cilium_images.NAMES if lab.cni == "cilium" else ()))
    _write_cluster_yaml(lab, tuple(f"images/{name}" for name in names))


def _certificates(lab: LabState) -> dict[str, bytes]:
    folder = lab.folder / "pki"
    if not (folder / "complete").exists():
        made = pki.make([each.address for each in lab.control_plane], dt.datetime.now(dt.UTC))
        folder.mkdir(exist_ok=True, mode=0o700)
        for name, content in made.items():
            _write_secret(folder / name, content)
        _write_secret(lab.ca, made["ca.pem"])
        _write_secret(lab.ca_key, made["ca-key.pem"])
        server = f"https://{lab.apiservers[0]}"
        _write_secret(lab.kubeconfig, control_plane.kubeconfig(server, "admin", made))
        (folder / "complete").touch()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write_secret(path: Path, content: bytes) -> None:
    write_atomically(path, content, mode=0o600)


def _ssh_identity(lab: LabState) -> str:
    public = lab.ssh_identity.with_suffix(".pub")
    if not public.exists():
        private, line = pki.ssh_key(f"kubeworker-lab-{lab.name}")
        _write_secret(lab.ssh_identity, private)
        _write_secret(public, f"{line}\n".encode())
    return public.read_text().strip()


def _host_key(lab: LabState, each: Machine) -> tuple[bytes, str]:
    """The machine's host key: from its disk once there is one, so that known_hosts needs no key scan."""
    folder = lab.machine_folder(each)
    key = folder / "upper/etc/ssh/ssh_host_ed25519_key"
    if (folder / "complete").exists():
        return key.read_bytes(), " ".join(key.with_suffix(".pub").read_text().split()[:2])
    private, line = pki.ssh_key(each.name)
    return private, " ".join(line.split()[:2])


def _missing_binaries(lab: LabState) -> tuple[str, ...]:
    """Names of the control plane's binaries that this lab has not got yet."""
    return tuple(name for name in (*KUBERNETES_COMMANDS, ETCD) if not (lab.folder / "bin" / name).exists())


def _place_binaries(lab: LabState, binaries: Mapping[str, Path]) -> None:
    """Copies in one folder, which is bound into control plane machines read-only."""
    folder = lab.folder / "bin"
    folder.mkdir(exist_ok=True)
    for name in _missing_binaries(lab):
        if name not in binaries:
            raise LabError(f"no binary named {name} was given", subject=f"lab {lab.name}")
        artifacts.place(binaries[name], folder / name)


def _cni_images(lab: LabState, report: Reporter) -> dict[str, Path]:
    """Archives of the images that the lab's network plugin needs, by file name; made now if the cache has none."""
    if lab.cni != "cilium":
        return {}
    binaries = asyncio.run(artifacts.fetch(lab.cluster_yaml, report, cilium.artifacts))
    return cilium_images.ensure(state.cache_folder() / "images", binaries, report)


def _place_cni_images(lab: LabState, report: Reporter) -> None:
    """As links: they are large, and the same for all labs."""
    for name, archive in _cni_images(lab, report).items():
        temporary = lab.folder / "images" / f".{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(archive)
        temporary.rename(lab.folder / "images" / name)


def _write_cluster_yaml(lab: LabState, archives: tuple[str, ...]) -> None:
    """Written anew only if the machines or the network plugin changed: people edit the file."""
    marker = lab.folder / ".machines"
    listed = "\n".join(f"{each.name} {each.address}" for each in lab.machines)
    if lab.cni != "bridge":
        listed += f"\ncni {lab.cni}"
    if lab.cluster_yaml.exists() and marker.exists() and marker.read_text() == listed:
        return
    lab.cluster_yaml.write_text(cluster_yaml.render(lab, _traits(), archives))
    marker.write_text(listed)


def _traits() -> cluster_yaml.HostTraits:
    return cluster_yaml.HostTraits(sys_resource=host.has_sys_resource(), ipvs=host.has_ipvs())


def _check_inotify(lab: LabState, off: tuple[Machine, ...], report: Reporter) -> None:
    """LabError if so many machines can't boot: systemd in them would only say "Too many open files".

    Those with a kernel of their own have its limit to themselves.
    """
    off = tuple(each for each in off if each.kind == "nspawn")
    control_plane_too = sum(each.is_control_plane for each in off)
    boot = INOTIFY_BOOT * len(off) + INOTIFY_CONTROL_PLANE * control_plane_too
    nodes = boot + INOTIFY_NODE * len(off)
    free = _free_inotify_instances(enough=nodes)
    hint = "take another lab down, or raise the sysctl fs.inotify.max_user_instances"
    if boot > free:
        raise LabError(
            f"booting {len(off)} machines takes about {boot} inotify instances; this host has {max(free, 0)} left",
            subject=f"lab {lab.name}",
            hint=f"fewer --workers; {hint}",
        )
    if nodes > free:
        text = f"as nodes these machines take about {nodes} inotify instances; this host has {free} left: {hint}"
        report(Warning_(subject=f"lab {lab.name}", text=text))


def _free_inotify_instances(*, enough: int) -> int:
    """The most that are free within a few seconds: commands that just run in other machines hold some too."""
    free = host.free_inotify_instances()
    for _ in range(4):
        if free < enough:
            time.sleep(0.5)
            free = max(free, host.free_inotify_instances())
    return free


def _wait_for_ssh(lab: LabState, each: Machine) -> None:
    end = time.monotonic() + BOOT_LIMIT
    while not _ssh_answers(each.address):
        off = kinds.driver(each).pid(lab, each) is None and not cgroups.pids(machine.groups(lab, each))
        if off or time.monotonic() > end:
            reason = "the machine went off" if off else f"no answer on ssh within {BOOT_LIMIT:.0f} s"
            raise LabError(f"{reason}; its console ends:\n{machine.console_tail(lab, each)}", subject=each.name)
        time.sleep(0.1)


def _ssh_answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            connection.settimeout(5)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _wait_for_apiserver(lab: LabState, each: Machine) -> None:
    end = time.monotonic() + API_LIMIT
    while not apiserver_ready(lab, each):
        if time.monotonic() > end:
            log = machine.run(lab, each, "journalctl --no-pager -n 8 -o cat -u kube-apiserver -u etcd").stdout
            text = re.sub(r"\n+", "\n", log).strip()
            raise LabError(
                f"kube-apiserver was not ready within {API_LIMIT:.0f} s; its journal ends:\n{text}", subject=each.name
            )
        time.sleep(0.2)


def apiserver_ready(lab: LabState, each: Machine) -> bool:
    """Whether the machine's kube-apiserver answers /readyz with 200, its certificate checked against the CA."""
    context = ssl.create_default_context(cafile=str(lab.ca))
    # No proxy: the environment's would be asked for the lab's address.
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"https://{each.address}:6443/readyz", timeout=3) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
