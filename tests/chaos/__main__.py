"""`make chaos`: runs that die at every boundary, and nodes that fail in every way; a table, and build/chaos.json.

scripts/chaos                   all of it, on a lab of its own that is taken down afterwards
scripts/chaos tool node         only these parts: tool, node, objects, faults
scripts/chaos --lab NAME ...    on a lab that is there already (lab up --workers 2) and is kept
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

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


def sweep(subject: Subject, end: End, step: int) -> Iterator[tuple[str, Case]]:
    """A first deploy without a kill; one for every `step`-th boundary; and one that ends before it gets to a further.

    All but the first find the artifacts in the node's store, as after a run that died when its upload was done: an
    upload has no boundaries, and a cut one is among the faults.
    """
    lab = subject.lab
    bare(lab, subject.node)
    yield "nothing killed", boundaries.run(subject, gate.install(lab, subject.node))
    kept = lab.folder / "chaos-store"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(_store(lab, subject.node), kept, ignore=shutil.ignore_patterns("history"))
    for number in itertools.count(1, step):
        bare(lab, subject.node)
        shutil.copytree(kept, _store(lab, subject.node))
        case = boundaries.run(subject, gate.install(lab, subject.node), (number, end))
        yield f"{end} killed at boundary {number}" if case.died else "nothing killed", case
        if not case.died:
            return


def _store(lab: LabState, name: str) -> Path:
    return gate.root(lab, name) / "opt/k8s/bin/.store"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Prove the engine under failure.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--lab", default="", metavar="NAME", help="a lab that is there already, with two workers")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the faults, those whose name has it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the boundaries, every Nth")
    given = parser.parse_args()
    if strange := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(strange))}")
    parts = given.parts or PARTS
    began, rows, bad = time.monotonic(), [], 0
    with a_lab(given.lab) as lab:
        operator = Operator(lab=lab, file=lab.cluster_yaml)
        bare(lab, NODE)
        subject = Subject(operator=operator, node=NODE, paths=boundaries.managed(operator, NODE))
        for end in ("tool", "node"):
            for what, case in sweep(subject, end, given.every) if end in parts else ():
                died = f"after {case.died[0]:.1f} s; " if case.died else ""
                held = "; ".join(case.faults) or ("not all was seen" if case.late else "held")
                print(f"{what}: {died}the next run took {case.again:.1f} s; {held}", flush=True)
                rows.append({"what": what} | asdict(case))
                bad += held != "held"
        for number in range(1, 5) if "objects" in parts else ():
            bare(lab, NODE)
            kubectl(lab, "delete", "clusterrolebinding", "--ignore-not-found", *BINDINGS)
            found = boundaries.objects(subject, number)
            what = f"tool killed after change {number} of the cluster's objects"
            print(f"{what}: {'; '.join(found) or 'held'}", flush=True)
            rows.append({"what": what, "faults": found})
            bad += bool(found)
        for row in faults.everything(operator, bare, given.only) if "faults" in parts else ():
            print(row.line, flush=True)
            rows.append(asdict(row))
            bad += bool(row.faults)
    seconds = time.monotonic() - began
    print(f"{len(rows)} runs in {seconds:.0f} s: {'all held' if not bad else f'{bad} did not hold'}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"seconds": round(seconds), "bad": bad, "runs": rows}, indent=1) + "\n")
    return 1 if bad else 0


sys.exit(main())
