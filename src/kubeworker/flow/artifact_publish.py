"""`artifacts publish`: what a mirror serves to nodes that fetch their artifacts (`artifacts.delivery: pull`)."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeworker.core.artifacts import tar_stream
from kubeworker.core.model import Blob
from kubeworker.core.node import pull_script
from kubeworker.errors import FileError, reason
from kubeworker.io import oci_archive
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.whole_file import replacing

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What lies in the folder now."""

    folder: Path
    written: int
    kept: int
    """Files that were there already: a name stands for its content, so they are the same."""
    size: int
    """Bytes of all of them."""


async def publish(blobs: Collection[Blob], archives: Sequence[str], out: Path, *, store: BlobStore) -> Published:
    """Write these artifacts, and these image archives on this host, below `out`, which the mirror serves as its base.

    Others that are there stay: nodes of another version or cluster may want them. FileError: it can't be written.
    """
    images = [(await asyncio.to_thread(oci_archive.read, Path(path), store)).blob for path in dict.fromkeys(archives)]
    folder = out / pull_script.FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {folder / pull_script.file_name(blob): blob for blob in (*blobs, *images)}
        new = {path: blob for path, blob in wanted.items() if not path.exists()}
        async with asyncio.TaskGroup() as group:
            for path, blob in new.items():
                group.create_task(asyncio.to_thread(_write, path, store.path(blob)))
        size = sum(path.stat().st_size for path in wanted)
    except OSError as error:
        raise _unwritable(folder, error) from error
    except ExceptionGroup as several:
        # Mostly the same trouble for each file: one is enough to read.
        first = several.exceptions[0]
        raise (_unwritable(folder, first) if isinstance(first, OSError) else first) from several
    return Published(folder=folder, written=len(new), kept=len(wanted) - len(new), size=size)


def _unwritable(folder: Path, error: OSError) -> FileError:
    hint = "name a folder that you can write to, with room for all artifacts"
    return FileError(f"can't be written: {reason(error)}", subject=str(folder), hint=hint)


def _write(path: Path, source: Path) -> None:
    with (
        source.open("rb") as file,
        replacing(path) as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=tar_stream.LEVEL, fileobj=raw, mtime=0) as out,
    ):
        shutil.copyfileobj(file, out, _CHUNK)
