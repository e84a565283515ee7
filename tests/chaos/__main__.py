"""`make chaos`: runs that die at every boundary, and nodes that fail in every way; a table, and build/chaos.json.

scripts/chaos                   all of it, on a lab of its own that is taken down afterwards
scripts/chaos tool node         only these parts: tool, node, objects, faults
scripts/chaos --lab NAME ...    on a lab that is there already (lab up --workers 2) and is kept
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos import boundaries, faults, gate
from tests.chaos.boundaries import Case, Subject
from tests.chaos.gate import End
from tests.lab.operate import Operator, kubectl

from kubeworker import lab as labs
from kubeworker.lab import LabState

LAB = "chaos"
PARTS = ("tool", "node", "objects", "faults")
OUT = Path("build/chaos.json")
NODE = "worker-01"
MANY = 200
"""More boundaries than a first deploy has (about 80)."""
BINDINGS = ("kubelet-bootstrap", "node-client-cert-renewal", "kube-apiserver:kubelet-apis")


@contextmanager
def a_lab(kept: str) -> Iterator[LabState]:
    if kept:
        yield labs.find(kept)
        return
    try:
        yield labs.up(LAB, workers=2)
    finally:
        labs.down(LAB)


def bare(lab: LabState, name: str) -> None:
    """The machine as newly installed, and unknown to the cluster."""
    labs.renew(lab, name)
    kubectl(lab, "delete", "node", name, "--ignore-not-found")


def sweep(subject: Subject, end: End, first: int, step: int) -> Iterator[tuple[str, Case]]:
    """A first deploy without a kill; one for every `step`-th boundary from the `first` on; and one that ends before it
    gets to a further.

    All but the first find the artifacts in the node's store, as after a run that died when its upload was done: an
    upload has no boundaries, and a cut one is among the faults.
    """
    lab = subject.lab
    bare(lab, subject.node)
    yield "nothing killed", boundaries.run(subject, gate.install(lab, subject.node))
    kept = lab.folder / "chaos-store"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(_store(lab, subject.node), kept, ignore=shutil.ignore_patterns("history"))
    for number in range(first, MANY, step):
        bare(lab, subject.node)
        shutil.copytree(kept, _store(lab, subject.node))
        case = _tried(subject, number, end)
        yield f"{end} killed at boundary {number}" if case.died else "nothing killed", case
        if not case.died:
            return


def _tried(subject: Subject, number: int, end: End) -> Case:
    """One run that can't be judged is no reason not to do the others."""
    try:
        return boundaries.run(subject, gate.install(subject.lab, subject.node), (number, end))
    except AssertionError as error:
        return Case(died=(0.0,), faults=(f"it could not be tried: {str(error)[-800:]}",))


def _store(lab: LabState, name: str) -> Path:
    return gate.root(lab, name) / "opt/k8s/bin/.store"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Prove the engine under failure.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--lab", default="", metavar="NAME", help="a lab that is there already, with two workers")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the faults, those whose name has it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the boundaries, every Nth")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="of the boundaries, from the Nth on")
    given = parser.parse_args()
    if strange := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(strange))}")
    # As Ctrl-C does: the lab is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began, rows, bad = time.monotonic(), [], 0
    with a_lab(given.lab) as lab:
        for line, row, held in _runs(lab, given):
            print(line, flush=True)
            rows.append(row)
            bad += not held
            # Each time: one that is ended early has shown something all the same.
            found = {"seconds": round(time.monotonic() - began), "bad": bad, "runs": rows}
            OUT.parent.mkdir(exist_ok=True)
            OUT.write_text(json.dumps(found, indent=1) + "\n")
    seconds = time.monotonic() - began
    print(f"{len(rows)} runs in {seconds:.0f} s: {'all held' if not bad else f'{bad} did not hold'}")
    return 1 if bad else 0


def _runs(lab: LabState, given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Of each: what is said of it, the same as JSON, and whether all held."""
    parts = given.parts or PARTS
    operator = Operator(lab=lab, file=lab.cluster_yaml)
    bare(lab, NODE)
    subject = Subject(operator=operator, node=NODE, paths=boundaries.managed(operator, NODE))
    ends: tuple[End, ...] = ("tool", "node")
    for end in ends:
        for what, case in sweep(subject, end, given.first, given.every) if end in parts else ():
            died = f"after {case.died[0]:.1f} s; " if case.died else ""
            held = "; ".join(case.faults) or ("not all was seen" if case.late else "held")
            line = f"{what}: {died}the next run took {case.again:.1f} s; {held}"
            yield line, {"what": what} | asdict(case), held == "held"
    for number in range(1, 5) if "objects" in parts else ():
        bare(lab, NODE)
        kubectl(lab, "delete", "clusterrolebinding", "--ignore-not-found", *BINDINGS)
        found = boundaries.objects(subject, number)
        what = f"tool killed after change {number} of the cluster's objects"
        yield f"{what}: {'; '.join(found) or 'held'}", {"what": what, "faults": found}, not found
    for row in faults.everything(operator, bare, given.only) if "faults" in parts else ():
        yield row.line, asdict(row), not row.faults


sys.exit(main())
