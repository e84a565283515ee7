"""Small files on the control host that go to nodes: the operator's CA and client certificates, keys, headers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kubeworker.errors import FileError, reason


def read(paths: Iterable[str]) -> dict[str, bytes]:
    """Their contents by path. InputError for one that can't be read or is empty."""
    return {path: _read(Path(path)) for path in paths}


def read_present(paths: Iterable[str]) -> dict[str, bytes]:
    """The same for those that are there: a file tree can be rendered where the secrets are not."""
    return read(path for path in paths if Path(path).is_file())


def _read(path: Path) -> bytes:
    hint = "cluster.yaml names it; paths in it are relative to it"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"can't be read: {reason(error)}", subject=str(path), hint=hint) from error
    if not content.strip():
        raise FileError("is empty", subject=str(path), hint=hint)
    return content
