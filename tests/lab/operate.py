"""What the tests on real machines do again and again: run the command, look at machines, change cluster.yaml."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubeworker import lab as labs
from kubeworker.lab import LabState

COMMAND = Path(__file__).parents[2] / ".venv/bin/kubeworker"

SERVICES = ("kube-nginx", "kube-nginx-probe", "containerd", "kubelet", "kube-proxy", "kubeworker-routes")
"""The units on every node, without `.service`."""

Change = Callable[[dict[str, Any]], None]


def sh(lab: LabState, name: str, script: str) -> str:
    """What a script prints on a machine; it must succeed."""
    done = labs.run(lab, lab.machine(name), script)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def kubectl(lab: LabState, *arguments: str, stdin: str = "") -> str:
    """What kubectl prints as the cluster's administrator; it must succeed."""
    done = subprocess.run(
        [str(lab.folder / "bin/kubectl"), f"--kubeconfig={lab.kubeconfig}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(holds: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def changes(document: Mapping[str, Any], node: str) -> list[tuple[str, str]]:
    """(kind, subject) of a node's actions in `plan --json`."""
    (found,) = (each for each in document["nodes"] if each["name"] == node)
    return [(action["kind"], action["subject"]) for action in found["actions"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What shows whether a unit was restarted, reloaded, or ended by itself."""

    invocation: str
    main_pid: str
    restarts: str


def starts(lab: LabState, name: str) -> dict[str, Start]:
    """How each of the tool's units was started last."""
    properties = "InvocationID,MainPID,NRestarts"
    units = " ".join(f"{unit}.service" for unit in SERVICES)
    blocks = sh(lab, name, f"systemctl show --property={properties} -- {units}").split("\n\n")
    fields = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
    return {
        unit: Start(invocation=each["InvocationID"], main_pid=each["MainPID"], restarts=each["NRestarts"])
        for unit, each in zip(SERVICES, fields, strict=True)
    }


def restarted(before: Mapping[str, Start], after: Mapping[str, Start]) -> set[str]:
    """Units that run under another invocation than before."""
    return {unit for unit in before if before[unit].invocation != after[unit].invocation}


MANAGED = (
    "/etc/kubernetes /etc/kubeworker /etc/cni /etc/containerd /etc/crictl.yaml /etc/nerdctl /etc/systemd/system /opt"
)
"""Where the tool writes on a node, its own folder /var/lib/kubeworker apart."""


def files(lab: LabState, name: str) -> str:
    """A line for each managed file: type, mode, owner, size, mtime, ctime and inode, the node's store included."""
    found = sh(
        lab,
        name,
        rf"find {MANAGED} -not -path '*/kube-nginx/*temp*' -printf '%p %y %m %u:%g %s %T@ %C@ %i\n' | sort;"
        r"find /var/lib/kubeworker/started -type f -printf '%p %T@ %i\n' | sort",
    )
    assert "/opt/k8s/bin/kubelet" in found
    return found


def contents(lab: LabState, name: str) -> str:
    """A line for each managed file, for "as it was": mode, owner, size, and sha256 of small ones."""
    where = f"{MANAGED} -not -path '*/kube-nginx/*' -not -path '*/.store*'"
    return sh(
        lab,
        name,
        rf"find {where} -not -type d -printf '%p %y %m %u:%g %s %l\n' | sort;"
        rf"find {where} -type f -size -1024k -print0 | sort -z | xargs -0 sha256sum",
    )


def leftovers(lab: LabState, name: str) -> str:
    """Temporary files and work folders of a run, where none should be."""
    return sh(
        lab,
        name,
        f"find {MANAGED} -name '.*.kubeworker-*' -o -name incoming; ls -d /var/lib/kubeworker/work.* 2> /dev/null || :",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Somebody at the control host, with one lab and its cluster.yaml."""

    lab: LabState
    file: Path

    def run(self, verb: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """The command as an operator runs it; its exit code is the test's business, a traceback never is."""
        done = subprocess.run(
            [str(COMMAND), verb, "-f", str(self.file), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "[internal]" not in done.stderr, done.stderr  # an error of that kind is a bug
        assert "internal error" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done

    def plan(self, *arguments: str) -> dict[str, Any]:
        """`plan --json`; exit code and number of changes must agree."""
        done = self.run("plan", "--json", *arguments)
        document: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode in {0, 2}, done.stdout + done.stderr
        assert (done.returncode == 2) == bool(document["changes"])
        return document

    def apply(self, *arguments: str, code: int = 0) -> str:
        """`apply --yes`; what it printed."""
        began = time.monotonic()
        done = self.run("apply", "--yes", *arguments)
        assert time.monotonic() - began < 60, done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        """The command, while it runs."""
        return subprocess.Popen(
            [str(COMMAND), verb, "-f", str(self.file), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def changed(self, change: Change) -> Iterator[Operator]:
        """The same operator with another cluster.yaml, beside the first one (paths in it are relative)."""
        document = yaml.safe_load(self.file.read_text())
        change(document)
        path = self.file.with_name(f"changed-{time.monotonic_ns()}.yaml")
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        try:
            yield Operator(lab=self.lab, file=path)
        finally:
            path.unlink()
