"""`kubeworker plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Json, JsonEvents, Nodes

if TYPE_CHECKING:
    from kubeworker.cli.report_plan import PlanDocument


async def plan(
    *,
    file: File = DEFAULT_FILE,
    node: Nodes = (),
    full: Flag = False,
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
        full: Show new files in full too.
        rehash: Hash every file on the nodes again, whatever their index says.
        accept_new_host_keys: Pin the keys of hosts that known_hosts does not have yet.
        json: Print the plan as one JSON document.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_plan import print_plan
    from kubeworker.flow.plan import plan as make
    from kubeworker.flow.session import Request

    request = Request(cluster_file=file, nodes=node, rehash=rehash, accept_new_host_keys=accept_new_host_keys)
    with reporting(json_events=json_events) as report:
        made = await make(request, report)
    document = made.as_json()
    if json:
        print_document(document)
    else:
        print_plan(console(), cast("PlanDocument", document), full=full)
    return made.exit_code
