"""What a drill does to one kube-apiserver, and how it is taken back, whatever happens to the drill.

All of it happens inside that machine: to its kube-apiserver's process, or by an nftables table in its network name
space. What is under way is written down in the lab's folder first, so that a drill that was killed is healed by the
next one.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

from kubeworker.core.api_proxy.failover import Case
from kubeworker.errors import LabError
from kubeworker.flow.events import Note, Reporter
from kubeworker.io.whole_file import write_atomically
from kubeworker.lab.kinds import run
from kubeworker.lab.state import LabState, Machine

TABLE = "kubeworker_drill"
_API_PORT, _ETCD_PORT = 6443, 2379


def script(case: Case, *, address: str, etcd: str) -> str:
    """POSIX sh that does it to the machine at `address`; its kube-apiserver's etcd is at `etcd`."""
    match case:
        case "stopped":
            # As by the OOM killer: no farewell to its clients. Then it is kept from starting again.
            return "systemctl kill --signal=KILL kube-apiserver && systemctl stop kube-apiserver"
        case "hung":
            return "systemctl kill --kill-who=main --signal=STOP kube-apiserver"
        case "blackholed":
            # Both ways, the machine's own packets too: those pass both hooks on `lo`.
            return _dropping(
                arriving=f"ip daddr {address} tcp dport {_API_PORT}",
                leaving=f"ip saddr {address} tcp sport {_API_PORT}",
            )
        case "unready":
            # What this machine's kube-apiserver sends to etcd and gets from it. Where etcd runs beside it, others' way
            # there stays open: they arrive with that port as destination, and are answered with it as source.
            return _dropping(
                arriving=f"ip saddr {etcd} tcp sport {_ETCD_PORT}", leaving=f"ip daddr {etcd} tcp dport {_ETCD_PORT}"
            )


def _dropping(*, arriving: str, leaving: str) -> str:
    # Priority -300 (raw): before connection tracking and kube-proxy's rules.
    return f"""\
nft -f - <<'EOF'
table ip {TABLE} {{
  chain arriving {{ type filter hook input priority -300; policy accept; {arriving} drop; }}
  chain leaving {{ type filter hook output priority -300; policy accept; {leaving} drop; }}
}}
EOF
"""


RESTORE = f"""\
if nft list table ip {TABLE} > /dev/null 2>&1; then nft delete table ip {TABLE} || exit 1; fi
systemctl kill --kill-who=main --signal=CONT kube-apiserver 2> /dev/null
systemctl start --no-block kube-apiserver
"""
"""Takes back every case; does nothing to a machine to which nothing was done. It does not wait until it is ready."""


def record(lab: LabState) -> Path:
    """The file that is there while a fault is."""
    return lab.folder / "drill.json"


@contextlib.contextmanager
def befallen(lab: LabState, machine: Machine, case: Case, report: Reporter) -> Iterator[None]:
    """The fault, from here until the end of the block, however that ends."""
    etcd = lab.control_plane[0].address
    write_atomically(record(lab), json.dumps({"case": case, "machine": machine.name}).encode(), mode=0o600)
    try:
        done = run(lab, machine, script(case, address=machine.address, etcd=etcd))
        if done.returncode != 0:
            raise LabError(f"{case}: {done.stderr.strip()}", subject=machine.name)
        yield
    finally:
        restore(lab, machine)
        report(Note(subject=machine.name, text="its kube-apiserver is restored"))


def restore(lab: LabState, machine: Machine) -> None:
    """Take back whatever a drill did to the machine; LabError where that does not succeed."""
    with undisturbed():
        done = run(lab, machine, RESTORE)
        if done.returncode != 0:
            hint = f"the next drill tries again: kubeworker drill apiserver --name {lab.name}"
            raise LabError(f"it could not be restored: {done.stderr.strip()}", subject=machine.name, hint=hint)
        record(lab).unlink(missing_ok=True)


def heal(lab: LabState, report: Reporter) -> None:
    """Take back what a drill left that was killed."""
    try:
        left = json.loads(record(lab).read_text())
    except FileNotFoundError:
        return
    machine = lab.machine(left["machine"])
    report(Note(subject=machine.name, text=f"an earlier drill left its kube-apiserver {left['case']}: restored"))
    restore(lab, machine)


_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait until the end of the block: for this process and those that it starts."""
    came: list[int] = []
    # A blocked signal is blocked for the commands that are started here too, which a terminal's Ctrl-C reaches as well.
    # But any other thread (a live table has one) still takes it, and Python's handler then runs in this one.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for stop in came[:1]:
            signal.raise_signal(stop)
