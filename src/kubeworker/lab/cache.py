"""Things that take minutes to make and are then kept for all labs."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def once(finished: Path, make: Callable[[Path], None]) -> Path:
    """The file or folder of that name, made now if it is not there; two callers at once make it once.

    `make` is given another name in the same folder. What killed runs left there is removed first.
    """
    folder = finished.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            for leftover in folder.glob("*.tmp"):
                remove(leftover)
            temporary = finished.with_name(f"{finished.name}.tmp")
            make(temporary)
            temporary.rename(finished)
    return finished


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
