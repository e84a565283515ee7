"""Who may read or change files on the control host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A file that others than its owner may read or change, or that is somebody else's."""

    path: Path
    mode: int
    owner: int
    """User id."""
    changed: float
    """When that was last changed, or the content: seconds since the epoch."""


def open_to_others(paths: Iterable[Path]) -> tuple[OpenFile, ...]:
    """Those of the files, and of the files below the folders, that are not private; what is not there is passed over.

    Private is a file of this user's, or root's, that its group and others have no right to. The content is not read.
    """
    found = (_look(path) for path in _files(paths))
    return tuple(each for each in found if each is not None)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.is_file())
        else:
            yield path


def _look(path: Path) -> OpenFile | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    mode = stat.S_IMODE(seen.st_mode)
    if not mode & 0o077 and seen.st_uid in {0, os.geteuid()}:
        return None
    return OpenFile(path=path, mode=mode, owner=seen.st_uid, changed=seen.st_ctime)
