"""Watches managed paths of a machine without a gap: how each name came, and whether anybody wrote to what is visible.

inotify(7) tells every event of a folder with the name at that moment, so nothing hides between two looks. A file that
is made beside its target and renamed shows as one `moved_to` of the visible name; one that is written where everybody
sees it shows as `create`, `modify` or `close_write` of that name.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import select
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODIFY, CLOSE_WRITE, MOVED_TO, CREATE = 0x2, 0x8, 0x80, 0x100
_OVERFLOW, _FOLDER, _ONLY_FOLDERS = 0x4000, 0x40000000, 0x1000000
_LARGE = 1 << 20
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A managed name got new content, whole."""

    path: str
    at: float
    """CLOCK_MONOTONIC, seconds: systemd's own clock for starts, on this host and in its containers."""
    sha256: str
    """Of what lay there a moment later; empty for large files, links, and what was gone again."""
    late: bool = False
    """It was there when its folder was first looked at: the way it came was not seen."""


class Watcher(threading.Thread):
    """From construction to `stop()`."""

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        """`paths` are absolute as the machine has them; their folders need not exist yet."""
        super().__init__(daemon=True)
        self.arrivals: list[Arrival] = []
        self.broken: list[str] = []
        """What was written where everybody sees it: `path: event`."""
        self._root, self._paths = root, frozenset(paths)
        self._folders = {parent for path in self._paths for parent in map(str, Path(path).parents)}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watches: dict[int, str] = {}
        self._queue = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self._queue >= 0, os.strerror(ctypes.get_errno())
        self._ending = threading.Event()
        self._watch_folders(first=True)
        self.start()

    def stop(self) -> None:
        """What happened until now is told then."""
        self._ending.set()
        self.join()
        os.close(self._queue)

    def run(self) -> None:
        while True:
            ending = self._ending.is_set()
            if select.select([self._queue], [], [], 0 if ending else 0.1)[0]:
                self._read(os.read(self._queue, 1 << 20))
            elif ending:
                return

    def _watch_folders(self, *, first: bool) -> None:
        known = set(self._watches.values())
        for folder in sorted(self._folders - known, key=len):
            path = f"{self._root}{folder}"
            mask = MODIFY | CLOSE_WRITE | MOVED_TO | CREATE | _ONLY_FOLDERS
            watch = self._libc.inotify_add_watch(self._queue, path.encode(), mask)
            if watch < 0:
                continue
            self._watches[watch] = folder
            if not first:
                for entry in Path(path).iterdir():
                    if (managed := f"{folder.rstrip('/')}/{entry.name}") in self._paths:
                        self._arrived(managed, time.monotonic(), late=True)

    def _read(self, events: bytes) -> None:
        now, offset = time.monotonic(), 0
        while offset < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, offset)
            offset += _EVENT.size
            name = events[offset : offset + length].rstrip(b"\0").decode()
            offset += length
            if mask & _OVERFLOW:
                self.broken.append("inotify's queue ran over: what happened then was not seen")
                continue
            path = f"{self._watches.get(watch, '').rstrip('/')}/{name}"
            if mask & _FOLDER:
                self._watch_folders(first=False)
            elif path in self._paths and mask & MOVED_TO:
                self._arrived(path, now)
            elif path in self._paths:
                kinds = {MODIFY: "modify", CLOSE_WRITE: "close_write", CREATE: "create"}
                self.broken.append(f"{path}: {', '.join(text for bit, text in kinds.items() if mask & bit)}")

    def _arrived(self, path: str, at: float, *, late: bool = False) -> None:
        self.arrivals.append(Arrival(path=path, at=at, sha256=self._sha256(path), late=late))

    def _sha256(self, path: str) -> str:
        seen = Path(f"{self._root}{path}")
        try:
            if seen.is_symlink() or seen.stat().st_size > _LARGE:
                return ""
            return hashlib.sha256(seen.read_bytes()).hexdigest()
        except OSError:
            return ""
