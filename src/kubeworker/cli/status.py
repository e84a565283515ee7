"""`kubeworker status`."""

from __future__ import annotations

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Json, JsonEvents, Nodes


async def status(
    *,
    file: File = DEFAULT_FILE,
    node: Nodes = (),
    accept_new_host_keys: Flag = False,
    json: Json = False,
    json_events: JsonEvents = False,
) -> int:
    """One line per node: Ready, versions, units, days that certificates still last, drift. Changes nothing.

    Args:
        file: The cluster file; paths in it are relative to it.
        node: Only this node; may be given several times.
        accept_new_host_keys: Pin the keys of hosts that known_hosts does not have yet.
        json: Print the nodes as one JSON document.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_status import print_status
    from kubeworker.flow.session import Request
    from kubeworker.flow.status import status as look

    request = Request(cluster_file=file, nodes=node, accept_new_host_keys=accept_new_host_keys)
    with reporting(json_events=json_events) as report:
        found = await look(request, report)
    if json:
        print_document(found.as_json())
    else:
        print_status(console(), found)
    return found.exit_code
