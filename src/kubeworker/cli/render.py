"""`kubeworker render`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE, File, Json


def render(
    *, file: File = DEFAULT_FILE, out: Annotated[Path, Parameter(name=["--out", "-o"], negative="")], json: Json = False
) -> None:
    """Write every file of every node to DIR/NODE/ABSOLUTE-PATH, offline: no node, API or kubeconfig is needed.

    Args:
        file: The cluster file; paths in it are relative to it.
        out: Directory to write to; one of an earlier render is replaced, any other must be empty.
        json: Print the paths as one JSON document.
    """
    from kubeworker.cli.output import print_document
    from kubeworker.cli.spec import load_cluster
    from kubeworker.components import discover
    from kubeworker.flow.render import render as write

    cluster = load_cluster(file)
    written = write(cluster, discover(), out)
    if json:
        print_document({"files": [str(path) for path in written]})
    else:
        sys.stdout.write(f"{out}: {len(written)} files of {len(cluster.nodes)} nodes\n")
