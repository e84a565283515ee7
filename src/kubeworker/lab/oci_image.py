"""Writes OCI image archives of one layer, in one pass and with nothing but a buffer in memory.

The format is the OCI image layout in a tar file, with containerd's own annotation for the full name
(`io.containerd.image.name`), which `ctr images import` reads. A blob's name is its digest, which is known only after
its last byte: the layer comes first in the archive, and its header is written when its end is reached.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from kubeworker.core.artifacts.artifact import Architecture

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_BUFFER = 1 << 20
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an image says of itself."""

    reference: str
    architecture: Architecture
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    """$PATH of its processes."""
    user: str = ""
    """Whom its processes run as; empty: root."""


def write(out: BinaryIO, image: Image, fill: Callable[[tarfile.TarFile], None], *, level: int = 0) -> None:
    """Write the archive into a file that can be sought in; `fill` adds the layer's files.

    `level` is gzip's for the layer, 0 for none. The same files give the same bytes.
    """
    start = out.tell()
    out.write(bytes(tarfile.BLOCKSIZE))
    stored = _Measured(out)
    plain = _layer(stored, fill, level)
    layer = {
        "mediaType": f"{_LAYER}+gzip" if level else _LAYER,
        "digest": f"sha256:{stored.digest}",
        "size": stored.size,
    }
    out.write(bytes(-stored.size % tarfile.BLOCKSIZE))
    end = out.tell()
    out.seek(start)
    out.write(_header(f"blobs/sha256/{stored.digest}", stored.size))
    out.seek(end)
    process = {"Entrypoint": image.entrypoint, "Cmd": image.command, "Env": [f"PATH={image.path}"]}
    config = _json(
        {
            "architecture": image.architecture,
            "os": "linux",
            "config": process | ({"User": image.user} if image.user else {}),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{plain}"]},
            "history": [{"created_by": "kubeworker lab"}],
        }
    )
    manifest = _json(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": _descriptor(_CONFIG, config), "layers": [layer]}
    )
    annotations = {
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": image.reference.rsplit(":", 1)[-1],
    }
    entry = _descriptor(_MANIFEST, manifest) | {"annotations": annotations}
    files = {
        f"blobs/sha256/{hashlib.sha256(config).hexdigest()}": config,
        f"blobs/sha256/{hashlib.sha256(manifest).hexdigest()}": manifest,
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    }
    for name, content in files.items():
        _file(out, name, content)
    out.write(bytes(2 * tarfile.BLOCKSIZE))


def add_tree(layer: tarfile.TarFile, root: Path, *, empty: Collection[str] = ()) -> None:
    """Add a directory's whole content, sorted and without times; of the directories named in `empty` not theirs."""
    for directory, names, files in os.walk(root):
        # Links to directories are among the names; os.walk does not follow them.
        for name in sorted((*names, *files)):
            _add(layer, root, Path(directory, name))
        inside = Path(directory).relative_to(root)
        names[:] = sorted(name for name in names if str(inside / name) not in empty)


def _add(layer: tarfile.TarFile, root: Path, path: Path) -> None:
    entry = layer.gettarinfo(path, arcname=str(path.relative_to(root)))
    entry.mtime, entry.uname, entry.gname = 0, "", ""
    if entry.isreg():
        with path.open("rb") as file:
            layer.addfile(entry, file)
    else:
        layer.addfile(entry)


def _layer(stored: _Measured, fill: Callable[[tarfile.TarFile], None], level: int) -> str:
    """Write the layer; the digest of its tar before compression."""
    if not level:
        _fill(stored, fill)
        return stored.digest
    with gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=stored, mtime=0) as packed:
        plain = _Measured(packed)
        _fill(plain, fill)
    return plain.digest


def _fill(stream: _Measured, fill: Callable[[tarfile.TarFile], None]) -> None:
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="w|", format=tarfile.GNU_FORMAT, bufsize=_BUFFER) as tar:
        fill(tar)


class _Measured(io.RawIOBase):
    """Passes on what is written, and knows its size and sha256."""

    def __init__(self, out: BinaryIO | gzip.GzipFile) -> None:
        self._out, self._hash, self.size = out, hashlib.sha256(), 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, content: Buffer, /) -> int:
        self._hash.update(content)
        self.size += memoryview(content).nbytes
        return self._out.write(content)


def _file(out: BinaryIO, name: str, content: bytes) -> None:
    out.write(_header(name, len(content)))
    out.write(content)
    out.write(bytes(-len(content) % tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.USTAR_FORMAT)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
