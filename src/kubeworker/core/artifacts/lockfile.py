"""kubeworker.lock: which bytes each artifact is, per architecture and kind of source, as TOML beside cluster.yaml.

An entry is written the first time an artifact is had. From then on another result is refused until the operator says
`artifacts fetch --update-lock`; another version in cluster.yaml replaces the entry, since that is what was asked for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import tomli_w

from kubeworker.core.artifacts.artifact import Architecture
from kubeworker.errors import ArtifactChanged, LockfileError

NAME = "kubeworker.lock"
"""The file, beside cluster.yaml."""
FORMAT = 1
HEADER = "# Written by kubeworker: the bytes that each artifact must have. Keep it in version control.\n"
UPDATE = "kubeworker artifacts fetch --update-lock"

Kind: TypeAlias = Literal["download", "build", "local"]
"""The sources that make an artifact; `cache` only hands out again what one of these made."""
KINDS: tuple[Kind, ...] = ("download", "build", "local")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """What is pinned: one artifact of one architecture by one kind of source."""

    artifact: str
    architecture: Architecture
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What it is pinned to."""

    version: str
    sha256: str
    size: int
    inputs: str = ""
    """Builds: hash of what is built and how (go.mod, go.sum, package, flags, tags; or nginx's configure line)."""
    toolchain: str = ""
    """Builds: compiler and libraries, as they name themselves."""
    tarball: str = ""
    """Builds from a source tarball: its sha256. (A Go build's sources are pinned by go.sum.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The whole file."""

    entries: Mapping[Key, Entry]

    def get(self, key: Key, version: str) -> Entry | None:
        """The entry, if it is for this version."""
        entry = self.entries.get(key)
        return entry if entry is not None and entry.version == version else None

    def having(self, key: Key, entry: Entry) -> Lock:
        """The same lock with this entry."""
        return Lock(entries={**self.entries, key: entry})


@lru_cache(maxsize=4)
def parse(text: str, *, subject: str) -> Lock:
    """Read the file's text; InputError when it is no lock file of this format.

    Kept for the same text: a run asks for each artifact in turn, and parsing TOML takes 2 ms.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LockfileError(f"is no valid TOML: {error}", subject=subject, hint=_DAMAGED) from error
    if document.get("format") != FORMAT:
        raise LockfileError(
            f"has format {document.get('format')!r}; this kubeworker reads format {FORMAT}",
            subject=subject,
            hint=_DAMAGED,
        )
    entries: dict[Key, Entry] = {}
    try:
        for artifact, architectures in document.get("artifacts", {}).items():
            for architecture, kinds in architectures.items():
                for kind, values in kinds.items():
                    entries[Key(artifact=artifact, architecture=architecture, kind=kind)] = _entry(values)
    except (AttributeError, TypeError, ValueError) as error:
        raise LockfileError(f"an entry is malformed: {error}", subject=subject, hint=_DAMAGED) from error
    return Lock(entries=entries)


_DAMAGED = f"restore it from version control, or remove it and run `{UPDATE}`"


def _entry(values: dict[str, Any]) -> Entry:
    entry = Entry(**values)
    if len(entry.sha256) != 64 or not isinstance(entry.size, int):
        raise ValueError(f"sha256 {entry.sha256!r}, size {entry.size!r}")
    return entry


def render(lock: Lock) -> str:
    """The file's text: sorted, so that the same pins always give the same bytes."""
    artifacts: dict[str, dict[str, dict[str, dict[str, str | int]]]] = {}
    for key in sorted(lock.entries):
        entry = lock.entries[key]
        values: dict[str, str | int] = {"version": entry.version, "sha256": entry.sha256, "size": entry.size}
        extra = {"inputs": entry.inputs, "toolchain": entry.toolchain, "tarball": entry.tarball}
        values |= {name: value for name, value in extra.items() if value}
        artifacts.setdefault(key.artifact, {}).setdefault(key.architecture, {})[key.kind] = values
    return HEADER + tomli_w.dumps({"format": FORMAT, "artifacts": artifacts})


def pin(lock: Lock, key: Key, entry: Entry, *, update: bool, place: str = "") -> Lock:
    """The lock with this result in it; ArtifactError when another result of the same version is pinned.

    `place` says in the error where the result came from.
    """
    locked = lock.get(key, entry.version)
    if locked is not None and not update:
        if locked.sha256 != entry.sha256:
            raise ArtifactChanged(
                f"{place or key.kind} gave {key.artifact} {entry.version} ({key.architecture}) with sha256 "
                f"{entry.sha256}, but kubeworker.lock has {locked.sha256}",
                subject=key.artifact,
                hint=f"find out why it changed; if it may: {UPDATE} --only {key.artifact}",
            )
        entry = replace(locked, size=entry.size)
    return lock.having(key, entry)


def check_inputs(lock: Lock, key: Key, wanted: Entry, *, update: bool) -> None:
    """Before a build: ArtifactError when the pinned one was made of other inputs (`wanted` has no sha256 yet)."""
    locked = lock.get(key, wanted.version)
    if locked is None or update:
        return
    differing = [
        f"{name} is {now or 'none'}, kubeworker.lock has {then or 'none'}"
        for name, now, then in (
            ("inputs", wanted.inputs, locked.inputs),
            ("toolchain", wanted.toolchain, locked.toolchain),
            ("tarball", wanted.tarball, locked.tarball),
        )
        if now != then
    ]
    if differing:
        raise ArtifactChanged(
            f"a build of {key.artifact} {wanted.version} ({key.architecture}) would differ from the pinned one "
            f"(sha256 {locked.sha256}): {'; '.join(differing)}",
            subject=key.artifact,
            hint=f"a differing rebuild needs `{UPDATE} --only {key.artifact}`",
        )
