"""cluster.yaml for commands: read and checked with every component that there is."""

from __future__ import annotations

from pathlib import Path

from kubeworker.components import discover
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import InputError
from kubeworker.io.cluster_file import load


def load_cluster(path: Path) -> ClusterFile:
    """The cluster file as typed values; SpecError names file, line and field."""
    return load(path, discover())


def known_nodes(cluster: ClusterFile, names: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes that a command is limited to, in the file's order; all where none is named.

    InputError: there is no such node.
    """
    there = tuple(node.name for node in cluster.nodes)
    for name in names:
        if name not in there:
            shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
            raise InputError(
                "there is no such node in the cluster file", subject=f"--node {name}", hint=f"nodes: {shown}"
            )
    return tuple(name for name in there if name in names) if names else there
