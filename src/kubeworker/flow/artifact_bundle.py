"""Artifacts for a site without internet: one .tar.gz with the lock file's pins and the bytes they name."""

from __future__ import annotations

import asyncio
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from kubeworker.core import lockfile, tar_stream
from kubeworker.core.artifact import Artifact
from kubeworker.core.lockfile import Lock
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError
from kubeworker.flow.artifact_run import LOCK_NAME, change_lock, read_lock
from kubeworker.flow.artifacts import lock_path
from kubeworker.io.blob_store import BlobStore

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


async def bundle(
    cluster_file: Path, artifacts: Sequence[Artifact], blobs: Mapping[str, Blob], out: Path, *, store: BlobStore
) -> int:
    """Write the bundle of these artifacts, which `resolve` just got; its size in bytes."""
    names, digests = {artifact.name for artifact in artifacts}, {blob.sha256 for blob in blobs.values()}
    entries = read_lock(lock_path(cluster_file)).entries
    pinned = {key: entry for key, entry in entries.items() if key.artifact in names and entry.sha256 in digests}
    lock = lockfile.render(Lock(entries=pinned)).encode()
    distinct = sorted({blob.sha256: blob for blob in blobs.values()}.items())
    temporary = out.with_name(f".{out.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(tar_stream.member(LOCK_NAME, lock, mode=0o644))
            for _, blob in distinct:
                with (await asyncio.to_thread(store.tar_member, blob)).open("rb") as member:
                    await asyncio.to_thread(shutil.copyfileobj, member, file)
            file.write(tar_stream.END)
        temporary.replace(out)
    except OSError as error:
        raise ArtifactError(f"can't be written: {error.strerror}", subject=str(out)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return out.stat().st_size


async def unbundle(cluster_file: Path, source: Path, *, store: BlobStore) -> tuple[str, ...]:
    """Put a bundle's bytes into the cache and its pins into the lock file; the names of the artifacts.

    ArtifactError, before anything is pinned, when a file's bytes are not what its name says, when one that is pinned
    is not there, or when the lock file already pins other bytes.
    """
    lock, blobs = await asyncio.to_thread(_read, source, store)
    absent = [key.artifact for key, entry in lock.entries.items() if entry.sha256 not in blobs]
    if absent:
        raise ArtifactError(f"lacks the bytes of {', '.join(absent)}", subject=str(source))

    def merged(mine: Lock) -> Lock:
        for key, entry in sorted(lock.entries.items()):
            mine = lockfile.pin(mine, key, entry, update=False, place=str(source))
        return mine

    await change_lock(store, lock_path(cluster_file), merged)
    return tuple(dict.fromkeys(key.artifact for key in sorted(lock.entries)))


def _read(source: Path, store: BlobStore) -> tuple[Lock, set[str]]:
    lock, blobs = Lock(entries={}), set[str]()
    try:
        with tarfile.open(source) as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.isreg() else None
                if file is None:
                    raise ArtifactError(f"holds {entry.name!r}, which is no file", subject=str(source))
                if entry.name == LOCK_NAME:
                    lock = lockfile.parse(file.read().decode(), subject=f"{source}: {LOCK_NAME}")
                elif match := _BLOB.fullmatch(entry.name):
                    _take(file, match[1], store, source)
                    blobs.add(match[1])
                else:
                    raise ArtifactError(f"holds {entry.name!r}, which belongs in no bundle", subject=str(source))
    except (OSError, tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"can't be read: {error}", subject=str(source), hint="copy it again: it may have been cut short"
        ) from error
    if not lock.entries:
        raise ArtifactError(f"holds no {LOCK_NAME}", subject=str(source), hint="make it with: artifacts bundle FILE")
    return lock, blobs


def _take(file: IO[bytes], digest: str, store: BlobStore, source: Path) -> None:
    with store.work() as work:
        with (work / "blob").open("wb") as copy:
            shutil.copyfileobj(file, copy)
        found = store.hash_file(work / "blob")
        if found.sha256 != digest:
            raise ArtifactError(
                f"its file sha256-{digest} has sha256 {found.sha256}", subject=str(source), hint="copy it again"
            )
        store.adopt(work / "blob", found)
