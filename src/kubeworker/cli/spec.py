"""cluster.yaml for commands: read and checked with every component that there is."""

from __future__ import annotations

from pathlib import Path

from kubeworker.components import discover
from kubeworker.core.spec import ClusterFile
from kubeworker.io.cluster_file import load


def load_cluster(path: Path) -> ClusterFile:
    """The cluster file as typed values; SpecError names file, line and field."""
    return load(path, discover())
