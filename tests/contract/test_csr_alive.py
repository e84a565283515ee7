"""That the unattended approver goes on is seen by who can start it anew: systemd's watchdog, a kubelet's probes."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.contract.control_plane import ControlPlane, free_port
from tests.contract.kubelets import write_cluster
from tests.contract.test_certificates import COMMAND, W1, health_status

pytestmark = pytest.mark.timeout(90)


@contextmanager
def approver(plane: ControlPlane, folder: Path, *flags: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    file = write_cluster(plane, folder, W1)
    command = [str(COMMAND), "csr", "approve", "--watch", "--serving-only", *flags, "-f", str(file)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_probes_are_answered_while_it_goes_round(control_plane: ControlPlane, tmp_path: Path) -> None:
    port = free_port()
    with approver(control_plane, tmp_path, f"--health-port={port}") as process:
        end = time.monotonic() + 30
        while health_status(port, "/readyz") != 200:
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert health_status(port, "/healthz?verbose=1") == 200
        assert health_status(port, "/") == health_status(port, "/healthz", method="POST") == 404
        # Callers that say nothing hold up no other, and too much is not read.
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as rude:
            rude.sendall(b"x" * 100_000)
            assert health_status(port, "/healthz") == 200

        process.send_signal(signal.SIGSTOP)
        assert health_status(port, "/healthz") is None


def test_systemd_is_told_when_it_is_ready_and_that_it_lives(control_plane: ControlPlane, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(address)
        manager.settimeout(30)
        with approver(control_plane, tmp_path, NOTIFY_SOCKET=address):
            assert [manager.recv(64) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_a_port_that_is_taken_is_said_plainly(control_plane: ControlPlane, tmp_path: Path) -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as taken:
        port = taken.getsockname()[1]
        with approver(control_plane, tmp_path, f"--health-port={port}") as process:
            assert process.wait(timeout=30) == 3
    assert f"port {port}: can't be listened on" in (tmp_path / "log").read_text()
