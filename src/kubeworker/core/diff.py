"""The heart of the tool: what must be done to a node that looks like this so that it looks like that. Pure.

`diff(state, observed)` is empty exactly when there is nothing to do. A unit's need of a restart is computed from what
the node recorded at the unit's last good start, never remembered by a run: a run that died between writing a file and
restarting is finished by the next one.
"""

from __future__ import annotations

import base64
import difflib
import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kubeworker.core import actions, applied
from kubeworker.core.actions import (
    Action,
    DaemonReload,
    EnableUnit,
    ImportImage,
    InstallPackages,
    LoadModule,
    MakeDirectory,
    PutBinary,
    PutFile,
    PutLink,
    ReloadUnit,
    RemoveLeftover,
    RemovePath,
    RestartUnit,
    SetMode,
    SetSysctl,
    StagePlan,
    StartUnit,
    StopUnit,
    SwapOff,
)
from kubeworker.core.model import (
    AbsentUnit,
    Blob,
    Directory,
    File,
    KubeconfigTarget,
    Leftover,
    NodeState,
    Origin,
    Private,
    RequireCommand,
    Stage,
    Unit,
)
from kubeworker.core.node.observed import KubeletKubeconfig, Observed, SeenFile, SeenUnit
from kubeworker.core.node.probe import DROPIN_DIRS, former_path, managed_paths, remains_of, store_path

NONE = "-"
"""Stands for "no such file" in a digest."""


def diff(state: NodeState, observed: Observed) -> tuple[StagePlan, ...]:
    """One plan for each stage that has something to do, in the order in which they are carried out."""
    contents = _contents(state)
    kept = tuple(sorted({blob.sha256 for blob in blobs(state)}))
    restarting: dict[str, str] = {}
    plans: list[StagePlan] = []
    settled: list[Stage] = []
    for stage in state.stages:
        before = tuple(_before_units(stage, observed))
        about = _Inputs(
            contents=contents,
            observed=observed,
            changed=frozenset(_changed(before)),
            written=frozenset(action.file.path for action in before if isinstance(action, PutFile)),
        )
        gone = tuple(action for absent in stage.absent_units for action in _absent_unit(absent, observed))
        units = tuple(_units(stage, about, restarting))
        leftovers = tuple(_leftovers(stage.leftovers, observed))
        images = tuple(_images(stage, observed))
        # A stage that has something to do removes them anyway, once it is good.
        done = (*before, *gone, *units, *leftovers, *images) or tuple(_remains(stage, observed))
        if done:
            changing = {actions.subject(action) for action in before}
            plans.append(
                StagePlan(
                    stage=stage,
                    actions=done,
                    blobs=_missing_blobs(done, observed, state.bin_dir),
                    checks=tuple(check for check in stage.config_checks if changing & set(check.inputs)),
                    bin_dir=state.bin_dir,
                    kept=kept,
                    origin=state.origin,
                )
            )
        elif not _recorded(stage, state.origin, observed):
            settled.append(stage)
    if plans:
        plans[0] = replace(plans[0], settled=tuple(settled))
    return tuple(plans)


def _recorded(stage: Stage, origin: Origin, observed: Observed) -> bool:
    """Whether the node's record says of the stage what is asked for now. A record alone is no reason to do anything."""
    record = observed.applied.get(stage.component)
    wanted = {item.key: item for item in applied.items(stage)}
    return record is not None and record.origin == origin and record.items == wanted


def blobs(state: NodeState) -> tuple[Blob, ...]:
    """Every blob that the state names, each once."""
    named = [binary.blob for stage in state.stages for binary in stage.binaries]
    named += [image.archive for stage in state.stages for image in stage.images]
    return tuple(dict.fromkeys(named))


# ---------------------------------------------------------------------------------------------------------------
# Everything before the units


def _before_units(stage: Stage, observed: Observed) -> Iterator[Action]:
    yield from _packages(stage, observed)
    if stage.swap_off and (observed.swaps or observed.fstab_swaps):
        yield SwapOff(active=observed.swaps, reason="swap is on" if observed.swaps else "fstab turns swap on at boot")
    for module in stage.modules:
        if observed.modules.get(module.name) not in ("loaded", "builtin"):
            yield LoadModule(name=module.name, reason="not loaded")
    for sysctl in stage.sysctls:
        was = observed.sysctls.get(sysctl.key, "")
        if was != " ".join(sysctl.value.split()):
            yield SetSysctl(key=sysctl.key, value=sysctl.value, was=was, reason=f"is {was or 'not there'}")
    for directory in stage.directories:
        yield from _directory(directory, observed.files.get(directory.path))
    for binary in stage.binaries:
        was = observed.sha256(binary.path)
        if was != binary.blob.sha256:
            yield PutBinary(binary=binary, was=was, reason=_content_reason(observed.files.get(binary.path)))
        else:
            yield from _mode(binary.path, binary.mode, binary.owner, observed.files[binary.path])
    for file in _files(stage):
        yield from _file(file, observed.files.get(file.path))
    for target in stage.kubeconfigs:
        yield from _kubeconfig(target, observed)
    for private in stage.private:
        yield from _private(private, observed)
    for link in stage.links:
        seen = observed.files.get(link.path)
        if seen is None or seen.kind != "link" or seen.target != link.target:
            yield PutLink(link=link, reason=f"points to {seen.target}" if seen and seen.target else "missing")
    for absent in stage.absent:
        if absent.path in observed.files:
            yield RemovePath(path=absent.path, reason=absent.reason)
    named = {*(file.path for file in stage.files), *(absent.path for absent in stage.absent)}
    # The former version of a file that is wanted goes with the stage that writes it.
    named |= {former_path(path) for path in named}
    for marked in stage.marked:
        for path in sorted(observed.marked - named):
            if fnmatch.fnmatchcase(path, marked.pattern):
                yield RemovePath(path=path, reason=marked.reason, folder_too=True)


def _remains(stage: Stage, observed: Observed) -> Iterator[Action]:
    for path in managed_paths(stage) if observed.remains else ():
        for hidden in remains_of(path):
            if hidden in observed.remains:
                yield RemovePath(path=hidden, reason="left by a run that was killed")


def _packages(stage: Stage, observed: Observed) -> Iterator[Action]:
    missing = {
        requirement.package: requirement.name
        for requirement in stage.requirements
        if isinstance(requirement, RequireCommand)
        and requirement.package in stage.packages
        and requirement.name not in observed.commands
    }
    if missing:
        yield InstallPackages(
            packages=tuple(missing), reason=f"missing commands: {', '.join(sorted(missing.values()))}"
        )


def _directory(directory: Directory, seen: SeenFile | None) -> Iterator[Action]:
    if seen is None or seen.kind != "directory":
        yield MakeDirectory(directory=directory, reason="missing" if seen is None else f"is a {seen.kind}")
    else:
        yield from _mode(directory.path, directory.mode, directory.owner, seen)


def _file(file: File, seen: SeenFile | None) -> Iterator[Action]:
    if seen is None or seen.kind != "file" or seen.sha256 != file.sha256:
        was = seen.sha256 if seen is not None else ""
        yield PutFile(file=file, was=was, text=_file_text(file, seen), reason=_content_reason(seen))
    else:
        yield from _mode(file.path, file.mode, file.owner, seen)


def _kubeconfig(target: KubeconfigTarget, observed: Observed) -> Iterator[Action]:
    if not target.content:
        return
    seen, says = observed.files.get(target.path), observed.kubelet_kubeconfig
    wanted = KubeletKubeconfig(server=target.server, ca_data=base64.b64encode(target.ca).decode())
    if seen is not None and seen.kind == "file" and says == wanted:
        yield from _mode(target.path, 0o600, "root:root", seen)
        return
    if seen is None:
        text, reason = "", "missing"
    elif says.server != target.server:
        text, reason = f"server {says.server or 'none'} -> {target.server}", "names another server"
    else:
        text, reason = "certificate-authority-data: the cluster's", "trusts another CA"
    file = File(path=target.path, content=target.content, mode=0o600)
    yield PutFile(file=file, was=observed.sha256(target.path), text=text, reason=reason)


def _private(private: Private, observed: Observed) -> Iterator[Action]:
    for path in sorted(observed.files):
        seen = observed.files[path]
        # Narrower than 0600 is nobody's harm.
        others = seen.mode & 0o077 or seen.owner != "root:root"
        if others and seen.kind == "file" and fnmatch.fnmatchcase(path, private.pattern):
            was = f"{seen.mode:04o} {seen.owner}"
            yield SetMode(path=path, mode=0o600, owner="root:root", was=was, reason="a key that others may read")


def _mode(path: str, mode: int, owner: str, seen: SeenFile) -> Iterator[Action]:
    if (seen.mode, seen.owner) != (mode, owner):
        was = f"{seen.mode:04o} {seen.owner}"
        yield SetMode(path=path, mode=mode, owner=owner, was=was, reason="mode or owner differs")


def _content_reason(seen: SeenFile | None) -> str:
    if seen is None:
        return "missing"
    return "content differs" if seen.kind == "file" else f"is a {seen.kind}"


def _file_text(file: File, seen: SeenFile | None) -> str:
    was = seen.sha256 if seen is not None else ""
    hashes = f"sha256 {was[:12] or 'none'} -> {file.sha256[:12]}"
    if file.secret:
        return hashes
    old = seen.content if seen is not None and seen.content is not None else b""
    if was and not old and seen is not None and seen.size:
        why = "is too large to fetch" if seen.mode & 0o004 else "is not everybody's to read"
        return f"{hashes} (its present content {why})"
    try:
        before, after = old.decode(), file.content.decode()
    except UnicodeDecodeError:
        return hashes
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), file.path if was else "/dev/null", file.path, lineterm="", n=2
    )
    return "\n".join(lines) or f"{hashes} (only line ends differ)"


def _images(stage: Stage, observed: Observed) -> Iterator[Action]:
    present, reason = observed.images, "not in containerd's k8s.io namespace"
    if present is None:
        present, reason = frozenset(), "which images containerd has could not be asked"
    for image in stage.images:
        if image.reference not in present:
            yield ImportImage(image=image, reason=reason)


def _missing_blobs(done: Iterable[Action], observed: Observed, bin_dir: str) -> tuple[Blob, ...]:
    needed: dict[str, Blob] = {}
    for action in done:
        match action:
            case PutBinary(binary=binary):
                needed[binary.blob.sha256] = binary.blob
            case ImportImage(image=image):
                needed[image.archive.sha256] = image.archive
            case _:
                pass
    return tuple(blob for sha256, blob in needed.items() if observed.sha256(store_path(bin_dir, sha256)) != sha256)


def _files(stage: Stage) -> tuple[File, ...]:
    """The stage's files, unit files included."""
    return (*stage.files, *(unit.file for unit in stage.units))


# ---------------------------------------------------------------------------------------------------------------
# Units: the digest of the inputs, and what follows from it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    contents: Mapping[str, str]
    """Path -> sha256 as the whole state wants it; NONE for a path that must not exist."""
    observed: Observed
    changed: frozenset[str] = frozenset()
    """Paths whose content this plan changes."""
    written: frozenset[str] = frozenset()
    """Those of them that will be there afterwards."""

    def sha256(self, path: str) -> str:
        # A path that nobody manages, or that is decided later in the run, counts as it lies on the node.
        return self.contents.get(path) or self.observed.sha256(path) or NONE


def _contents(state: NodeState) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for stage in state.stages:
        wanted.update((binary.path, binary.blob.sha256) for binary in stage.binaries)
        wanted.update((file.path, file.sha256) for file in _files(stage))
        wanted.update((absent.path, NONE) for absent in stage.absent)
        wanted.update((path, NONE) for unit in stage.absent_units if not unit.waits_for for path in unit.paths)
    return wanted


def _changed(before: Iterable[Action]) -> Iterator[str]:
    for action in before:
        if isinstance(action, PutBinary | PutFile | RemovePath | PutLink):
            yield actions.subject(action)


def _dropin_prefixes(unit: Unit) -> tuple[str, ...]:
    return tuple(f"{directory}/{unit.name}.d/" for directory in DROPIN_DIRS)


def _restart_inputs(unit: Unit, inputs: _Inputs) -> dict[str, str]:
    prefixes = _dropin_prefixes(unit)
    dropins = {path for path in (*inputs.contents, *inputs.observed.files) if path.startswith(prefixes)}
    paths = {unit.path, *unit.restart_on, *dropins}
    digests = {path: inputs.sha256(path) for path in paths}
    # A drop-in that must not exist (or is gone) is no input, so that it leaves no trace in the digest.
    return {path: sha for path, sha in digests.items() if not (path in dropins and sha == NONE)}


def _reload_inputs(unit: Unit, inputs: _Inputs) -> dict[str, str]:
    return {path: inputs.sha256(path) for path in unit.reload_on}


def _digest(inputs: Mapping[str, str]) -> str:
    lines = (f"{sha256} {path}\n" for path, sha256 in sorted(inputs.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _units(stage: Stage, inputs: _Inputs, restarting: dict[str, str]) -> Iterator[Action]:
    """`restarting` holds the units that this run restarts so far, with the unit they follow; it is added to."""
    seen = {unit.name: inputs.observed.units.get(unit.name, SeenUnit(name=unit.name)) for unit in stage.units}
    stale = tuple(unit.name for unit in stage.units if _needs_daemon_reload(unit, seen[unit.name], inputs))
    for unit in stage.units:
        if seen[unit.name].file_state != "enabled":
            was = seen[unit.name].file_state or "new"
            yield EnableUnit(unit=unit, reason=f"is {was}")
    if stale:
        # After what is enabled, so that the manager is reloaded once for both.
        yield DaemonReload(units=stale, reason="unit file or drop-in changes")
    for unit in stage.units:
        yield from _unit(unit, seen[unit.name], inputs, restarting)


def _needs_daemon_reload(unit: Unit, seen: SeenUnit, inputs: _Inputs) -> bool:
    prefixes = _dropin_prefixes(unit)
    # A unit edited on disk keeps running as loaded until daemon-reload; NeedDaemonReload shows it
    # (org.freedesktop.systemd1(5)).
    if seen.need_daemon_reload or any(path.startswith((unit.path, *prefixes)) for path in inputs.changed):
        return True
    # Of drop-ins in a folder that came after the last daemon-reload it does not know: systemd looks for them in its
    # cache of folders. By name: the same name in /etc hides the one in /usr/lib.
    there = {path.rpartition("/")[2] for path in inputs.observed.files if path.startswith(prefixes)}
    loaded = {path.rpartition("/")[2] for path in seen.dropins if path.startswith(prefixes)}
    return there != loaded


def _unit(unit: Unit, seen: SeenUnit, inputs: _Inputs, restarting: dict[str, str]) -> Iterator[Action]:
    restart, reload = _restart_inputs(unit, inputs), _reload_inputs(unit, inputs)
    record = f"{_digest(restart)} {_digest(reload)}"
    if seen.active_state != "active":
        # Its dependents were not running through it, so nothing follows.
        yield StartUnit(unit=unit, record=record, reason=f"is {seen.active_state} ({seen.sub_state})")
        return
    if why := _restart_reason(seen, _digest(restart), inputs.changed & restart.keys()):
        restarting[unit.name] = unit.name
        yield RestartUnit(unit=unit, record=record, reason=why)
        return
    if written := inputs.written.intersection(unit.read_at_start):
        restarting[unit.name] = unit.name
        yield RestartUnit(unit=unit, record=record, reason=f"reads {_listed(written)} only when it starts")
        return
    if cause := next((name for name in unit.requires if name in restarting), ""):
        restarting[unit.name] = cause
        yield RestartUnit(
            unit=unit, record=record, follows=cause, reason=f"Requires={cause}: systemd restarts it with that unit"
        )
        return
    if why := _reload_reason(seen, _digest(reload), inputs.changed & reload.keys()):
        yield ReloadUnit(unit=unit, record=record, reason=why)


def held_back(state: NodeState, observed: Observed) -> tuple[str, ...]:
    """Absent units that are there and have to wait, as `name: what for`."""
    units = (unit for stage in state.stages for unit in stage.absent_units if unit.waits_for)
    return tuple(f"{unit.name}: removed once {unit.waits_for}" for unit in units if _traces(unit, observed))


def _traces(absent: AbsentUnit, observed: Observed) -> bool:
    """Whether systemd or the tool's own start records know the unit, or a file of it is there."""
    seen = observed.units.get(absent.name, SeenUnit(name=absent.name))
    known = seen.load_state != "not-found" or seen.active_state != "inactive" or bool(seen.file_state)
    return known or seen.record is not None or absent.path in observed.files


def _absent_unit(absent: AbsentUnit, observed: Observed) -> Iterator[Action]:
    if absent.waits_for:
        return
    there = _traces(absent, observed)
    if there:
        yield StopUnit(unit=absent, reason=absent.reason)
    yield from _leftovers(absent.leftovers, observed)
    # A drop-in that a package brings is the package's; without the unit it does nothing.
    prefixes = tuple(f"{directory}/{absent.name}.d/" for directory in DROPIN_DIRS if not directory.startswith("/usr"))
    dropins = sorted(path for path in observed.files if path.startswith(prefixes))
    for path in (*dropins, *absent.paths, absent.path):
        if path in observed.files:
            yield RemovePath(path=path, reason=absent.reason)
    if there or dropins:
        yield DaemonReload(units=(absent.name,), reason="its files are gone")


def _leftovers(leftovers: Iterable[Leftover], observed: Observed) -> Iterator[Action]:
    for leftover in leftovers:
        if leftover.name in observed.leftovers:
            yield RemoveLeftover(leftover=leftover, reason=leftover.reason)


def _restart_reason(seen: SeenUnit, digest: str, changed: Iterable[str]) -> str:
    """Why the running unit must be restarted; empty where it need not."""
    paths = _listed(changed)
    if seen.record is None:
        return "no record of the inputs it was started with"
    if seen.record.restart != digest:
        return f"{paths} changes" if paths else "was started with other inputs than it has now"
    if paths and seen.record.invocation != seen.invocation:
        # The content goes back to what the tool started it with, but somebody else has started it since, perhaps
        # with the content that is wrong now.
        return f"was restarted by something else while {paths} may have been wrong"
    return ""


def _reload_reason(seen: SeenUnit, digest: str, changed: Iterable[str]) -> str:
    paths = _listed(changed)
    if seen.record is not None and seen.record.reload != digest:
        return f"{paths} changes" if paths else "was last loaded with other inputs than it has now"
    return f"{paths} was wrong" if paths else ""


def _listed(paths: Iterable[str]) -> str:
    names: Sequence[str] = sorted(path.rsplit("/", 1)[1] for path in paths)
    return ", ".join(names)
