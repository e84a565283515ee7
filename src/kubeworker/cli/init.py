"""`kubeworker init`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE
from kubeworker.errors import UsageError


def init(
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], negative="")] = DEFAULT_FILE,
    from_env: Annotated[Path | None, Parameter(name="--from-env", negative="")] = None,
    kube_nginx_conf: Annotated[Path | None, Parameter(name="--kube-nginx-conf", negative="")] = None,
) -> None:
    """Write a commented cluster.yaml with every field and its default, or with what the guide's files say.

    Args:
        out: Where to write it; a file that exists is never overwritten.
        from_env: The guide's environment.sh: its nodes, networks and directories, with `profile: guide`. It is read,
            never run.
        kube_nginx_conf: The guide's kube-nginx.conf, which lists the API servers; only with --from-env.
    """
    from kubeworker.components import discover
    from kubeworker.flow.init import from_guide, write

    if from_env is None:
        if kube_nginx_conf is not None:
            hint = "name the guide's environment.sh with --from-env too"
            raise UsageError("is read with --from-env only", subject="--kube-nginx-conf", hint=hint)
        write(out, discover())
        sys.stdout.write(f"{out} written: fill in the cluster and the nodes, then `kubeworker plan -f {out}`\n")
        return
    for remark in from_guide(out, discover(), environment=from_env, kube_nginx_conf=kube_nginx_conf):
        sys.stdout.write(f"{remark}\n")
    sys.stdout.write(f"{out} written: look it through, then `kubeworker plan -f {out}`\n")
