"""The lab's machines as the bench needs them: many without binaries (a fleet), or a few for real deployments."""

from __future__ import annotations

import datetime as dt
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bench import node_python, programs
from bench.settings import fleet_settings, without_images
from kubeworker import lab as labs
from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.certificates import pki
from kubeworker.errors import LabError
from kubeworker.io import cluster_file
from kubeworker.lab import LabState, Machine, host, state
from kubeworker.lab.admin_api import AdminApi

INOTIFY_MACHINE = 4
"""inotify instances of a machine without a kubelet (lab/lifecycle.py)."""
INOTIFY_DEPLOYED = 12
"""Those of a machine with kubelet and containerd."""
INOTIFY_SERVERS = 12
"""Those of the two control planes, beside their machines' own."""
INOTIFY_SPARE = 40
"""Left for systemd's moments of waiting for a pid file, on many machines at once, and for the rest of this host."""
AT_ONCE = 13
"""Machines that are booted at once."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Machines that are nodes to the tool, and the cluster.yaml that describes them."""

    lab: LabState
    cluster_file: Path
    machines: tuple[Machine, ...]
    spare: Machine | None = None
    """One more machine, which the cluster.yaml does not name."""
    quiet: int = 0
    """So many of the machines hold no inotify instance (machine/no_inotify.c)."""

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names."""
        return tuple(each.name for each in self.machines)

    def only(self, machines: Sequence[Machine]) -> Fleet:
        """These of its machines."""
        return replace(self, machines=tuple(machines))


def fleet(name: str, nodes: int, work: Path, say: Say, *, python: bool, keep: bool = False) -> Fleet:
    """Boot `nodes` machines and a spare one, with stand-ins for binaries, that the tool takes for joined nodes.

    `python` puts a whole Python on them; `keep` takes the lab of that name as it is.
    """
    if not keep:
        labs.down(name)
    total = nodes + 1
    quiet = total - min(total, _affordable())
    workers = [f"worker-{number:02d}" for number in range(1, total + 1)]
    if python:
        _give_python(name, workers, say)
    _make_quiet(name, workers[:quiet], work)
    lab = labs.up(name, workers=0 if not keep else None)
    count = len(lab.machines) - len(lab.control_plane)
    while count < total:
        # `lab up` asks for as many instances as if no machine were a quiet one.
        count = min(total, count + max(1, min(AT_ONCE, host.free_inotify_instances() // INOTIFY_MACHINE - 1)))
        say(f"booting machines up to {count} of {total}")
        lab = labs.up(name, workers=count)
    booted = tuple(each for each in lab.machines if not each.is_control_plane)
    # The spare one is the last: it is as it comes, where one such machine is affordable at all.
    chosen, spare = booted[:nodes], booted[nodes]
    path = lab.folder / "fleet.yaml"
    write_cluster(lab, path, chosen, fleet_settings(lab, work))
    _stand_ins(path)
    certificates = {each.name: _client_certificate(lab, each) for each in booted}
    each_machine(lab, booted, lambda each: _joined_script(certificates[each.name]))
    _register(lab, chosen)
    return Fleet(lab=lab, cluster_file=path, machines=chosen, spare=spare, quiet=min(quiet, nodes))


def real(name: str, nodes: int, work: Path, say: Say, *, python: bool, keep: bool = False) -> Fleet:
    """Boot so many machines, the control plane's two among them, for deployments with all binaries.

    Where this host's inotify instances don't carry that many, machines hold none of their own (kubelets still do), and
    if that is not enough, they are fewer: a result says its numbers.
    """
    if not keep:
        labs.down(name)
    free = host.free_inotify_instances() - INOTIFY_SPARE
    quiet = not keep and INOTIFY_DEPLOYED * max(nodes, 2) + INOTIFY_SERVERS > free
    each = INOTIFY_DEPLOYED - (INOTIFY_MACHINE if quiet else 0)
    nodes = max(2, nodes if keep else min(nodes, (free - INOTIFY_SERVERS) // each))
    names = [*state.CONTROL_PLANE, *(f"worker-{number:02d}" for number in range(1, nodes - 1))]
    if python:
        _give_python(name, names, say)
    if quiet:
        _make_quiet(name, names, work)
    say(f"booting {nodes} machines{', without inotify' if quiet else ''}")
    lab = labs.up(name, workers=nodes - 2)
    path = lab.folder / "deploy.yaml"
    write_cluster(lab, path, lab.machines, without_images)
    return Fleet(lab=lab, cluster_file=path, machines=lab.machines[:nodes], quiet=nodes if quiet else 0)


def write_cluster(
    lab: LabState, path: Path, machines: Iterable[Machine], change: Callable[[dict[str, Any]], None]
) -> None:
    """A cluster.yaml beside the lab's own, with these nodes."""
    document = yaml.safe_load(lab.cluster_yaml.read_text())
    document["nodes"] = [{"name": each.name, "address": each.address} for each in machines]
    change(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def each_machine(lab: LabState, machines: Sequence[Machine], script: Callable[[Machine], str]) -> dict[str, str]:
    """Run a shell script on each machine, not through its sshd; what each printed. LabError where one fails."""

    def one(machine: Machine) -> str:
        done = labs.run(lab, machine, script(machine), timeout=300)
        if done.returncode:
            raise LabError(f"a script failed: {done.stdout}{done.stderr}", subject=machine.name)
        return done.stdout

    with ThreadPoolExecutor(8) as pool:
        return dict(zip((each.name for each in machines), pool.map(one, machines), strict=True))


def reset(target: Fleet, units: Sequence[str], paths: Sequence[str], machines: Sequence[Machine] = ()) -> None:
    """Take away what any tool has deployed, from the machines and from the API: as after their first boot."""
    chosen = tuple(machines) or target.machines
    each_machine(target.lab, chosen, lambda _: _reset_script(units, paths))
    api = AdminApi(target.lab, target.lab.control_plane[0])
    for each in chosen:
        api.ask("DELETE", f"/api/v1/nodes/{each.name}")
    api.ask("DELETE", "/apis/certificates.k8s.io/v1/certificatesigningrequests")


# ---------------------------------------------------------------------------------------------------------------


def _affordable() -> int:
    free = host.free_inotify_instances() - INOTIFY_SERVERS - 2 * INOTIFY_MACHINE - INOTIFY_SPARE
    return max(0, free // INOTIFY_MACHINE)


def _new_disks(name: str, machines: Iterable[str]) -> Iterator[Path]:
    """What each machine's disk has beside the shared root file system; those that have booted are left alone."""
    folder = state.lab_folder(name, state.labs_folder()) / "machines"
    return (folder / each / "upper" for each in machines if not (folder / each / "complete").exists())


def _give_python(name: str, machines: Iterable[str], say: Say) -> None:
    say("a Python for the machines")
    files = node_python.tree()
    for disk in _new_disks(name, machines):
        node_python.place(files, disk)


def _make_quiet(name: str, machines: Iterable[str], work: Path) -> None:
    library = work / "no_inotify.so"
    programs.no_inotify(library)
    for disk in _new_disks(name, machines):
        for path in (disk, disk / "etc", disk / "opt", disk / "opt/lab"):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)
        shutil.copyfile(library, disk / "opt/lab/no_inotify.so")
        (disk / "etc/ld.so.preload").write_text("/opt/lab/no_inotify.so\n")


def _stand_ins(path: Path) -> None:
    registry = discover()
    cluster = cluster_file.load(path, registry)
    # nginx is real: it is small, and the tool looks at the API server's certificate through it.
    wanted = (each for each in desired.artifacts(cluster, registry) if each.name != "kube-nginx")
    programs.stand_ins(wanted, Path(cluster.artifacts.local))


def _client_certificate(lab: LabState, machine: Machine) -> bytes:
    now = dt.datetime.now(dt.UTC)
    ca = pki.load_ca(
        lab.ca.read_bytes(), lab.ca_key.read_bytes(), now=now, cert_subject=str(lab.ca), key_subject=str(lab.ca_key)
    )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = pki.issue_client(
        ca,
        common_name=f"system:node:{machine.name}",
        names={"O": "system:nodes"},
        key=key,
        serial=x509.random_serial_number(),
        now=now,
        lifetime=dt.timedelta(days=300),
    )
    return certificate + pki.key_pem(key)


def _joined_script(certificate: bytes) -> str:
    folder = "/etc/kubernetes/cert"
    return f"""set -e
umask 077
mkdir -p -m 755 /etc/kubernetes {folder}
cat > {folder}/kubelet-client-1.pem <<'PEM'
{certificate.decode()}PEM
ln -sfn {folder}/kubelet-client-1.pem {folder}/kubelet-client-current.pem
"""


def _register(lab: LabState, machines: Iterable[Machine]) -> None:
    """Node objects, as kubelets would have made them."""
    api = AdminApi(lab, lab.control_plane[0])
    for each in machines:
        node: Mapping[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": each.name, "labels": {"kubernetes.io/hostname": each.name}},
        }
        status, document = api.ask("POST", "/api/v1/nodes", node)
        if status not in {201, 409}:
            raise LabError(f"no Node object: {document.get('message', status)}", subject=each.name)


def _reset_script(units: Sequence[str], paths: Sequence[str]) -> str:
    files = [*paths, *(f"/etc/systemd/system/{unit}" for unit in units)]
    kept = "/etc/kubernetes/cert/kubelet-client-"
    return f"""
systemctl disable --now {shlex.join(units)} 2> /dev/null
rm -rf -- {shlex.join(files)}
# The lab's own keys lie beside: only what nodes have goes.
rm -rf /opt/k8s /opt/cni /data/k8s /etc/cni/net.d /etc/containerd /var/lib/kubeworker /run/containerd /run/kube-nginx
rm -rf /etc/kubernetes/kubelet*.kubeconfig /etc/nerdctl
[ -e {kept}1.pem ] || rm -rf /etc/kubernetes/cert
nft delete table ip kube-proxy 2> /dev/null
nft delete table ip6 kube-proxy 2> /dev/null
systemctl daemon-reload
systemctl reset-failed
for unit in {shlex.join(units)}; do
  ! systemctl --quiet is-active "$unit" || {{ echo "$unit still runs"; exit 1; }}
done
"""
