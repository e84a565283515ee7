"""`kubeworker init`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE


def init(*, out: Annotated[Path, Parameter(name=["--out", "-o"], negative="")] = DEFAULT_FILE) -> None:
    """Write a commented cluster.yaml with every field and its default.

    Args:
        out: Where to write it; a file that exists is never overwritten.
    """
    from kubeworker.components import discover
    from kubeworker.flow.init import write

    write(out, discover())
    sys.stdout.write(f"{out} written: fill in the cluster and the nodes, then `kubeworker plan -f {out}`\n")
