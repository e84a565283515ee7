"""The control host's cache: artifacts by content, what is known of them, and downloads not yet finished.

```
$XDG_CACHE_HOME/kubeworker/
  store/sha256-<hex>        the artifacts, read-only, named by their content
  stat/<hex>                size, times and inode at which a blob's content was last hashed
  index/<hash>.json         which blob an (artifact, version, architecture, source, inputs) is
  members/sha256-<hex>.gz   the same as compressed tar entries, ready to be sent
  partial/                  downloads that were cut; the next run goes on where they end
  work/, locks/             builds under way
```
It is shared by all checkouts and safe for several processes: every file appears by rename, and builds take a lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from kubeworker.core.artifacts import tar_stream
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError, ArtifactMissing, BlobDamaged, reason
from kubeworker.io.whole_file import write_atomically

_CHUNK = 1 << 20
_ABANDONED = 24 * 3600
"""Seconds after which a work directory belongs to no running build."""


class BlobStore:
    """See the module's description; made with `BlobStore.default()` or on any directory."""

    def __init__(self, root: Path, *, make: bool = True) -> None:
        """Use this directory, made where it is not there; or not, by those who only look what is in it."""
        self.root = root
        if not make:
            return
        try:
            for name in ("store", "stat", "index", "members", "partial", "work", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"can't be made: {reason(error)}", subject=str(root), hint="set XDG_CACHE_HOME to a writable directory"
            ) from error

    @classmethod
    def default(cls, *, make: bool = True) -> BlobStore:
        """The user's cache (XDG base directory specification)."""
        home = os.environ.get("XDG_CACHE_HOME", "")
        # The specification has relative values ignored.
        base = Path(home) if home.startswith("/") else Path.home() / ".cache"
        return cls(base / "kubeworker", make=make)

    # -- content ------------------------------------------------------------------------------------------------

    def path(self, blob: Blob) -> Path:
        """The blob's file, after a check that it still holds its content.

        The content is hashed again only when size, times or inode differ from what they were at the last hashing.
        Raises ArtifactMissing when it isn't here and BlobDamaged, with both hashes, when it changed.
        """
        path = self._file(blob.sha256)
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise ArtifactMissing("is not in the cache", subject=str(path)) from None
        if self._known(blob.sha256) == _fingerprint(stat):
            return path
        digest, _ = _hash(path)
        if digest != blob.sha256:
            raise BlobDamaged(
                f"its content has sha256 {digest} instead of {blob.sha256}",
                subject=str(path),
                hint="it was dropped and is fetched again; look at the disk if this repeats",
            )
        self._write(self.root / "stat" / blob.sha256, _fingerprint(stat).encode())
        return path

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here at all; `path` looks at its content."""
        return self._file(blob.sha256).exists()

    def add_file(self, path: Path) -> Blob:
        """Copy a file into the store."""
        with self.work() as work:
            copy = work / "copy"
            shutil.copyfile(path, copy)
            return self.adopt(copy)

    def adopt(self, path: Path, blob: Blob | None = None) -> Blob:
        """Move a file into the store; it must lie in this cache (`work`, `partial`), so that it moves by rename.

        `blob` is what `hash_file` just said of it.
        """
        blob = blob or self.hash_file(path)
        path.chmod(0o555)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        target = self._file(blob.sha256)
        path.replace(target)
        self._write(self.root / "stat" / blob.sha256, _fingerprint(target.stat()).encode())
        return blob

    def hash_file(self, path: Path) -> Blob:
        """What a file would be as a blob."""
        digest, size = _hash(path)
        return Blob(sha256=digest, size=size)

    def drop(self, blob: Blob) -> None:
        """Forget a blob and what was made of it."""
        for path in (self._file(blob.sha256), self.root / "stat" / blob.sha256, self._member(blob.sha256)):
            path.unlink(missing_ok=True)

    def tar_member(self, blob: Blob) -> Path:
        """The blob as one gzip member that holds its tar entry `sha256-<hex>`, made at the first call.

        Such members one after the other, then `tar_stream.END`, are one .tar.gz.
        """
        source, member = self.path(blob), self._member(blob.sha256)
        if member.exists():
            return member
        with self.work() as work:
            with (
                (work / "member").open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", compresslevel=tar_stream.LEVEL, fileobj=raw, mtime=0) as out,
                source.open("rb") as file,
            ):
                out.write(tar_stream.header(f"sha256-{blob.sha256}", blob.size, mode=0o755))
                shutil.copyfileobj(file, out, _CHUNK)
                out.write(tar_stream.padding(blob.size))
            (work / "member").replace(member)
        return member

    # -- what is known of it -----------------------------------------------------------------------------------

    def recall(self, key: tuple[str, ...]) -> Blob | None:
        """The blob remembered under a key, if it is still here."""
        try:
            record = json.loads(self._record(key).read_bytes())
            blob = Blob(sha256=record["sha256"], size=record["size"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return blob if self.has(blob) else None

    def remember(self, key: tuple[str, ...], blob: Blob) -> None:
        """Note under a key which blob it stands for; the key is in the record for those who look."""
        record = {"key": list(key), "sha256": blob.sha256, "size": blob.size}
        self._write(self._record(key), json.dumps(record, indent=1).encode())

    # -- places ------------------------------------------------------------------------------------------------

    @contextmanager
    def work(self) -> Iterator[Path]:
        """A fresh directory on the store's file system, removed afterwards; what killed processes left goes too."""
        for left in (self.root / "work").iterdir():
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
        path = Path(tempfile.mkdtemp(dir=self.root / "work"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def partial(self, name: str) -> Path:
        """Where a download of this name is kept until it is complete."""
        return self.root / "partial" / hashlib.sha256(name.encode()).hexdigest()[:32]

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """Hold a lock that other processes honour; waits for them."""
        with (self.root / "locks" / hashlib.sha256(name.encode()).hexdigest()[:32]).open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.2)
            yield

    def _file(self, digest: str) -> Path:
        return self.root / "store" / f"sha256-{digest}"

    def _member(self, digest: str) -> Path:
        return self.root / "members" / f"sha256-{digest}.gz"

    def _record(self, key: tuple[str, ...]) -> Path:
        return self.root / "index" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"

    def _known(self, digest: str) -> str:
        try:
            return (self.root / "stat" / digest).read_text()
        except FileNotFoundError:
            return ""

    def _write(self, path: Path, content: bytes) -> None:
        write_atomically(path, content)


def _hash(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _fingerprint(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
