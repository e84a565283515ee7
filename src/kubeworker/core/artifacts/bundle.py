"""The form of a bundle: one .tar.gz that holds all that an air-gapped site needs of one cluster.

```
bundle.json        what is in it: the blobs, and the image archives with the paths that cluster.yaml names
kubeworker.lock    the pins of its artifacts
sha256-<hex>       the blobs, in the order of bundle.json
SHA256             the hash of every byte before this entry
```
`tar tf` reads it. The last entry is not compressed, so that its place and its length are known: the reader compares the
whole end of the file with what it has to be, and no bit of the file, gzip's own headers included, is left unchecked.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from typing import Any

from kubeworker.core.artifacts import tar_stream
from kubeworker.core.model import Blob
from kubeworker.errors import BundleError

FORMAT = 1
INDEX, HASH = "bundle.json", "SHA256"
MAX_INDEX = 1 << 24
"""Bytes that bundle.json or kubeworker.lock may have: far more than any has, and no burden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image archive on the control host."""

    path: str
    """As seen from cluster.yaml's folder where it lies below it, else absolute."""
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What a bundle holds beside its lock."""

    blobs: tuple[Blob, ...]
    """Each once, by hash; image archives among them."""
    images: tuple[ImageFile, ...]


def index(artifacts: tuple[Blob, ...], images: tuple[ImageFile, ...]) -> Index:
    """The index of these, in one order whatever theirs was."""
    every = {blob.sha256: blob for blob in (*artifacts, *(each.blob for each in images))}
    return Index(
        blobs=tuple(every[digest] for digest in sorted(every)),
        images=tuple(sorted(images, key=lambda image: image.path)),
    )


def render(contents: Index) -> bytes:
    """bundle.json."""
    document = {
        "format": FORMAT,
        "blobs": [_rendered(blob) for blob in contents.blobs],
        "images": [{"path": image.path, **_rendered(image.blob)} for image in contents.images],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def parse(content: bytes, *, subject: str) -> Index:
    """bundle.json read back; ArtifactError where it is none of this format."""
    try:
        document = json.loads(content)
        if document["format"] != FORMAT:
            hint = "import it with the kubeworker that made it, or make it again with this one"
            message = f"has format {document['format']!r}; this kubeworker reads format {FORMAT}"
            raise BundleError(message, subject=subject, hint=hint)
        blobs = tuple(_blob(each) for each in document["blobs"])
        images = tuple(ImageFile(path=str(each["path"]), blob=_blob(each)) for each in document["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"its {INDEX} can't be read: {error}", subject=subject) from error
    return Index(blobs=blobs, images=images)


def _rendered(blob: Blob) -> dict[str, Any]:
    return {"sha256": blob.sha256, "size": blob.size}


def _blob(values: dict[str, Any]) -> Blob:
    digest, size = values["sha256"], values["size"]
    if not isinstance(size, int) or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"sha256 {digest!r}, size {size!r}")
    return Blob(sha256=digest, size=size)


def end(digest: str) -> bytes:
    """The end of a bundle whose bytes before it have this sha256: the entry SHA256 and the end of the archive."""
    content = f"{digest}\n".encode()
    entry = tar_stream.header(HASH, len(content), mode=0o644) + content + tar_stream.padding(len(content))
    return gzip.compress(entry + tar_stream.END_OF_ARCHIVE, 0, mtime=0)


END_LENGTH = len(end("0" * 64))
"""Bytes that `end` has, whatever the hash."""
