"""`kubeworker plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kubeworker.cli.options import PLAN, PROGRESS, Flag, Html, Json, PlanOptions, ProgressOptions

if TYPE_CHECKING:
    from kubeworker.cli.report_plan import PlanDocument


async def plan(
    *,
    on: PlanOptions = PLAN,
    full: Flag = False,
    html: Html = None,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """Show what would change on every node and in the cluster, and why. Changes nothing.

    Exit code 0: nothing to do; 2: changes pending. With --quiet those are one line.

    Args:
        full: Show new files in full too.
        html: Also write the plan as one HTML file, with every diff.
        json: Print the plan as one JSON document.
    """
    from kubeworker.cli.output import check_writable, console, print_document, write_file
    from kubeworker.cli.report import reporting
    from kubeworker.flow.plan import plan as make

    if html:
        check_writable(html)
    request = on.request()
    with reporting(progress.form) as report:
        made = await make(request, report)
    document = cast("PlanDocument", made.as_json())
    if html:
        from datetime import datetime

        from kubeworker.cli.page_plan import plan_page

        write_file(html, plan_page(document, subject=str(on.file), at=datetime.now().astimezone()))
    if json:
        print_document(document)
        return made.exit_code
    from kubeworker.cli.report_plan import print_plan, summary  # with rich, which JSON does without

    if not progress.quiet:
        print_plan(console(), document, full=full)
    elif made.exit_code:
        console().print(summary(document), soft_wrap=True)
    return made.exit_code
