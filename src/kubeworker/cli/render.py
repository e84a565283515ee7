"""`kubeworker render`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE, PROGRESS, File, Json, ProgressOptions


async def render(
    *,
    file: File = DEFAULT_FILE,
    out: Annotated[Path, Parameter(name=["--out", "-o"], negative="")],
    progress: ProgressOptions = PROGRESS,
    json: Json = False,
) -> None:
    """Write every file of every node to DIR/NODE/ABSOLUTE-PATH, offline: no node, API or kubeconfig is needed.

    With `cni: cilium` its objects too, to DIR/cluster, as for a cluster of versions.kubernetes.

    Args:
        file: The cluster file; paths in it are relative to it.
        out: Directory to write to; one of an earlier render is replaced, any other must be empty.
        json: Print the paths as one JSON document.
    """
    from kubeworker.cli.output import print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.spec import load_cluster
    from kubeworker.components import discover
    from kubeworker.flow.render import render as write
    from kubeworker.flow.render import render_objects

    cluster, registry = load_cluster(file), discover()
    written = write(cluster, registry, out)
    with reporting(progress.form) as report:
        objects = await render_objects(file, cluster, registry, out, report)
    if json:
        print_document({"files": [str(path) for path in (*written, *objects)]})
    elif not progress.quiet:
        more = f", {len(objects)} objects" if objects else ""
        sys.stdout.write(f"{out}: {len(written)} files of {len(cluster.nodes)} nodes{more}\n")
