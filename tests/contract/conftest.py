"""Real servers for contract tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.artifact_site import cluster, node_artifacts
from tests.contract.control_plane import ControlPlane, Processes, start_control_plane

from kubeworker.flow import artifacts
from kubeworker.io.blob_store import BlobStore
from kubeworker.lab.artifacts import control_plane as control_plane_artifacts


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the real binaries by artifact name: the lab's control plane's and the nodes'.

    They come as the lab's do (`kubeworker lab prepare` fills the cache); what is not in the cache is built.
    """
    directory = tmp_path_factory.mktemp("binaries")
    spec = cluster(sources=["cache", "build"], nginx_source="debian")
    wanted = (*control_plane_artifacts(spec.versions), *node_artifacts())
    store = BlobStore.default()
    for name, blob in asyncio.run(artifacts.resolve(directory / "cluster.yaml", spec, wanted, store=store)).items():
        (directory / name).symlink_to(store.path(blob))
    return directory


@pytest.fixture(scope="session")
def control_plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for the whole session."""
    directory = tmp_path_factory.mktemp("control-plane")
    processes = Processes(directory)
    try:
        yield start_control_plane(binaries, directory, processes)
    finally:
        processes.stop()
