"""The live view on a real terminal (a pseudo-terminal of 80 columns), and what a log gets instead. Ends by Ctrl-C."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

RUN = """
import asyncio, signal, sys
from kubeworker.cli import report
from kubeworker.cli.frame import app
from kubeworker.flow.events import *

report.QUIET_SECONDS = float(sys.argv.pop(1))
# A shell's background jobs begin with it ignored, and so would this one.
signal.signal(signal.SIGINT, signal.default_int_handler)

@app.command
async def work(nodes: int):
    with report.reporting(form=sys.argv[3]) as tell:
        try:
            for number in range(nodes):
                node = f"node-{number:03}"
                tell(NodeQueued(node=node, steps=30))
                tell(StageStarted(node=node, component="kubelet"))
                tell(ActionStarted(node=node, kind="restart", subject="kubelet.service"))
            tell(Warning_(subject="kube_proxy", text="a long warning, " * 9))
            tell(NodeDone(node="node-000", status="failed", detail="not healthy"))
            tell(Waiting(node="node-001", what="its Node to be Ready"))
            await asyncio.sleep(60)
        finally:
            print("cleaned", flush=True)

try:
    app(sys.argv[1:3], exit_on_error=False, result_action="return_value")
except KeyboardInterrupt:
    sys.exit(130)
"""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Ended:
    """What a terminal got, and what a pipe got."""

    terminal: str
    output: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.split(r"[\r\n]+", CONTROL.sub("", self.terminal))]


def until_told(descriptor: int, what: str) -> str:
    """What was read up to there, and half a second of drawing more."""
    text, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([descriptor], [], [], 0.1)[0]:
            text += os.read(descriptor, 1 << 16)
        if what in text.decode(errors="replace"):
            end = min(end, time.monotonic() + 0.5)
    assert what in text.decode(), text
    return text.decode()


def until_closed(*descriptors: int) -> dict[int, str]:
    """All that comes from these until their other ends are closed. Both at once: nobody may wait for room in one."""
    text, left = dict.fromkeys(descriptors, b""), set(descriptors)
    while left:
        for descriptor in select.select(list(left), [], [], 60)[0]:
            try:
                more = os.read(descriptor, 1 << 16)
            except OSError:  # EIO: the other end of a pseudo-terminal is closed
                more = b""
            text[descriptor] += more
            if not more:
                left.discard(descriptor)
    return {descriptor: each.decode() for descriptor, each in text.items()}


def run(
    nodes: int, environment: Mapping[str, str] | None = None, *, form: str = "auto", terminal: bool = True
) -> Ended:
    """The command with standard error on a terminal or a pipe, until it waits; then Ctrl-C."""
    master, slave = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    clean: Mapping[str, str] = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "CI"}}
    with subprocess.Popen(
        [sys.executable, "-c", RUN, "1", "work", str(nodes), form],
        env={**clean, "TERM": "xterm-256color", "PYTHONUTF8": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=slave,
    ) as process:
        os.close(slave)
        try:
            told = until_told(master, "its Node to be Ready")
        except BaseException:
            process.kill()  # it may wait for somebody to read what it draws
            raise
        process.send_signal(signal.SIGINT)
        assert process.stdout
        output = process.stdout.fileno()
        said = until_closed(master, output)
    os.close(master)
    return Ended(terminal=told + said[master], output=said[output])


@pytest.mark.parametrize("nodes", [3, 200])
def test_nothing_is_wider_than_the_terminal_and_an_interrupt_leaves_it_clean(nodes: int) -> None:
    ended = run(nodes)
    assert max(map(len, ended.lines)) <= 80
    assert ended.output == "cleaned\n"
    assert ended.terminal.count("\x1b[?25l") == ended.terminal.count("\x1b[?25h") == 1, "the cursor is back"
    last = [line for line in ended.lines if line]
    assert "node-000: failed: not healthy" in last
    stopped = next(index for index, line in enumerate(last) if line.startswith("stopped: "))
    assert last[stopped].startswith(f"stopped: 0 of {nodes} nodes done, 1 failed, 0 of {30 * nodes} changes")
    assert "  waited for its Node to be Ready: node-001" in last[stopped:]
    assert any(line.startswith("  kubelet: node-002") for line in last[stopped:])


def test_a_fleet_is_drawn_as_states() -> None:
    assert "kubelet      198  node-002, node-003" in "\n".join(run(200).lines)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_gets_none(environment: dict[str, str]) -> None:
    found = {each for each in COLOUR.findall(run(3, environment).terminal) if re.search(r"[34]\d|[19]\d[0-7]", each)}
    assert found == set()


@pytest.mark.parametrize(
    ("form", "terminal", "environment"),
    [("auto", False, {}), ("auto", False, {"FORCE_COLOR": "1", "CI": "true"}), ("plain", True, {})],
)
def test_a_log_has_plain_lines_and_hears_of_long_waits(
    form: str, environment: dict[str, str], *, terminal: bool
) -> None:
    ended = run(3, environment, form=form, terminal=terminal)
    assert "\x1b" not in ended.terminal
    assert ended.lines[:3] == ["node-000: kubelet", "node-001: kubelet", "node-002: kubelet"]
    waits = r"0 of 3 nodes done, 1 failed, 0 of 90 changes, \d+ s; waiting for its Node to be Ready: node-001"
    assert any(re.fullmatch(waits, line) for line in ended.lines)
    assert "stopped: 0 of 3 nodes done, 1 failed, 0 of 90 changes" in ended.lines
