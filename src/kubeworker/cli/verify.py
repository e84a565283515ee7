"""`kubeworker verify`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Html, Json, JsonEvents, Nodes, Plain, Quiet, form


async def verify(
    *,
    file: File = DEFAULT_FILE,
    node: Nodes = (),
    check: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=False)] = (),
    html: Html = None,
    image: Annotated[str, Parameter(negative="")] = "",
    deep: Flag = False,
    passed: Flag = False,
    quiet: Quiet = False,
    plain: Plain = False,
    accept_new_host_keys: Flag = False,
    json: Json = False,
    json_events: JsonEvents = False,
) -> int:
    """Prove on the live cluster that every node works, check by check. What it creates it removes.

    Args:
        file: The cluster file; paths in it are relative to it.
        node: Only this node; may be given several times.
        check: Only checks whose id begins so (kube_proxy.ipvs), with what they saw; may be given several times.
        html: Also write the report as one HTML file.
        image: Image for the test pods; it needs sh. Default: the first preloaded one that is no pause image.
        deep: Also download an image through each registry's mirrors, on each node, and say which host served it.
        passed: List the checks that passed too, not only their number.
        quiet: For cron: no progress; nothing where every check passed.
        plain: Progress as plain lines, as it is where standard error is no terminal.
        accept_new_host_keys: Pin the keys of hosts that known_hosts does not have yet.
        json: Print the report as one JSON document.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.output import check_writable, console, print_document, write_file
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_verify import print_verdicts
    from kubeworker.cli.spec import load_cluster
    from kubeworker.components import discover
    from kubeworker.flow.verify import Options
    from kubeworker.flow.verify import verify as make

    if html:
        check_writable(html)
    cluster = load_cluster(file)
    options = Options(nodes=node, checks=check, image=image, deep=deep, accept_new_host_keys=accept_new_host_keys)
    with reporting(json_events=json_events, form=form(quiet=quiet, plain=plain)) as report:
        found = await make(cluster, discover(), options, report)
    if html:
        from datetime import datetime

        from kubeworker.cli.page_verify import verify_page

        write_file(html, verify_page(found, subject=str(file), at=datetime.now().astimezone()))
    if json:
        print_document(found.as_json())
    elif not quiet or found.exit_code:
        print_verdicts(console(), found, passed=passed or bool(check))
    return found.exit_code
