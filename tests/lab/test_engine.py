"""The engine's transaction on a real machine: real systemd, real units, real failures."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
from collections.abc import AsyncIterator

import pytest
from tests.unit.core.engine_states import blob, stream

from kubeworker.core import actions, diff
from kubeworker.core.actions import StagePlan
from kubeworker.core.model import (
    Absent,
    AbsentUnit,
    Binary,
    ConfigCheck,
    Directory,
    File,
    Gate,
    Leftover,
    Link,
    NodeState,
    RequirePort,
    Stage,
    Unit,
)
from kubeworker.core.node import node_script, probe
from kubeworker.core.node.observed import Observed, parse
from kubeworker.core.preflight.fleet import Fleet
from kubeworker.core.preflight.requirements import preflight
from kubeworker.core.spec import NodeSpec, Ssh
from kubeworker.errors import ActionFailed
from kubeworker.io.node import Node, connect
from kubeworker.lab import LabState

HOME = "/var/lib/kwtest"
"""Not the tool's own: other tests apply to the same machine."""
ETC = "/etc/kwtest"
BIN_DIR = "/opt/kwtest/bin"
SERVER = f"{BIN_DIR}/kwtest-server"


def demo(
    *,
    port: int = 7777,
    gate: Gate | None = None,
    secret: bytes = b"one",
    conf: bytes = b"a=1\n",
    exec_start: str = "",
    elf: bytes = b"",
    bin_dir: str = BIN_DIR,
) -> NodeState:
    """A service that listens, with a secret it must be restarted for and a config it reloads; and its dependent."""
    start = exec_start or f"{SERVER} TCP-LISTEN:{port},fork,reuseaddr EXEC:/bin/cat"
    server = Unit(
        name="kwtest.service",
        content=f"[Service]\nExecStart={start}\nExecReload=/bin/sh -c 'echo r >> /run/kwtest.reloads'\n"
        "Restart=always\nRestartSec=200ms\nSuccessExitStatus=143\n[Install]\nWantedBy=multi-user.target\n",
        restart_on=(SERVER, f"{ETC}/secret"),
        reload_on=(f"{ETC}/conf",),
        gate=gate or Gate(listen=(f"127.0.0.1:{port}",), timeout=4),
    )
    dependent = Unit(
        name="kwtest-dependent.service",
        content="[Unit]\nRequires=kwtest.service\nAfter=kwtest.service\n[Service]\nExecStart=/bin/sleep infinity\n"
        "[Install]\nWantedBy=multi-user.target\n",
        requires=("kwtest.service",),
        gate=Gate(command=("systemctl", "is-active", "kwtest-dependent.service")),
    )
    elf = elf or socat()
    return NodeState(
        node="worker-01",
        bin_dir=bin_dir,
        stages=(
            Stage(
                component="demo",
                requirements=(RequirePort(port=port, unit="kwtest.service"),),
                directories=(Directory(path=ETC, mode=0o750),),
                binaries=(Binary(path=SERVER, blob=blob(elf), version="1"),),
                files=(
                    File(path=f"{ETC}/conf", content=conf),
                    File(path=f"{ETC}/secret", content=secret, mode=0o600, secret=True),
                ),
                links=(Link(path=f"{ETC}/link", target="conf"),),
                absent=(Absent(path=f"{ETC}/old", reason="of an earlier version"),),
                config_checks=(
                    ConfigCheck(name="grep", command=("grep", "=", f"{{{ETC}/conf}}"), inputs=(f"{ETC}/conf",)),
                ),
                units=(server,),
            ),
            Stage(component="dependent", units=(dependent,)),
        ),
    )


def socat() -> bytes:
    """A small real server, taken from the machine, that arrives there as an artifact does."""
    return _SOCAT[0]


_SOCAT: list[bytes] = []


class Engine:
    """Plan and apply, as the flows do it, on one machine."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def look(self, wanted: NodeState) -> Observed:
        return parse("worker-01", (await self.node.run(probe.script(wanted, home=HOME))).stdout)

    async def plan(self, wanted: NodeState) -> tuple[StagePlan, ...]:
        return diff.diff(wanted, await self.look(wanted))

    async def changes(self, wanted: NodeState) -> list[tuple[str, str]]:
        return [
            (actions.kind(action), actions.subject(action).rsplit("/", 1)[-1])
            for plan in await self.plan(wanted)
            for action in plan.actions
        ]

    async def stage(self, plan: StagePlan, *, edit: tuple[str, str] = ("", "")) -> str:
        text = node_script.stage_script(plan, home=HOME)
        assert edit[0] in text
        result = await self.node.run(
            text.replace(*edit) if edit[0] else text,
            stdin=node_script.stage_input(plan),
            timeout=node_script.stage_seconds(plan),
        )
        assert result.stderr == ""
        node_script.verdict("worker-01", plan, status=result.status, stdout=result.stdout, stderr=result.stderr)
        return result.stdout

    async def send(self, plan: StagePlan, *contents: bytes) -> None:
        result = await self.node.run(
            node_script.receive_script(plan.bin_dir, plan.blobs, home=HOME), stdin=stream(*contents), timeout=60
        )
        node_script.verdict("worker-01", None, status=result.status, stdout=result.stdout, stderr=result.stderr)

    async def apply(self, wanted: NodeState, *contents: bytes) -> list[tuple[str, str]]:
        """Carry a state out; what was done. It must be complete afterwards."""
        done = await self.changes(wanted)
        for plan in await self.plan(wanted):
            if plan.blobs:
                await self.send(plan, *(contents or (socat(),)))
            await self.stage(plan)
        assert await self.changes(wanted) == []
        return done

    async def ask(self, script: str) -> str:
        return (await self.node.run(script)).stdout.strip()

    async def invocations(self) -> list[str]:
        text = await self.ask("systemctl show -p InvocationID --value kwtest.service kwtest-dependent.service")
        return text.split()

    async def leftovers(self) -> str:
        return await self.ask(f"find {ETC} {BIN_DIR} /etc/systemd/system {HOME} -name '.*.kubeworker-*'")


_CLEAN = f"""
systemctl disable -q --now kwtest-dependent.service kwtest.service 2>/dev/null
umount /mnt/kwtest 2>/dev/null
rm -rf {ETC} /opt/kwtest /mnt/kwtest /run/kwtest.reloads {HOME} /etc/systemd/system/kwtest*
systemctl daemon-reload
systemctl reset-failed 'kwtest*' 2>/dev/null
true
"""


@pytest.fixture
async def bare(lab: LabState) -> AsyncIterator[Engine]:
    """The worker as nobody has touched it."""
    machine = lab.machine("worker-01")
    ssh = Ssh(identity=str(lab.ssh_identity), known_hosts=str(lab.known_hosts), config="/nowhere/config")
    node = await connect(NodeSpec(name=machine.name, address=machine.address), ssh)
    await node.run(_CLEAN)
    if not _SOCAT:
        encoded = await node.run("base64 -w 0 < /usr/bin/socat")
        _SOCAT.append(base64.b64decode(encoded.stdout))
    yield Engine(node)
    await node.run(_CLEAN)
    await node.close()


@pytest.fixture
async def engine(bare: Engine) -> Engine:
    """The worker with the demo in place."""
    await bare.apply(demo())
    return bare


async def test_a_bare_machine_is_set_up_and_a_second_run_does_nothing(bare: Engine) -> None:
    assert ("start", "kwtest.service") in await bare.apply(demo())
    before = await bare.invocations()
    assert await bare.apply(demo()) == []
    assert await bare.invocations() == before
    assert await bare.leftovers() == ""
    assert await bare.ask(f"stat -c '%a %U' {ETC} {ETC}/secret {HOME} {BIN_DIR}/.store") == (
        "750 root\n600 root\n700 root\n700 root"
    )
    assert await bare.ask("systemctl is-enabled kwtest.service kwtest-dependent.service") == "enabled\nenabled"


async def test_a_plan_leaves_no_trace_on_a_bare_machine(bare: Engine) -> None:
    await bare.plan(demo())
    assert await bare.ask(f"ls -d {HOME} /opt/kwtest 2>/dev/null") == ""


async def test_a_changed_input_restarts_its_unit_and_systemd_its_dependent(engine: Engine) -> None:
    server, dependent = await engine.invocations()
    assert await engine.apply(demo(secret=b"two")) == [
        ("file", "secret"),
        ("restart", "kwtest.service"),
        ("restart", "kwtest-dependent.service"),
    ]
    now = await engine.invocations()
    assert now[0] != server
    assert now[1] != dependent


async def test_a_stage_tells_when_a_unit_was_started_by_the_nodes_own_clock(engine: Engine) -> None:
    earlier = await engine.ask("date -u +%FT%TZ")
    (plan, *_) = await engine.plan(demo(secret=b"two"))
    lines = (await engine.stage(plan)).splitlines()
    told = dict(filter(None, map(node_script.started, lines)))
    seen = "systemctl show --property=ExecMainStartTimestamp --value kwtest.service"
    assert told["kwtest.service"] == await engine.ask(f'date -u -d "$({seen})" +%FT%TZ')
    assert told["kwtest.service"] >= earlier


async def test_a_unit_that_was_started_too_often_before_is_started(engine: Engine) -> None:
    refused = "while systemctl restart kwtest.service 2> /dev/null; do :; done; systemctl show -p Result --value kwtest"
    assert await engine.ask(refused) == "start-limit-hit"
    await engine.apply(demo(secret=b"three"))
    assert await engine.ask("systemctl is-active kwtest.service kwtest-dependent.service") == "active\nactive"
    assert await engine.changes(demo(secret=b"three")) == []


async def test_a_reload_input_reloads_and_restarts_nothing(engine: Engine) -> None:
    before = await engine.invocations()
    assert await engine.apply(demo(conf=b"a=2\n")) == [("file", "conf"), ("reload", "kwtest.service")]
    assert await engine.invocations() == before
    assert await engine.ask("cat /run/kwtest.reloads") == "r"


async def test_every_kind_of_damage_shows_and_is_healed(engine: Engine) -> None:
    await engine.ask(
        f"rm {ETC}/link; chmod 644 {ETC}/secret; echo x >> {ETC}/conf; touch {ETC}/old; "
        "systemctl disable -q --now kwtest-dependent; echo '# mine' >> /etc/systemd/system/kwtest-dependent.service"
    )
    assert await engine.changes(demo()) == [
        ("file", "conf"),
        ("mode", "secret"),
        ("link", "link"),
        ("remove", "old"),
        ("reload", "kwtest.service"),
        ("file", "kwtest-dependent.service"),
        ("enable", "kwtest-dependent.service"),
        ("daemon-reload", "kwtest-dependent.service"),
        ("start", "kwtest-dependent.service"),
    ]
    await engine.apply(demo())


async def test_a_binary_damaged_in_place_with_its_size_kept_is_healed(engine: Engine) -> None:
    # A running binary can't be written to (ETXTBSY): it is damaged while its service is down.
    await engine.ask(
        f"systemctl stop kwtest; printf X | dd of={SERVER} bs=1 seek=4000 conv=notrunc 2>/dev/null; "
        f"touch -d '1 day ago' {SERVER}"
    )
    (plan, *_) = await engine.plan(demo())
    assert plan.blobs == (blob(socat()),)
    assert ("binary", "kwtest-server") in await engine.apply(demo())


async def test_a_new_binary_replaces_the_running_one(engine: Engine) -> None:
    other = socat() + b"\0"
    assert await engine.apply(demo(elf=other), other) == [
        ("binary", "kwtest-server"),
        ("restart", "kwtest.service"),
        ("restart", "kwtest-dependent.service"),
    ]


async def test_a_config_that_its_checker_refuses_never_goes_live(engine: Engine) -> None:
    before = await engine.invocations()
    with pytest.raises(ActionFailed, match="grep refuses the new configuration"):
        await engine.apply(demo(conf=b"nonsense\n"))
    assert await engine.ask(f"cat {ETC}/conf") == "a=1"
    assert await engine.invocations() == before
    assert await engine.changes(demo()) == []


async def test_a_unit_that_misses_its_gate_gives_way_to_its_former_version(engine: Engine) -> None:
    wanted = demo(exec_start="/bin/sh -c 'echo no such luck >&2; exit 1'", secret=b"two")
    with pytest.raises(ActionFailed) as caught:
        await engine.apply(wanted)
    assert "demo: kwtest.service ended by itself 3 times after its start" in caught.value.message
    assert "no such luck" in caught.value.message
    assert await engine.ask(f"cat {ETC}/secret") == "one"
    assert await engine.ask("systemctl is-active kwtest kwtest-dependent") == "active\nactive"
    # Only what was restarted twice with it differs: its dependent's record, which a restart does not spoil.
    assert await engine.changes(demo()) == []
    assert await engine.leftovers() == ""


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(listen=("127.0.0.1:1",), timeout=1), "none of its processes listens on 127.0.0.1:1"),
        (Gate(http=("http://127.0.0.1:7777/healthz",), timeout=1), "http://127.0.0.1:7777/healthz answers"),
        (Gate(command=("sh", "-c", "echo not yet; exit 1"), timeout=1), "not yet"),
    ],
)
async def test_a_missed_gate_says_which_and_a_first_version_is_taken_away(
    gate: Gate, message: str, bare: Engine
) -> None:
    with pytest.raises(ActionFailed, match=r"kwtest\.service is not healthy after 1 s") as caught:
        await bare.apply(demo(gate=gate))
    assert message in caught.value.message
    assert await bare.ask(f"ls {ETC} {BIN_DIR}") == f"{ETC}:\n\n{BIN_DIR}:"
    assert await bare.ask("systemctl is-active kwtest; find /etc/systemd -name 'kwtest*'") == "inactive"
    await bare.apply(demo())


async def test_a_run_killed_between_file_and_restart_is_finished_by_the_next(engine: Engine) -> None:
    server, _ = await engine.invocations()
    (plan, _) = await engine.plan(demo(secret=b"two"))
    with pytest.raises(ActionFailed):
        await engine.stage(plan, edit=("\nrestart kwtest.service\n", "\nkill -9 $$\n"))
    assert await engine.ask(f"cat {ETC}/secret") == "two"
    assert (await engine.invocations())[0] == server
    assert await engine.apply(demo(secret=b"two")) == [
        ("restart", "kwtest.service"),
        ("restart", "kwtest-dependent.service"),
    ]
    assert await engine.leftovers() == ""


async def test_what_a_killed_run_left_beside_the_files_goes_with_the_next(engine: Engine) -> None:
    # All is done but the end: the units have their records, and the former secret is still there.
    (plan, _) = await engine.plan(demo(secret=b"two"))
    with pytest.raises(ActionFailed, match="stopped half-way"):
        await engine.stage(plan, edit=("\ncommit\n", "\nkill -9 $$\n"))
    assert ("remove", ".secret.kubeworker-old") in await engine.apply(demo(secret=b"two"))
    assert await engine.leftovers() == ""
    # Nothing is live yet, and the change is taken back: the next secret is there already.
    (plan, *_) = await engine.plan(demo(secret=b"three"))
    with pytest.raises(ActionFailed, match="stopped half-way"):
        await engine.stage(plan, edit=("\nswapping=yes\n", "\nkill -9 $$\n"))
    before = await engine.invocations()
    assert ("restart", "kwtest.service") in await engine.apply(demo(secret=b"two"))
    assert await engine.leftovers() == ""
    assert before != await engine.invocations()


async def test_a_run_whose_control_host_vanishes_finishes_or_rolls_back(engine: Engine, lab: LabState) -> None:
    machine = lab.machine("worker-01")
    ssh = Ssh(identity=str(lab.ssh_identity), known_hosts=str(lab.known_hosts), config="/nowhere/config")
    other = await connect(NodeSpec(name=machine.name, address=machine.address), ssh)
    (plan, _) = await engine.plan(demo(secret=b"two", gate=Gate(listen=("127.0.0.1:1",), timeout=3)))
    task = asyncio.create_task(Engine(other).stage(plan))
    await asyncio.sleep(1)
    assert await engine.ask(f"cat {ETC}/secret") == "two"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await other.close()
    # The next run waits for the lock, and finds the former state.
    assert await engine.ask(f"flock -w 30 {HOME}/lock cat {ETC}/secret") == "one"
    assert await engine.changes(demo()) == []


def gone(*, remove: str = "rm /run/kwtest.reloads") -> NodeState:
    """The demo's server must not be there; what it wrote of its reloads stands for rules in the kernel."""
    trace = Leftover(name="its trace", present="[ -e /run/kwtest.reloads ]", remove=remove, reason="it is gone")
    server = AbsentUnit(
        name="kwtest.service",
        reason="nobody needs it",
        paths=(SERVER, f"{ETC}/conf", f"{ETC}/secret", f"{ETC}/link"),
        directories=(ETC,),
        leftovers=(trace,),
    )
    return NodeState(node="worker-01", bin_dir=BIN_DIR, stages=(Stage(component="demo", absent_units=(server,)),))


async def test_what_is_kept_until_the_new_version_works_goes_with_it_or_with_its_failure(engine: Engine) -> None:
    trace = Leftover(
        name="the trace",
        present="[ -e /run/kwtest.reloads ]",
        keep="cp /run/kwtest.reloads /run/kwtest.kept",
        unkeep="rm /run/kwtest.kept",
        remove="rm /run/kwtest.reloads /run/kwtest.kept",
        reason="of another version",
    )

    def with_trace(wanted: NodeState) -> NodeState:
        first, *rest = wanted.stages
        return dataclasses.replace(wanted, stages=(dataclasses.replace(first, leftovers=(trace,)), *rest))

    await engine.ask("touch /run/kwtest.reloads")
    broken = with_trace(demo(secret=b"two", gate=Gate(listen=("127.0.0.1:7799",), timeout=1)))
    with pytest.raises(ActionFailed, match="is not healthy after 1 s"):
        await engine.apply(broken)
    assert await engine.ask("ls /run/kwtest.*") == "/run/kwtest.reloads"
    assert await engine.ask("systemctl is-active kwtest.service") == "active"
    assert ("leftover", "the trace") in await engine.apply(with_trace(demo(secret=b"two")))
    assert await engine.ask("ls /run/kwtest.* 2> /dev/null") == ""


_REMOVED = "systemctl is-active kwtest.service; systemctl is-enabled kwtest.service 2>&1; ls -A /etc/systemd/system"


async def test_a_unit_that_must_not_be_there_goes_with_all_that_was_its_own(engine: Engine) -> None:
    await engine.ask(
        "touch /run/kwtest.reloads; mkdir /etc/systemd/system/kwtest.service.d;"
        "printf '[Service]\nNice=1\n' > /etc/systemd/system/kwtest.service.d/site.conf; systemctl daemon-reload"
    )
    done = await engine.apply(gone())
    assert done[:2] == [("stop", "kwtest.service"), ("leftover", "its trace")]
    assert ("remove", "site.conf") in done
    state, enabled, *units = (await engine.ask(_REMOVED)).splitlines()
    assert state == "inactive"
    assert "No such file" in enabled or enabled == "not-found"
    assert not [unit for unit in units if unit.startswith("kwtest.service")]
    left = f"ls -A {ETC} /opt/kwtest/bin /opt/kwtest/bin/.store {HOME}/started /run/kwtest.reloads 2> /dev/null"
    assert (await engine.ask(left)).split() == [
        *("/opt/kwtest/bin:", ".store"),
        *("/opt/kwtest/bin/.store:", "history"),
        *(f"{HOME}/started:", "kwtest-dependent.service"),
    ]
    assert await engine.leftovers() == ""


async def test_a_removal_that_fails_leaves_the_unit_running_and_enabled(engine: Engine) -> None:
    await engine.ask("touch /run/kwtest.reloads")
    with pytest.raises(ActionFailed, match="its trace: it is busy"):
        await engine.apply(gone(remove="echo it is busy; exit 1"))
    assert await engine.ask("systemctl is-active kwtest.service; systemctl is-enabled kwtest.service") == (
        "active\nenabled"
    )
    assert await engine.leftovers() == ""
    # systemd has stopped its dependent with it; that one is the next run's.
    assert await engine.changes(demo()) == [("start", "kwtest-dependent.service")]


@pytest.mark.parametrize("moment", ["end 0", "remove /etc/systemd/system/kwtest.service"])
async def test_a_removal_that_was_killed_is_finished_by_the_next_run(engine: Engine, moment: str) -> None:
    await engine.ask("touch /run/kwtest.reloads")
    (plan,) = await engine.plan(gone())
    with pytest.raises(ActionFailed, match="stopped half-way"):
        await engine.stage(plan, edit=(moment, f"{moment}\nkill -KILL $$"))
    assert ("stop", "kwtest.service") in await engine.apply(gone())
    assert await engine.leftovers() == ""
    assert (await engine.ask(_REMOVED)).startswith("inactive\n")


async def test_a_full_disk_leaves_everything_as_it_was(engine: Engine) -> None:
    await engine.ask("mkdir -p /mnt/kwtest && mount -t tmpfs -o size=256k tmpfs /mnt/kwtest")
    large = os.urandom(1_000_000)
    wanted = NodeState(
        node="worker-01",
        bin_dir="/mnt/kwtest/bin",
        stages=(
            Stage(
                component="large",
                binaries=(Binary(path="/mnt/kwtest/tool", blob=blob(large), version="1"),),
                files=(File(path=f"{ETC}/conf", content=b"other\n"),),
            ),
        ),
    )
    (plan,) = await engine.plan(wanted)
    with pytest.raises(ActionFailed, match="no space left below /mnt/kwtest"):
        await engine.send(plan, large)
    assert await engine.ask("ls -A /mnt/kwtest/bin/.store") == ""
    files = NodeState(
        node="worker-01",
        bin_dir=BIN_DIR,
        stages=(
            Stage(
                component="large",
                files=(
                    File(path=f"{ETC}/conf", content=b"other\n"),
                    File(path="/mnt/kwtest/file", content=large),
                ),
            ),
        ),
    )
    (plan,) = await engine.plan(files)
    with pytest.raises(ActionFailed, match="No space left on device"):
        await engine.stage(plan)
    assert await engine.ask(f"cat {ETC}/conf; find /mnt/kwtest -type f") == "a=1"
    assert await engine.leftovers() == ""


async def test_the_store_may_lie_on_another_file_system(bare: Engine) -> None:
    await bare.ask("mkdir -p /mnt/kwtest && mount -t tmpfs tmpfs /mnt/kwtest")
    await bare.apply(demo(bin_dir="/mnt/kwtest/bin"))
    assert await bare.ask("systemctl is-active kwtest") == "active"


async def test_a_foreign_process_does_not_pass_for_the_unit(bare: Engine) -> None:
    await bare.ask("systemd-run -q --unit kwtest-squatter socat TCP-LISTEN:7777,fork EXEC:/bin/cat; sleep 0.5")
    try:
        with pytest.raises(ActionFailed, match=r"Address already in use"):
            await bare.apply(demo())
    finally:
        await bare.ask("systemctl stop kwtest-squatter")


async def test_a_foreign_process_on_a_port_is_named_with_its_unit(bare: Engine) -> None:
    await bare.ask("systemd-run -q --unit kwtest-squatter socat TCP-LISTEN:7777,fork EXEC:/bin/cat")
    try:
        await asyncio.sleep(0.5)
        wanted = demo()
        observed = await bare.look(wanted)
        rows = preflight(wanted, observed, fleet=Fleet(), control_time=observed.clock)
        (finding,) = (row for row in rows if row.status == "failed")
        assert "held by socat (pid " in finding.message
        assert "kwtest-squatter.service" in finding.message
    finally:
        await bare.ask("systemctl stop kwtest-squatter")


async def test_the_units_own_port_is_no_finding(engine: Engine) -> None:
    observed = await engine.look(demo())
    rows = preflight(demo(), observed, fleet=Fleet(), control_time=observed.clock)
    assert {row.id: row.status for row in rows}["port-7777"] == "ok"


async def test_a_converged_probe_hashes_nothing_and_is_quick(engine: Engine) -> None:
    await asyncio.sleep(0.2)
    await engine.plan(demo())
    began = asyncio.get_running_loop().time()
    text = probe.script(demo(), home=HOME).replace("sha256sum", "sha256sum-was-called")
    observed = parse("worker-01", (await engine.node.run(text)).stdout)
    assert diff.diff(demo(), observed) == ()
    # Some 60 ms of the node's own; the limit only catches a probe that does something dear.
    assert asyncio.get_running_loop().time() - began < 2
