"""Labs of the tests' own: never the one that a developer works on, and gone at the end of the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubeworker import lab as labs
from kubeworker.lab import LabState

MakeLab = Callable[..., LabState]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


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
    """The session's lab: k8s-01 and k8s-02 with a control plane, and worker-01. `kubeworker.lab.run` runs scripts."""
    name = f"test-{os.getpid()}"
    yield labs.up(name, workers=1)
    labs.down(name)


@pytest.fixture
def make_lab(_no_leftover_labs: None) -> Iterator[MakeLab]:
    """`make_lab("kill", workers=0)`: a further lab for one test, which may treat it as it likes."""
    made: list[str] = []

    def make(suffix: str, *, workers: int = 0) -> LabState:
        made.append(f"test-{os.getpid()}-{suffix}")
        return labs.up(made[-1], workers=workers)

    yield make
    for name in made:
        labs.down(name)
