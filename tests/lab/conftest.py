"""Labs of the tests' own: never the one that a developer works on, and gone at the end of the session."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeworker import lab as labs
from kubeworker.lab import LabState

MakeLab = Callable[..., LabState]


FIRST, LAST = ("test_lab.py", "test_guide_profile.py", "test_air_gap.py"), "test_failover.py"
"""Tests with labs of their own come before the session's lab is up; the minutes of failover come at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
    items.sort(key=lambda item: (item.path.name == LAST) - (item.path.name in FIRST))


@pytest.fixture(scope="session", autouse=True)
def _no_leftover_labs() -> None:
    """A session that was killed could not take its labs down."""
    for name in labs.names():
        kind, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if kind == "test" and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            labs.down(name)


@pytest.fixture(scope="session")
def lab(_no_leftover_labs: None) -> Iterator[LabState]:
    """The session's lab: k8s-01 and k8s-02 with a control plane, and worker-01. `kubeworker.lab.run` runs scripts.

    KUBEWORKER_TEST_LAB names a lab that is there already (`lab up --workers 1`) and is kept, for writing tests.
    """
    if kept := os.environ.get("KUBEWORKER_TEST_LAB"):
        yield labs.find(kept)
        return
    name = f"test-{os.getpid()}"
    try:
        yield labs.up(name, workers=1)
    finally:
        labs.down(name)


@pytest.fixture(scope="session")
def kernel_lab(_no_leftover_labs: None) -> Iterator[LabState]:
    """One more for the session, where kernels matter: k8s-01 and k8s-02 (containers of the host's kernel) and fk-01,
    which has a kernel of its own.

    KUBEWORKER_TEST_KERNEL_LAB names one that is there already (`lab up --workers 0 --full-kernel 1`) and is kept.
    """
    if kept := os.environ.get("KUBEWORKER_TEST_KERNEL_LAB"):
        yield labs.find(kept)
        return
    name = f"test-{os.getpid()}-kernel"
    try:
        yield labs.up(name, workers=0, full_kernel=1)
    finally:
        labs.down(name)


@pytest.fixture
def make_lab(_no_leftover_labs: None) -> Iterator[MakeLab]:
    """`make_lab("kill", workers=1, cni="cilium")`: a further lab for one test, with options of `labs.up`; the test may
    treat it as it likes."""
    made: list[str] = []

    def make(suffix: str, **options: Any) -> LabState:
        made.append(f"test-{os.getpid()}-{suffix}")
        return labs.up(made[-1], **({"workers": 0} | options))

    yield make
    for name in made:
        labs.down(name)


COMMAND = Path(__file__).parents[2] / ".venv/bin/kubeworker"


def kubeworker(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The command as an operator runs it; its exit code is the test's business."""
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def deployed(lab: LabState) -> LabState:
    """The session's lab after a first apply: three worker nodes, Ready. Tests heal what they break."""
    done = kubeworker("apply", "--yes", "-f", lab.cluster_yaml)
    assert done.returncode == 0, done.stdout + done.stderr
    return lab


@pytest.fixture(scope="session")
def kernel_nodes(kernel_lab: LabState) -> LabState:
    """That lab with two worker nodes, Ready: fk-01 and k8s-02. Tests heal what they break."""
    done = kubeworker("apply", "--yes", "-f", kernel_lab.cluster_yaml, "--node", "fk-01", "--node", "k8s-02")
    assert done.returncode == 0, done.stdout + done.stderr
    return kernel_lab
