"""The stage script's text, run by real shells on this machine over files of the test's own (units: tests/lab)."""

from __future__ import annotations

import base64
import getpass
import grp
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.unit.core.engine_states import blob, state, stream
from tests.unit.shells import SHELLS

from kubeworker.core.actions import StagePlan
from kubeworker.core.diff import diff
from kubeworker.core.model import (
    Absent,
    Binary,
    Blob,
    ConfigCheck,
    Directory,
    File,
    Gate,
    Image,
    Leftover,
    Link,
    Marked,
    Module,
    NodeState,
    RequireCommand,
    Stage,
    Sysctl,
    Unit,
)
from kubeworker.core.node import node_script, probe
from kubeworker.core.node.observed import Observed, parse
from kubeworker.errors import ActionFailed

ELF = b"#!/bin/sh\necho version 1\n"
OWNER = f"{getpass.getuser()}:{grp.getgrgid(os.getgid()).gr_name}"


class Machine:
    """A folder of this machine that stands for a node, and a shell to run the engine's scripts."""

    def __init__(self, root: Path, shell: str = "sh") -> None:
        self.root = root
        self.shell = shell
        self.home = root / "var"
        self.bin_dir = root / "opt" / "bin"

    def path(self, name: str) -> str:
        return str(self.root / "etc" / name)

    def state(self, **parts: object) -> NodeState:
        return state(Stage(component="demo", **parts), bin_dir=str(self.bin_dir))  # type: ignore[arg-type]

    def file(self, name: str, content: bytes = b"new\n", **fields: object) -> File:
        return File(path=self.path(name), content=content, owner=OWNER, **fields)  # type: ignore[arg-type]

    def binary(self, content: bytes = ELF) -> Binary:
        return Binary(path=str(self.bin_dir / "tool"), blob=blob(content), version="1", owner=OWNER)

    def look(self, wanted: NodeState) -> Observed:
        done = subprocess.run(
            [self.shell, "-c", probe.script(wanted, home=str(self.home))], capture_output=True, text=True, check=True
        )
        return parse("n1", done.stdout)

    def plan(self, wanted: NodeState) -> StagePlan:
        (plan,) = diff(wanted, self.look(wanted))
        return plan

    def run(self, plan: StagePlan, *, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        text = node_script.stage_script(plan, home=str(self.home))
        sent = node_script.stage_input(plan) if stdin is None else stdin
        return subprocess.run([self.shell, "-c", text], input=sent, capture_output=True, check=False)

    def apply(self, wanted: NodeState) -> None:
        """Carry the state out; ActionFailed where the script says that it failed."""
        plan = self.plan(wanted)
        done = self.run(plan)
        assert done.stderr == b""
        node_script.verdict("n1", plan, status=done.returncode, stdout=done.stdout.decode(), stderr="")
        assert diff(wanted, self.look(wanted)) == ()

    def refused(self, wanted: NodeState) -> str:
        """The error of a state that must not go live."""
        with pytest.raises(ActionFailed) as caught:
            self.apply(wanted)
        return caught.value.message

    def receive(self, blobs: Sequence[Blob], stream: bytes) -> subprocess.CompletedProcess[bytes]:
        text = node_script.receive_script(str(self.bin_dir), blobs, home=str(self.home))
        return subprocess.run([self.shell, "-c", text], input=stream, capture_output=True, check=False)

    def leftovers(self) -> list[str]:
        """Everything that a finished run must have cleared away."""
        found = [path for path in self.root.rglob("*") if "kubeworker-" in path.name or path.name.startswith("work.")]
        return [str(path) for path in found]


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where there is such a place: the scripts sync, and a busy disk takes its time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def machine(root: Path) -> Machine:
    return Machine(root)


@pytest.fixture(params=SHELLS)
def any_shell(request: pytest.FixtureRequest, root: Path) -> Machine:
    return Machine(root, request.param)


# ---------------------------------------------------------------------------------------------------------------
# A stage


@pytest.mark.skipif(os.getuid() != 0, reason="only root's binaries are links to their blobs")
@pytest.mark.parametrize("touched", [False, True], ids=["as indexed", "touched since"])
def test_a_blob_is_hashed_again_only_where_the_index_does_not_know_it(machine: Machine, *, touched: bool) -> None:
    machine.receive([blob(ELF)], stream(ELF))
    plan = machine.plan(machine.state(binaries=(machine.binary(),)))
    stored = Path(probe.store_path(str(machine.bin_dir), blob(ELF).sha256))
    # Other bytes tell whether it was hashed.
    stored.write_bytes(b"other")
    line = f"{blob(ELF).sha256}\\t%s\\t%.9Y\\t%.9Z\\t%i\\t%n\\n"
    indexed = subprocess.run(["stat", "--printf", line, "--", str(stored)], capture_output=True, check=True)
    (machine.home / "index").write_bytes(indexed.stdout)
    if touched:
        os.utime(stored)
    assert (machine.run(plan).returncode == 0) is not touched


def test_what_came_whole_is_known_to_the_index(machine: Machine) -> None:
    contents = [b"#!/bin/sh\n# %d\n" % number for number in range(2)]
    text = node_script.receive_script(str(machine.bin_dir), [blob(each) for each in contents], home=str(machine.home))
    # An entry counts once the clock has moved on a little; a real stream lasts longer.
    text = text.replace("\nindex_arrived\n", "\nsleep 0.2\nindex_arrived\n")
    subprocess.run(["sh", "-c", text], input=stream(*contents), check=True, capture_output=True)
    assert {line.split("\t")[0] for line in (machine.home / "index").read_text().splitlines()} == {
        blob(each).sha256 for each in contents
    }


def test_a_stage_of_files_is_carried_out(any_shell: Machine) -> None:
    machine = any_shell
    (machine.root / "etc").mkdir()
    Path(machine.path("old")).write_text("x")
    Path(machine.path("link")).symlink_to("nowhere")
    machine.receive([blob(ELF)], stream(ELF))
    wanted = machine.state(
        directories=(Directory(path=machine.path("dir"), mode=0o750, owner=OWNER),),
        binaries=(machine.binary(),),
        files=(
            machine.file("plain"),
            machine.file("sub/secret", b"hunter2", mode=0o600, secret=True),
            machine.file("it's odd $(x)"),
            machine.file("empty", b""),
        ),
        links=(Link(path=machine.path("link"), target="plain"),),
        absent=(Absent(path=machine.path("old"), reason="gone"),),
    )
    machine.apply(wanted)
    assert machine.leftovers() == []
    assert Path(machine.path("link")).read_text() == "new\n"
    assert subprocess.run([str(machine.bin_dir / "tool")], capture_output=True, check=True).stdout == b"version 1\n"


def test_parents_are_made_for_everybody_and_secrets_for_root_only(machine: Machine) -> None:
    machine.apply(machine.state(files=(machine.file("a/b/secret", mode=0o600, secret=True),)))
    assert Path(machine.path("a/b")).stat().st_mode & 0o777 == 0o755
    assert machine.home.stat().st_mode & 0o777 == 0o700


def test_progress_names_the_actions_of_the_plan(machine: Machine) -> None:
    plan = machine.plan(machine.state(files=(machine.file("one"), machine.file("two"))))
    lines = machine.run(plan).stdout.decode().splitlines()
    assert [node_script.progress(line) for line in lines] == [(0, False), (0, True), (1, False), (1, True)]


def test_a_units_start_is_told_as_a_heartbeat_is() -> None:
    said = "kw started kubelet.service Mon 2026-11-30 23:08:23 UTC"
    assert node_script.started(said) == ("kubelet.service", "2026-11-30T23:08:23Z")
    assert node_script.started("kw started kubelet.service ") is None
    assert node_script.started("kw action 0 start") is None
    assert node_script.progress(said) is None


def test_contents_are_in_neither_script_nor_output(machine: Machine) -> None:
    plan = machine.plan(machine.state(files=(machine.file("token", b"hunter2", mode=0o600, secret=True),)))
    done = machine.run(plan)
    assert "hunter2" not in node_script.stage_script(plan)
    assert b"hunter2" not in done.stdout + done.stderr


def test_a_changed_mode_is_set(machine: Machine) -> None:
    wanted = machine.state(files=(machine.file("one", mode=0o640),))
    machine.apply(wanted)
    Path(machine.path("one")).chmod(0o777)
    machine.apply(wanted)


def test_a_running_binary_is_replaced(machine: Machine) -> None:
    sleep = Path("/usr/bin/sleep").read_bytes()
    machine.receive([blob(sleep)], stream(sleep))
    machine.apply(machine.state(binaries=(machine.binary(sleep),)))
    machine.receive([blob(ELF)], stream(ELF))
    with subprocess.Popen([str(machine.bin_dir / "tool"), "60"]) as running:
        machine.apply(machine.state(binaries=(machine.binary(),)))
        assert running.poll() is None
        running.kill()


def test_damage_in_place_is_healed_from_a_new_copy(machine: Machine) -> None:
    wanted = machine.state(binaries=(machine.binary(),))
    machine.receive([blob(ELF)], stream(ELF))
    machine.apply(wanted)
    with (machine.bin_dir / "tool").open("r+b") as file:
        file.write(b"#!/bin/SH")
    assert machine.plan(wanted).blobs == (blob(ELF),)
    machine.receive([blob(ELF)], stream(ELF))
    machine.apply(wanted)
    assert (machine.bin_dir / "tool").read_bytes() == ELF


def test_a_blob_that_was_damaged_since_the_probe_never_goes_live(machine: Machine) -> None:
    machine.receive([blob(ELF)], stream(ELF))
    plan = machine.plan(machine.state(binaries=(machine.binary(),)))
    Path(probe.store_path(str(machine.bin_dir), blob(ELF).sha256)).write_bytes(b"other")
    assert machine.run(plan).returncode == 1
    assert not (machine.bin_dir / "tool").exists()
    assert machine.leftovers() == []


def test_what_was_just_placed_need_not_be_hashed_again(machine: Machine) -> None:
    machine.receive([blob(ELF)], stream(ELF))
    plan = machine.plan(machine.state(binaries=(machine.binary(),)))
    # A stage with a unit lasts long enough for its entries to count; a check that takes a moment does the same.
    text = node_script.stage_script(plan, home=str(machine.home)).replace("\ncommit\n", "\nsleep 0.2\ncommit\n")
    subprocess.run(["sh", "-c", text], input=node_script.stage_input(plan), check=True, capture_output=True)
    index = (machine.home / "index").read_text()
    assert f"{blob(ELF).sha256}\t{len(ELF)}\t" in index
    assert len({line.rsplit("\t", 1)[1] for line in index.splitlines()}) == 2


def test_the_store_keeps_the_current_and_one_previous_blob(machine: Machine) -> None:
    versions = [b"#!/bin/sh\n# %d\n" % number for number in range(4)]
    for version in versions:
        machine.receive([blob(version)], stream(version))
        machine.apply(machine.state(binaries=(machine.binary(version),)))
    stored = {path.name for path in (machine.bin_dir / ".store").glob("sha256-*")}
    assert stored == {f"sha256-{blob(version).sha256}" for version in versions[-2:]}
    assert (machine.bin_dir / ".store").stat().st_mode & 0o777 == 0o700


# ---------------------------------------------------------------------------------------------------------------
# What must not go live


def check(machine: Machine, **fields: object) -> ConfigCheck:
    known: dict[str, object] = {"name": "checker", "inputs": (machine.path("conf"),)}
    return ConfigCheck(**(known | fields))  # type: ignore[arg-type]


def test_a_check_sees_candidates_and_live_files(any_shell: Machine) -> None:
    machine = any_shell
    machine.apply(machine.state(files=(machine.file("live", b"live\n"), machine.file("conf", b"old\n"))))
    conf, live = machine.path("conf"), machine.path("live")
    script = 'cat "$0" "$1" && test -d "$2" && test "$3" = "it\'s"'
    command = ("sh", "-c", script, f"{{{conf}}}", f"{{{live}}}", "{tmp}", "it's")
    checks = (
        check(machine, command=command),
        check(machine, command=("cat", f"{{{conf}}}"), expect="new"),
        check(machine, command=("sh", "-c", 'test -e "${1#--config=}"', "sh", f"--config={{{conf}}}")),
    )
    machine.apply(
        machine.state(files=(machine.file("live", b"live\n"), machine.file("conf", b"new\n")), config_checks=checks)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ("false",)},
        {"command": ("true",), "expect": "no lock file specified"},
        {"command": ("echo", "W: lenient decoding of the config"), "reject": ("lenient decoding",)},
        {"command": ("sh", "-c", "echo lenient decoding; echo ok"), "expect": "ok", "reject": ("lenient decoding",)},
        {"command": ("no-such-checker",)},
    ],
)
def test_a_refused_config_leaves_everything_as_it_was(fields: dict[str, object], any_shell: Machine) -> None:
    machine = any_shell
    machine.apply(machine.state(files=(machine.file("conf", b"old\n"), machine.file("other", b"old\n"))))
    wanted = machine.state(
        files=(machine.file("conf"), machine.file("other")), config_checks=(check(machine, hint="mend it", **fields),)
    )
    message = machine.refused(wanted)
    assert "demo: checker refuses the new configuration" in message
    assert "mend it" in message
    assert Path(machine.path("conf")).read_text() == Path(machine.path("other")).read_text() == "old\n"
    assert machine.leftovers() == []


def test_a_checkers_last_lines_are_in_the_error(machine: Machine) -> None:
    command = ("sh", "-c", "echo 'unknown key maxPod' >&2; exit 1")
    wanted = machine.state(files=(machine.file("conf"),), config_checks=(check(machine, command=command),))
    assert "unknown key maxPod" in machine.refused(wanted)


def test_an_input_that_was_cut_off_changes_nothing(machine: Machine) -> None:
    plan = machine.plan(machine.state(files=(machine.file("conf", b"x" * 2000), machine.file("two"))))
    done = machine.run(plan, stdin=node_script.stage_input(plan)[:1500])
    assert done.returncode == 1
    assert not Path(machine.path("conf")).exists()
    assert machine.leftovers() == []


def test_an_input_that_was_altered_changes_nothing(machine: Machine) -> None:
    plan = machine.plan(machine.state(files=(machine.file("conf", b"aaaa"),)))
    done = machine.run(plan, stdin=node_script.stage_input(plan).replace(b"aaaa", b"bbbb"))
    with pytest.raises(ActionFailed, match="not what was sent"):
        node_script.verdict("n1", plan, status=done.returncode, stdout=done.stdout.decode(), stderr="")
    assert not Path(machine.path("conf")).exists()


def test_a_failure_in_the_middle_puts_everything_back(any_shell: Machine) -> None:
    machine = any_shell
    machine.apply(machine.state(files=(machine.file("one", b"old\n"), machine.file("gone", b"old\n"))))
    wanted = machine.state(
        files=(machine.file("one"), machine.file("new")),
        links=(Link(path=machine.path("link"), target="one"),),
        absent=(Absent(path=machine.path("gone"), reason="gone"),),
        # There is no such unit manager here: the reload fails, after the swaps.
        units=(),
    )
    plan = machine.plan(wanted)
    text = node_script.stage_script(plan, home=str(machine.home)).replace("\ncommit\n", "\nfail 'as the test wants'\n")
    done = subprocess.run(
        [machine.shell, "-c", text], input=node_script.stage_input(plan), capture_output=True, check=False
    )
    with pytest.raises(ActionFailed, match="as the test wants"):
        node_script.verdict("n1", plan, status=done.returncode, stdout=done.stdout.decode(), stderr="")
    assert Path(machine.path("one")).read_text() == Path(machine.path("gone")).read_text() == "old\n"
    assert not Path(machine.path("new")).exists()
    assert not Path(machine.path("link")).is_symlink()
    assert machine.leftovers() == []


def test_a_killed_run_is_cleared_away_and_its_last_good_version_is_remembered(machine: Machine) -> None:
    machine.apply(machine.state(files=(machine.file("conf", b"good\n"),)))
    plan = machine.plan(machine.state(files=(machine.file("conf", b"half\n"),)))
    killed = node_script.stage_script(plan, home=str(machine.home)).replace("\ncommit\n", "\nkill -9 $$\n")
    subprocess.run(["sh", "-c", killed], input=node_script.stage_input(plan), capture_output=True, check=False)
    assert Path(machine.path("conf")).read_text() == "half\n"
    assert machine.leftovers()
    # The next run fails: what comes back is the version that was good, not the one that was never proven.
    plan = machine.plan(machine.state(files=(machine.file("conf", b"bad\n"),)))
    failing = node_script.stage_script(plan, home=str(machine.home)).replace("\ncommit\n", "\nfail no\n")
    subprocess.run(["sh", "-c", failing], input=node_script.stage_input(plan), capture_output=True, check=False)
    assert Path(machine.path("conf")).read_text() == "good\n"
    assert machine.leftovers() == []


def test_a_folder_in_the_place_of_a_file_is_not_removed(machine: Machine) -> None:
    Path(machine.path("conf")).mkdir(parents=True)
    assert "is a directory" in machine.refused(machine.state(files=(machine.file("conf"),)))
    assert Path(machine.path("conf")).is_dir()


@pytest.mark.parametrize("signal", ["HUP", "PIPE"])
def test_a_lost_connection_does_not_stop_a_stage_half_way(signal: str, any_shell: Machine) -> None:
    plan = any_shell.plan(any_shell.state(files=(any_shell.file("one"), any_shell.file("two"))))
    text = node_script.stage_script(plan, home=str(any_shell.home))
    text = text.replace("\nswapping=yes\n", f"\nswapping=yes\nkill -{signal} $$\n")
    reader, writer = os.pipe()
    os.close(reader)
    # Nobody reads its progress any more either.
    done = subprocess.run(
        [any_shell.shell, "-c", text], input=node_script.stage_input(plan), stdout=writer, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert Path(any_shell.path("two")).read_text() == "new\n"
    assert any_shell.leftovers() == []


def test_a_stage_that_is_told_to_end_puts_everything_back(any_shell: Machine) -> None:
    any_shell.apply(any_shell.state(files=(any_shell.file("one", b"old\n"),)))
    plan = any_shell.plan(any_shell.state(files=(any_shell.file("one"),)))
    text = node_script.stage_script(plan, home=str(any_shell.home)).replace("\ncommit\n", "\nkill -TERM $$\ncommit\n")
    done = subprocess.run([any_shell.shell, "-c", text], input=node_script.stage_input(plan), check=False)
    assert done.returncode == 1
    assert Path(any_shell.path("one")).read_text() == "old\n"
    assert any_shell.leftovers() == []


def test_files_with_the_tools_mark_go_when_they_are_not_wanted_any_more(any_shell: Machine) -> None:
    machine = any_shell
    files = {
        "dropped/hosts": "# ours\nx",
        "dropped/key": "# ours\n",
        "mixed/ours": "# ours\n",
        "mixed/theirs": "x\n",
        "kept/hosts": "# ours\nold\n",
        # Of runs that were killed.
        "kept/.hosts.kubeworker-old": "# ours\nolder\n",
        "killed/.hosts.kubeworker-old": "# ours\n",
    }
    for name, content in files.items():
        Path(machine.path(name)).parent.mkdir(parents=True, exist_ok=True)
        Path(machine.path(name)).write_text(content)
    (machine.root / "etc/mixed/link").symlink_to(machine.path("mixed/ours"))
    machine.apply(
        machine.state(
            files=(machine.file("kept/hosts", b"# ours\nnew\n"),),
            marked=(Marked(pattern=machine.path("*/*"), line="# ours", reason="not named"),),
        )
    )
    left = sorted(str(path.relative_to(machine.root / "etc")) for path in (machine.root / "etc").rglob("*"))
    assert left == ["kept", "kept/hosts", "mixed", "mixed/link", "mixed/theirs"]


def test_a_leftover_is_seen_and_removed(any_shell: Machine) -> None:
    trace = any_shell.root / "trace's"
    trace.touch()
    leftover = Leftover(
        name="a demo's trace", present=f'[ -e "{trace}" ]', remove=f'rm "{trace}"\n# done', reason="nobody needs it"
    )
    any_shell.apply(any_shell.state(leftovers=(leftover,)))
    assert not trace.exists()


def test_a_leftover_that_does_not_go_fails_the_stage_which_stays(machine: Machine) -> None:
    leftover = Leftover(name="the trace", present="true", remove="echo is busy; exit 1", reason="")
    wanted = machine.state(files=(machine.file("f"),), leftovers=(leftover,))
    assert machine.refused(wanted) == "demo: the trace: is busy"
    # What replaces it is healthy: only the rest is left to do.
    assert Path(machine.path("f")).read_text() == "new\n"
    assert [type(action).__name__ for action in machine.plan(wanted).actions] == ["RemoveLeftover"]


def test_two_runs_do_not_meet(machine: Machine) -> None:
    plan = machine.plan(machine.state(files=(machine.file("one"),)))
    machine.home.mkdir()
    text = node_script.stage_script(plan, home=str(machine.home)).replace("flock -w 60", "flock -w 0")
    holder = ["flock", str(machine.home / "lock"), "sh", "-c", text]
    done = subprocess.run(holder, input=node_script.stage_input(plan), capture_output=True, check=False)
    with pytest.raises(ActionFailed, match="another run holds the lock"):
        node_script.verdict("n1", plan, status=done.returncode, stdout=done.stdout.decode(), stderr="")


# ---------------------------------------------------------------------------------------------------------------
# Receiving blobs


def test_blobs_are_received(any_shell: Machine) -> None:
    blobs = [blob(b"one"), blob(b"two")]
    done = any_shell.receive(blobs, stream(b"one", b"two"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    stored = sorted(path.name for path in (any_shell.bin_dir / ".store").iterdir())
    assert stored == sorted(f"sha256-{each.sha256}" for each in blobs)


def test_a_cut_stream_keeps_what_arrived_whole(any_shell: Machine) -> None:
    first, second = os.urandom(100_000), os.urandom(100_000)
    done = any_shell.receive([blob(first), blob(second)], stream(first, second, cut=150_000))
    with pytest.raises(ActionFailed, match=f"not received whole: sha256-{blob(second).sha256}"):
        node_script.verdict("n1", None, status=done.returncode, stdout=done.stdout.decode(), stderr="")
    stored = [path.name for path in (any_shell.bin_dir / ".store").iterdir()]
    assert stored == [f"sha256-{blob(first).sha256}"]


def test_a_blob_with_another_hash_is_not_stored(machine: Machine) -> None:
    forged = stream(b"evil").replace(blob(b"evil").sha256.encode(), b"0" * 64)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"sha256-{blob(b'good').sha256}")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    for sent in (forged, buffer.getvalue()):
        assert machine.receive([blob(b"good")], sent).returncode == 1
        assert list((machine.bin_dir / ".store").iterdir()) == []


def test_members_that_nobody_asked_for_are_dropped(machine: Machine) -> None:
    machine.receive([blob(b"one")], stream(b"one", b"surprise"))
    assert [path.name for path in (machine.bin_dir / ".store").iterdir()] == [f"sha256-{blob(b'one').sha256}"]


def test_gzip_members_may_be_concatenated(machine: Machine) -> None:
    """As the control host sends them: one compressed member for each blob, made once for all nodes."""
    parts = []
    for content in (b"one", b"two"):
        plain = subprocess.run(["gunzip"], input=stream(content), capture_output=True, check=True).stdout
        parts.append(subprocess.run(["gzip"], input=plain[:1024], capture_output=True, check=True).stdout)
    parts.append(subprocess.run(["gzip"], input=b"\0" * 1024, capture_output=True, check=True).stdout)
    assert machine.receive([blob(b"one"), blob(b"two")], b"".join(parts)).returncode == 0


# ---------------------------------------------------------------------------------------------------------------
# The text


def everything() -> StagePlan:
    unit = Unit(
        name="kubelet.service",
        content="[Service]\n",
        restart_on=("/etc/a b",),
        gate=Gate(http=("http://127.0.0.1:10248/healthz",), listen=("127.0.0.1:8443",), command=("true", "it's")),
    )
    stage = Stage(
        component="c",
        requirements=(RequireCommand(name="nft", package="nftables"),),
        packages=("nftables",),
        swap_off=True,
        modules=(Module(name="overlay"),),
        sysctls=(Sysctl(key="net.ipv4.ip_forward", value="1"),),
        directories=(Directory(path="/etc/dir"),),
        binaries=(Binary(path="/opt/k8s/bin/kubelet", blob=blob(b"k"), version="1"),),
        files=(File(path="/etc/a b", content=b"x"), File(path="/etc/it's", content=b"x")),
        links=(Link(path="/etc/link", target="x"),),
        absent=(Absent(path="/etc/gone", reason="x"),),
        marked=(Marked(pattern="/etc/some/*", line="# mark's", reason="x"),),
        config_checks=(
            ConfigCheck(name="it's", command=("x", "--f={/etc/a b}", "{tmp}"), reject=("a'b",), inputs=("/etc/a b",)),
        ),
        units=(unit, Unit(name="plain@1.service", content="[Service]\n")),
        images=(Image(reference="pause:3.10", archive=blob(b"oci"), ctr="/opt/k8s/bin/ctr"),),
    )
    gone = "clock\t1\nhostname\tn\nmachine-id\tm\nmachine\tx86_64\nkernel\t6\ncgroup\t2\ncontainer\t"
    swap = "marked\t/etc/some/it's\nswap\t/dev/sda2\ns\t81a4\troot:root\t1\t1\t1\t1\t/etc/gone"
    (plan,) = diff(state(stage), parse("n", f"kubeworker-probe 1\n{gone}\n{swap}\nend\n"))
    return plan


@pytest.mark.parametrize(
    "text",
    [node_script.stage_script(everything()), node_script.receive_script("/opt/k8s/bin", [blob(b"one")])],
    ids=["stage", "receive"],
)
def test_the_text_is_clean_shell(text: str) -> None:
    checked = subprocess.run(
        # SC2317, SC2329: every script carries all functions and calls some of them.
        # SC2034: and all variables. SC2015: `a && b || fail` is meant as it reads: fail where either fails.
        ["shellcheck", "--shell=sh", "--severity=style", "--exclude=SC2317,SC2329,SC2034,SC2015", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_every_part_of_the_text_is_valid_in(shell: str) -> None:
    subprocess.run([shell, "-n"], input=node_script.stage_script(everything()), text=True, check=True)


def test_a_url_that_no_gate_can_ask_is_refused() -> None:
    unit = Unit(name="x.service", content="", gate=Gate(http=("https://127.0.0.1/",)))
    (plan,) = diff(state(Stage(component="c", units=(unit,))), bare_observed())
    with pytest.raises(ValueError, match="plain http"):
        node_script.stage_script(plan)


def bare_observed() -> Observed:
    return Observed(clock=1, hostname="n", machine_id="m", machine="x86_64", kernel="6", cgroup=2)


def test_a_verdict_names_node_stage_error_and_journal() -> None:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    stdout = f"kw action 0 start\nkw journal {encoded('bind: in use')}\nkw error {encoded('kubelet is not healthy')}\n"
    with pytest.raises(ActionFailed) as caught:
        node_script.verdict("n7", everything(), status=1, stdout=stdout, stderr="")
    assert caught.value.subject == "n7"
    assert caught.value.message == "c: kubelet is not healthy\n    bind: in use"


def test_a_verdict_without_a_word_from_the_script_shows_the_shells() -> None:
    with pytest.raises(ActionFailed, match="sh: not found"):
        node_script.verdict("n7", None, status=127, stdout="", stderr="sh: not found\n")


def test_the_timeout_allows_for_every_gate_twice() -> None:
    assert node_script.stage_seconds(everything()) > 2 * 60
