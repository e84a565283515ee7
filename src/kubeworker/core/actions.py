"""What a plan consists of: each action is a value that says what it changes, why, and how that looks.

`plan` prints these values and `apply` executes exactly them (`node_script`). Nothing here knows how.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from kubeworker.core.model import (
    AbsentUnit,
    Binary,
    Blob,
    ConfigCheck,
    Deferred,
    Directory,
    File,
    Image,
    Leftover,
    Link,
    Origin,
    Stage,
    Unit,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPackages:
    """Debian packages whose commands are missing."""

    packages: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapOff:
    """Swap is turned off now and kept off: fstab lines commented out, swap units masked."""

    active: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModule:
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSysctl:
    key: str
    value: str
    was: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDirectory:
    directory: Directory
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBinary:
    binary: Binary
    was: str
    """sha256 of what lies there now; empty where nothing does."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutFile:
    file: File
    was: str
    """sha256 of what lies there now; empty where nothing does."""
    text: str = field(repr=False)
    """Unified diff; for a secret file the two hashes."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutLink:
    link: Link
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode:
    """Content is right; mode or owner is not."""

    path: str
    mode: int
    owner: str
    was: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePath:
    path: str
    reason: str
    folder_too: bool = False
    """Its folder goes with it where nothing else is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonReload:
    units: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableUnit:
    unit: Unit
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUnit:
    unit: Unit
    record: str
    """What the start record is to hold: restart digest and reload digest."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartUnit:
    unit: Unit
    record: str
    follows: str = ""
    """The unit whose restart makes systemd restart this one (Requires=); then only the gate is awaited."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadUnit:
    unit: Unit
    record: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopUnit:
    """Stopped and disabled, to be gone."""

    unit: AbsentUnit
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveLeftover:
    leftover: Leftover
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportImage:
    image: Image
    reason: str


UnitAction: TypeAlias = StartUnit | RestartUnit | ReloadUnit
Action: TypeAlias = (
    InstallPackages
    | SwapOff
    | LoadModule
    | SetSysctl
    | MakeDirectory
    | PutBinary
    | PutFile
    | PutLink
    | SetMode
    | RemovePath
    | DaemonReload
    | EnableUnit
    | StartUnit
    | RestartUnit
    | ReloadUnit
    | StopUnit
    | RemoveLeftover
    | ImportImage
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What one component's stage changes on one node, in the order in which it is carried out."""

    stage: Stage
    actions: tuple[Action, ...] = ()
    blobs: tuple[Blob, ...] = ()
    """What must be sent before: needed by an action and not (or not intact) in the node's store."""
    checks: tuple[ConfigCheck, ...] = ()
    """Config checks that run before anything is swapped in."""
    bin_dir: str
    origin: Origin = field(default_factory=Origin)
    """What the desired state was computed from; it goes into the node's record."""
    settled: tuple[Stage, ...] = ()
    """Stages of the node that have nothing to do, and whose record (core/applied.py) this one brings up to date."""
    kept: tuple[str, ...] = ()
    """sha256 of every blob the node's whole desired state names: never removed from the store."""

    @property
    def component(self) -> str:
        return self.stage.component

    @property
    def deferred(self) -> tuple[Deferred, ...]:
        """Files that are decided later in the same run."""
        return self.stage.deferred


def kind(action: Action) -> str:
    """The stable name of the action's kind, as `plan --json` prints it."""
    match action:
        case InstallPackages():
            return "packages"
        case SwapOff():
            return "swap-off"
        case LoadModule():
            return "module"
        case SetSysctl():
            return "sysctl"
        case MakeDirectory():
            return "directory"
        case PutBinary():
            return "binary"
        case PutFile():
            return "file"
        case PutLink():
            return "link"
        case SetMode():
            return "mode"
        case RemovePath():
            return "remove"
        case DaemonReload():
            return "daemon-reload"
        case EnableUnit():
            return "enable"
        case StartUnit():
            return "start"
        case RestartUnit():
            return "restart"
        case ReloadUnit():
            return "reload"
        case StopUnit():
            return "stop"
        case RemoveLeftover():
            return "leftover"
        case ImportImage():
            return "image"
        case _:
            assert_never(action)


def subject(action: Action) -> str:
    """What the action is done to: a path, a unit, a setting."""
    match action:
        case InstallPackages(packages=packages):
            return " ".join(packages)
        case SwapOff(active=active):
            return " ".join(active) or "/etc/fstab"
        case LoadModule(name=name):
            return name
        case SetSysctl(key=key):
            return key
        case MakeDirectory(directory=directory):
            return directory.path
        case PutBinary(binary=binary):
            return binary.path
        case PutFile(file=file):
            return file.path
        case PutLink(link=link):
            return link.path
        case SetMode(path=path) | RemovePath(path=path):
            return path
        case DaemonReload(units=units):
            return " ".join(units)
        case EnableUnit(unit=unit) | StartUnit(unit=unit) | RestartUnit(unit=unit) | ReloadUnit(unit=unit):
            return unit.name
        case StopUnit(unit=absent):
            return absent.name
        case RemoveLeftover(leftover=leftover):
            return leftover.name
        case ImportImage(image=image):
            return image.reference
        case _:
            assert_never(action)


def difference(action: Action) -> str:
    """What changes, as text: a unified diff of a file, hashes of a binary or secret, else `old -> new` or nothing."""
    match action:
        case PutFile(text=text):
            return text
        case PutBinary(binary=binary, was=was):
            return f"sha256 {was[:12] or 'none'} -> {binary.blob.sha256[:12]} ({binary.version})"
        case SetSysctl(value=value, was=was):
            return f"{was or 'unset'} -> {value}"
        case SetMode(mode=mode, owner=owner, was=was):
            return f"{was} -> {mode:04o} {owner}"
        case PutLink(link=link):
            return f"-> {link.target}"
        case RemoveLeftover(leftover=leftover) if leftover.keep:
            return "works until what replaces it does"
        case _:
            return ""


def as_json(action: Action) -> dict[str, str]:
    """The action as `plan --json` prints it (design: stable machine-readable forms)."""
    return {
        "kind": kind(action),
        "subject": subject(action),
        "reason": action.reason,
        "diff": difference(action),
    }
