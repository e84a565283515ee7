"""`kubeworker drill apiserver` for real: it measures, meets its aims, and leaves nothing behind however it ends."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
from typing import Any

import pytest
from tests.lab.conftest import COMMAND, kubeworker
from tests.lab.operate import kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.core.api_proxy.failover import CASES, GAP
from kubeworker.lab import LabState

NOISE = {"stopped": 4.0, "blackholed": 4.0, "hung": 4.0, "unready": 6.0}
"""Seconds that a gap may be longer than the aim: other parts of the tests keep the two processors busy, and each step
of a probe (two rounds, a reload) starts processes on them. More for /readyz of a server without etcd: it asks etcd once
a second, waits 2 s for the answer, and tells all others who ask meanwhile the former one, which is good (apiserver's
storagebackend/factory/etcd3.go). A node's first two bad answers in a row may come that much later."""


def drill(lab: LabState, *arguments: str) -> list[str]:
    return ["drill", "apiserver", "--name", lab.name, "--state-dir", str(lab.folder.parent), *arguments]


def assert_whole(lab: LabState) -> None:
    """Nothing of a drill is left, and both kube-apiservers serve."""
    until(lambda: all(labs.apiserver_ready(lab, each) for each in lab.control_plane), "both are ready", seconds=60)
    for machine in lab.control_plane:
        assert "drill" not in sh(lab, machine.name, "nft list tables")
        assert sh(lab, machine.name, "systemctl is-active kube-apiserver") == "active"
        pid = sh(lab, machine.name, "systemctl show -p MainPID --value kube-apiserver")
        assert sh(lab, machine.name, f"cut -d ' ' -f 3 /proc/{pid}/stat") != "T"
    assert [path.name for path in lab.folder.glob("drill*")] == ["drill.lock"]
    named = ("configmap/kubeworker-drill", "role/kubeworker-drill", "rolebinding/kubeworker-drill")
    assert kubectl(lab, "--namespace=kube-system", "get", "--ignore-not-found", "-o", "name", *named) == ""
    assert subprocess.run(["pgrep", "-f", f"^{lab.folder}/bin/apiclient"], check=False).returncode == 1


class Running:
    """A drill while its fault is there."""

    def __init__(self, lab: LabState) -> None:
        self.process = subprocess.Popen(
            [str(COMMAND), *drill(lab, "--case", "blackholed")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: any("drill" in sh(lab, each.name, "nft list tables") for each in lab.control_plane), "cut off")

    def told(self, number: signal.Signals) -> str:
        """What it said until it ended."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)[0]


@pytest.mark.timeout(120)
def test_ctrl_c_takes_back_what_a_drill_did(deployed: LabState) -> None:
    running = Running(deployed)
    said = running.told(signal.SIGINT)
    assert running.process.returncode == 130, said
    assert "is restored" in said
    assert_whole(deployed)


@pytest.mark.timeout(120)
def test_so_does_sigterm(deployed: LabState) -> None:
    running = Running(deployed)
    said = running.told(signal.SIGTERM)
    assert running.process.returncode == 130, said
    assert "is restored" in said
    assert_whole(deployed)


def test_two_drills_of_one_lab_do_not_meet(deployed: LabState) -> None:
    with (deployed.folder / "drill.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = kubeworker(*drill(deployed))
    assert refused.returncode == 1
    assert "another drill is under way" in refused.stderr


@pytest.mark.timeout(420)
def test_four_failures_are_measured_and_taken_back_after_what_a_killed_drill_left(deployed: LabState) -> None:
    Running(deployed).told(signal.SIGKILL)
    assert (deployed.folder / "drill.json").exists()

    done = kubeworker(*drill(deployed, "--json", "--no-aims"), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "an earlier drill left its kube-apiserver blackholed: restored" in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert_whole(deployed)
    assert found["proxy"] | {"node": ""} == {
        "node": "",
        "listen": "127.0.0.1:8443",
        "balance": "least_conn",
        "probe": True,
        "ping_seconds": [10, 5],
    }
    assert [case["case"] for case in found["cases"]] == list(CASES)
    for case in found["cases"]:
        said = json.dumps(case, indent=1)
        victim = case["apiserver"]
        assert min(case["before"].values()) > 0, said
        # It was felt: the kept connection led there, and the probes took the server out.
        assert case["during"][victim] == 0, said
        assert sum(case["during"].values()) >= 2 * len(found["nodes"]), said
        assert case["watch"] is not None, said
        for client in ("kept", "dial"):
            assert case[client]["gap"]["ended"], said
            assert case[client]["gap"]["seconds"] <= GAP[case["case"]] + NOISE[case["case"]], said
        assert set(case["leases"]) == set(found["nodes"]), said
        assert max(case["leases"].values()) < 30, said
        assert case["not_ready"] == [], said
        # It is used again, by every node, each at a second of its own.
        times = [time[:19] for node in found["nodes"] for time in case["reloads"][node]]
        assert all(case["reloads"][node] for node in found["nodes"]), said
        # On busy processors a reload may be late by half a second, and so be in its neighbour's second.
        assert len(set(times)) >= len(times) - 1, said
        assert case["after"][victim] > 0, said
    assert any(case["even"] is not None for case in found["cases"]), done.stdout
