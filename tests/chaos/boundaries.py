"""A first deploy that dies at a boundary, the run after it, and what must hold all the while.

A boundary is the moment before one action on the node, or before a stage is declared good. Either the command on the
control host is killed there (`tool`), or its script on the node (`node`), both by SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import gate
from tests.chaos.gate import End, Gate
from tests.chaos.watcher import Arrival, Watcher
from tests.lab import operate
from tests.lab.operate import Operator, changes, sh

from kubeworker.lab import LabState

INPUTS = {
    # What each service reads at its start only.
    "kube-nginx": ("/opt/k8s/kube-nginx/sbin/kube-nginx", "/etc/systemd/system/kube-nginx.service"),
    "kube-nginx-probe": (
        "/opt/k8s/kube-nginx/sbin/kube-nginx-probe",
        "/etc/systemd/system/kube-nginx-probe.service",
    ),
    "containerd": (
        "/opt/k8s/bin/containerd",
        "/etc/containerd/config.toml",
        "/etc/systemd/system/containerd.service",
    ),
    "kubelet": (
        "/opt/k8s/bin/kubelet",
        "/etc/kubernetes/kubelet-config.yaml",
        "/etc/systemd/system/kubelet.service",
    ),
    "kube-proxy": (
        "/opt/k8s/bin/kube-proxy",
        "/etc/kubernetes/kube-proxy-config.yaml",
        "/etc/kubernetes/kube-proxy.kubeconfig",
        "/etc/systemd/system/kube-proxy.service",
    ),
}

OF_ONE_RUN = "/etc/kubernetes/kubelet-bootstrap.kubeconfig"
"""Its token is another one in every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one boundary's run showed."""

    died: tuple[float, ...]
    """By death, seconds from the command's start to the kill; of those that a run got to."""
    again: float = 0.0
    """Seconds that the next run took."""
    arrivals: int = 0
    """How often a managed name got new content."""
    late: int = 0
    """Of these, names whose way of coming was not seen."""
    faults: tuple[str, ...] = field(default=())
    """What did not hold; nothing, it is hoped."""


@dataclass(kw_only=True)
class Subject:
    """One node whose deploys die."""

    operator: Operator
    node: str
    paths: tuple[str, ...]
    """Every managed file, link and binary, the ones that come later in the run included."""

    @property
    def lab(self) -> LabState:
        return self.operator.lab


def managed(operator: Operator, node: str) -> tuple[str, ...]:
    """What a plan for the node names; the node must be bare, or the plan names only what differs."""
    planned = operator.plan("--node", node)
    named = [subject for kind, subject in changes(planned, node) if kind in {"file", "binary", "link"}]
    (shown,) = (each for each in planned["nodes"] if each["name"] == node)
    return (*named, *(text.partition(": ")[0] for text in shown["deferred"] if text.startswith("/")))


def run(subject: Subject, door: Gate, *deaths: tuple[int, End]) -> Case:
    """One run after the other dies at its boundary, counted in that run from 1; then the next one finishes."""
    before = contents(subject)
    watcher = Watcher(gate.root(subject.lab, subject.node), subject.paths)
    died = []
    try:
        for number, end in deaths:
            door.arm(number, end)
            began = time.monotonic()
            if _killed(subject, door, end):
                died.append(time.monotonic() - began)
            door.disarm()
            if (number, end) != deaths[-1]:
                # A script whose command was killed goes on to its stage's end; it must not count beside the next.
                sh(subject.lab, subject.node, "flock -w 120 /var/lib/kubeworker/lock true")
        began = time.monotonic()
        again = subject.operator.run("apply", "--yes", "--node", subject.node)
        took = time.monotonic() - began
    finally:
        watcher.stop()
    faults = list(_faults(subject, watcher, before, again))
    return Case(
        died=tuple(died),
        again=took,
        arrivals=len(watcher.arrivals),
        late=sum(each.late for each in watcher.arrivals),
        faults=tuple(faults),
    )


def _killed(subject: Subject, door: Gate, end: End) -> bool:
    """Start the command, and have it or its script killed at the boundary; whether it got there."""
    command = subject.operator.start("apply", "--yes", "--node", subject.node)
    try:
        deadline = time.monotonic() + 180
        while command.poll() is None and not door.reached:
            assert time.monotonic() < deadline, "the command neither ends nor gets to the boundary"
            time.sleep(0.005)
        if end == "node" or not door.reached:
            said = "".join(command.communicate(timeout=180))
            assert not door.reached or "stopped half-way" in said, said
        else:
            command.kill()
            door.release()
    finally:
        command.kill()
        command.communicate()
    return door.reached


def contents(subject: Subject) -> dict[str, str]:
    """The hash of each managed file that is there; large ones, which are hard links of checked blobs, too."""
    names = " ".join(subject.paths)
    lines = sh(subject.lab, subject.node, f"sha256sum {names} 2> /dev/null || :").splitlines()
    return {path: sha256 for sha256, path in (line.split() for line in lines)}


def _faults(
    subject: Subject, watcher: Watcher, before: dict[str, str], again: subprocess.CompletedProcess[str]
) -> Iterator[str]:
    if again.returncode != 0:
        yield f"the next run failed: {again.stdout[-800:]}{again.stderr[-800:]}"
        return
    yield from watcher.broken
    after = contents(subject)
    for each in watcher.arrivals:
        known = {before.get(each.path), after.get(each.path)}
        if each.sha256 and each.path in after and each.path != OF_ONE_RUN and each.sha256 not in known:
            yield f"{each.path} was neither the old nor the new file"
    yield from _stale(watcher.arrivals, _started(subject))
    if left := operate.leftovers(subject.lab, subject.node):
        yield f"left behind: {left}"
    if left := subject.operator.plan("--node", subject.node)["changes"]:
        yield f"a plan still has {left} changes"


def _stale(arrivals: Iterable[Arrival], started: dict[str, float]) -> Iterator[str]:
    last = {each.path: each.at for each in arrivals}
    for unit, paths in INPUTS.items():
        for path in paths:
            if path in last and last[path] > started[unit]:
                yield f"{unit} runs since before {path} came"


def _started(subject: Subject) -> dict[str, float]:
    """CLOCK_MONOTONIC, seconds, of each service's main process; none runs: infinitely long ago."""
    asked = "Id,ActiveState,ExecMainStartTimestampMonotonic"
    units = " ".join(f"{unit}.service" for unit in INPUTS)
    found: dict[str, float] = {}
    for block in sh(subject.lab, subject.node, f"systemctl show -p {asked} {units}").split("\n\n"):
        shown = dict(line.split("=", 1) for line in block.splitlines())
        up = shown["ActiveState"] == "active"
        started = int(shown["ExecMainStartTimestampMonotonic"]) / 1e6
        found[shown["Id"].removesuffix(".service")] = started if up else float("-inf")
    return found


def objects(subject: Subject, number: int) -> tuple[str, ...]:
    """Kill the command when it has told of its Nth change of the cluster's objects; what did not hold then."""
    command = subject.operator.start("apply", "--yes", "--json-events", "--node", subject.node)
    seen = 0
    try:
        for event in _events(command):
            seen += event["event"] == "action-done" and not event["node"]
            if seen == number:
                break
    finally:
        command.kill()
        command.communicate()
    again = subject.operator.run("apply", "--yes", "--node", subject.node)
    if again.returncode != 0:
        return (f"the next run failed: {again.stdout[-800:]}{again.stderr[-800:]}",)
    left = subject.operator.plan("--node", subject.node)["changes"]
    return (f"a plan still has {left} changes",) if left else ()


def _events(command: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert command.stderr
    for line in command.stderr:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
