"""The probe's text, run by real shells on this machine over files of the test's own."""

from __future__ import annotations

import getpass
import grp
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit import samples
from tests.unit.core.engine_states import blob, state
from tests.unit.shells import SHELLS

from kubeworker.core.model import (
    Binary,
    Deferred,
    File,
    Image,
    Link,
    Marked,
    Module,
    NodeState,
    RequireCommand,
    RequireDisk,
    RequireMasquerade,
    RequireModule,
    RequirePort,
    RequireProxyMode,
    RequireSysctl,
    Stage,
    Sysctl,
    Unit,
    WarnOfTraces,
)
from kubeworker.core.node import probe
from kubeworker.core.node.observed import Observed, parse
from kubeworker.errors import ProbeError

LONG_AGO = 1_600_000_000


def owner() -> str:
    return f"{getpass.getuser()}:{grp.getgrgid(os.getgid()).gr_name}"


def run(text: str, shell: str = "sh") -> str:
    return subprocess.run([shell, "-c", text], capture_output=True, text=True, check=True).stdout


def look(wanted: NodeState, home: Path, *, rehash: bool = False, shell: str = "sh") -> Observed:
    return parse("n1", run(probe.script(wanted, rehash=rehash, home=str(home)), shell))


def files(*paths: Path, secret: bool = False) -> NodeState:
    """A desired state in which none of the files has the right content."""
    wanted = tuple(File(path=str(path), content=b"wanted\n", secret=secret) for path in paths)
    return state(Stage(component="c", files=wanted))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The tool's folder, as it is once the tool has been on the node."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.mark.parametrize("shell", SHELLS)
def test_everything_about_files_is_seen(shell: str, tmp_path: Path, home: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"is\n")
    plain.chmod(0o604)
    (tmp_path / "folder").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("some where/else")
    links = (Link(path=str(tmp_path / "link"), target="x"),)
    wanted = state(
        Stage(
            component="c",
            files=tuple(File(path=str(tmp_path / name), content=b"wanted") for name in ("plain", "folder", "missing")),
            links=links,
        )
    )
    seen = look(wanted, home, shell=shell).files
    assert set(seen) == {str(tmp_path / name) for name in ("plain", "folder", "link")}
    one = seen[str(plain)]
    assert (one.kind, one.mode, one.owner, one.size) == ("file", 0o604, owner(), 3)
    assert (one.sha256, one.content) == (blob(b"is\n").sha256, b"is\n")
    assert (seen[str(tmp_path / "folder")].kind, seen[str(tmp_path / "folder")].mode) == ("directory", 0o750)
    assert (seen[str(tmp_path / "link")].kind, seen[str(tmp_path / "link")].target) == ("link", "some where/else")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "name", ["with space", "tab\there", "quote'\"", "back\\slash", "$(touch gone)", "*", "-n", "übel", "a;b&c"]
)
def test_odd_names_are_only_names(shell: str, name: str, tmp_path: Path, home: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"is\n")
    seen = look(files(path), home, shell=shell).files[str(path)]
    assert seen.sha256 == blob(b"is\n").sha256
    assert seen.content == b"is\n"
    assert look(files(path), home, shell=shell).files[str(path)] == seen


def test_a_name_that_can_not_be_asked_about_is_refused() -> None:
    with pytest.raises(ValueError, match="not a path"):
        probe.script(files(Path("/etc/two\nlines")))


def test_content_of_a_secret_or_private_or_right_or_large_file_stays_on_the_node(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"token\n")
    assert look(files(path, secret=True), home).files[str(path)].content is None
    path.chmod(0o640)
    assert look(files(path), home).files[str(path)].content is None
    path.chmod(0o644)
    assert look(files(path), home).files[str(path)].content == b"token\n"
    path.write_bytes(b"wanted\n")
    assert look(files(path), home).files[str(path)].content is None
    path.write_bytes(b"x" * (probe.CONTENT_LIMIT + 1))
    assert look(files(path), home).files[str(path)].content is None


def test_binaries_and_their_blobs_are_hashed(tmp_path: Path, home: Path) -> None:
    wanted = state(
        Stage(component="c", binaries=(Binary(path=str(tmp_path / "kubelet"), blob=blob(b"elf"), version="1"),)),
        bin_dir=str(tmp_path),
    )
    stored = Path(probe.store_path(str(tmp_path), blob(b"elf").sha256))
    stored.parent.mkdir()
    stored.write_bytes(b"elf")
    seen = look(wanted, home)
    assert seen.sha256(str(stored)) == blob(b"elf").sha256
    assert seen.sha256(str(tmp_path / "kubelet")) == ""


# ---------------------------------------------------------------------------------------------------------------
# The index


def poison(home: Path) -> None:
    """Every recorded hash becomes a wrong one, so that its use shows."""
    index = home / "index"
    lines = index.read_text().splitlines()
    assert lines
    index.write_text("".join(f"{'0' * 64}{line[64:]}\n" for line in lines))


def settled(path: Path, content: bytes) -> None:
    """A file whose last change lies further back than a tick of the clock (ctime can't be set)."""
    path.write_bytes(content)
    time.sleep(0.15)


def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    settled(path, b"elf")
    assert look(files(path), home).sha256(str(path)) == blob(b"elf").sha256
    poison(home)
    assert look(files(path), home).sha256(str(path)) == "0" * 64


def test_rehash_ignores_and_mends_the_index(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    settled(path, b"elf")
    look(files(path), home)
    poison(home)
    assert look(files(path), home, rehash=True).sha256(str(path)) == blob(b"elf").sha256
    assert look(files(path), home).sha256(str(path)) == blob(b"elf").sha256


def test_damage_in_place_with_size_and_mtime_kept_is_found(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    path.write_bytes(b"elf")
    os.utime(path, (LONG_AGO, LONG_AGO))
    time.sleep(0.15)
    look(files(path), home)
    with path.open("r+b") as file:
        file.write(b"ELF")
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert look(files(path), home).sha256(str(path)) == blob(b"ELF").sha256


def test_a_replaced_file_is_hashed_again(tmp_path: Path, home: Path) -> None:
    path, other = tmp_path / "kubelet", tmp_path / "other"
    settled(path, b"elf")
    look(files(path), home)
    settled(other, b"ELF")
    other.rename(path)
    assert look(files(path), home).sha256(str(path)) == blob(b"ELF").sha256


def test_a_file_changed_within_the_clocks_tick_is_never_trusted(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    path.write_bytes(b"elf")
    look(files(path), home)
    assert str(path) not in (home / "index").read_text()


def test_a_time_stamp_in_the_future_is_never_trusted(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    path.write_bytes(b"elf")
    os.utime(path, (time.time() + 1000, time.time() + 1000))
    time.sleep(0.15)
    look(files(path), home)
    assert str(path) not in (home / "index").read_text()


def test_a_converged_probe_writes_nothing(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    settled(path, b"elf")
    look(files(path), home)
    before = (home / "index").stat().st_mtime_ns
    look(files(path), home)
    assert (home / "index").stat().st_mtime_ns == before
    assert [entry.name for entry in home.iterdir()] == ["index"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_survey_leaves_the_index_as_it_is(shell: str, tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    settled(path, b"elf")
    answer = run(probe.script(files(path), surveyed=True, home=str(home)), shell)
    assert parse("n1", answer).sha256(str(path)) == blob(b"elf").sha256
    assert list(home.iterdir()) == []


def test_a_node_that_was_never_applied_to_is_left_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "kubelet"
    path.write_bytes(b"elf")
    assert look(files(path), tmp_path / "home").sha256(str(path)) == blob(b"elf").sha256
    assert not (tmp_path / "home").exists()


def test_a_broken_index_only_costs_time(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "kubelet"
    settled(path, b"elf")
    (home / "index").write_bytes(b"\x00garbage\n\n" + b"x" * 100)
    assert look(files(path), home).sha256(str(path)) == blob(b"elf").sha256
    assert len((home / "index").read_text().splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------
# The rest of the machine


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("ctr", "images"),
    [
        ("sleep 0.2; echo registry.k8s.io/pause:3.10; echo sha256:abc", {"registry.k8s.io/pause:3.10", "sha256:abc"}),
        ("exit 0", set()),
        ("exit 1", None),
    ],
)
def test_images_are_asked_beside_the_rest(
    shell: str, ctr: str, images: set[str] | None, tmp_path: Path, home: Path
) -> None:
    tool, path = tmp_path / "ctr", tmp_path / "file"
    tool.write_text(f"#!/bin/sh\n{ctr}\n")
    tool.chmod(0o755)
    path.write_bytes(b"is\n")
    stage = Stage(
        component="c",
        files=(File(path=str(path), content=b"wanted\n"),),
        images=(Image(reference="registry.k8s.io/pause:3.10", archive=blob(b"oci"), ctr=str(tool)),),
    )
    with socket.socket(socket.AF_UNIX) as containerd:
        containerd.bind(str(tmp_path / "sock"))
        text = probe.script(state(stage), home=str(home))
        text = text.replace("/run/containerd/containerd.sock", str(tmp_path / "sock"))
        seen = parse("n1", run(text, shell))
    assert seen.images == images
    assert seen.files[str(path)].content == b"is\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_machine_is_described(shell: str, tmp_path: Path, home: Path) -> None:
    wanted = state(
        Stage(
            component="host",
            requirements=(
                RequireCommand(name="sh", package="dash"),
                RequireCommand(name="no-such-command", package="x"),
                RequireDisk(path=str(tmp_path / "not" / "there"), free=1),
                RequireSysctl(key="kernel.ostype", value="Linux", fix=""),
                RequireModule(name="no_such_module", why="test"),
                RequireMasquerade(family="ip6"),
            ),
            modules=(Module(name="no_such_module"),),
            sysctls=(Sysctl(key="net.ipv4.ip_forward", value="1"), Sysctl(key="no.such.key", value="1")),
        ),
        bin_dir=str(tmp_path / "bin"),
    )
    seen = look(wanted, home, shell=shell)
    assert abs(seen.clock - time.time()) < 5
    assert (seen.hostname, seen.machine, seen.kernel) == (os.uname().nodename, os.uname().machine, os.uname().release)
    assert seen.architecture in ("amd64", "arm64")
    assert seen.commands == {"sh"}
    assert seen.sysctls["kernel.ostype"] == "Linux"
    assert "no.such.key" not in seen.sysctls
    assert seen.modules == {"no_such_module": "missing"}
    assert seen.masquerade in {"nft", "iptables", ""}
    disk = seen.disks[str(tmp_path / "not" / "there")]
    assert abs(disk.free - shutil.disk_usage(tmp_path).free) < 2**30
    assert disk.mount == seen.disks[str(tmp_path / "bin")].mount
    assert seen.images is None


def test_the_certificate_is_read_without_its_key(tmp_path: Path, home: Path) -> None:
    pem = tmp_path / "kubelet.pem"
    body = "QUJD" * 30
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    pem.write_text(
        f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
        "-----BEGIN EC PRIVATE KEY-----\nSECRET\n-----END EC PRIVATE KEY-----\n"
    )
    text = probe.script(state(), home=str(home)).replace(probe.KUBELET_CLIENT_CERT, str(pem))
    answer = run(text)
    assert "SECRET" not in answer
    assert parse("n1", answer).kubelet_client_cert == (
        f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    )


def test_the_kubeconfig_is_read_without_its_credentials(tmp_path: Path, home: Path) -> None:
    kubeconfig = tmp_path / "kubelet.kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Q0E=\n"
        "    server: https://127.0.0.1:8443\n  name: default\nusers:\n- name: u\n  user:\n    token: SECRET\n"
    )
    text = probe.script(state(), home=str(home)).replace(probe.KUBELET_KUBECONFIG, str(kubeconfig))
    answer = run(text)
    assert "SECRET" not in answer
    seen = parse("n1", answer).kubelet_kubeconfig
    assert (seen.server, seen.ca_data) == ("https://127.0.0.1:8443", "Q0E=")


# ---------------------------------------------------------------------------------------------------------------


def _cilium_stage() -> Stage:
    (stage,) = (each for each in samples.state(samples.cluster(cni="cilium")).stages if each.component == "cilium")
    return stage


@pytest.mark.parametrize("shell", SHELLS)
def test_traces_are_told_by_name_on_one_line_and_only_where_there_are_any(shell: str, home: Path) -> None:
    def trace(name: str, text: str) -> WarnOfTraces:
        return WarnOfTraces(name=name, look=text, message="{found}", fix="x")

    seen = look(
        state(
            Stage(
                component="c",
                requirements=(
                    trace("some", "printf 'a b %%s \\n'; echo more"),
                    trace("none", "cd /no/such/folder && echo found"),
                    trace("noisy", "echo trouble >&2; exit 3"),
                ),
            )
        ),
        home,
        shell=shell,
    )
    assert seen.traces == {"some": "a b %s"}


def everything() -> NodeState:
    """A state that brings out every part of the text."""
    return state(
        Stage(
            component="c",
            requirements=(
                RequireCommand(name="nft", package="nftables"),
                RequirePort(port=8443, unit="kube-nginx.service"),
                RequirePort(port=10250, unit="kubelet.service"),
                RequireDisk(path="/data/k8s", free=1),
                RequireModule(name="overlay", why="images"),
                RequireSysctl(key="net.ipv4.ip_forward", value="1", fix=""),
                RequireProxyMode(mode="ipvs"),
                RequireMasquerade(family="ip"),
                *(need for need in _cilium_stage().requirements if isinstance(need, WarnOfTraces)),
            ),
            modules=(Module(name="br_netfilter"), Module(name="overlay")),
            sysctls=(Sysctl(key="net.ipv4.ip_forward", value="1"),),
            binaries=(Binary(path="/opt/k8s/bin/kubelet", blob=blob(b"k"), version="1"),),
            files=(
                File(path="/etc/a b", content=b"x"),
                File(path="/etc/it's", content=b"x"),
                File(path="/etc/secret", content=b"x", secret=True),
            ),
            links=(Link(path="/etc/link", target="x"),),
            deferred=(Deferred(path="/etc/later", reason="podCIDR"),),
            marked=(Marked(pattern="/etc/some/*/*", line="# the tool's", reason="x"),),
            images=(Image(reference="pause:3.10", archive=blob(b"oci"), ctr="/opt/k8s/bin/ctr"),),
            units=(Unit(name="kubelet.service", content="[Unit]\n"), Unit(name="x@y.service", content="[Unit]\n")),
        )
    )


@pytest.mark.parametrize("surveyed", [False, True])
@pytest.mark.parametrize("wanted", [everything(), state()], ids=["everything", "nothing"])
def test_the_text_is_clean_shell(wanted: NodeState, surveyed: bool) -> None:  # noqa: FBT001 - one case each
    checked = subprocess.run(
        ["shellcheck", "--shell=sh", "--severity=style", "-"],
        input=probe.script(wanted, surveyed=surveyed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_the_text_holds_no_content_of_files() -> None:
    wanted = state(Stage(component="c", files=(File(path="/etc/token", content=b"hunter2", secret=True),)))
    assert "hunter2" not in probe.script(wanted)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "no line"),
        ("bash: command not found\n", "no line"),
        ("kubeworker-probe 1\nclock\t1\n", "ends with"),
        ("kubeworker-probe 1\nsurprise\t1\nend\n", "surprise"),
        ("kubeworker-probe 1\nend\n", "clock"),
        ("kubeworker-probe 1\nhash\tshort\t/x\nend\n", "hash"),
        (
            (
                "kubeworker-probe 1\nclock\t1\nhostname\th\nmachine-id\ti\nmachine\tm\nkernel\t6\ncgroup\t2\n"
                "container\t\ns\t81a4\troot:root\nend\n"
            ),
            "unpack",
        ),
        ("kubeworker-probe 1\ncontent\t%%%\t/x\nend\n", "base64"),
        ("kubeworker-probe 1\nmodule\tx\tperhaps\nend\n", "perhaps"),
        ("kubeworker-probe 1\nunits\nId=x.service\nend\n", "cut off"),
    ],
)
def test_an_answer_that_is_none_names_the_node(answer: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message) as caught:
        parse("worker-7", answer)
    assert caught.value.subject == "worker-7"


def test_noise_of_a_login_shell_is_skipped(home: Path) -> None:
    answer = "Welcome!\n\nLast login: never\n" + run(probe.script(state(), home=str(home)))
    assert parse("n1", answer).hostname == os.uname().nodename


BUSY = """\
kubeworker-probe 1
clock\t1.5
hostname\tn1
machine-id\tm
machine\taarch64
kernel\t6.1
cgroup\t2
container\t
socket\ttcp LISTEN 0 128 [::1]:8443 [::]:* users:(("kube-nginx",pid=42,fd=6),("kube-nginx",pid=43,fd=6))
pid\t42\t/system.slice/kube-nginx.service
socket\ttcp LISTEN 0 128 *:10250 *:*
units
Id=kubelet.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=yes
InvocationID=abc
MainPID=7
NRestarts=3

Id=gone.service
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
NeedDaemonReload=no
units-end
record\tkubelet.service\tr\tl\tabc
end
"""


def test_a_child_that_was_gone_when_it_was_looked_at_does_not_make_the_port_a_strangers() -> None:
    """kube-proxy forks iptables all the time; until that runs, the child holds kube-proxy's sockets."""
    forked = BUSY.replace('users:(("kube-nginx",pid=42', 'users:(("kube-nginx",pid=99,fd=6),("kube-nginx",pid=42')
    nginx, _ = parse("n1", forked).listeners
    assert (nginx.pid, nginx.unit) == (42, "kube-nginx.service")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("main_process", ["this one", "another one", "none"])
def test_the_holder_of_a_port_is_found_among_units_main_processes_and_everywhere(
    shell: str, main_process: str, home: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = listener.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        wanted = state(Stage(component="c", requirements=(RequirePort(port=port, unit="c.service"),)))
        # This machine may have no systemd to ask: what `systemctl show` would print is given.
        pid = {"this one": os.getpid(), "another one": os.getppid(), "none": 0}[main_process]
        text = f"units='Id=a.service\nMainPID=0\n\nId=c.service\nMainPID={pid}\nNRestarts=0'\n"
        found = parse("n1", run(text + probe.script(wanted, home=str(home)), shell)).listeners
    comm = Path("/proc/self/comm").read_text().strip()
    assert {(each.protocol, each.port, each.pid, each.process) for each in found} == {
        ("tcp", port, os.getpid(), comm),
        ("udp", port, os.getpid(), comm),
    }


ENDING = f"""
import ctypes, os, socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: (time.sleep(0.3), os._exit(0))).start()
print(listener.getsockname()[1], flush=True)
ctypes.CDLL(None).syscall({ {"x86_64": 60, "aarch64": 93}[platform.machine()] }, 0)  # exit(2) of the first thread alone
"""
"""A process whose first thread is gone already: as while it is being killed, /proc shows nobody who has its socket."""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_process_that_is_just_ending_does_not_make_the_port_a_strangers(shell: str, home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        wanted = state(Stage(component="c", requirements=(RequirePort(port=port, unit="c.service"),)))
        assert look(wanted, home, shell=shell).listeners == ()


def test_ports_units_and_records_are_read() -> None:
    seen = parse("n1", BUSY)
    nginx, kubelet = seen.listeners
    assert (nginx.address, nginx.port, nginx.pid, nginx.process) == ("::1", 8443, 42, "kube-nginx")
    assert nginx.unit == "kube-nginx.service"
    assert (kubelet.address, kubelet.port, kubelet.pid, kubelet.unit) == ("*", 10250, 0, "")
    unit = seen.units["kubelet.service"]
    assert (unit.need_daemon_reload, unit.main_pid, unit.restarts) == (True, 7, 3)
    assert unit.record is not None
    assert unit.record.invocation == "abc"
    assert seen.units["gone.service"].record is None
    assert seen.architecture == "arm64"
