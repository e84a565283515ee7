"""A drill's faults, its clients' rights, and what is read of their output."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from kubeworker.core.api_proxy.failover import CASES, Case
from kubeworker.core.artifacts import recipe
from kubeworker.core.spec import Versions
from kubeworker.io import build
from kubeworker.lab import drill_client, drill_fault
from kubeworker.lab.drill_client import Told


def rules(case: Case) -> list[str]:
    text = drill_fault.script(case, address="10.77.0.12", etcd="10.77.0.11")
    return [line.split("accept; ")[1].removesuffix("; }") for line in text.splitlines() if "accept; " in line]


def test_a_blackhole_swallows_what_goes_to_that_server_and_what_comes_from_it() -> None:
    assert rules("blackholed") == ["ip daddr 10.77.0.12 tcp dport 6443 drop", "ip saddr 10.77.0.12 tcp sport 6443 drop"]


def test_an_unready_server_is_cut_off_from_etcd_and_others_are_not() -> None:
    # Others' packets arrive with etcd's port as destination, on the machine that has it, and leave with it as source.
    assert rules("unready") == ["ip saddr 10.77.0.11 tcp sport 2379 drop", "ip daddr 10.77.0.11 tcp dport 2379 drop"]


@pytest.mark.parametrize("case", CASES)
def test_every_fault_is_taken_back_by_the_same_script(case: Case) -> None:
    text = drill_fault.script(case, address="10.77.0.12", etcd="10.77.0.11")
    undone = {"stopped": "systemctl start", "hung": "--signal=CONT"}.get(case, f"delete table ip {drill_fault.TABLE}")
    assert undone in drill_fault.RESTORE
    if case in {"blackholed", "unready"}:
        assert f"table ip {drill_fault.TABLE}" in text


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """A shell's background jobs begin with SIGINT ignored, and so would the tests here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def restoring(steps: list[str], interrupt: Callable[[], object]) -> None:
    with drill_fault.undisturbed():
        interrupt()
        steps.append("restored")
    steps.append("went on")


@pytest.mark.usefixtures("_interrupts")
def test_a_stop_in_the_middle_of_taking_back_comes_when_that_is_done() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        # To this thread: sent to the process, another one (pytest-xdist has some) may take it after the block.
        restoring(steps, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    assert steps == ["restored"]


@pytest.mark.usefixtures("_interrupts")
def test_so_does_one_that_another_thread_takes() -> None:
    """As the thread of a live table does, in which nothing is blocked."""
    end, (taken, woken) = threading.Event(), socket.socketpair()
    woken.setblocking(False)
    other = threading.Thread(target=end.wait)
    other.start()
    before = signal.set_wakeup_fd(woken.fileno())

    def interrupt() -> None:
        assert other.ident is not None
        signal.pthread_kill(other.ident, signal.SIGINT)
        assert taken.recv(1) == bytes([signal.SIGINT])

    steps: list[str] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            restoring(steps, interrupt)
    finally:
        signal.set_wakeup_fd(before)
        end.set()
        other.join()
        taken.close()
        woken.close()
    assert steps == ["restored"]


def test_the_clients_may_read_one_configmap_and_nothing_else() -> None:
    (_, granted), (_, role), (_, binding) = drill_client.objects()
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [granted["metadata"]["name"]],
            "verbs": ["get", "watch"],
        }
    ]
    assert binding["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": drill_client.USER}]
    assert not drill_client.USER.startswith("system:")


def test_the_clients_ping_as_a_kubelet_does() -> None:
    assert drill_client.ping({}) == (30, 15)
    units = {"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "10", "HTTP2_PING_TIMEOUT_SECONDS": "5"}
    assert drill_client.ping(units) == (10, 5)


def test_what_the_clients_say_is_sorted_by_client() -> None:
    told = Told()
    for line in (
        {"at": 1.0, "client": "kept", "what": "watch"},
        {"at": 1.1, "client": "kept", "what": "get"},
        {"at": 1.2, "client": "kept", "what": "server", "server": "10.77.0.11:6443"},
        {"at": 1.3, "client": "dial", "what": "get"},
        {"at": 2.0, "client": "dial", "what": "get", "error": 'Get "https://127.0.0.1:8443/api": EOF'},
        {"at": 2.1, "client": "kept", "what": "watch", "error": "unexpected EOF"},
    ):
        told.add(line)
    assert told.answers == {"kept": [1.1], "dial": [1.3]}
    assert told.servers == [(1.2, "10.77.0.11:6443")]
    assert told.watches == [(1.0, ""), (2.1, "unexpected EOF")]
    assert told.errors("dial", since=0) == {"EOF": 1}
    assert told.errors("dial", since=3) == {}
    assert told.steady(0.0, answers=1) is False
    told.add({"at": 3.0, "client": "kept", "what": "get"})
    told.add({"at": 3.0, "client": "dial", "what": "get"})
    assert told.steady(2.5, answers=1) is True
    assert told.steady(2.5, answers=2) is False


def test_the_clients_program_is_built_from_source_that_comes_with_the_package() -> None:
    (artifact,) = drill_client.artifacts(Versions())
    assert artifact.build is not None
    files = build.load_recipe("drill")
    assert "apiclient/main.go" in files.files
    build.check_version(artifact, artifact.build, files)  # type: ignore[arg-type]
    assert recipe.executable("kubeworker.invalid/apiclient") == artifact.name
