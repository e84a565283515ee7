"""What every Node must do, on the fake (asyncssh's server in this process) and on a real sshd alike."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.sshd import Server, in_process, openssh
from tests.unit.core.engine_states import blob, stream

from kubeworker.core.node import node_script
from kubeworker.errors import NodeError, NodeUnreachable
from kubeworker.io.node import Node, connect


@pytest.fixture(params=["fake", "openssh"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    if request.param == "fake":
        async with in_process(tmp_path / "ssh") as server:
            yield server
    else:
        with openssh(tmp_path / "ssh") as server:
            yield server


@pytest.fixture
async def node(server: Server) -> AsyncIterator[Node]:
    connected = await connect(server.node(), server.ssh())
    yield connected
    await connected.close()


async def test_output_errors_and_status(node: Node) -> None:
    assert node.name == "n1"
    result = await node.run("echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 7)


async def test_the_script_finds_exactly_its_input(node: Node) -> None:
    sent = bytes(range(256)) * 20_000
    result = await node.run("wc -c; echo done", stdin=sent)
    assert result.stdout.split() == [str(len(sent)), "done"]
    assert (await node.run("cat", stdin=b"a\n\nb")).stdout == "a\n\nb"
    assert (await node.run("cat")).stdout == ""


async def test_input_may_come_in_pieces(node: Node) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(50):
            yield b"%d" % (number % 10) * 20_000
            await asyncio.sleep(0)

    assert (await node.run("wc -c", stdin=pieces())).stdout.split() == ["1000000"]


async def test_a_large_script_with_every_kind_of_quote(node: Node) -> None:
    text = "x='it'\\''s \"fine\" `no` $HOME %s \\n übel'\n" + "# padding\n" * 20_000 + 'printf "%s" "$x"'
    assert (await node.run(text, stdin=b"more")).stdout == 'it\'s "fine" `no` $HOME %s \\n übel'


async def test_the_process_list_shows_nothing_of_the_script(node: Node) -> None:
    result = await node.run("# hunter2\ntr '\\0' ' ' < /proc/$$/cmdline; cat", stdin=b"|hunter3")
    shown, _, sent = result.stdout.partition("|")
    assert shown.startswith("sh -c eval")
    assert "hunter" not in shown
    assert sent == "hunter3"


async def test_a_script_that_ends_early_leaves_its_input_unread(node: Node) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2_000):
            yield b"x" * 100_000

    assert (await node.run("exit 3", stdin=endless(), timeout=30)).status == 3


async def test_lines_are_handed_on_as_they_arrive(node: Node) -> None:
    seen: list[tuple[str, float]] = []
    began = time.monotonic()
    text = "echo one; sleep 0.6; echo two"
    result = await node.run(text, on_line=lambda line: seen.append((line, time.monotonic() - began)))
    assert [line for line, _ in seen] == ["one", "two"]
    assert seen[1][1] - seen[0][1] > 0.3
    assert result.stdout == "one\ntwo\n"


async def test_output_that_is_not_text_does_no_harm(node: Node) -> None:
    assert (await node.run("printf '\\377\\n'")).stdout.encode("utf-8", "surrogateescape") == b"\xff\n"


async def test_a_script_that_takes_too_long_is_an_error(node: Node) -> None:
    with pytest.raises(NodeError, match="did not end within") as caught:
        await node.run("sleep 60", timeout=0.3)
    assert caught.value.subject == "n1"
    assert (await node.run("echo still here")).stdout == "still here\n"


async def test_runs_side_by_side_share_the_connection(node: Node) -> None:
    began = time.monotonic()
    results = await asyncio.gather(*(node.run(f"sleep 0.5; echo {number}") for number in range(5)))
    assert [result.stdout.strip() for result in results] == [str(number) for number in range(5)]
    assert time.monotonic() - began < 2.4


async def test_a_run_is_one_channel(node: Node, server: Server) -> None:
    before = server.sessions()
    await node.run("cat > /dev/null; echo x", stdin=b"x" * 1_000_000)
    assert server.sessions() - before == 1


async def comes(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.05)


async def test_a_script_whose_caller_is_gone_goes_on_to_its_end(node: Node, tmp_path: Path) -> None:
    begun, done = tmp_path / "begun", tmp_path / "done"
    script = (
        f"trap '' HUP PIPE; : > {begun}; sleep 0.5; echo x; sleep 0.2; echo ended > {done}.new; mv {done}.new {done}"
    )
    task = asyncio.create_task(node.run(script))
    await comes(begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await node.close()
    await comes(done)
    assert done.read_text() == "ended\n"


async def test_a_port_of_the_node_is_reached_through_it(node: Node) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as service:
        port = service.sockets[0].getsockname()[1]
        async with node.forward("127.0.0.1", port) as local:
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            writer.write(b"hello\n")
            assert await reader.readline() == b"HELLO\n"
            writer.close()
            await writer.wait_closed()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", local)


async def test_the_engines_own_scripts_run_over_it(node: Node, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    home = tmp_path / "home"
    sent = stream(content)
    received = await node.run(
        node_script.receive_script(str(tmp_path / "bin"), [blob(content)], home=str(home)), stdin=sent
    )
    assert (received.status, received.stdout, received.stderr) == (0, "", "")
    stored = tmp_path / "bin" / ".store" / f"sha256-{blob(content).sha256}"
    assert stored.read_bytes() == content


async def test_a_stream_whose_sender_is_gone_without_a_word_gives_the_nodes_lock_back(tmp_path: Path) -> None:
    whole, cut = os.urandom(100_000), os.urandom(3_000_000)
    text = node_script.receive_script(str(tmp_path / "bin"), [blob(whole), blob(cut)], home=str(tmp_path / "home"))
    limit = f"-lt {node_script.STALL} ]"
    assert limit in text
    script = await asyncio.create_subprocess_exec(
        "sh", "-c", text.replace(limit, "-lt 2 ]"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert script.stdin
    script.stdin.write(stream(whole, cut)[:2_000_000])
    await script.stdin.drain()
    async with asyncio.timeout(30):
        assert await script.wait() == 1
    assert [each.name for each in (tmp_path / "bin/.store").iterdir()] == [f"sha256-{blob(whole).sha256}"]
    script.stdin.close()


async def test_a_listener_that_says_nothing_is_told_from_a_machine_that_is_down(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(NodeUnreachable, match=r"accepts the connection, and then .* within 0\.5 s"):
            await connect(server.node(port=port), server.ssh(connect_timeout=0.5))


async def test_a_connection_that_breaks_is_the_nodes_error(server: Server) -> None:
    node = await connect(server.node(), server.ssh())
    task = asyncio.create_task(node.run("sleep 60"))
    await asyncio.sleep(0.3)
    await node.close()
    with pytest.raises(NodeUnreachable, match="the connection was lost"):
        await task
    with pytest.raises(NodeUnreachable, match="the connection was lost"):
        await node.run("true")


async def test_an_error_of_the_input_itself_is_not_taken_for_the_nodes(node: Node) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("the file is gone")

    with pytest.raises(KeyError, match="the file is gone"):
        await node.run("cat", stdin=broken())
