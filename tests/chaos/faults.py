"""Nodes that fail in ways of their own, beside one that does not: what the run says of the one, and when the other is
Ready.

Both machines are bare, so that the good one has two rounds before it: what depends on its podCIDR comes after it has
joined, and must not wait for the bad one.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos import gate
from tests.lab.operate import Operator, kubectl, sh

from kubeworker.lab import LabState

GOOD, BAD = "worker-01", "worker-02"

CONNECT_TIMEOUT, PROBE_TIMEOUT, KEEPALIVE = 10, 30, 15
"""The defaults of `ssh:` in cluster.yaml."""

Bare = Callable[[LabState, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that befalls the bad node."""

    name: str
    break_it: str
    """POSIX sh on the machine, not through its sshd."""
    heal: str
    uploading: bool
    """It happens in the middle of the upload; otherwise before the run."""
    before: str = ""
    """POSIX sh on the machine before the run."""
    status: str
    says: str
    """Part of the error's message."""
    within: float
    """Seconds from the fault until the run says it, by the settings and the code."""
    delays: float = 0.0
    """Seconds that the good node may lose by it: what a plan waits for a login and a look, of whichever node."""


_SSHD = (
    "for each in /proc/[0-9]*/comm; do read -r name < $each || continue; case $name in sshd*) ;; *) continue ;; esac"
)
_DROP = """nft -f - <<'EOF'
table ip lab_chaos {{
  chain arriving {{
    type filter hook input priority -300
    iifname host0 {0} drop
  }}
  chain leaving {{
    type filter hook output priority -300
    oifname host0 {0} drop
  }}
}}
EOF
"""
_UNDROP = "nft delete table ip lab_chaos 2> /dev/null || :"


def signalled(name: str) -> str:
    """Send it to every sshd of the machine, sessions too."""
    return f"""for each in /proc/[0-9]*/comm; do
  read -r comm < $each || continue
  case $comm in sshd*) each=${{each#/proc/}}; kill -{name} ${{each%/comm}} ;; esac
done"""


FAULTS = (
    Fault(
        name="disk fills during the upload",
        before="mkdir -p /opt && mount -t tmpfs -o size=1500m tmpfs /opt",
        break_it="dd if=/dev/zero of=/opt/filler bs=1M 2> /dev/null; :",
        heal="rm -f /opt/filler",
        uploading=True,
        status="failed",
        says="no space left below /opt/k8s/bin/.store (nothing was changed)",
        within=60,
    ),
    Fault(
        name="hangs after accept",
        break_it=signalled("STOP"),
        heal=signalled("CONT"),
        uploading=False,
        status="unreachable",
        says=f"accepts the connection, and then does not finish the login within {CONNECT_TIMEOUT} s",
        within=CONNECT_TIMEOUT,
        delays=CONNECT_TIMEOUT,
    ),
    Fault(
        name="a file on it hangs",
        # As on a dead file server: to open it never ends, until somebody writes.
        break_it="touch /etc/fstab && mv /etc/fstab /etc/fstab.lab && mkfifo /etc/fstab",
        heal="timeout 2 sh -c ': > /etc/fstab' || :; mv /etc/fstab.lab /etc/fstab",
        uploading=False,
        status="failed",
        says=f"looking at it did not end within {PROBE_TIMEOUT} s",
        within=PROBE_TIMEOUT,
        delays=PROBE_TIMEOUT,
    ),
    Fault(
        name="link cut during the upload",
        break_it=_DROP.format(""),
        heal=_UNDROP,
        uploading=True,
        status="unreachable",
        says="the connection was lost",
        within=4 * KEEPALIVE,
    ),
    Fault(
        name="sshd freezes during the upload",
        break_it=signalled("STOP"),
        heal=signalled("CONT"),
        uploading=True,
        status="unreachable",
        says="the connection was lost",
        within=4 * KEEPALIVE,
    ),
    Fault(
        name="5 % of packets lost",
        break_it=_DROP.format("numgen random mod 100 < 5"),
        heal=_UNDROP,
        uploading=False,
        status="ok",
        says="",
        within=600,
    ),
    Fault(
        name="a line of 2 MB/s",
        break_it=_DROP.format("limit rate over 2 mbytes/second"),
        heal=_UNDROP,
        uploading=False,
        status="ok",
        says="",
        within=600,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one fault's run showed; times in seconds."""

    what: str
    status: str
    message: str = ""
    hint: str = ""
    said_after: float = 0.0
    """From the fault to the end of the bad node's work."""
    good_after: float = 0.0
    """From the run's start until the good node was Ready, as the API has it: to the second."""
    next_run: float = 0.0
    faults: tuple[str, ...] = field(default=())

    @property
    def line(self) -> str:
        said = f"{self.status}, {self.said_after:.1f} s after it" + (f": {self.message}" if self.message else "")
        rest = f"the other Ready after {self.good_after:.0f} s; next run {self.next_run:.1f} s"
        return f"{self.what}: {said}; {rest}; {'; '.join(self.faults) or 'held'}"


def everything(operator: Operator, bare: Bare, text: str = "") -> Iterator[Row]:
    """A run without a fault, and one for each fault whose name has this text."""
    alone = None
    for fault in (None, *(each for each in FAULTS if text in each.name)):
        for name in (GOOD, BAD):
            bare(operator.lab, name)
        row = run(operator, fault, alone)
        alone = alone or row.good_after
        yield row


def run(operator: Operator, fault: Fault | None, alone: float | None) -> Row:
    """One run over both nodes, and the run after it; `alone` is when the good node was Ready without a fault."""
    lab = operator.lab
    with befallen(lab, BAD, fault) as broken_at:
        began, clock = time.monotonic(), time.time()
        ends, document = watched(operator, GOOD, BAD)
    (bad,) = (each for each in document["nodes"] if each["name"] == BAD)
    error = bad["error"] or {"message": "", "hint": ""}
    said_after = ends[BAD] - max(began, broken_at[0] if broken_at else 0.0)
    good_after = ready_since(lab, GOOD) - clock
    begun_again = time.monotonic()
    again = operator.run("apply", "--yes", "--node", GOOD, "--node", BAD)
    next_run = time.monotonic() - begun_again
    faults = []
    if fault is None and bad["status"] != "ok":
        faults.append("expected ok: is this host able to carry the lab?")
    if fault is not None:
        if bad["status"] != fault.status or fault.says not in error["message"]:
            faults.append(f"expected {fault.status}: {fault.says!r}")
        if error["message"] and not error["hint"]:
            faults.append("it gives no hint")
        if said_after > fault.within + 5:
            faults.append(f"said {said_after:.0f} s after the fault, expected within {fault.within:.0f} s")
        if alone is not None and good_after > 1.5 * alone + 5 + fault.delays:
            faults.append(f"the other node was Ready after {good_after:.0f} s, without the fault after {alone:.0f} s")
    if again.returncode != 0:
        faults.append(f"the next run failed: {again.stdout[-800:]}{again.stderr[-800:]}")
    elif left := operator.plan("--node", GOOD, "--node", BAD)["changes"]:
        faults.append(f"a plan still has {left} changes")
    return Row(
        what=fault.name if fault else "no fault",
        status=bad["status"],
        message=error["message"].splitlines()[0] if error["message"] else "",
        hint=error["hint"],
        said_after=said_after,
        good_after=good_after,
        next_run=next_run,
        faults=tuple(faults),
    )


@contextlib.contextmanager
def befallen(lab: LabState, name: str, fault: Fault | None) -> Iterator[list[float]]:
    """The fault on the machine, at its moment; healed at the end. The list gets the moment."""
    at: list[float] = []
    if fault is None:
        yield at
        return
    ended = threading.Event()

    def strike() -> None:
        incoming = gate.root(lab, name) / "opt/k8s/bin/.store/incoming"
        while fault.uploading and not ended.is_set() and not _bytes(incoming) > 1_000_000:
            time.sleep(0.01)
        if not ended.is_set():
            sh(lab, name, fault.break_it)
            at.append(time.monotonic())

    if fault.before:
        sh(lab, name, fault.before)
    striker = threading.Thread(target=strike)
    striker.start()
    if not fault.uploading:
        striker.join()
    try:
        yield at
    finally:
        ended.set()
        striker.join()
        sh(lab, name, fault.heal)


def _bytes(folder: Any) -> int:
    with contextlib.suppress(OSError):
        return sum(each.stat().st_size for each in folder.iterdir())
    return 0


def ready_since(lab: LabState, name: str) -> float:
    """Since when the node has been Ready without a break, in seconds since the epoch; infinity for one that is not."""
    path = "-o=jsonpath={.status.conditions[?(@.type=='Ready')]['status','lastTransitionTime']}"
    status, _, since = kubectl(lab, "get", "node", name, path).partition(" ")
    return datetime.fromisoformat(since).timestamp() if status == "True" else math.inf


def watched(operator: Operator, *names: str) -> tuple[dict[str, float], dict[str, Any]]:
    """An apply on these nodes: by node, the moment at which its last work ended; and the report."""
    chosen = [word for name in names for word in ("--node", name)]
    process = operator.start("apply", "--yes", "--json", "--json-events", *chosen)
    assert process.stderr
    assert process.stdout
    ends: dict[str, float] = {}
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "node-done":
            ends[event["node"]] = time.monotonic()
    output = process.stdout.read()
    process.wait()
    ended = time.monotonic()
    return {name: ends.get(name, ended) for name in names}, json.loads(output)
