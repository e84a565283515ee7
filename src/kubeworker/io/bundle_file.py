"""Bundles on disk (hides tarfile and gzip): written and read as streams, whatever their size."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kubeworker.core.artifacts import bundle, lockfile, tar_stream
from kubeworker.core.artifacts.bundle import Index
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError, BundleError, reason
from kubeworker.io.blob_store import BlobStore

_CHUNK = 1 << 20
_COPY_AGAIN = "copy it again, and compare the file's sha256 with the one that `artifacts bundle` printed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A finished bundle."""

    size: int
    sha256: str
    """Of the whole file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A bundle whose every byte was checked."""

    path: Path
    sha256: str
    index: Index
    lock: str
    """The text of its kubeworker.lock."""


def write(out: Path, index: Index, lock: bytes, members: Callable[[Blob], Path]) -> Written:
    """Write a bundle; `members` gives a blob's gzip member (`BlobStore.tar_member`), made as the blob's turn comes.

    It is read once more before it gets its name: what is carried away is known to be whole. The same contents give the
    same bytes. ArtifactError where the file can't be written or did not turn out right.
    """
    temporary = out.with_name(f".{out.name}.partial")
    try:
        with temporary.open("wb") as file:
            copy = _Hashed(file)
            copy.write(tar_stream.member(bundle.INDEX, bundle.render(index), mode=0o644))
            copy.write(tar_stream.member(lockfile.NAME, lock, mode=0o644))
            for blob in index.blobs:
                with members(blob).open("rb") as member:
                    shutil.copyfileobj(member, copy, _CHUNK)
            copy.write(bundle.end(copy.hash.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        _read_again(temporary, out)
        temporary.replace(out)
    except OSError as error:
        raise BundleError(f"can't be written: {reason(error)}", subject=str(out)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Written(size=out.stat().st_size, sha256=copy.hash.hexdigest())


def _read_again(temporary: Path, out: Path) -> None:
    try:
        for _, copy in contents(open_(temporary)):
            copy(None)
    except ArtifactError as error:
        hint = "a compressed copy in the cache is damaged: remove $XDG_CACHE_HOME/kubeworker/members and do it again"
        raise BundleError(f"did not turn out right: {error.message}", subject=str(out), hint=hint) from error


class _Hashed:
    """A file that is written and hashed at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)


Tell = Callable[[int, int], None]
"""Is told how many bytes of how many are done."""


def _untold(_done: int, _total: int) -> None:
    """For those who don't ask."""


def open_(path: Path, tell: Tell = _untold) -> Opened:
    """Check the whole file against the hash at its end, then read what it says of itself.

    ArtifactError where a single bit is not as it was written, or the file is no bundle at all.
    """
    digest = _checked(path, tell)
    with _entries(path) as entries:
        index = bundle.parse(_small(path, entries, bundle.INDEX), subject=str(path))
        lock = _small(path, entries, lockfile.NAME)
    return Opened(path=path, sha256=digest, index=index, lock=lock.decode())


Sink = Callable[[IO[bytes] | None], None]
"""Copies an entry's content into a file, or only checks it (None). To be called before the next entry is asked for."""


def contents(opened: Opened, tell: Tell = _untold) -> Iterator[tuple[Blob, Sink]]:
    """Every blob in its order, with what copies it; ArtifactError where a blob is not what its name says."""
    done, total = 0, sum(blob.size for blob in opened.index.blobs)

    def copied(number: int) -> None:
        nonlocal done
        done += number
        tell(done, total)

    with _entries(opened.path) as entries:
        for name in (bundle.INDEX, lockfile.NAME):
            _small(opened.path, entries, name)
        for blob in opened.index.blobs:
            name = f"sha256-{blob.sha256}"
            file = _entry(opened.path, entries, name, blob.size)

            def sink(out: IO[bytes] | None, file: IO[bytes] = file, blob: Blob = blob) -> None:
                found = _copy(opened.path, file, out, copied)
                if found != blob.sha256:
                    message = f"its file sha256-{blob.sha256} has sha256 {found}"
                    raise BundleError(message, subject=str(opened.path), hint="make the bundle again")

            yield blob, sink
        _entry(opened.path, entries, bundle.HASH, 65)


def unpack(opened: Opened, store: BlobStore, tell: Tell = _untold) -> None:
    """Put every blob into the store: all of them, or none where one is not what it should be or there is no room."""
    try:
        with store.work() as work:
            blobs = []
            for blob, copy in contents(opened, tell):
                if _is_in(store, blob):
                    copy(None)
                    continue
                place = work / f"sha256-{blob.sha256}"
                with place.open("wb") as out:
                    copy(out)
                blobs.append((place, blob))
            for place, blob in blobs:
                store.adopt(place, blob)
    except OSError as error:
        hint = "make room there, or set XDG_CACHE_HOME to a directory with more"
        raise BundleError(f"can't be written: {reason(error)}", subject=str(store.root), hint=hint) from error


def _is_in(store: BlobStore, blob: Blob) -> bool:
    try:
        store.path(blob)
    except ArtifactError:  # not there, or damaged: then it is replaced
        return False
    return True


def _checked(path: Path, tell: Tell) -> str:
    """The whole file's sha256, once its end was found to be the one that its other bytes ask for."""
    try:
        with path.open("rb") as file:
            left = total = path.stat().st_size - bundle.END_LENGTH
            whole = hashlib.sha256()
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                whole.update(chunk)
                left -= len(chunk)
                tell(total - left, total)
            end = file.read(bundle.END_LENGTH + 1)
    except OSError as error:
        raise BundleError(f"can't be read: {reason(error)}", subject=str(path), hint="check the path") from error
    wanted = bundle.end(whole.hexdigest())
    if end != wanted:
        # An end that is one but for its hash: the bytes before it are not those that it was made for.
        like = len(end) == len(wanted) and end[:512] == wanted[:512]
        message = (
            "its bytes are not those that it was written with: it is damaged"
            if like
            else "does not end as a bundle does: it is damaged, cut short, or no bundle"
        )
        raise BundleError(message, subject=str(path), hint=_COPY_AGAIN)
    whole.update(end)
    return whole.hexdigest()


@contextmanager
def _entries(path: Path) -> Iterator[Iterable[tuple[tarfile.TarInfo, IO[bytes] | None]]]:
    with _reading(path), tarfile.open(path, "r:gz") as archive:

        def each() -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
            for entry in archive:
                yield entry, archive.extractfile(entry) if entry.isreg() else None

        yield each()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeDecodeError) as error:
        raise BundleError(f"can't be read: {error}", subject=str(path), hint="make the bundle again") from error


def _entry(path: Path, entries: Iterable[tuple[tarfile.TarInfo, IO[bytes] | None]], name: str, size: int) -> IO[bytes]:
    """The next entry, which must be the file of this name and size."""
    entry, file = next(iter(entries), (None, None))
    if entry is None or file is None or (entry.name, entry.size) != (name, size):
        raise _other(path, entry, name)
    return file


def _small(path: Path, entries: Iterable[tuple[tarfile.TarInfo, IO[bytes] | None]], name: str) -> bytes:
    """The next entry's content, which must be a short file of this name."""
    entry, file = next(iter(entries), (None, None))
    if entry is None or file is None or entry.name != name or entry.size > bundle.MAX_INDEX:
        raise _other(path, entry, name)
    return file.read()


def _other(path: Path, entry: tarfile.TarInfo | None, name: str) -> ArtifactError:
    found = f"{entry.name!r} of {entry.size} bytes" if entry is not None else "nothing"
    return BundleError(f"holds {found} where {name} should be", subject=str(path), hint="make the bundle again")


def _copy(path: Path, file: IO[bytes], out: IO[bytes] | None, copied: Callable[[int], None]) -> str:
    found = hashlib.sha256()
    while True:
        with _reading(path):
            chunk = file.read(_CHUNK)
        if not chunk:
            return found.hexdigest()
        found.update(chunk)
        if out is not None:
            out.write(chunk)
        copied(len(chunk))
