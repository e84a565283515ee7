"""A setting there and back: by the command on a terminal of 80 columns, with its page; by the library's example."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.lab.operate import COMMAND, Operator, sh

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
NODE = "k8s-02"
CONFIG = "/etc/kubernetes/kubelet-config.yaml"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def operator(lab: LabState) -> Operator:
    found = Operator(lab=lab, file=lab.cluster_yaml)
    found.apply()
    return found


def on_terminal(*arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines that standard error had on a terminal of 80 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    drawn = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(master, 1 << 16):
                drawn.extend(chunk)
        except OSError:  # EIO: the command has ended
            pass

    reading = threading.Thread(target=read)
    with subprocess.Popen(
        [COMMAND, *arguments],
        env={**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    ) as process:
        os.close(slave)
        reading.start()
        output, _ = process.communicate(timeout=200)
    reading.join()
    os.close(master)
    return process.returncode, output, re.split(r"[\r\n]+", CONTROL.sub("", drawn.decode()))


def test_a_run_is_seen_line_by_line_and_kept_as_a_page(operator: Operator, tmp_path: Path) -> None:
    page = tmp_path / "apply.html"

    def fewer_pods(document: dict[str, Any]) -> None:
        document["components"]["kubelet"]["max_pods"] = 200

    with operator.changed(fewer_pods) as other:
        only = ("--file", str(other.file), "--node", NODE)
        code, output, lines = on_terminal("apply", "--yes", *only, "--html", str(page))
        assert code == 0, output
        assert max(map(len, lines)) <= 80
        seen = [line.split(maxsplit=2) for line in lines if line.startswith(NODE)]
        assert any(line[2].startswith("kubelet") and "restart kubelet.service" in line[2] for line in seen)
        assert sh(operator.lab, NODE, f"grep maxPods {CONFIG}") == "maxPods: 200"
        text = page.read_text()
        assert "+maxPods: 200" in text
        assert f"<code>{CONFIG}</code>" in text
        quiet = other.run("apply", "--yes", "--quiet", "--node", NODE)
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_the_librarys_example_rolls_a_change_out_and_proves_it(operator: Operator) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/roll_out.py", operator.file],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 nodes, Kubernetes 1.33.3, kubeworker ")
    # What the test before it has left.
    assert lines[1] == f"2 changes; restarts: kubelet.service on {NODE}"
    assert f"{NODE}: ok" in lines
    assert re.fullmatch(r"\d+ checks passed, 0 failed", lines[-1])
    assert sh(operator.lab, NODE, f"grep maxPods {CONFIG}") == "maxPods: 220"
