"""API servers die, one and then all. Minutes long and last of all: about what does not happen while time goes by."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from tests.lab.conftest import kubeworker
from tests.lab.operate import kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.lab import LabState

DEAD, ALIVE = "k8s-01", "k8s-02"

WATCHED = 180
"""Seconds: several times what it takes until a silent node is marked NotReady (50 s, and 5 s to see it)."""
BETWEEN_SAMPLES = 3
OLDEST_LEASE = 30
"""Seconds. A kubelet renews its lease every 10 s, with 7 s for each try; at 40 s it counts as gone."""
RENEWALS = WATCHED / 10 * 0.8
"""How many distinct renewals of each node must be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The nodes at one moment, by name."""

    ready: dict[str, str]
    renewed: dict[str, float]
    """When each kubelet renewed its lease last, in seconds since the epoch."""
    taken: float

    def oldest(self) -> float:
        """Age of the oldest lease, in seconds."""
        return self.taken - min(self.renewed.values())


def items(lab: LabState, *arguments: str) -> list[dict[str, Any]]:
    """Objects as the API server that is alive has them."""
    server = f"--server=https://{lab.machine(ALIVE).address}:6443"
    found: list[dict[str, Any]] = json.loads(kubectl(lab, server, "get", "-o", "json", *arguments))["items"]
    return found


def sample(lab: LabState) -> Sample:
    conditions = {
        node["metadata"]["name"]: {each["type"]: each["status"] for each in node["status"]["conditions"]}
        for node in items(lab, "nodes")
    }
    leases = items(lab, "leases", "--namespace=kube-node-lease")
    return Sample(
        ready={name: each["Ready"] for name, each in conditions.items()},
        renewed={
            each["metadata"]["name"]: datetime.fromisoformat(each["spec"]["renewTime"]).timestamp() for each in leases
        },
        taken=time.time(),
    )


def leader(lab: LabState, lease: str) -> str:
    """Where the component runs that leads, seen through the API server that is alive; nowhere if its lease ran out."""
    found = [each for each in items(lab, "leases", "--namespace=kube-system") if each["metadata"]["name"] == lease]
    if not found:
        return ""
    spec = found[0]["spec"]
    age = time.time() - datetime.fromisoformat(spec["renewTime"]).timestamp()
    return spec["holderIdentity"].split("_")[0] if age < spec["leaseDurationSeconds"] else ""


def make_leader(lab: LabState, machine: str, other: str) -> None:
    """The controller-manager on `machine` leads: the case in which something is lost with its API server."""
    if leader(lab, "kube-controller-manager") == machine:
        return
    sh(lab, other, "systemctl stop kube-controller-manager")
    try:
        # A lease that its dead holder left is free at once when it is gone; else only after 15 s.
        kubectl(lab, "--namespace=kube-system", "delete", "lease", "kube-controller-manager")
        until(lambda: leader(lab, "kube-controller-manager") == machine, f"{machine} leads")
    finally:
        sh(lab, other, "systemctl start kube-controller-manager")


@contextmanager
def stopped(lab: LabState, machine: str, unit: str) -> Iterator[None]:
    """The unit is killed, and kept from starting again by itself."""
    sh(lab, machine, f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}")
    try:
        yield
    finally:
        sh(lab, machine, f"systemctl start {unit}")


def all_ready(lab: LabState) -> bool:
    return set(sample(lab).ready.values()) == {"True"}


@pytest.mark.timeout(420)
def test_nodes_stay_ready_through_the_other_apiserver_and_only_through_their_proxy(deployed: LabState) -> None:
    lab = deployed
    until(lambda: all_ready(lab), "all nodes Ready", seconds=60)
    names = {each.name for each in lab.machines}
    make_leader(lab, DEAD, ALIVE)

    with stopped(lab, DEAD, "kube-apiserver"):
        until(lambda: leader(lab, "kube-controller-manager") == ALIVE, f"{ALIVE} leads", seconds=40)

        # Three minutes in which somebody is there who would mark a silent node NotReady.
        samples = [sample(lab)]
        while samples[-1].taken - samples[0].taken < WATCHED:
            time.sleep(BETWEEN_SAMPLES)
            samples.append(sample(lab))
        assert [each.ready for each in samples if each.ready != dict.fromkeys(names, "True")] == []
        assert max(each.oldest() for each in samples) < OLDEST_LEASE
        renewals = {name: len({each.renewed[name] for each in samples}) for name in names}
        assert min(renewals.values()) >= RENEWALS, renewals
        assert leader(lab, "kube-controller-manager") == ALIVE
        assert leader(lab, "kube-scheduler") == ALIVE
        assert not labs.apiserver_ready(lab, lab.machine(DEAD)), "it was dead all the time"

        # The counter-proof: in the same state a node that loses its way to the API is marked.
        cut = lab.machines[-1].name
        with stopped(lab, cut, "kube-nginx"):
            until(lambda: sample(lab).ready[cut] == "Unknown", f"{cut} is not Ready", seconds=75)
            now = sample(lab)
            assert {name for name, ready in now.ready.items() if ready == "True"} == names - {cut}
            assert now.taken - now.renewed[cut] > OLDEST_LEASE
        # It comes back by itself, but not at once: the kubelet compares with its own copy of the Node, which it gets
        # again only after its reflector's back-off (up to a minute).
        until(lambda: all_ready(lab), f"{cut} is Ready again", seconds=90)
    until(lambda: labs.apiserver_ready(lab, lab.machine(DEAD)), f"kube-apiserver on {DEAD} is back", seconds=60)


NODE = "worker-01"
LIST = "/run/kube-nginx/upstream.conf"
THROUGH_THE_PROXY = "curl -s -m 2 --cacert /opt/k8s/kube-nginx/conf/ca.pem https://127.0.0.1:8443/readyz"


def proxy_workers(lab: LabState) -> str:
    return sh(lab, NODE, "pgrep -P $(systemctl show -p MainPID --value kube-nginx)")


def test_with_every_apiserver_down_the_list_stays_and_the_first_that_returns_is_used(deployed: LabState) -> None:
    lab = deployed
    dead, alive = (lab.machine(name).address for name in (DEAD, ALIVE))
    until(lambda: sh(lab, NODE, f"grep -c . {LIST}") == "2", "both are in use", seconds=60)
    try:
        sh(lab, ALIVE, "systemctl kill --signal=KILL kube-apiserver; systemctl stop kube-apiserver")
        until(lambda: alive not in sh(lab, NODE, f"cat {LIST}"), "the proxy leaves the one out")
        sh(lab, DEAD, "systemctl kill --signal=KILL kube-apiserver; systemctl stop kube-apiserver")
        until(lambda: "refused" in sh(lab, NODE, f"grep {dead} /run/kube-nginx/status"), "the probe sees it")
        time.sleep(5)
        assert dead in sh(lab, NODE, f"cat {LIST}")
        assert sh(lab, NODE, f"{THROUGH_THE_PROXY} || echo nothing") == "nothing"
        sh(lab, ALIVE, "systemctl start kube-apiserver")
        until(lambda: labs.apiserver_ready(lab, lab.machine(ALIVE)), "one is back", seconds=60)
        until(lambda: sh(lab, NODE, f"{THROUGH_THE_PROXY} || :") == "ok", "traffic goes on", seconds=8)
        assert dead not in sh(lab, NODE, f"cat {LIST}")
    finally:
        sh(lab, ALIVE, "systemctl start kube-apiserver")
        sh(lab, DEAD, "systemctl start kube-apiserver")
    until(lambda: sh(lab, NODE, f"grep -c . {LIST}") == "2", "both are in use again", seconds=60)
    until(lambda: all_ready(lab), "all nodes are Ready", seconds=90)


def test_a_killed_probe_is_started_again_and_changes_nothing(deployed: LabState) -> None:
    lab = deployed
    until(lambda: sh(lab, NODE, f"grep -c . {LIST}") == "2", "both are in use", seconds=60)
    until(lambda: len(proxy_workers(lab).split()) == 1, "the former worker is gone")
    workers = proxy_workers(lab)
    pid = sh(lab, NODE, "systemctl show -p MainPID --value kube-nginx-probe")
    sh(lab, NODE, "systemctl kill --signal=KILL kube-nginx-probe")
    until(
        lambda: sh(lab, NODE, "systemctl show -p MainPID --value kube-nginx-probe") not in {pid, "0"}, "it runs again"
    )
    until(lambda: sh(lab, NODE, "grep -c ready /run/kube-nginx/status || :") == "2", "it has asked again")
    assert proxy_workers(lab) == workers, "no reload"


def test_a_node_without_curl_is_told_so_before_anything_is_changed(deployed: LabState) -> None:
    lab = deployed
    sh(lab, NODE, "mv $(command -v curl) /root/curl.away")
    try:
        done = kubeworker("plan", "-f", lab.cluster_yaml, "--node", NODE)
        assert done.returncode == 1
        assert "the command curl is missing" in done.stdout + done.stderr
        assert "apt-get install curl" in done.stdout + done.stderr
    finally:
        sh(lab, NODE, "mv /root/curl.away /usr/bin/curl")
