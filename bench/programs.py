"""The C programs of the bench, compiled by gcc: stand-ins for binaries, and the preload of quiet machines."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from kubeworker.core.artifacts.artifact import Artifact

_SOURCE = Path(__file__).parent / "machine"


def stand_ins(artifacts: Iterable[Artifact], folder: Path) -> Path:
    """A folder with a stand-in for each artifact, by its name: what `artifacts.local` of cluster.yaml wants."""
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in artifacts:
        names = (f'-DNAME="{artifact.name}"', f'-DVERSION="{artifact.version}"')
        _compile(_SOURCE / "stand_in.c", folder / artifact.name, ("-static", "-s", *names))
    return folder


def no_inotify(target: Path) -> None:
    """The library that keeps a machine from holding inotify instances."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _compile(_SOURCE / "no_inotify.c", target, ("-shared", "-fPIC"))


def _compile(source: Path, target: Path, options: Sequence[str]) -> None:
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", *options, "-o", str(target), str(source)], check=True)
