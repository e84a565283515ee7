"""`kubeworker status`."""

from __future__ import annotations

import re
from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import NODES, PROGRESS, Flag, Json, NodeOptions, ProgressOptions
from kubeworker.errors import UsageError


async def status(
    *,
    on: NodeOptions = NODES,
    certificates: Flag = False,
    horizon: Flag = False,
    against: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=False)] = (),
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """What differs from the last apply and who has changed it, certificates, and what lies ahead. Changes nothing.

    One line per node, then each difference: a file edited by hand, a unit that is disabled or stopped, a drop-in, a key
    that others may read; what cluster.yaml, the lock file or a new version of the tool asks for and is not applied yet;
    objects that somebody changed in the cluster, with who and when.

    Exit code: 0 all is as it was left, 2 something is not (or a certificate is late, or a node is not Ready), 1 a node
    could not be looked at, 4 nodes or the API are unreachable.

    Args:
        certificates: Each node's certificates too: their end, and whether their rotation works.
        horizon: What later versions deprecate or remove of what runs, ends of support, and pairs that don't fit, each
            with its source.
        against: --horizon as if cluster.yaml had this version: 1.36.0 (of Kubernetes) or containerd=2.4.0; may be given
            several times.
        json: Print all of it as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_status import print_status
    from kubeworker.flow.status import status as look

    quiet = progress.quiet
    versions = dict(map(_version, against))
    with reporting(progress.form) as report:
        found = await look(on.request(), report, against=versions)
    if json:
        print_document(found.as_json())
    elif not quiet or found.exit_code:
        print_status(console(), found, certificates=certificates, horizon=horizon or bool(against), quiet=quiet)
    return found.exit_code


_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?")


def _version(text: str) -> tuple[str, str]:
    software, _, version = text.rpartition("=")
    software, version = software or "kubernetes", version.removeprefix("v")
    if software not in ("kubernetes", "containerd") or not _VERSION.fullmatch(version):
        raise UsageError(
            f"{text!r} is no version to compare with", subject="--against", hint="give 1.36.0, or containerd=2.4.0"
        )
    return software, version
