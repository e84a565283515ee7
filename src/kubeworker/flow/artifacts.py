"""Artifacts: from the first source in the configured order that has them, into the cache, pinned in kubeworker.lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kubeworker.core.artifacts.artifact import Architecture, Artifact
from kubeworker.core.artifacts.lockfile import KINDS, Entry, Key, Kind
from kubeworker.core.model import Blob
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ArtifactError, ArtifactMissing, BlobDamaged
from kubeworker.flow.artifact_run import LOCK_NAME, Results, Run, kinds, read_lock
from kubeworker.flow.events import Reporter, silent
from kubeworker.io.binary import host_architecture
from kubeworker.io.blob_store import BlobStore


async def resolve(
    cluster_file: Path,
    cluster: ClusterFile,
    artifacts: Sequence[Artifact],
    *,
    architecture: Architecture | None = None,
    update_lock: bool = False,
    report: Reporter = silent,
    store: BlobStore | None = None,
) -> dict[str, Blob]:
    """Every artifact's blob by artifact name, its bytes in the store. The architecture defaults to this machine's.

    Raises ArtifactError, which names every artifact that no source has or that was refused, and why; those that were
    had are in the cache and pinned all the same.
    """
    found: dict[str, Blob] = {}
    for wanted_for, several in _by_architecture(_distinct(artifacts), architecture):
        run = _run(cluster_file, cluster, wanted_for, update_lock=update_lock, report=report, store=store)
        found |= await _from_sources(run, several)
    return found


def _by_architecture(
    artifacts: Sequence[Artifact], nodes: Architecture | None
) -> tuple[tuple[Architecture, tuple[Artifact, ...]], ...]:
    """What the control host runs itself is of its own architecture, whatever the nodes are."""
    host = host_architecture()
    groups: dict[Architecture, list[Artifact]] = {}
    for each in artifacts:
        groups.setdefault(host if each.control_host else nodes or host, []).append(each)
    return tuple((architecture, tuple(several)) for architecture, several in groups.items())


async def locked(
    cluster_file: Path,
    cluster: ClusterFile,
    artifacts: Sequence[Artifact],
    *,
    architecture: Architecture | None = None,
    report: Reporter = silent,
    store: BlobStore | None = None,
) -> dict[str, Blob]:
    """The same for a plan: what the lock file pins is believed without having the bytes; only the rest is got."""
    run = _run(cluster_file, cluster, architecture, update_lock=False, report=report, store=store)
    wanted = _distinct(artifacts)
    pinned = _pinned(run, wanted)
    return pinned | await _from_sources(run, tuple(each for each in wanted if each.name not in pinned))


def pinned(cluster_file: Path, cluster: ClusterFile, artifacts: Sequence[Artifact]) -> dict[str, Blob]:
    """Those that the lock file pins; nothing is got, and nothing written."""
    store = BlobStore.default(make=False)
    run = _run(cluster_file, cluster, None, update_lock=False, report=silent, store=store)
    return _pinned(run, _distinct(artifacts))


def _pinned(run: Run, wanted: Sequence[Artifact]) -> dict[str, Blob]:
    lock = run.lock()
    found: dict[str, Blob] = {}
    for artifact in wanted:
        for kind in kinds(run) or KINDS:
            entry = lock.get(run.key(artifact, kind), artifact.version)
            if entry is not None:
                found.setdefault(artifact.name, Blob(sha256=entry.sha256, size=entry.size))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One artifact as `artifacts list` shows it: once for each kind of source that it is pinned for."""

    artifact: Artifact
    architecture: Architecture
    kind: Kind | None
    """None: not pinned yet."""
    entry: Entry | None
    state: Literal["in the cache", "not in the cache", "damaged", "not pinned"]


def listed(
    cluster_file: Path,
    artifacts: Sequence[Artifact],
    *,
    architecture: Architecture | None = None,
    store: BlobStore | None = None,
) -> tuple[Listed, ...]:
    """What the lock file pins each artifact to, and whether the cache has those bytes; nothing is fetched."""
    lock, store = read_lock(lock_path(cluster_file)), store or BlobStore.default()
    found: list[Listed] = []
    several = _by_architecture(_distinct(artifacts), architecture)
    for wanted, artifact in ((wanted, artifact) for wanted, group in several for artifact in group):
        keys = [Key(artifact=artifact.name, architecture=wanted, kind=kind) for kind in KINDS]
        pinned = [(key.kind, entry) for key in keys if (entry := lock.get(key, artifact.version)) is not None]
        found += [
            Listed(artifact=artifact, architecture=wanted, kind=kind, entry=entry, state=_state(store, entry))
            for kind, entry in pinned
        ]
        if not pinned:
            found.append(Listed(artifact=artifact, architecture=wanted, kind=None, entry=None, state="not pinned"))
    return tuple(found)


def _state(store: BlobStore, entry: Entry) -> Literal["in the cache", "not in the cache", "damaged"]:
    try:
        store.path(Blob(sha256=entry.sha256, size=entry.size))
    except ArtifactMissing:
        return "not in the cache"
    except BlobDamaged:
        return "damaged"
    return "in the cache"


async def _from_sources(run: Run, artifacts: tuple[Artifact, ...]) -> dict[str, Blob]:
    if not artifacts:
        return {}
    from kubeworker.flow import artifact_sources as sources  # downloads and builds: only where something is missing

    results = Results()
    for source in run.settings.sources:
        left = results.open(artifacts)
        if not left:
            break
        match source:
            case "cache":
                await sources.from_cache(run, left, results)
            case "download":
                await sources.from_download(run, left, results)
            case "build":
                await sources.from_build(run, left, results)
            case "local":
                await sources.from_local(run, left, results)
    failed = [each for each in artifacts if each.name not in results.blobs]
    if failed:
        raise _failure(run, failed, results)
    return {artifact.name: results.blobs[artifact.name] for artifact in artifacts}


def _failure(run: Run, failed: Sequence[Artifact], results: Results) -> ArtifactError:
    """One error for all that failed; a single refused one as it is."""
    refused = [results.refused[each.name] for each in failed if each.name in results.refused]
    if len(failed) == 1 and refused:
        return refused[0]
    lines: list[str] = []
    hints: dict[str, None] = {}
    for artifact in failed:
        if artifact.name in results.refused:
            errors = [results.refused[artifact.name]]
            lines.append(f"{artifact.name} {artifact.version}: refused")
        else:
            errors = results.missing.get(artifact.name, [])
            lines.append(f"{artifact.name} {artifact.version} for {run.architecture}: no source has it")
        for error in errors:
            lines.append(f"  {error.subject}: {error.message}" if error.subject else f"  {error.message}")
            if error.hint:
                hints[error.hint] = None
    tried = ", ".join(run.settings.sources)
    return ArtifactError(
        "\n".join((f"not all artifacts could be had (artifacts.sources: {tried})", *lines)),
        subject=", ".join(each.name for each in failed),
        hint="; ".join(hints) or "add a source to artifacts.sources, or `kubeworker artifacts import BUNDLE`",
    )


def _run(
    cluster_file: Path,
    cluster: ClusterFile,
    architecture: Architecture | None,
    *,
    update_lock: bool,
    report: Reporter,
    store: BlobStore | None,
) -> Run:
    return Run(
        store=store or BlobStore.default(),
        lock_path=lock_path(cluster_file),
        settings=cluster.artifacts,
        architecture=architecture or host_architecture(),
        update_lock=update_lock,
        report=report,
    )


def lock_path(cluster_file: Path) -> Path:
    """kubeworker.lock beside cluster.yaml."""
    return cluster_file.parent / LOCK_NAME


def _distinct(artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
    return tuple({artifact.name: artifact for artifact in artifacts}.values())
