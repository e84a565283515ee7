"""`kubeworker preflight`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Json, JsonEvents, Nodes


async def preflight(
    *,
    file: File = DEFAULT_FILE,
    node: Nodes = (),
    api_token: Annotated[bool, Parameter(name="--api-token")] = True,
    accept_new_host_keys: Flag = False,
    json: Json = False,
    json_events: JsonEvents = False,
) -> int:
    """Check every node before anything is changed: what holds, what does not, and how to mend it. Changes nothing.

    Needs neither artifacts nor the CA's key. Exit code 0: nothing failed; 1: a check failed; 4: a node is unreachable.

    Args:
        file: The cluster file; paths in it are relative to it.
        node: Only this node; may be given several times. Nodes are compared with each other only where they are asked.
        api_token: Have nodes that have yet to join show a bootstrap token to each kube-apiserver. It is made for that,
            lives ten minutes at most, and is deleted at the end. --no-api-token: they ask without credentials.
        accept_new_host_keys: Pin the keys of hosts that known_hosts does not have yet.
        json: Print the checks as one JSON document.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_preflight import print_checks
    from kubeworker.flow.preflight import run
    from kubeworker.flow.session import Request

    request = Request(cluster_file=file, nodes=node, accept_new_host_keys=accept_new_host_keys)
    with reporting(json_events=json_events) as report:
        found = await run(request, report, api_token=api_token)
    if json:
        print_document(found.as_json())
    else:
        print_checks(console(), found)
    return found.exit_code
