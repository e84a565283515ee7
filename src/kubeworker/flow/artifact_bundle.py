"""`artifacts bundle` and `import`: all that a site without internet needs of one cluster, in one file.

Binaries, charts and what renders them go into the cache and are pinned in kubeworker.lock; image archives go to the
places that the site's own cluster.yaml names. The cluster's keys, its kubeconfig and cluster.yaml itself are not in a
bundle: they are the operator's to carry.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeworker.core.artifacts import bundle as form
from kubeworker.core.artifacts import lockfile
from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.core.artifacts.bundle import ImageFile
from kubeworker.core.artifacts.lockfile import Lock
from kubeworker.core.model import Blob
from kubeworker.errors import BundleError, FileError, reason
from kubeworker.flow.artifact_run import change_lock, progress, read_lock
from kubeworker.flow.artifacts import lock_path
from kubeworker.flow.events import Event, Reporter, silent
from kubeworker.io import bundle_file, oci_archive
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.bundle_file import Opened, Written
from kubeworker.io.whole_file import replacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import brought."""

    artifacts: tuple[str, ...]
    images: tuple[Path, ...]
    """Archives that are now where cluster.yaml names them."""
    unnamed: tuple[str, ...]
    """Archives of the bundle that this cluster.yaml does not name; they were left out."""


async def bundle(
    cluster_file: Path,
    artifacts: Sequence[Artifact],
    blobs: Mapping[str, Blob],
    archives: Sequence[str],
    out: Path,
    *,
    store: BlobStore,
) -> Written:
    """Write the bundle of these artifacts, which `resolve` just got, and of these image archives on this host."""
    names, digests = {artifact.name for artifact in artifacts}, {blob.sha256 for blob in blobs.values()}
    entries = read_lock(lock_path(cluster_file)).entries
    pinned = {key: entry for key, entry in entries.items() if key.artifact in names and entry.sha256 in digests}
    images: list[ImageFile] = []
    for path in dict.fromkeys(archives):
        archive = await asyncio.to_thread(oci_archive.read, Path(path), store)
        images.append(ImageFile(path=portable(path, cluster_file), blob=archive.blob))
    index = form.index(tuple(blobs.values()), tuple(images))
    lock = lockfile.render(Lock(entries=pinned)).encode()
    return await asyncio.to_thread(bundle_file.write, out, index, lock, store.tar_member)


async def unbundle(
    cluster_file: Path,
    archives: Sequence[str],
    source: Path,
    *,
    sha256: str = "",
    store: BlobStore,
    report: Reporter = silent,
) -> Imported:
    """Put everything of a bundle in its place. `archives` are the image archives that this host's cluster.yaml names.

    ArtifactError or InputError, before anything is changed, when the bundle is not whole, when the lock file already
    pins other bytes, or when another file lies in an image archive's place. `sha256`, if given, is the whole file's.
    """
    told = _from_thread(report)
    opened = await asyncio.to_thread(bundle_file.open_, source, progress(told, source.name, what="check"))
    if sha256 and opened.sha256 != sha256.lower():
        hint = "this is another bundle than the one that was meant: ask its maker for the hash that was printed"
        raise BundleError(f"has sha256 {opened.sha256}, not {sha256}", subject=str(source), hint=hint)
    lock = _lock(opened)

    def merged(mine: Lock) -> Lock:
        for key, entry in sorted(lock.entries.items()):
            mine = lockfile.pin(mine, key, entry, update=False, place=str(source))
        return mine

    merged(read_lock(lock_path(cluster_file)))
    places = {portable(path, cluster_file): Path(path) for path in archives}
    wanted = {places[image.path]: image.blob for image in opened.index.images if image.path in places}
    missing = {path: blob for path, blob in wanted.items() if not _is_there(path, blob, store)}
    await asyncio.to_thread(bundle_file.unpack, opened, store, progress(told, source.name, what="unpack"))
    for path, blob in missing.items():
        await asyncio.to_thread(_place, store.path(blob), path)
    await change_lock(store, lock_path(cluster_file), merged)
    return Imported(
        artifacts=tuple(dict.fromkeys(key.artifact for key in sorted(lock.entries))),
        images=tuple(wanted),
        unnamed=tuple(image.path for image in opened.index.images if image.path not in places),
    )


def _from_thread(report: Reporter) -> Reporter:
    """The same reporter for a thread: it is called where all others call it."""
    loop = asyncio.get_running_loop()

    def tell(event: Event) -> None:
        loop.call_soon_threadsafe(report, event)

    return tell


def portable(path: str, cluster_file: Path) -> str:
    """A path of this host as another host knows it: relative to cluster.yaml's folder where it lies below it."""
    try:
        return str(Path(path).relative_to(cluster_file.absolute().parent))
    except ValueError:
        return path


def _lock(opened: Opened) -> Lock:
    """The bundle's pins, every one of them with its bytes."""
    lock = lockfile.parse(opened.lock, subject=f"{opened.path}: {lockfile.NAME}")
    digests = {blob.sha256 for blob in opened.index.blobs}
    absent = [key.artifact for key, entry in lock.entries.items() if entry.sha256 not in digests]
    if absent:
        raise BundleError(f"lacks the bytes of {', '.join(absent)}", subject=str(opened.path))
    return lock


def _is_there(path: Path, blob: Blob, store: BlobStore) -> bool:
    """Whether the archive lies in its place already; InputError where another file does."""
    if not path.exists():
        return False
    if not path.is_file() or store.hash_file(path) != blob:
        hint = "move it away if it may go: the bundle has another one for this place"
        raise FileError("is there already, with other bytes than the bundle's", subject=str(path), hint=hint)
    return True


def _place(blob: Path, path: Path) -> None:
    """Copy a blob to where cluster.yaml names it; the file appears whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as out, blob.open("rb") as file:
            shutil.copyfileobj(file, out, 1 << 20)
    except OSError as error:
        hint = "cluster.yaml names this place (components.containerd.preload_images): make it writable, or name another"
        raise BundleError(f"can't be written: {reason(error)}", subject=str(path), hint=hint) from error
