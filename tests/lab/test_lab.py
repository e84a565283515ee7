"""The lab itself, on real machines: that it comes up, comes back, and goes without a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.lab.operate import COMMAND, kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.errors import InputError, LabError
from kubeworker.lab import LabState, cgroups, machine, state

ETCD_CERTIFICATES = "--cacert /etc/kubernetes/pki/ca.pem"
ETCD_CLIENT = "--cert /etc/kubernetes/pki/etcd-client.pem --key /etc/kubernetes/pki/etcd-client-key.pem"


MakeLab = Callable[..., LabState]


def command(*words: str, code: int = 0) -> str:
    """Standard output of `kubeworker lab ...`; what it says on standard error if another exit code is wanted."""
    done = subprocess.run(
        [str(COMMAND), "lab", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def inits(lab: LabState) -> dict[str, int | None]:
    return {each.name: machine.init_pid(lab, each) for each in lab.machines}


def mentioning(paths: Iterator[Path], words: tuple[str, ...]) -> list[str]:
    """Those files of /proc whose content has one of the words."""
    found = []
    for path in paths:
        try:
            content = path.read_bytes().decode("utf-8", "replace")
        except OSError:  # the process ended meanwhile
            continue
        found += [f"{path}: {word}" for word in words if word in content]
    return found


def traces(lab: LabState) -> dict[str, list[str]]:
    """Everything on this host that carries the lab's id, folder or network, by kind."""
    words = (lab.id, str(lab.folder))
    ip = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout
    network = lab.subnet.removesuffix("0/24")
    another = re.compile(
        r"\bkwbr-(?!" + re.escape(lab.id) + ")"
    )  # a lab made meanwhile takes the first network that is free

    def own(line: str) -> bool:
        return lab.id in line or (network in line and not another.search(line))

    folders = (Path("/run"), Path("/tmp"), Path("/run/systemd/nspawn"), Path("/var/lib/machines"), lab.folder.parent)
    names = (lab.id, f".{lab.name}.lock")
    entries = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return {
        "processes": mentioning(Path("/proc").glob("[0-9]*/cmdline"), words),
        "mounts in any namespace": mentioning(Path("/proc").glob("[0-9]*/mountinfo"), words),
        "sockets": mentioning(iter([Path("/proc/net/unix")]), words),
        "links and addresses": [line for line in ip.splitlines() if own(line)],
        "routes": [line for line in routes.splitlines() if network in line and own(line)],
        "control groups": [str(group) for group in cgroups.find(state.scope_prefix(lab.id))],
        "files": [str(entry) for entry in entries if entry == lab.folder or any(name in entry.name for name in names)],
    }


def of_the_host() -> dict[str, str]:
    """What a lab must never change of this host."""
    text = {}
    for words in (("iptables-save",), ("ip6tables-save",), ("nft", "list", "ruleset")):
        try:
            lines = subprocess.run(list(words), capture_output=True, text=True, check=False).stdout.splitlines()
        except FileNotFoundError:
            continue
        text[words[0]] = "\n".join(line for line in lines if not line.startswith("#"))
    for key in ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "net/ipv4/ip_forward"):
        text[key] = (Path("/proc/sys") / key).read_text()
    return text


@contextmanager
def leaves_nothing(lab: LabState) -> Iterator[None]:
    """What is done inside takes the lab down."""
    before = traces(lab)
    assert all(before[kind] for kind in ("links and addresses", "control groups", "files", "routes")), before
    yield
    assert {kind: found for kind, found in traces(lab).items() if found} == {}


# These two come first: while the session's lab is not up yet, the host has inotify instances enough for theirs.


def test_everything_killed_comes_back_as_it_was(make_lab: MakeLab) -> None:
    lab = make_lab("kill")
    kubectl(lab, "create", "configmap", "kept", "--from-literal=a=b")
    host_keys = lab.known_hosts.read_text()
    assert cgroups.kill(cgroups.find(state.scope_prefix(lab.id))) == frozenset()
    subprocess.run(["ip", "link", "delete", lab.bridge], check=True)
    assert set(inits(lab).values()) == {None}
    command("up", "--name", lab.name)
    assert all(labs.running(lab).values())
    assert kubectl(lab, "get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "b"
    assert lab.known_hosts.read_text() == host_keys


def test_workers_come_and_go_and_down_leaves_nothing(make_lab: MakeLab) -> None:
    host = of_the_host()
    lab = make_lab("grow")
    before = inits(lab)
    command("up", "--name", lab.name, "--workers", "1")
    grown = labs.find(lab.name)
    assert [each.name for each in grown.machines] == ["k8s-01", "k8s-02", "worker-01"]
    assert "worker-01" in grown.cluster_yaml.read_text()
    assert inits(grown) | before == inits(grown), "the others were left alone"

    command("up", "--name", lab.name, "--workers", "0")
    assert labs.find(lab.name).machines == lab.machines
    assert "worker-01" not in lab.cluster_yaml.read_text()
    assert cgroups.find(grown.scope(grown.machines[-1])) == ()

    with leaves_nothing(lab):
        command("down", "--name", lab.name)
    assert of_the_host() == host


def test_both_apiservers_are_ready(lab: LabState) -> None:
    assert [each.name for each in lab.control_plane] == ["k8s-01", "k8s-02"]
    assert all(labs.apiserver_ready(lab, each) for each in lab.control_plane)


def test_machines_know_their_names_and_have_identities_of_their_own(lab: LabState) -> None:
    seen = {each.name: sh(lab, each.name, "hostname; cat /etc/machine-id").splitlines() for each in lab.machines}
    assert [name for name, _ in seen.values()] == list(seen)
    assert len({identity for _, identity in seen.values()}) == len(lab.machines)


def test_machines_have_a_bpf_file_system_of_their_own_below_a_read_only_sys(lab: LabState) -> None:
    script = "cd /sys/fs/bpf; stat -f -c %t .; stat -c %d .; touch /sys/x 2>&1; mkdir mine && rmdir mine"
    told = {each.name: sh(lab, each.name, script).splitlines() for each in lab.machines}
    assert {lines[0] for lines in told.values()} == {"cafe4a11"}  # BPF_FS_MAGIC (statfs(2))
    assert len({lines[1] for lines in told.values()}) == len(lab.machines)
    assert all("Read-only file system" in lines[2] for lines in told.values())


def test_status_has_the_form_that_programs_rely_on(lab: LabState) -> None:
    document = json.loads(command("status", "--name", lab.name, "--json"))
    assert document["running"] is True
    assert [Path(document[key]) for key in ("cluster_yaml", "kubeconfig", "ca")] == [
        lab.cluster_yaml,
        lab.kubeconfig,
        lab.ca,
    ]
    assert document["machines"][0] == {
        "name": "k8s-01",
        "address": lab.machine("k8s-01").address,
        "roles": ["control-plane", "worker"],
        "kind": "nspawn",
        "running": True,
    }
    assert [each["roles"] for each in document["machines"]][2:] == [["worker"]] * (len(lab.machines) - 2)


def test_ssh_logs_in_as_root_and_as_a_user_with_sudo(lab: LabState) -> None:
    assert command("ssh", "--name", lab.name, "k8s-02", "--", "hostname; id -un").split() == ["k8s-02", "root"]
    as_ops = command("ssh", "--name", lab.name, "--user", "ops", "k8s-01", "--", "id -un; sudo -n id -un")
    assert as_ops.split() == ["ops", "root"]
    command("ssh", "--name", lab.name, "k8s-01", "--", "exit 7", code=7)


def test_a_second_up_does_nothing(lab: LabState) -> None:
    written = ("lab.json", "cluster.yaml", "known_hosts", "admin.kubeconfig")
    before = inits(lab), {name: (lab.folder / name).read_text() for name in written}
    began = time.monotonic()
    assert command("up", "--name", lab.name)
    seconds = time.monotonic() - began
    assert (inits(lab), {name: (lab.folder / name).read_text() for name in written}) == before
    assert seconds < 10, "nothing is booted or waited for"


def test_etcd_serves_the_second_machine_and_nobody_without_a_certificate(lab: LabState) -> None:
    health = f"https://{lab.machine('k8s-01').address}:2379/health"
    # In TLS 1.2 the refusal is part of the handshake; in 1.3 it may come too late for curl to read it.
    curl = f"curl -sS --tls-max 1.2 --max-time 5 {ETCD_CERTIFICATES}"
    assert json.loads(sh(lab, "k8s-02", f"{curl} {ETCD_CLIENT} {health}"))["health"] == "true"
    refused = labs.run(lab, lab.machine("k8s-02"), f"{curl} {health}")
    assert refused.returncode != 0
    assert "alert" in refused.stderr
    assert sh(lab, "k8s-02", f"curl -s --max-time 5 {health.replace('https', 'http')} || echo refused") == "refused"


def test_keys_are_for_their_owner_only(lab: LabState) -> None:
    assert stat.S_IMODE(lab.folder.stat().st_mode) == 0o700
    files = [path for folder in (lab.folder, lab.folder / "pki") for path in folder.iterdir() if path.is_file()]
    secrets = [path for path in files if b"PRIVATE KEY" in path.read_bytes() or path == lab.kubeconfig]
    assert {lab.ca_key, lab.ssh_identity} < set(secrets)
    assert {str(path): stat.S_IMODE(path.stat().st_mode) for path in secrets} == dict.fromkeys(map(str, secrets), 0o600)
    readable = "find /etc/kubernetes /etc/ssh -type f -perm /077 -exec grep -l 'PRIVATE KEY\\|client-key-data' {} +"
    assert sh(lab, "k8s-01", f"{readable} || :") == ""


def leader(lab: LabState) -> str:
    lease = ("-n", "kube-system", "get", "lease", "kube-controller-manager", "-o", "jsonpath={.spec.holderIdentity}")
    return kubectl(lab, *lease).split("_")[0]


def test_the_other_controller_manager_takes_over(lab: LabState) -> None:
    first = leader(lab)
    other = "k8s-02" if first == "k8s-01" else "k8s-01"
    sh(lab, first, "systemctl stop kube-controller-manager")
    try:
        until(lambda: leader(lab) == other, f"{other} leads", seconds=40)
    finally:
        sh(lab, first, "systemctl start kube-controller-manager")


def test_a_machine_reboots(lab: LabState) -> None:
    rebooted = lab.machines[-1]
    sh(lab, rebooted.name, "touch /root/kept /run/gone")
    before = machine.init_pid(lab, rebooted)
    sh(lab, rebooted.name, "systemctl reboot --no-block")
    until(lambda: machine.init_pid(lab, rebooted) not in {None, before}, "a new init")
    labs.up(lab.name)
    assert sh(lab, rebooted.name, "ls -d /root/kept /run/gone 2> /dev/null; :") == "/root/kept"
    assert command("ssh", "--name", lab.name, rebooted.name, "--", "hostname").strip() == rebooted.name


def test_a_killed_up_is_finished_by_the_next_and_a_lab_without_its_records_can_go(
    lab: LabState, make_lab: MakeLab
) -> None:
    name, host = f"test-{os.getpid()}-cut", of_the_host()
    folder = state.lab_folder(name, state.labs_folder())
    moments: tuple[Callable[[], bool], ...] = (
        folder.joinpath("lab.json").exists,
        folder.joinpath("machines/k8s-01/upper/etc/kubernetes/pki").is_dir,
        lambda: bool(cgroups.pids(cgroups.find(state.scope_prefix(state.lab_id(folder))))),
    )
    for moment in moments:
        with subprocess.Popen([str(COMMAND), "lab", "up", "--name", name], stderr=subprocess.DEVNULL) as process:
            until(moment, "the moment to kill it")
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was not done yet"
    other = make_lab("cut")
    assert all(labs.apiserver_ready(other, each) for each in other.control_plane)

    assert (other.subnet, other.bridge) != (lab.subnet, lab.bridge)
    assert all(labs.apiserver_ready(lab, each) for each in lab.control_plane), "labs live side by side"

    (folder / "lab.json").write_text("{")
    with leaves_nothing(other):
        command("down", "--name", name)
    assert of_the_host() == host
    assert all(labs.running(lab).values())


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (("status", "--name", "no-such"), "lab no-such: there is no such lab", 1),
        (("ssh", "--name", "no-such", "k8s-01"), "lab no-such: there is no such lab", 1),
        (("up", "--name", "../x"), "'../x' can't be a lab's name", 3),
        (("up", "--name", "no-such", "--workers", "98"), "a lab can't have 98 workers", 3),
    ],
)
def test_a_wrong_name_or_number_is_one_clear_error(words: tuple[str, ...], message: str, code: int) -> None:
    assert message in command(*words, code=code)
    assert "no-such" not in labs.names()


def test_a_machine_that_the_lab_has_not_is_named_with_those_it_has(lab: LabState) -> None:
    assert "k8s-01, k8s-02" in command("ssh", "--name", lab.name, "k8s-99", code=1)


def test_down_of_a_lab_that_is_not_there_is_no_error() -> None:
    assert command("down", "--name", "no-such") == ""
    assert not list(state.labs_folder().glob("*no-such*"))


def test_another_user_than_root_is_told_so() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(LabError, match="needs root"):
            labs.up("no-such")
    finally:
        os.seteuid(0)
    with pytest.raises(InputError):
        labs.up("Bad Name")
