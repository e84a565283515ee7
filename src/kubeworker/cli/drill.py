"""`kubeworker drill`: failures on purpose, on a lab. See docs/failover.md."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from kubeworker.cli.lab import DEFAULT, Name, StateDir
from kubeworker.cli.options import PROGRESS, Flag, Json, ProgressOptions
from kubeworker.core.api_proxy.failover import CASES, Case

app = App(name="drill", help="Failures on purpose, on a lab, and what they cost.")


@app.command
def apiserver(
    *,
    name: Name = DEFAULT,
    case: Annotated[tuple[Case, ...], Parameter(name="--case", negative="", consume_multiple=False)] = CASES,
    node: str = "",
    no_aims: Flag = False,
    state_dir: StateDir = None,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """Stop, blackhole, hang and unready one kube-apiserver of a lab in turn, and measure what clients and nodes notice.

    Works on a lab only, whose nodes are deployed: it breaks things. Everything is restored afterwards, also after an
    error, Ctrl-C or SIGTERM; what a killed drill left, the next one heals first. Exit code 1 if an aim is missed: on
    the kept connection no longer than 1 s without an answer when stopped and 6 s else, no node NotReady, sessions even
    again within 60 s of the return, and no two nodes that reload in the same second.

    Args:
        name: Which lab.
        case: Only this case; may be given several times.
        node: The node whose API proxy the clients go through; default: one without a kube-apiserver.
        no_aims: Exit code 0 where aims are missed: for configurations that are known not to meet them.
        state_dir: Where labs are kept; default: $KUBEWORKER_LABS, else the XDG state folder.
        json: Print the results as one JSON document.
    """
    from kubeworker import lab
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_drill import print_drill
    from kubeworker.errors import LabError
    from kubeworker.lab import drill

    try:
        found = lab.find(name, labs=state_dir)
    except LabError as error:
        hint = f"a drill breaks a kube-apiserver, so it works on labs only: kubeworker lab up --name {name}"
        raise LabError(error.message, subject=error.subject, hint=hint) from None
    with reporting(progress.form) as report:
        done = drill.apiserver(found, case, report, node=node)
    if json:
        print_document(done.as_json())
    elif done.missed or not progress.quiet:
        print_drill(console(), done)
    return 1 if done.missed and not no_aims else 0
