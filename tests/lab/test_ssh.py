"""SSH as operators have it, against real sshd: on loopback, and on the lab's machines for users and networks."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.contract.sshd import Server, free_port, make_key, openssh

from kubeworker import lab as labs
from kubeworker.core.spec import NodeSpec, NodeSsh, Ssh
from kubeworker.errors import CredentialsError, NodeUnreachable
from kubeworker.io.node import JumpHosts, Node, connect
from kubeworker.lab import LabState, Machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with openssh(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def bastion(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Server]:
    """A second sshd that accepts the same key."""
    with openssh(tmp_path_factory.mktemp("bastion")) as bastion:
        (bastion.folder / "authorized").write_text((server.folder / "id.pub").read_text())
        yield bastion


@asynccontextmanager
async def connected(node: NodeSpec, ssh: Ssh, **options: Any) -> AsyncIterator[Node]:
    node_ = await connect(node, ssh, **options)
    try:
        yield node_
    finally:
        await node_.close()


async def greets(node: NodeSpec, ssh: Ssh, **options: Any) -> bool:
    async with connected(node, ssh, **options) as there:
        return (await there.run("echo hello")).stdout == "hello\n"


async def refusal(node: NodeSpec, ssh: Ssh, **options: Any) -> NodeUnreachable:
    """The error of a login that must not succeed."""
    with pytest.raises(NodeUnreachable) as caught:
        await connect(node, ssh, **options)
    assert caught.value.subject == node.name
    assert caught.value.exit_code == 4
    assert caught.value.hint
    return caught.value


@contextmanager
def agent(*keys: Path, passphrase: str = "") -> Iterator[str]:
    """An ssh-agent that holds these keys; the path of its socket."""
    folder = keys[0].parent if keys else Path("/tmp")
    path = folder / "agent.sock"
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL) as running:
        try:
            while not path.exists():
                time.sleep(0.01)
            ask = folder / "askpass"
            ask.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
            ask.chmod(0o700)
            known = {"SSH_AUTH_SOCK": str(path), "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
            for key in keys:
                subprocess.run(["ssh-add", "-q", key], env={**os.environ, **known}, check=True)
            yield str(path)
        finally:
            running.terminate()


# ---------------------------------------------------------------------------------------------------------------
# Keys


async def test_a_key_file_on_another_port(server: Server) -> None:
    assert await greets(server.node(), server.ssh())


async def test_the_nodes_own_settings_come_before_the_common_ones(server: Server) -> None:
    common = server.ssh(user="nobody", port=1, identity="/nowhere")
    own = server.node(port=server.port, user="root", identity=str(server.identity))
    assert await greets(own, common)


async def test_an_agent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = shutil.copy(server.identity, tmp_path / "id")
    with agent(Path(key)) as path:
        Path(key).unlink()
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert await greets(server.node(), server.ssh(identity=""))


async def test_a_key_with_a_passphrase_that_the_agent_holds(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "id"
    make_key(key, passphrase="open sesame")
    authorized = server.folder / "authorized"
    authorized.write_text(authorized.read_text() + (tmp_path / "id.pub").read_text())
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(CredentialsError, match="passphrase"):
        await connect(server.node(), server.ssh(identity=str(key)))
    with agent(key, passphrase="open sesame") as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert await greets(server.node(), server.ssh(identity=str(key)))


async def test_a_key_that_is_not_there_is_wrong_input(server: Server) -> None:
    with pytest.raises(CredentialsError, match="No such file") as caught:
        await connect(server.node(), server.ssh(identity="/nowhere/id"))
    assert caught.value.subject == "/nowhere/id"
    assert caught.value.exit_code == 3


async def test_a_key_that_the_node_does_not_know(server: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    error = await refusal(server.node(), server.ssh(identity=str(tmp_path / "other")))
    assert f"127.0.0.1:{server.port} refuses the key for user root" in error.message


# ---------------------------------------------------------------------------------------------------------------
# ~/.ssh/config


def config(server: Server, tmp_path: Path, text: str) -> Ssh:
    path = tmp_path / "config"
    path.write_text(text)
    return Ssh(config=str(path), connect_timeout=5)


async def test_the_config_names_host_port_user_key_and_known_hosts(server: Server, tmp_path: Path) -> None:
    ssh = config(
        server,
        tmp_path,
        f"Host worker-*\n  HostName 127.0.0.1\n  Port {server.port}\n  User root\n  IdentityFile {server.identity}\n"
        f"  UserKnownHostsFile {server.known_hosts}\n",
    )
    assert await greets(NodeSpec(name="n1", address="192.0.2.1", ssh=NodeSsh(host="worker-7")), ssh)


async def test_what_cluster_yaml_says_comes_before_the_config(server: Server, tmp_path: Path) -> None:
    ssh = config(server, tmp_path, "Host *\n  Port 1\n  User nobody\n  UserKnownHostsFile /dev/null\n")
    ssh = Ssh(**{**ssh.model_dump(), "user": "root", "identity": str(server.identity)})
    ssh = Ssh(**{**ssh.model_dump(), "known_hosts": str(server.known_hosts)})
    assert await greets(server.node(), ssh)


async def test_the_config_can_not_switch_the_host_key_check_off(server: Server, tmp_path: Path) -> None:
    for line in ("UserKnownHostsFile none", "UserKnownHostsFile /dev/null"):
        text = f"Host *\n  StrictHostKeyChecking no\n  User root\n  IdentityFile {server.identity}\n  {line}\n"
        error = await refusal(server.node(), config(server, tmp_path, text))
        assert "is not in" in error.message


async def test_a_config_that_is_none_is_wrong_input(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CredentialsError) as caught:
        await connect(server.node(), config(server, tmp_path, "Host *\n  Port many\n"))
    assert str(tmp_path / "config") in caught.value.subject


# ---------------------------------------------------------------------------------------------------------------
# Host keys


async def test_an_unknown_host_key_is_refused_with_its_fingerprint(server: Server, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    error = await refusal(server.node(), server.ssh(known_hosts=str(known)))
    shown = subprocess.run(
        ["ssh-keygen", "-lf", server.folder / "host.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert shown in error.message
    assert "--accept-new-host-keys" in error.hint
    assert not known.exists()


async def test_a_new_host_key_is_pinned_once_it_may_be(server: Server, tmp_path: Path) -> None:
    known = tmp_path / "ssh" / "known_hosts"
    ssh = server.ssh(known_hosts=str(known))
    assert await greets(server.node(), ssh, accept_new_host_keys=True)
    assert await greets(server.node(), ssh)
    assert await greets(server.node(), ssh, accept_new_host_keys=True)
    assert len(known.read_text().splitlines()) == 1
    # OpenSSH reads it the same way.
    found = subprocess.run(["ssh-keygen", "-F", f"[127.0.0.1]:{server.port}", "-f", known], check=False)
    assert found.returncode == 0


async def test_a_pin_is_added_to_a_file_without_a_last_newline(server: Server, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("# mine")
    assert await greets(server.node(), server.ssh(known_hosts=str(known)), accept_new_host_keys=True)
    assert known.read_text().splitlines()[0] == "# mine"
    assert await greets(server.node(), server.ssh(known_hosts=str(known)))


@pytest.mark.parametrize("accept", [False, True])
async def test_a_changed_host_key_is_refused_always(accept: bool, server: Server, tmp_path: Path) -> None:  # noqa: FBT001
    make_key(tmp_path / "other")
    known = tmp_path / "known_hosts"
    key = (tmp_path / "other.pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {key}")
    before = known.read_text()
    ssh = server.ssh(known_hosts=str(known))
    error = await refusal(server.node(), ssh, accept_new_host_keys=accept)
    assert "shows another host key" in error.message
    assert f"ssh-keygen -f {known} -R '[127.0.0.1]:{server.port}'" in error.hint
    assert known.read_text() == before


async def test_hashed_names_are_known_too(server: Server, tmp_path: Path) -> None:
    known = Path(shutil.copy(server.known_hosts, tmp_path / "known_hosts"))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    assert await greets(server.node(), server.ssh(known_hosts=str(known)))


# ---------------------------------------------------------------------------------------------------------------
# Jump hosts


def both(server: Server, bastion: Server, tmp_path: Path) -> Path:
    known = tmp_path / "both"
    known.write_text(server.known_hosts.read_text() + bastion.known_hosts.read_text())
    return known


async def test_a_jump_host(server: Server, bastion: Server, tmp_path: Path) -> None:
    known = str(both(server, bastion, tmp_path))
    before = bastion.log().count("direct-tcpip")
    ssh = server.ssh(known_hosts=known, jump=f"root@127.0.0.1:{bastion.port}")
    async with connected(server.node(), ssh) as node:
        assert (await node.run("echo $SSH_CONNECTION")).status == 0
        async with node.forward("127.0.0.1", server.port) as local:
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            assert (await reader.readline()).startswith(b"SSH-2.0-OpenSSH")
            writer.close()
    assert bastion.log().count("direct-tcpip") > before


async def test_a_jump_host_from_the_config_with_an_alias(server: Server, bastion: Server, tmp_path: Path) -> None:
    known = both(server, bastion, tmp_path)
    text = (
        f"Host bastion\n  HostName 127.0.0.1\n  Port {bastion.port}\n"
        f"Host node\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump bastion\n"
        f"Host *\n  User root\n  IdentityFile {server.identity}\n  UserKnownHostsFile {known}\n"
    )
    before = bastion.log().count("direct-tcpip")
    node = NodeSpec(name="n1", address="192.0.2.1", ssh=NodeSsh(host="node"))
    assert await greets(node, config(server, tmp_path, text))
    assert bastion.log().count("direct-tcpip") > before


async def test_a_chain_of_jump_hosts(server: Server, bastion: Server, tmp_path: Path) -> None:
    known = str(both(server, bastion, tmp_path))
    jump = f"127.0.0.1:{bastion.port},root@127.0.0.1:{server.port}"
    assert await greets(server.node(), server.ssh(known_hosts=known, jump=jump))


async def test_many_nodes_share_one_connection_to_their_jump_host(
    server: Server, bastion: Server, tmp_path: Path
) -> None:
    known = str(both(server, bastion, tmp_path))
    ssh = server.ssh(known_hosts=known, jump=f"127.0.0.1:{bastion.port}")
    before = bastion.log().count("Accepted publickey")
    async with aclosing(JumpHosts()) as shared:
        nodes = await asyncio.gather(*(connect(server.node(), ssh, jump_hosts=shared) for _ in range(8)))
        assert {(await node.run("echo hello")).stdout for node in nodes} == {"hello\n"}
        await asyncio.gather(*(node.close() for node in nodes))
    assert bastion.log().count("Accepted publickey") - before == 1


async def test_a_jump_host_that_is_down_is_tried_once_and_named_by_every_node(server: Server) -> None:
    ssh = server.ssh(jump=f"127.0.0.1:{free_port()}")
    async with aclosing(JumpHosts()) as shared:
        for _ in range(2):
            error = await refusal(server.node(), ssh, jump_hosts=shared)
            assert error.message.startswith("jump host: 127.0.0.1:")


async def test_a_jump_hosts_key_is_checked_and_pinned_too(server: Server, bastion: Server, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    ssh = server.ssh(known_hosts=str(known), jump=f"127.0.0.1:{bastion.port}")
    error = await refusal(server.node(), ssh)
    assert f"[127.0.0.1]:{bastion.port}" in error.message
    assert await greets(server.node(), ssh, accept_new_host_keys=True)
    assert len(known.read_text().splitlines()) == 2


async def test_a_node_that_the_jump_host_can_not_reach(server: Server, bastion: Server, tmp_path: Path) -> None:
    known = str(both(server, bastion, tmp_path))
    ssh = server.ssh(known_hosts=known, jump=f"127.0.0.1:{bastion.port}")
    error = await refusal(server.node(port=free_port()), ssh)
    assert "the jump host can't reach" in error.message


# ---------------------------------------------------------------------------------------------------------------
# Nodes that do not answer


async def test_a_port_where_nothing_listens(server: Server) -> None:
    error = await refusal(server.node(port=free_port()), server.ssh())
    assert "refuses connections" in error.message


async def test_a_name_that_is_not_known(server: Server) -> None:
    error = await refusal(server.node(host="no-such-host.invalid"), server.ssh())
    assert "the name no-such-host.invalid is not known" in error.message


async def test_something_that_says_nothing(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        error = await refusal(server.node(port=silent.getsockname()[1]), server.ssh(connect_timeout=0.5))
        assert "accepts the connection, and then does not finish the login within 0.5 s" in error.message
        assert time.monotonic() - began < 5


async def test_something_that_is_no_sshd(server: Server) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as service:
        error = await refusal(server.node(port=service.sockets[0].getsockname()[1]), server.ssh())
        assert "127.0.0.1" in error.message


async def test_a_connection_that_went_dead_is_noticed(tmp_path: Path) -> None:
    with openssh(tmp_path / "own") as server:
        node = await connect(server.node(), server.ssh(keepalive=0.3))
        task = asyncio.create_task(node.run("sleep 60"))
        await asyncio.sleep(0.5)
        # The machine's kernel still acknowledges, but nobody answers any more.
        (session,) = (pid for pid in _children(server.pid) if "sshd: root" in _command(pid))
        os.kill(session, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(NodeUnreachable, match="the connection was lost"):
                await task
            assert time.monotonic() - began < 10
        finally:
            os.kill(session, signal.SIGKILL)
            await node.close()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---------------------------------------------------------------------------------------------------------------
# The lab's machines


def lab_ssh(lab: LabState, **fields: Any) -> Ssh:
    known: dict[str, Any] = {
        "identity": str(lab.ssh_identity),
        "known_hosts": str(lab.known_hosts),
        "config": "/nowhere/config",
    }
    return Ssh(**(known | fields))


def spec(machine: Machine, **fields: Any) -> NodeSpec:
    return NodeSpec(name=machine.name, address=machine.address, ssh=NodeSsh(**fields))


@pytest.fixture
def worker(lab: LabState) -> Machine:
    return lab.machine("worker-01")


async def test_root_is_the_default_user(lab: LabState, worker: Machine) -> None:
    async with connected(spec(worker), lab_ssh(lab)) as node:
        assert (await node.run("id -un; hostname")).stdout.split() == ["root", "worker-01"]


async def test_another_user_becomes_root_by_sudo(lab: LabState, worker: Machine) -> None:
    async with connected(spec(worker), lab_ssh(lab, user="ops")) as node:
        result = await node.run('id -u; echo "$SUDO_USER"; wc -c', stdin=b"x" * 1_000_000)
        assert result.stdout.split() == ["0", "ops", "1000000"]
        assert (await node.run("exit 9")).status == 9


async def test_sudo_is_one_channel_too_and_shows_nothing_of_the_script(lab: LabState, worker: Machine) -> None:
    debug = "/etc/ssh/sshd_config.d/kubeworker-test.conf"
    # sshd answers nobody for the moment in which it starts itself anew.
    reload = "systemctl reload ssh; until [ -n \"$(ss -Hltn 'sport = :22')\" ]; do sleep 0.1; done; sleep 0.2"
    labs.run(lab, worker, f"echo 'LogLevel DEBUG' > {debug}; {reload}")
    try:
        async with connected(spec(worker), lab_ssh(lab, user="ops")) as node:
            began = (await node.run("date +%s.%N")).stdout.strip()
            shown = (await node.run("# hunter2\nps -eo args")).stdout
            assert "sudo -n sh -c eval" in shown
            assert "hunter2" not in shown
            count = f"journalctl -u ssh --since '@{began}' -o cat | grep -c 'Starting session: command'"
            # That ps, and this very question.
            assert (await node.run(count)).stdout.strip() == "2"
    finally:
        labs.run(lab, worker, f"rm {debug}; {reload}")


async def test_sudo_that_asks_for_a_password_is_said_plainly(lab: LabState, worker: Machine) -> None:
    labs.run(lab, worker, "mv /etc/sudoers.d/ops /root/ops.sudoers")
    try:
        async with connected(spec(worker), lab_ssh(lab, user="ops")) as node:
            with pytest.raises(NodeUnreachable, match="sudo refuses user ops: sudo: a password is required") as caught:
                await node.run("true")
            assert "NOPASSWD" in caught.value.hint
    finally:
        labs.run(lab, worker, "mv /root/ops.sudoers /etc/sudoers.d/ops")


async def test_a_script_as_another_user_outlives_its_caller(lab: LabState, worker: Machine) -> None:
    node = await connect(spec(worker), lab_ssh(lab, user="ops"))
    task = asyncio.create_task(node.run("trap '' HUP PIPE; sleep 1; echo x; echo ended > /root/outlived"))
    await asyncio.sleep(0.4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await node.close()
    await asyncio.sleep(2)
    assert labs.run(lab, worker, "cat /root/outlived; rm -f /root/outlived").stdout.strip() == "ended"


async def test_one_machine_is_the_jump_host_to_another(lab: LabState, worker: Machine) -> None:
    jump = lab.machine("k8s-01")
    async with connected(spec(worker), lab_ssh(lab, jump=f"ops@{jump.address}")) as node:
        assert (await node.run("echo $SSH_CONNECTION")).stdout.split()[0] == jump.address


async def test_an_address_where_no_machine_is(lab: LabState) -> None:
    dead = NodeSpec(name="dead", address=lab.subnet.rpartition(".")[0] + ".251")
    began = time.monotonic()
    error = await refusal(dead, lab_ssh(lab, connect_timeout=1))
    assert "does not answer within 1 s" in error.message
    assert time.monotonic() - began < 3
    error = await refusal(dead, lab_ssh(lab, connect_timeout=10))
    assert dead.address in error.message
