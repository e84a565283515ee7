"""`kubeworker apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter, validators

from kubeworker.cli.options import PLAN, PROGRESS, Flag, Html, Json, PlanOptions, ProgressOptions, Yes

if TYPE_CHECKING:
    from kubeworker.cli.report import Screen
    from kubeworker.cli.report_apply import ApplyDocument
    from kubeworker.cli.report_plan import PlanDocument
    from kubeworker.flow.apply import ApplyReport, Confirm
    from kubeworker.flow.plan import Plan

DECLINED = 2
"""Exit code when the answer was no: changes are pending, as after `plan`."""


async def apply(
    *,
    on: PlanOptions = PLAN,
    yes: Yes = False,
    serial: Annotated[int | None, Parameter(negative="", validator=validators.Number(gte=1))] = None,
    max_failures: Annotated[int, Parameter(negative="", validator=validators.Number(gte=0))] = 0,
    full: Flag = False,
    html: Html = None,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """Show the plan, ask, and do exactly that.

    One node's failure does not stop the others of its batch; what was swapped in there is put back.

    Args:
        yes: Don't ask. Needed where there is no terminal, and with --quiet and --json.
        serial: Nodes in one batch; the next starts when this one is healthy. Default: all at once.
        max_failures: Nodes that may fail before no further batch is started.
        full: Show new files in full too.
        html: Also write what was done as one HTML file, with every diff.
        json: Print the outcome as one JSON document.
    """
    from kubeworker.cli.output import check_writable, console, is_interactive, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_apply import print_result
    from kubeworker.errors import UsageError
    from kubeworker.flow.apply import Options
    from kubeworker.flow.apply import apply as carry_out

    quiet = progress.quiet
    if not yes and (json or quiet or not is_interactive()):
        why = "--json can't ask" if json else "--quiet can't ask" if quiet else "there is no terminal to ask on"
        hint = "look at `kubeworker plan` first, then run apply with --yes"
        raise UsageError(why, subject="kubeworker apply", hint=hint)
    if html:
        check_writable(html)
    request = on.request()
    with reporting(progress.form) as report:
        confirm = _confirm(report, ask_first=not yes, show=not json and not quiet, full=full)
        done = await carry_out(request, Options(serial=serial or 0, max_failures=max_failures), confirm, report)
    if html and done.confirmed:
        _write_page(html, done, str(on.file))
    if json:
        print_document(done.as_json())
    elif quiet and not done.exit_code:
        pass
    elif not done.plan.changes:
        _show(done.plan, full=full)
    elif done.confirmed:
        print_result(console(), cast("ApplyDocument", done.as_json()))
    return done.exit_code if done.confirmed else DECLINED


def _confirm(report: Screen, *, ask_first: bool, show: bool, full: bool) -> Confirm:
    from kubeworker.cli.output import ask

    async def confirm(plan: Plan) -> bool:
        with report.paused():
            if show:
                _show(plan, full=full)
            return await ask("Apply it?") if ask_first else True

    return confirm


def _write_page(html: Path, done: ApplyReport, subject: str) -> None:
    from datetime import datetime

    from kubeworker.cli.output import write_file
    from kubeworker.cli.page_plan import apply_page

    plan, result = cast("PlanDocument", done.plan.as_json()), cast("ApplyDocument", done.as_json())
    write_file(html, apply_page(plan, result, subject=subject, at=datetime.now().astimezone()))


def _show(plan: Plan, *, full: bool) -> None:
    from kubeworker.cli.output import console
    from kubeworker.cli.report_plan import print_plan

    print_plan(console(), cast("PlanDocument", plan.as_json()), full=full)
