"""`kubeworker plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Html, Json, JsonEvents, Nodes, Plain, Quiet, Shard, form

if TYPE_CHECKING:
    from kubeworker.cli.report_plan import PlanDocument


async def plan(
    *,
    file: File = DEFAULT_FILE,
    node: Nodes = (),
    shard: Shard = "",
    full: Flag = False,
    html: Html = None,
    quiet: Quiet = False,
    plain: Plain = False,
    rehash: Flag = False,
    accept_new_host_keys: Flag = False,
    json: Json = False,
    json_events: JsonEvents = False,
) -> int:
    """Show what would change on every node and in the cluster, and why. Changes nothing.

    Exit code 0: nothing to do; 2: changes pending.

    Args:
        file: The cluster file; paths in it are relative to it.
        node: Only this node; may be given several times.
        shard: I/N, from 0/N to N-1/N: only this part of the fleet. Runs over different parts go side by side.
        full: Show new files in full too.
        html: Also write the plan as one HTML file, with every diff.
        quiet: No progress; nothing where nothing is to do, else one line.
        plain: Progress as plain lines, as it is where standard error is no terminal.
        rehash: Hash every file on the nodes again, whatever their index says.
        accept_new_host_keys: Pin the keys of hosts that known_hosts does not have yet.
        json: Print the plan as one JSON document.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.output import check_writable, console, print_document, write_file
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_plan import print_plan, summary
    from kubeworker.core.shard import parse
    from kubeworker.flow.plan import plan as make
    from kubeworker.flow.session import Request

    if html:
        check_writable(html)
    request = Request(
        cluster_file=file,
        nodes=node,
        shard=parse(shard) if shard else None,
        rehash=rehash,
        accept_new_host_keys=accept_new_host_keys,
    )
    with reporting(json_events=json_events, form=form(quiet=quiet, plain=plain)) as report:
        made = await make(request, report)
    document = cast("PlanDocument", made.as_json())
    if html:
        from datetime import datetime

        from kubeworker.cli.page_plan import plan_page

        write_file(html, plan_page(document, subject=str(file), at=datetime.now().astimezone()))
    if json:
        print_document(document)
    elif not quiet:
        print_plan(console(), document, full=full)
    elif made.exit_code:
        console().print(summary(document), soft_wrap=True)
    return made.exit_code
