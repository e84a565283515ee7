"""No secret is seen while a node joins: all that is said, started and left behind by it is searched for every secret.

One whole join, as another user than root, watched on both sides: the command and each program that it starts by strace
(arguments and environment of every execve), the node's sshd and all of its children likewise, and every process of both
by /proc again and again. tests/contract/test_leaks.py shows of each part of the net that it catches.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.lab import leaks
from tests.lab.leaks import Leak, Sampler, Secret
from tests.lab.operate import COMMAND, Operator, kubectl, sh

from kubeworker.flow import credentials
from kubeworker.lab import LabState, Machine, cgroups, machine

pytestmark = pytest.mark.timeout(300)

NODE = "worker-01"
REGISTRY = "private.example"
INLINE, IN_FILE = "the registry's password in cluster.yaml", "the registry's password in a file"
PASSWORDS = {INLINE: "Basic aW5saW5lOmNhbmFyeS1wYXNzd29yZC0x", IN_FILE: "Basic ZmlsZTpjYW5hcnktcGFzc3dvcmQtMg=="}
REGISTRY_KEY, PROXY_KEY = "the registry's client key", "kube-proxy's key"
CLIENT_KEY, SERVING_KEY = "kubelet's client key", "kubelet's serving key"
TOKEN = "a bootstrap token"

ON_THE_NODE = {
    PROXY_KEY: ("/etc/kubernetes/kube-proxy.kubeconfig",),
    CLIENT_KEY: ("/etc/kubernetes/cert/kubelet-client-",),
    SERVING_KEY: ("/etc/kubernetes/cert/kubelet-server-",),
    REGISTRY_KEY: (f"/etc/containerd/certs.d/{REGISTRY}/",),
    INLINE: (f"/etc/containerd/certs.d/{REGISTRY}/hosts.toml",),
    IN_FILE: (f"/etc/containerd/certs.d/{REGISTRY}/hosts.toml",),
}
"""Where a secret may lie there, by the beginning of the path; those that are not named are nowhere."""
KEPT = "/var/lib/kubeworker/"
"""What a failed change is put back from: these files as they were, in a folder that is root's alone."""
NODE_PLACES = ("etc", "opt", "root", "home", "tmp", "var", "run", "dev/shm", "data", "srv", "usr/local", "mnt")
IMAGES = ("data/k8s/containerd", "run/containerd/io.containerd.runtime.v2.task", "opt/k8s/bin", "opt/lab")
"""Images, pods' root file systems and binaries: nothing of a join is written there."""


# ---------------------------------------------------------------------------------------------------------------
# What there is to see of a machine and of the cluster


def processes(lab: LabState, each: Machine) -> list[tuple[int, str]]:
    """This host's pid and the command line of each of the machine's processes."""
    found = []
    for pid in cgroups.pids(machine.groups(lab, each)):
        with suppress(OSError):
            found.append((pid, Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")))
    return found


def sshd(lab: LabState, each: Machine) -> int:
    (pid,) = [pid for pid, command in processes(lab, each) if "[listener]" in command and "sshd" in command]
    return pid


def root_of(lab: LabState, each: Machine) -> Path:
    """The machine's whole file system, its mounts included."""
    return Path(f"/proc/{machine.init_pid(lab, each)}/root")


def told(lab: LabState, since: float, folder: Path) -> None:
    """What machines' journals say since then (of all services), what their systemd tells of every unit to everybody,
    and every object in the cluster; each in a file."""
    folder.mkdir(mode=0o700)
    for each in lab.machines:
        # Not as text: fields that are not shown (_CMDLINE) count too.
        journal = sh(lab, each.name, f"journalctl --no-pager --all --output=export --since=@{since:.0f}")
        (folder / f"journal of {each.name}").write_text(journal)
        (folder / f"units of {each.name}").write_text(sh(lab, each.name, "systemctl show --all '*'"))
    kinds = kubectl(lab, "api-resources", "--verbs=list", "-o=name").replace("\n", ",")
    shown = kubectl(lab, "get", kinds, "--all-namespaces", "--show-managed-fields", "-o=json")
    (folder / "objects").write_text(shown)
    nodes = [each.name for each in lab.machines]
    (folder / "kubelets' configz").write_text("".join(configz(lab, name) for name in nodes))


def configz(lab: LabState, node: str) -> str:
    """What the node's kubelet tells of its configuration; nothing where it is no node yet."""
    command = [str(lab.folder / "bin/kubectl"), f"--kubeconfig={lab.kubeconfig}", "get", "--raw"]
    path = f"/api/v1/nodes/{node}/proxy/configz"
    return subprocess.run([*command, path], capture_output=True, text=True, timeout=60, check=False).stdout


def left_on_the_node(lab: LabState, secrets: Sequence[Secret], folder: Path) -> list[Leak]:
    root = root_of(lab, lab.machine(NODE))
    found = leaks.search(
        secrets,
        [root / place for place in NODE_PLACES],
        folder,
        without=[root / place for place in IMAGES],
    )
    return leaks.leaks(found, shown=lambda path: f"/{path.relative_to(root)}", allowed=allowed_on_the_node)


def allowed_on_the_node(secret: str, path: str) -> bool:
    places = ON_THE_NODE.get(secret, ())
    return path.startswith(places) or (bool(places) and path.startswith(KEPT) and secret != CLIENT_KEY)


# ---------------------------------------------------------------------------------------------------------------
# The join


@dataclass(frozen=True, kw_only=True)
class Join:
    """One join, and all that was seen of it."""

    operator: Operator
    """With the cluster.yaml of the join."""
    folder: Path
    seen: Path
    """A folder of what was said and seen, a file for each source."""
    stamp: Path
    """A file as old as the beginning."""
    secrets: tuple[Secret, ...]

    def found(self, *, tokens: bool = True) -> list[tuple[str, str]]:
        """(source, secret) of all that was said and seen."""
        found = leaks.search(self.secrets, [self.seen], self.folder, tokens=tokens)
        return sorted((str(path.relative_to(self.seen)), name) for path, names in found.items() for name in names)


COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {
    # what is run, in this order, with the exit code that it has
    "plan, as text in full": (2, ("plan", "--full", "--node", NODE)),
    "plan, as JSON": (2, ("plan", "--json", "--json-events", "--html", "OUT/plan.html", "--node", NODE)),
    "preflight": (0, ("preflight", "--json", "--json-events", "--node", NODE)),
    "render": (0, ("render", "--json", "--out", "OUT/rendered")),
    "apply": (0, ("apply", "--yes", "--json", "--json-events", "--html", "OUT/apply.html", "--node", NODE)),
    "requests": (0, ("csr", "list", "--json")),
    "tokens": (0, ("token", "list", "--json")),
    "status": (0, ("status", "--json", "--certificates", "--node", NODE)),
    "verify": (0, ("verify", "--json", "--json-events", "--passed", "--html", "OUT/report.html", "--node", NODE)),
}


def say(operator: Operator, seen: Path, name: str) -> None:
    """Run one of the commands under strace, where every file is made as open as the command lets it be."""
    code, (*verb, last) = COMMANDS[name]
    words = [word.replace("OUT", str(seen)) for word in (*verb, last)]
    place = 2 if words[0] in {"csr", "token"} else 1
    command = [str(COMMAND), *words[:place], "-f", str(operator.file), *words[place:]]
    done = subprocess.run(
        [*leaks.strace(seen / f"started by {name}"), *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        umask=0,
        check=False,
    )
    assert done.returncode == code, f"{name}\n{done.stdout}{done.stderr}"
    (seen / f"said by {name}").write_text(done.stdout + done.stderr)


@contextmanager
def tokens_of(lab: LabState) -> Iterator[list[str]]:
    """The secret halves of all bootstrap tokens that there are at any moment; known when the block has ended."""
    command = [str(lab.folder / "bin/kubectl"), f"--kubeconfig={lab.kubeconfig}", "-n=kube-system", "get", "secrets"]
    kind = ["--field-selector=type=bootstrap.kubernetes.io/token", "--watch"]
    halves: list[str] = []
    template = "-o=jsonpath={.data.token-secret}{'\\n'}"
    watcher = subprocess.Popen([*command, *kind, template], stdout=subprocess.PIPE, text=True)
    try:
        yield halves
    finally:
        watcher.terminate()
        output, _ = watcher.communicate(timeout=20)
        halves += sorted({base64.b64decode(line).decode() for line in output.split()})


CHANGING = ("leases", "configmaps", "events", "nodes", "certificatesigningrequests")
"""Kinds that a run writes, or has written: what stands in them for a moment counts too."""


@contextmanager
def objects_of_a_moment(lab: LabState, seen: Path) -> Iterator[None]:
    """Every state of these objects while the block runs, in files."""
    command = [str(lab.folder / "bin/kubectl"), f"--kubeconfig={lab.kubeconfig}", "get", "--all-namespaces", "--watch"]
    with ExitStack() as files:
        watchers = [
            subprocess.Popen(
                [*command, "--show-managed-fields", "-o=json", kind],
                stdout=files.enter_context((seen / f"{kind} as they changed").open("wb")),
            )
            for kind in CHANGING
        ]
        try:
            yield
        finally:
            for each in watchers:
                each.terminate()
                each.wait(timeout=20)


def states(text: str) -> Iterator[dict[str, Any]]:
    """The JSON documents of a watch, which follow one another."""
    decoder, at = json.JSONDecoder(), 0
    while start := text.find("{", at) + 1:
        try:
            document, at = decoder.raw_decode(text, start - 1)
        except ValueError:
            return  # the last one was cut when the watch was ended
        yield document


def forget(lab: LabState) -> None:
    """The node as if it had never joined: it has no credentials, and every service starts anew."""
    sh(lab, NODE, "systemctl stop kubelet kube-proxy kube-nginx containerd")
    sh(lab, NODE, "cd /etc/kubernetes; rm -f kubelet.kubeconfig cert/kubelet-* kube-proxy.kubeconfig")


def registry(folder: Path) -> dict[str, Any]:
    """A private registry with a password of each kind and a client certificate; their files are in the folder."""
    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    encoding = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files = {
        "registry.pem": builder.sign(private, hashes.SHA256()).public_bytes(encoding),
        "registry-key.pem": private.private_bytes(encoding, form, plain),
        "registry-password": PASSWORDS[IN_FILE].encode(),
    }
    for each, content in files.items():
        (folder / each).touch(mode=0o600)
        (folder / each).write_bytes(content)
    pair = {name: str(folder / file) for name, file in (("cert", "registry.pem"), ("key", "registry-key.pem"))}
    mirror = {
        "url": "https://mirror.example",
        "header_files": {"Authorization": str(folder / "registry-password")},
        "client": pair,
    }
    return {REGISTRY: {"header": {"Authorization": PASSWORDS[INLINE]}, "hosts": [mirror]}}


def known(lab: LabState, folder: Path, tokens: Sequence[str]) -> tuple[Secret, ...]:
    """Every secret that a join has to do with."""
    admin = yaml.safe_load(lab.kubeconfig.read_text())["users"][0]["user"]["client-key-data"]
    kept = credentials.directory(lab.cluster_yaml)
    kubelet = "/etc/kubernetes/cert/kubelet-{}-current.pem"
    return (
        leaks.key("the CA's key", lab.ca_key.read_bytes()),
        leaks.key("the administrator's key", base64.b64decode(admin)),
        leaks.key("the SSH key", lab.ssh_identity.read_bytes()),
        leaks.key(PROXY_KEY, (kept / "kube-proxy-key.pem").read_bytes()),
        leaks.key(CLIENT_KEY, sh(lab, NODE, f"cat {kubelet.format('client')}").encode()),
        leaks.key(SERVING_KEY, sh(lab, NODE, f"cat {kubelet.format('server')}").encode()),
        leaks.key(REGISTRY_KEY, (folder / "registry-key.pem").read_bytes()),
        *(leaks.text(name, value.removeprefix("Basic ")) for name, value in PASSWORDS.items()),
        *(leaks.text(TOKEN, half) for half in tokens),
    )


@pytest.fixture(scope="module")
def join(deployed: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Join]:
    lab, folder = deployed, tmp_path_factory.mktemp("secrets")
    seen, stamp = folder / "seen", folder / "stamp"
    seen.mkdir()
    stamp.touch()
    as_root = Operator(lab=lab, file=lab.cluster_yaml)

    def change(document: dict[str, Any]) -> None:
        document["ssh"]["user"] = "ops"
        document["components"]["containerd"]["mirrors"] = registry(folder)

    try:
        with as_root.changed(change) as operator:
            operator.file.chmod(0o600)
            forget(lab)
            began, root = time.time(), root_of(lab, lab.machine(NODE))
            registries = f"etc/containerd/certs.d/{REGISTRY}"
            volatile = [root / place for place in ("etc/kubernetes", "etc/kubernetes/cert", registries, "tmp", "run")]
            with ExitStack() as watched:
                tokens = watched.enter_context(tokens_of(lab))
                watched.enter_context(objects_of_a_moment(lab, seen))
                watched.enter_context(Sampler([*volatile, Path("/tmp"), Path("/dev/shm")]).running(seen / "sampled"))
                watched.enter_context(leaks.traced(sshd(lab, lab.machine(NODE)), seen / "started on the node"))
                for name in COMMANDS:
                    say(operator, seen, name)
            told(lab, began, seen / "told")
            assert len(tokens) == 2, "one for preflight, one for the join"
            yield Join(operator=operator, folder=folder, seen=seen, stamp=stamp, secrets=known(lab, folder, tokens))
    finally:
        as_root.apply("--node", NODE)


def test_no_secret_is_in_arguments_environment_output_logs_units_or_objects(join: Join) -> None:
    assert join.found() == []


def test_it_was_a_whole_join_and_all_of_it_was_seen(join: Join) -> None:
    lab = join.operator.lab
    traces = {path.name: path.read_text(errors="replace") for path in join.seen.glob("started *")}
    assert all("execve(" in traces[f"started by {name}"] for name in COMMANDS)
    # As ops, by sudo; a script of many kilobytes that is seen by nobody.
    assert '"sudo", "-n", "sh", "-c"' in traces["started on the node"]
    assert "/opt/k8s/bin/" in traces["started on the node"]
    sampled = (join.seen / "sampled").read_text(errors="replace")
    assert "argv of" in sampled
    assert "/opt/k8s/bin/kubelet" in sampled
    said = (join.seen / "said by apply").read_text()
    assert "kubelet-bootstrap.kubeconfig" in said
    assert "kube-proxy.kubeconfig" in said
    assert f"certs.d/{REGISTRY}/hosts.toml" in said
    # verify had tokens made for ServiceAccounts of its own, and spoke to kubelet with them.
    assert '"kubelet.token"' in (join.seen / "said by verify").read_text()
    told = {path.name: path.read_text(errors="replace") for path in (join.seen / "told").iterdir()}
    for identifier in ("sshd", "sudo", "kubelet", "kube-proxy", "containerd"):
        assert f"SYSLOG_IDENTIFIER={identifier}\n" in told[f"journal of {NODE}"], identifier
    assert "SYSLOG_IDENTIFIER=kube-apiserver\n" in told[f"journal of {lab.control_plane[0].name}"]
    # The Lease as it was while the run held it, which the end of the run gives back.
    leases = states((join.seen / "leases as they changed").read_text())
    assert [each for each in leases if each["metadata"]["name"] == "kubeworker" and each["spec"].get("holderIdentity")]
    assert all((join.seen / f"{kind} as they changed").stat().st_size for kind in CHANGING)
    assert {"Event", "ConfigMap", "Lease", "CertificateSigningRequest"} <= {
        each["kind"] for each in json.loads(told["objects"])["items"]
    }


def test_on_the_node_each_secret_is_where_it_belongs_and_root_alone_reads_it(join: Join) -> None:
    lab = join.operator.lab
    assert left_on_the_node(lab, join.secrets, join.folder) == []
    # It would have found them: those that belong there are there.
    root = root_of(lab, lab.machine(NODE))
    found = leaks.search(join.secrets, [root / "etc"], join.folder)
    assert {name for names in found.values() for name in names} == ON_THE_NODE.keys()


def test_on_the_control_host_each_secret_is_where_the_operator_put_it(join: Join) -> None:
    lab, home = join.operator.lab, Path.home()
    kept = credentials.directory(lab.cluster_yaml)
    belongs = {
        "the CA's key": {lab.ca_key},
        "the administrator's key": {lab.kubeconfig},
        "the SSH key": {lab.ssh_identity},
        PROXY_KEY: {kept / "kube-proxy-key.pem"},
        INLINE: {join.operator.file},
        IN_FILE: {join.folder / "registry-password"},
        REGISTRY_KEY: {join.folder / "registry-key.pem"},
    }
    xdg = {
        Path(os.environ.get(variable, home / default)) / "kubeworker"
        for variable, default in (
            ("XDG_CACHE_HOME", ".cache"),
            ("XDG_CONFIG_HOME", ".config"),
            ("XDG_DATA_HOME", ".local/share"),
            ("XDG_STATE_HOME", ".local/state"),
        )
    }
    history = Path(os.environ.get("HISTFILE", home / ".bash_history"))
    temporary = [Path(each) for each in ("/tmp", "/var/tmp", "/run", "/dev/shm")]
    recent = leaks.search(
        join.secrets,
        [*xdg, *temporary, history, *home.glob(".*history"), home / ".ssh", home / ".kube", Path.cwd() / ".kubeworker"],
        join.folder,
        # Other machines of the lab, and of other labs, have disks below; the node's own was looked at from inside.
        without=[lab.folder.parent],
        newer=join.stamp,
    )
    # The lab's own folder whole: whatever its age.
    machines = [lab.folder / "machines" / each.name / part for each in lab.machines for part in MACHINE_DISK]
    ours = leaks.search(join.secrets, [lab.folder], join.folder, without=[*machines, lab.folder / "pki"])
    found = {**recent, **ours}
    left = leaks.leaks(found, shown=str, allowed=lambda name, path: Path(path) in belongs.get(name, ()))
    assert left == []
    assert {name for names in found.values() for name in names} == belongs.keys(), "it would have found them"
    assert {path.stat().st_mode & 0o777 for path in (kept, lab.folder)} == {0o700}


MACHINE_DISK = ("upper", "work", "mnt", "data", "disk.cow")


def test_no_process_of_the_join_has_left_its_memory_in_a_file(join: Join) -> None:
    # systemd-coredump is not installed there: a core would lie in the folder that the process was in.
    looked = "/ /root /home/ops /tmp /var/tmp /var/lib/systemd/coredump /var/lib/kubeworker /etc/kubernetes"
    cores = sh(join.operator.lab, NODE, f"find {looked} -maxdepth 1 -type f -name 'core*' 2> /dev/null || :")
    assert cores == ""
    here = [path for folder in (Path("/"), Path.cwd(), Path("/tmp")) for path in folder.glob("core*")]
    assert [path for path in here if path.is_file() and path.stat().st_mtime > join.stamp.stat().st_mtime] == []


BOOTSTRAP = "/etc/kubernetes/kubelet-bootstrap.kubeconfig"


def test_a_join_that_is_killed_leaves_its_secrets_to_root_alone(join: Join) -> None:
    lab = join.operator.lab
    forget(lab)
    with tokens_of(lab) as tokens:
        process = join.operator.start("apply", "--yes", "--node", NODE)
        assert process.stderr
        assert any(f"file {BOOTSTRAP}" in line for line in process.stderr), "it came to the token's file"
        process.kill()
        process.wait()
    # The node's own script goes on for a while: now all is there that it makes on its way.
    secrets = [*join.secrets, *(leaks.text(TOKEN, half) for half in tokens)]
    root = root_of(lab, lab.machine(NODE))
    without = [root / place for place in IMAGES]
    found = leaks.search(secrets, [root / place for place in NODE_PLACES], join.folder, without=without)

    def allowed(secret: str, path: str) -> bool:
        return allowed_on_the_node(secret, path) or (secret == TOKEN and path.startswith((BOOTSTRAP, KEPT)))

    assert leaks.leaks(found, shown=lambda path: f"/{path.relative_to(root)}", allowed=allowed) == []
    assert TOKEN in found[root / BOOTSTRAP.lstrip("/")], "it would have found it"
    assert leaks.search(secrets[-len(tokens) :], [Path("/tmp"), lab.folder / ".kubeworker"], join.folder) == {}

    # The next run takes the token back, and its file away.
    join.operator.apply("--node", NODE)
    assert left_on_the_node(lab, secrets, join.folder) == []


# ---------------------------------------------------------------------------------------------------------------
# The net on machines: what is planted there is caught


PLANTED = """\
set -e
logger -t kubelet 'joined with 89abcdef01234567'
install -m 0644 /dev/stdin /tmp/planted <<< 89abcdef01234567
install -m 0600 /dev/stdin /home/ops/.bash_history <<< 89abcdef01234567
systemd-run --quiet --unit=planted --setenv=TOKEN=89abcdef01234567 sleep 300
"""


def test_what_is_planted_on_a_machine_or_in_the_api_is_found(deployed: LabState, tmp_path: Path) -> None:
    lab, secret = deployed, leaks.text("planted", "89abcdef01234567")
    began = time.time() - 1
    with Sampler().running(tmp_path / "sampled"), leaks.traced(sshd(lab, lab.machine(NODE)), tmp_path / "traced"):
        sh(lab, NODE, f"bash <<'PLANTED'\n{PLANTED}PLANTED")
        ssh = ["ssh", "-i", str(lab.ssh_identity), "-o", f"UserKnownHostsFile={lab.known_hosts}"]
        subprocess.run([*ssh, f"ops@{lab.machine(NODE).address}", "/bin/true 89abcdef01234567"], check=True)
        kubectl(lab, "create", "configmap", "planted", "--from-literal=token=ODlhYmNkZWYwMTIzNDU2Nw==")
        time.sleep(0.5)
    try:
        told(lab, began, tmp_path / "told")
        found = leaks.search([secret], [tmp_path], tmp_path)
        names = {str(path.relative_to(tmp_path)) for path in found}
        said = (f"journal of {NODE}", f"units of {NODE}", "objects")
        assert names == {
            "sampled",
            "traced",
            *(f"told/{each}" for each in said),
        }
        left = {leak.place for leak in left_on_the_node(lab, [secret], tmp_path)}
        assert {"/tmp/planted", "/home/ops/.bash_history"} <= left
    finally:
        kubectl(lab, "delete", "configmap", "planted")
        sh(lab, NODE, "systemctl stop planted; rm -f /tmp/planted /home/ops/.bash_history")
