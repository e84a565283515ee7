"""`kubeworker preflight`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import NODES, PROGRESS, Json, NodeOptions, ProgressOptions


async def preflight(
    *,
    on: NodeOptions = NODES,
    api_token: Annotated[bool, Parameter(name="--api-token")] = True,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """Check every node before anything is changed: what holds, what does not, and how to mend it. Changes nothing.

    Needs neither artifacts nor the CA's key; with --node, nodes are compared with each other only where they are asked.
    Exit code 0: nothing failed; 1: a check failed; 4: a node is unreachable.

    Args:
        api_token: Have nodes that have yet to join show a bootstrap token to each kube-apiserver. It is made for that,
            lives ten minutes at most, and is deleted at the end. --no-api-token: they ask without credentials.
        json: Print the checks as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_preflight import print_checks
    from kubeworker.flow.preflight import run

    with reporting(progress.form) as report:
        found = await run(on.request(), report, api_token=api_token)
    if json:
        print_document(found.as_json())
    elif not progress.quiet or found.exit_code:
        print_checks(console(), found)
    return found.exit_code
