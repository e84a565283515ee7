"""A site for artifact tests: a cluster.yaml's directory, a cache of its own, and the events that were reported."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.artifacts import lockfile
from kubeworker.core.artifacts.artifact import Architecture, Artifact
from kubeworker.core.artifacts.lockfile import Entry, Key
from kubeworker.core.model import Blob
from kubeworker.core.spec import ClusterFile
from kubeworker.flow import artifacts
from kubeworker.flow.events import Event
from kubeworker.io.blob_store import BlobStore

SHELL = Path("/bin/bash")
"""A real program that every Debian has, dynamically linked, and that reports a version."""


@functools.cache
def shell_version() -> str:
    output = subprocess.run([SHELL, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+\.\d+", output)
    assert found
    return found[0]


def shell_artifact(name: str = "bash", **changes: Any) -> Artifact:
    """bash as an artifact: any library, no download, no build."""
    values: dict[str, Any] = {"version": shell_version(), "dynamic": True, "field": "versions.bash"}
    return Artifact(name=name, **(values | changes))


def cluster(**settings: Any) -> ClusterFile:
    """A cluster with the lab's versions and these `artifacts:`."""
    return ClusterFile.model_validate(
        {
            "cluster": {
                "apiservers": ["10.1.0.1:6443"],
                "cluster_cidr": "172.30.0.0/16",
                "service_cidr": "10.254.0.0/16",
                "dns_service_ip": "10.254.0.2",
            },
            "versions": {"nginx": "1.22.1", "crictl": "1.34.0"},
            "artifacts": settings,
            "cni": "bridge",
            "nodes": [{"name": "k8s-01", "address": "10.1.0.1"}],
        }
    )


def node_artifacts(*names: str) -> tuple[Artifact, ...]:
    """The artifacts that nodes of `cluster()` run; only the named ones, if any are."""
    every = desired.artifacts(cluster(), discover())
    return tuple(each for each in every if not names or each.name in names)


@dataclass
class Site:
    directory: Path
    store: BlobStore
    events: list[Event] = field(default_factory=list)

    @classmethod
    def at(cls, directory: Path, *, store: BlobStore | None = None) -> Site:
        directory.mkdir(parents=True, exist_ok=True)
        return cls(directory=directory, store=store or BlobStore(directory / "cache"))

    async def resolve(
        self,
        wanted: Sequence[Artifact],
        *,
        architecture: Architecture | None = None,
        update_lock: bool = False,
        **settings: Any,
    ) -> dict[str, Blob]:
        return await artifacts.resolve(
            self.directory / "cluster.yaml",
            cluster(**settings),
            wanted,
            architecture=architecture,
            update_lock=update_lock,
            report=self.events.append,
            store=self.store,
        )

    @property
    def lock_path(self) -> Path:
        return self.directory / "kubeworker.lock"

    @property
    def pins(self) -> dict[Key, Entry]:
        if not self.lock_path.exists():
            return {}
        return dict(lockfile.parse(self.lock_path.read_text(), subject="kubeworker.lock").entries)

    def with_empty_cache(self) -> Site:
        """The same checkout on another machine: the lock file is there, the cache is not."""
        other = Site.at(self.directory.with_name(f"{self.directory.name}-again"))
        shutil.copyfile(self.lock_path, other.lock_path)
        return other


def damage(path: Path, at: int = -1) -> None:
    """Change one byte of a file in place, whatever its mode."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    mode = path.stat().st_mode
    path.chmod(0o755)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(mode)
