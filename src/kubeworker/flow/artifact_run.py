"""What the sources of artifacts share: the run, and the one way in which a file becomes an accepted artifact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kubeworker.core.artifacts import lockfile
from kubeworker.core.artifacts.artifact import Architecture, Artifact
from kubeworker.core.artifacts.lockfile import Entry, Key, Kind, Lock
from kubeworker.core.model import Blob
from kubeworker.core.spec import Artifacts
from kubeworker.errors import ArtifactError, BlobDamaged, LockfileError, reason
from kubeworker.flow.events import ArtifactReady, Note, Reporter, Transfer, Warning_
from kubeworker.io import binary
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.whole_file import write_atomically

LOCK_NAME = lockfile.NAME

_BETWEEN_REPORTS = 0.1
"""Seconds between two progress events of one transfer."""
_BETWEEN_NOTES = 20
"""Seconds between two notes of one build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of `resolve`."""

    store: BlobStore
    lock_path: Path
    settings: Artifacts
    architecture: Architecture
    update_lock: bool
    report: Reporter

    def key(self, artifact: Artifact, kind: Kind) -> Key:
        """Where the lock file pins it."""
        return Key(artifact=artifact.name, architecture=self.architecture, kind=kind)

    def lock(self) -> Lock:
        """The lock file as it is now; empty where there is none yet."""
        return read_lock(self.lock_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a file comes from, so far as the lock file and the cache's index tell it apart."""

    kind: Kind
    place: str
    """For people: a URL, a path, a module."""
    inputs: str = ""
    toolchain: str = ""
    tarball: str = ""

    def index_key(self, artifact: Artifact, architecture: Architecture) -> tuple[str, ...]:
        """The key in the cache's index. A build is found again wherever it is the same; a download by its URL."""
        made_of = (self.inputs, self.toolchain, self.tarball) if self.kind == "build" else (self.place,)
        return ("artifact", artifact.name, artifact.version, architecture, self.kind, *made_of)

    def entry(self, artifact: Artifact, blob: Blob) -> Entry:
        """The lock file's entry for this result."""
        return Entry(
            version=artifact.version,
            sha256=blob.sha256,
            size=blob.size,
            inputs=self.inputs,
            toolchain=self.toolchain,
            tarball=self.tarball,
        )


@dataclass(slots=True)
class Results:
    """What became of each artifact so far."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    refused: dict[str, ArtifactError] = field(default_factory=dict)
    """Got, and not accepted: no other source may stand in silently."""
    missing: dict[str, list[ArtifactError]] = field(default_factory=dict)
    """What each source that was tried said."""

    def open(self, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
        """Those that still need a source."""
        return tuple(each for each in artifacts if each.name not in self.blobs and each.name not in self.refused)


def kinds(run: Run) -> tuple[Kind, ...]:
    """The kinds of source that the operator allows, in order; the cache stands in for each of them.

    Empty for `sources: [cache]`, a site that imports bundles: there a pin of any kind will do.
    """
    return tuple(source for source in run.settings.sources if source != "cache")


def read_lock(path: Path) -> Lock:
    """The lock file; empty where there is none. InputError when it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Lock(entries={})
    except (OSError, UnicodeDecodeError) as error:
        raise LockfileError(f"can't be read: {error}", subject=str(path)) from error
    return lockfile.parse(text, subject=str(path))


async def change_lock(run_store: BlobStore, path: Path, change: Callable[[Lock], Lock]) -> None:
    """Read, change and replace the lock file, with other processes of this user kept out meanwhile."""
    async with run_store.locked(str(path.resolve())):
        before = read_lock(path)
        after = change(before)
        if after.entries == before.entries:
            return
        try:
            write_atomically(path, lockfile.render(after).encode())
        except OSError as error:
            raise ArtifactError(f"can't be written: {reason(error)}", subject=str(path)) from error


async def accept(run: Run, artifact: Artifact, file: Path, origin: Origin) -> Blob:
    """Make a file, which lies in the cache's work area, the artifact: pinned, checked, stored.

    Raises ArtifactError when the lock file has other bytes, or when the file is not what the artifact says.
    """
    found = await asyncio.to_thread(run.store.hash_file, file)
    entry = origin.entry(artifact, found)
    lockfile.pin(run.lock(), run.key(artifact, origin.kind), entry, update=run.update_lock, place=origin.place)
    file.chmod(0o555)
    await binary.check(file, artifact, run.architecture, subject=origin.place)
    blob = run.store.adopt(file, found)
    run.store.remember(_checked_key(run, artifact, blob), blob)
    run.store.remember(origin.index_key(artifact, run.architecture), blob)
    await pin(run, artifact, origin.kind, entry)
    run.report(ArtifactReady(name=artifact.name, version=artifact.version, source=origin.kind, sha256=entry.sha256))
    return blob


async def pin(run: Run, artifact: Artifact, kind: Kind, entry: Entry) -> None:
    """Write the entry into the lock file, unless it is there."""
    key = run.key(artifact, kind)
    await change_lock(run.store, run.lock_path, lambda lock: lockfile.pin(lock, key, entry, update=run.update_lock))


async def trusted(run: Run, artifact: Artifact, blob: Blob) -> bool:
    """Whether the cache's blob can be used: here, unchanged, and checked to be this artifact (now, if never before).

    A damaged one is named, dropped, and does not count.
    """
    if not run.store.has(blob):
        return False
    try:
        path = await asyncio.to_thread(run.store.path, blob)
    except BlobDamaged as error:
        run.store.drop(blob)
        run.report(Warning_(subject=artifact.name, text=str(error)))
        return False
    key = _checked_key(run, artifact, blob)
    if run.store.recall(key) is None:
        await binary.check(path, artifact, run.architecture, subject=str(path))
        run.store.remember(key, blob)
    return True


def _checked_key(run: Run, artifact: Artifact, blob: Blob) -> tuple[str, ...]:
    policy = f"{artifact.dynamic} {','.join(artifact.libraries)} {' '.join(artifact.report)}"
    return ("checked", blob.sha256, artifact.name, artifact.version, run.architecture, policy)


def progress(report: Reporter, subject: str, *, what: str = "") -> Callable[[int, int], None]:
    """A transfer's progress as events, not more than a few a second."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BETWEEN_REPORTS or done == total:
            last = now
            report(Transfer(subject=subject, done=done, total=total, what=what))

    return tell


@asynccontextmanager
async def elapsed(run: Run, subject: str, text: str) -> AsyncIterator[None]:
    """Say that something long is under way, and from time to time for how long already."""
    started = time.monotonic()
    run.report(Note(text=text, subject=subject))

    async def tick() -> None:
        while True:
            await asyncio.sleep(_BETWEEN_NOTES)
            run.report(Note(text=f"{text}: {time.monotonic() - started:.0f} s", subject=subject))

    # Not a TaskGroup: it would wrap the body's own error.
    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
