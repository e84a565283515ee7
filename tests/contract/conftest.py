"""Real servers for contract tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.control_plane import ControlPlane, Processes, start_control_plane


@pytest.fixture(scope="session")
def binaries() -> Path:
    """A directory with the real binaries by artifact name."""
    return Path(os.environ["KUBEWORKER_TEST_BINARIES"])


@pytest.fixture(scope="session")
def control_plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for the whole session."""
    directory = tmp_path_factory.mktemp("control-plane")
    processes = Processes(directory)
    try:
        yield start_control_plane(binaries, directory, processes)
    finally:
        processes.stop()
