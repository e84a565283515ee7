"""`kubeworker explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kubeworker.cli.options import DEFAULT_FILE, Json


def explain(
    what: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    /,
    *,
    file: Annotated[Path | None, Parameter(name=["--file", "-f"], negative="", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Why something is as it is: who makes it, which field of cluster.yaml moves it, what the guide has, and a source.

    WHAT is a path on a node, a key of a file (KEY or FILE:KEY), a unit, a check of verify or preflight, a kind of
    action in a plan, or the id behind an error message. Without it: what there is. A kind (path, key, ...) lists all
    of that kind.

    Args:
        what: Such as maxPods, kubelet.service:Restart, kube_proxy.ipvs, port-10250, restart or cluster-file.
        file: The cluster whose paths and values are shown; default: cluster.yaml, where that is there.
        json: Print one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report_explain import print_explained, print_kinds, print_names
    from kubeworker.components import discover
    from kubeworker.core.explain import KIND_TEXTS, KINDS
    from kubeworker.core.spec import Paths
    from kubeworker.flow.explain import cluster_of, explained, load

    registry = discover()
    cluster = cluster_of(file, DEFAULT_FILE, registry)
    known = load(cluster.paths if cluster else Paths())
    kind = next((kind for kind in KINDS if what.casefold() in {kind, f"{kind}s"}), None)
    if not what or kind:
        names = {kind: [entry.title for entry in known.of(kind)] for kind in ([kind] if kind else KINDS)}
        if json:
            print_document({"kinds": [{"kind": kind, "names": found} for kind, found in names.items()]})
        elif kind:
            print_names(sys.stdout, names[kind])
        else:
            print_kinds(console(), {kind: (KIND_TEXTS[kind], found) for kind, found in names.items()})
        return
    found = tuple(explained(known, known.find(what), registry, cluster))
    if json:
        print_document({"found": [each.as_json() for each in found]})
    else:
        print_explained(console(), found)
