"""known_hosts files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"), read in once for a whole fleet.

A file of a thousand names costs a tenth of a second to read in with all its keys. So it is looked through by name, and
only the keys of the host at hand are read in; a file with patterns or hashed names is read in once, as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import asyncssh

from kubeworker.errors import CredentialsError

Files: TypeAlias = tuple[Path, ...]
_Stamp: TypeAlias = tuple[int, ...]

_PATTERN = frozenset("*?|/!")
"""What makes an entry's names more than plain names: wildcards, networks, exceptions, hashes."""


def match(files: Files, host: str, addr: str, port: int | None) -> Any:
    """What asyncssh wants to know of a host: keys, authorities and revoked ones that the files have for it.

    `port` is None for 22. CredentialsError: a file can't be read, or has a line that is none.
    """
    return _entries(files).match(host, addr, port)


def add(files: Files, entry: str, key: asyncssh.SSHKey) -> None:
    """Write the host's key into the first of the files, unless it is there."""
    entries = _entries(files)
    line = f"{entry} {key.export_public_key().decode().strip()}\n"
    path = files[0]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+") as file:
        file.seek(0)
        text = file.read()
        if line not in text.splitlines(keepends=True):
            file.write(("\n" if text and not text.endswith("\n") else "") + line)
            entries.learn(line)
    # The file is now what was known, with this line: a fleet's first run does not read it in again for each node.
    _kept[files] = (_stamps(files), entries)


@dataclass(kw_only=True)
class _Entries:
    """All lines of some files."""

    lines: list[str]
    by_name: dict[str, list[str]] = field(default_factory=dict)
    plain: bool = True
    """No line has more than plain names."""

    def __post_init__(self) -> None:
        for line in self.lines:
            self._sort_in(line)

    def match(self, host: str, addr: str, port: int | None) -> Any:
        if not self.plain:
            return self._whole.match(host, addr, port)
        names = dict.fromkeys((host, addr, f"[{host}]:{port}", f"[{addr}]:{port}"))
        lines = [line for name in names for line in self.by_name.get(name, ())]
        return _imported(lines).match(host, addr, port)

    def learn(self, line: str) -> None:
        if "_whole" in self.__dict__:
            self._whole.load(line)
        self.lines.append(line)
        self._sort_in(line)

    @cached_property
    def _whole(self) -> asyncssh.SSHKnownHosts:
        return _imported(self.lines)

    def _sort_in(self, line: str) -> None:
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            return
        names = words[1] if words[0].startswith("@") and len(words) > 1 else words[0]
        if _PATTERN.intersection(names):
            self.plain = False
        for name in names.split(","):
            self.by_name.setdefault(name, []).append(line)


_kept: dict[Files, tuple[tuple[_Stamp, ...], _Entries]] = {}


def _entries(files: Files) -> _Entries:
    """As the files are now: read again when one has changed."""
    stamps = _stamps(files)
    known = _kept.get(files)
    if known is None or known[0] != stamps:
        known = (stamps, _Entries(lines=[line for path in files for line in _lines(path)]))
        _kept[files] = known
    return known[1]


def _stamps(files: Files) -> tuple[_Stamp, ...]:
    return tuple(map(_stamp, files))


def _stamp(path: Path) -> _Stamp:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _lines(path: Path) -> Sequence[str]:
    try:
        return [f"{line}\n" for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"can't be read: {error}", subject=str(path), hint="check `ssh.known_hosts`") from error


def _imported(lines: Sequence[str]) -> asyncssh.SSHKnownHosts:
    try:
        return asyncssh.import_known_hosts("".join(lines))
    except ValueError as error:
        raise CredentialsError(str(error), subject="known_hosts", hint="check `ssh.known_hosts`") from error
