"""OCI image archives (hides tarfile): what images an archive on the control host holds, and its bytes in the store.

The image's name is the annotation that containerd writes and reads (io.containerd.image.name), else the OCI one.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from kubeworker.core.component import Archive
from kubeworker.core.model import UNKNOWN, Blob
from kubeworker.errors import ArtifactError, FileError
from kubeworker.io.blob_store import BlobStore

NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def read(path: Path, store: BlobStore) -> Archive:
    """The archive's image names, and its bytes in the store. Raises what `references` raises."""
    return Archive(references=references(path), blob=_stored(path, store))


def looked_at(path: Path, store: BlobStore) -> Archive:
    """The same without a copy in the store: what only looks writes nothing. The file is read where it is not known."""
    named = references(path)
    return Archive(references=named, blob=store.recall(_key(path)) or store.hash_file(path))


def described(path: Path) -> Archive:
    """The archive's image names and its size, without a copy in the store; of one that is not there nothing is known.
    ArtifactError where it is no OCI archive.
    """
    if not path.is_file():
        return Archive(references=(), blob=UNKNOWN)
    # The store knows it by its bytes: this is the hash of no file, and of no other archive.
    stands_in = hashlib.sha256(f"unread {path}".encode()).hexdigest()
    return Archive(references=references(path), blob=Blob(sha256=stands_in, size=path.stat().st_size))


def references(path: Path) -> tuple[str, ...]:
    """Full names of the archive's images. InputError where there is no such file, ArtifactError where it is no OCI
    archive or names no image.
    """
    if not path.is_file():
        raise FileError(
            "no such file",
            subject=str(path),
            hint="components.containerd.preload_images in cluster.yaml names OCI archives on this machine",
        )
    try:
        with tarfile.open(path) as archive:
            member = archive.extractfile("index.json")
            index = json.loads(member.read()) if member else {}
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise _no_archive(path, str(error)) from error
    names = tuple(name for manifest in index.get("manifests", ()) if (name := _name(manifest.get("annotations") or {})))
    if not names:
        raise _no_archive(path, "its index.json names no image")
    return names


def _stored(path: Path, store: BlobStore) -> Blob:
    """The archive's blob; it is copied and hashed again only when the file has changed."""
    key = _key(path)
    known = store.recall(key)
    if known is not None and store.has(known):
        return known
    blob = store.add_file(path)
    store.remember(key, blob)
    return blob


def _key(path: Path) -> tuple[str, ...]:
    stat = path.stat()
    return ("archive", str(path.absolute()), str(stat.st_size), str(stat.st_mtime_ns), str(stat.st_ino))


def _name(annotations: dict[str, str]) -> str:
    return next((annotations[key] for key in NAME_ANNOTATIONS if annotations.get(key)), "")


def _no_archive(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"is not an OCI image archive: {why}",
        subject=str(path),
        hint="make one with: ctr images export FILE IMAGE, or skopeo copy ... oci-archive:FILE:IMAGE",
    )
