"""`make bench`: every workload beside its floors and the rivals, in one run; results go to bench/results/."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bench import changed, chart, converged, first_deploy, machines, one_more, page, payload, rival, tool
from bench.machines import Fleet
from bench.payload import Payload
from bench.result import RESULTS, Part, Row, circumstances, save
from bench.rival import RIVALS, Rival, Setting
from bench.tool import BenchFailed
from kubeworker import lab as labs
from kubeworker.errors import KubeworkerError
from kubeworker.io.blob_store import BlobStore

WORK = Path("build/bench")
FLEET = (converged.WORKLOAD, changed.WORKLOAD, one_more.WORKLOAD)
SCALE = "scale"
"""A thousand nodes, and the command's start: each bench/scale_*.py has a `main` that gives a part of its own."""
WORKLOADS = (*FLEET, first_deploy.WORKLOAD, SCALE)
GUIDE_NODES = 10
"""The guide's loop goes from node to node: more of them would only take longer in the same proportion."""


@dataclass(kw_only=True)
class Run:
    """One call of the bench."""

    options: argparse.Namespace
    began: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of progress, with the seconds since the start."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def wants(self, workload: str) -> bool:
        """Whether it was asked for."""
        return not self.options.only or workload in self.options.only

    @property
    def rivals(self) -> tuple[Rival, ...]:
        """Those that were not left out."""
        return tuple(each for each in RIVALS if each.name not in self.options.without)

    def try_(self, what: str, work: Callable[[], Sequence[Row]]) -> list[Row]:
        """Its rows; a failure is told, kept, and does not stop the rest."""
        try:
            return list(work())
        except (BenchFailed, KubeworkerError) as error:
            self.fail(what, error)
            return []

    def fail(self, what: str, error: Exception) -> None:
        """Tell it now, and once more at the end."""
        self.say(f"FAILED: {what}: {error}")
        self.failures.append(f"{what}: {error}")


def main() -> int:
    """Measure, save, draw."""
    run = Run(options=_options())
    signal.signal(signal.SIGTERM, _interrupt)
    WORK.mkdir(parents=True, exist_ok=True)
    venv = WORK / "rivals-venv"
    if run.rivals and any(run.wants(each) for each in (converged.WORKLOAD, first_deploy.WORKLOAD)):
        run.say("the rivals' virtual environment")
        venv = rival.ensure_venv(WORK.absolute())
    try:
        if any(run.wants(each) for each in FLEET):
            with _part(run, "the fleet's part"):
                _fleet_part(run, venv)
        if run.wants(first_deploy.WORKLOAD):
            with _part(run, "the part with all binaries"):
                _deploy_part(run, venv)
        if run.wants(SCALE):
            _scale_parts(run)
    except KeyboardInterrupt:
        run.say("interrupted; the lab is down")
        return 130
    if run.options.results == RESULTS:
        chart.draw()
        page.write()
    for failure in run.failures:
        print(f"failed: {failure.splitlines()[0]}", file=sys.stderr)
    return 1 if run.failures else 0


def _options() -> argparse.Namespace:
    names = ", ".join(each.name for each in RIVALS)
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--nodes", type=int, default=50, help="machines without binaries (make bench N=4)")
    parser.add_argument("--deploy-nodes", type=int, default=8, help="machines with all binaries")
    parser.add_argument("--repeat", type=int, default=5, help="of what takes seconds")
    parser.add_argument("--only", nargs="*", default=[], choices=WORKLOADS, help="these workloads")
    parser.add_argument("--without", nargs="*", default=[], help=f"rivals to leave out: {names}; all")
    parser.add_argument("--lab", default="bench", help="the lab's name; one of that name is taken down first")
    parser.add_argument("--keep", action="store_true", help="take the lab as it is, and leave it up")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args()
    if "all" in options.without:
        options.without = [each.name for each in RIVALS]
    return options


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _part(run: Run, what: str) -> Iterator[None]:
    """One lab's work: a failure leaves the other part alone; the lab goes, whatever happens."""
    try:
        yield
    except (BenchFailed, KubeworkerError) as error:
        run.fail(what, error)
    finally:
        if not run.options.keep:
            run.say("taking the lab down")
            labs.down(run.options.lab)


def _fleet_part(run: Run, venv: Path) -> None:
    options = run.options
    python = any(each.needs_python for each in run.rivals) and run.wants(converged.WORKLOAD)
    fleet = machines.fleet(options.lab, options.nodes, WORK.absolute(), run.say, python=python, keep=options.keep)
    run.say(f"{len(fleet.machines)} machines are up, {fleet.quiet} of them without inotify; first apply")
    tool.apply_once(fleet.cluster_file)
    laid = _converged_payload(fleet)
    rows: list[Row] = []
    measured: list[Row] = []
    if run.wants(converged.WORKLOAD):
        measured = run.try_("converged", lambda: converged.measure(fleet, options.repeat, run.say))
        rows += measured
    if run.wants(changed.WORKLOAD):
        rows += run.try_("changed", lambda: changed.measure(fleet, max(1, options.repeat // 2), run.say))
    if run.wants(one_more.WORKLOAD):
        repeat = max(1, options.repeat // 2)
        rows += run.try_("one more", lambda: one_more.measure(fleet, laid, WORK.absolute(), repeat, run.say))
    if measured:
        for each in run.rivals:
            nodes = fleet.machines[:GUIDE_NODES] if each.name.startswith("guide") else fleet.machines
            setting = Setting(fleet=fleet.only(nodes), payload=laid, venv=venv, work=WORK.absolute())
            rows += run.try_(
                f"converged, {each.name}",
                lambda each=each, setting=setting: converged.measure_rivals(  # type: ignore[misc]
                    setting, (each,), measured[0], run.say
                ),
            )
    _save(run, rows, fleet)


def _converged_payload(fleet: Fleet) -> Payload:
    states = {node.name: node.state for node in tool.look(fleet.cluster_file).nodes if node.state is not None}
    addresses = {each.name: each.address for each in fleet.machines}
    nodes = {name: payload.items(state) for name, state in states.items()}
    return payload.lay_out(
        WORK.absolute() / "payload-fleet", nodes, addresses, next(iter(states.values())), BlobStore.default()
    )


def _deploy_part(run: Run, venv: Path) -> None:
    options = run.options
    python = any(each.needs_python for each in run.rivals)
    fleet = machines.real(options.lab, options.deploy_nodes, WORK.absolute(), run.say, python=python, keep=options.keep)
    rows, laid = first_deploy.measure(fleet, WORK.absolute(), max(1, options.repeat // 2), run.say)
    setting = Setting(fleet=fleet, payload=laid, venv=venv, work=WORK.absolute())
    if run.rivals:
        first_deploy.let_rivals_join(fleet)
    tools = rows[0]
    for each in run.rivals:
        rows += run.try_(
            f"first deploy, {each.name}",
            lambda each=each: [first_deploy.measure_rival(setting, each, tools, run.say)],  # type: ignore[misc]
        )
    _save(run, rows, fleet)


def _scale_parts(run: Run) -> None:
    for path in sorted(Path(__file__).parent.glob("scale_*.py")):
        run.say(f"{path.stem} ...")
        try:
            part: Part = importlib.import_module(f"bench.{path.stem}").main()
        except (BenchFailed, KubeworkerError, OSError) as error:
            run.fail(path.stem, error)
        else:
            run.say(f"wrote {save(part, run.options.results)}")


def _save(run: Run, rows: Sequence[Row], fleet: Fleet) -> None:
    """A file for each workload, so that one that was not asked for keeps its last results."""
    machines_ = {"machines": len(fleet.machines), "without_inotify": fleet.quiet}
    about = circumstances(shlex.join(["python", "-m", "bench", *sys.argv[1:]]), rivals=rival.versions(), **machines_)
    for workload in dict.fromkeys(row.workload for row in rows):
        part = Part(name=workload, rows=tuple(row for row in rows if row.workload == workload), about=about)
        run.say(f"wrote {save(part, run.options.results)}")


if __name__ == "__main__":
    sys.exit(main())
