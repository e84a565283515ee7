"""`kubeworker verify`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import NODES, PROGRESS, Flag, Html, Json, NodeOptions, ProgressOptions


async def verify(
    *,
    on: NodeOptions = NODES,
    check: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=False)] = (),
    html: Html = None,
    image: Annotated[str, Parameter(negative="")] = "",
    deep: Flag = False,
    passed: Flag = False,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """Prove on the live cluster that every node works, check by check. What it creates it removes.

    Args:
        check: Only checks whose id begins so (kube_proxy.ipvs), with what they saw; may be given several times.
        html: Also write the report as one HTML file.
        image: Image for the test pods; it needs sh. Default: the first preloaded one that is no pause image.
        deep: Also download an image through each registry's mirrors, on each node, and say which host served it.
        passed: List the checks that passed too, not only their number.
        json: Print the report as one JSON document.
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
    cluster = load_cluster(on.file)
    options = Options(nodes=on.node, checks=check, image=image, deep=deep, accept_new_host_keys=on.accept_new_host_keys)
    with reporting(progress.form) as report:
        found = await make(cluster, discover(), options, report)
    if html:
        from datetime import datetime

        from kubeworker.cli.page_verify import verify_page

        write_file(html, verify_page(found, subject=str(on.file), at=datetime.now().astimezone()))
    if json:
        print_document(found.as_json())
    elif not progress.quiet or found.exit_code:
        print_verdicts(console(), found, passed=passed or bool(check))
    return found.exit_code
