"""Desired states and observations for the engine's tests, and the observation that a state leads to."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from collections.abc import Mapping
from typing import Any

from kubeworker.core.actions import StartUnit
from kubeworker.core.diff import diff
from kubeworker.core.model import Blob, NodeState, RequireCommand, Stage, Unit
from kubeworker.core.node.observed import Observed, SeenFile, SeenUnit, StartRecord
from kubeworker.core.node.probe import store_path

BIN_DIR = "/opt/k8s/bin"


def state(*stages: Stage, bin_dir: str = BIN_DIR) -> NodeState:
    return NodeState(node="n1", bin_dir=bin_dir, stages=stages)


def blob(content: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def stream(*contents: bytes, cut: int | None = None) -> bytes:
    """The tar.gz that a control host sends."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for content in contents:
            member = tarfile.TarInfo(f"sha256-{blob(content).sha256}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()[:cut]


def bare(**fields: Any) -> Observed:
    """A machine that has nothing yet."""
    known: dict[str, Any] = {
        "clock": 1000.0,
        "hostname": "n1",
        "machine_id": "1" * 32,
        "machine": "x86_64",
        "kernel": "6.1.0",
        "cgroup": 2,
    }
    return Observed(**(known | fields))


def after(wanted: NodeState, before: Observed | None = None) -> Observed:
    """The machine once the state has been reached, started by nobody but the tool."""
    before = before or bare()
    files: dict[str, SeenFile] = {}
    for stage in wanted.stages:
        files |= _files(stage)
        for binary in stage.binaries:
            path = store_path(wanted.bin_dir, binary.blob.sha256)
            files[path] = SeenFile(
                path=path, kind="file", mode=0o755, owner="root:root", size=binary.blob.size, sha256=binary.blob.sha256
            )
    absent = {absent.path for stage in wanted.stages for absent in stage.absent}
    kept = {path: seen for path, seen in before.files.items() if path not in absent}
    packages = {package for stage in wanted.stages for package in stage.packages}
    commands = {
        requirement.name
        for stage in wanted.stages
        for requirement in stage.requirements
        if isinstance(requirement, RequireCommand) and requirement.package in packages
    }
    swap_off = any(stage.swap_off for stage in wanted.stages)
    reached = dataclasses.replace(
        before,
        files={**kept, **files},
        sysctls={sysctl.key: sysctl.value for stage in wanted.stages for sysctl in stage.sysctls},
        modules={module.name: "loaded" for stage in wanted.stages for module in stage.modules},
        images=frozenset(image.reference for stage in wanted.stages for image in stage.images),
        commands=before.commands | commands,
        swaps=() if swap_off else before.swaps,
        fstab_swaps=() if swap_off else before.fstab_swaps,
    )
    units = [unit for stage in wanted.stages for unit in stage.units]
    return dataclasses.replace(reached, units={unit.name: running(wanted, reached, unit) for unit in units})


def running(wanted: NodeState, observed: Observed, unit: Unit, *, invocation: str = "a1") -> SeenUnit:
    """The unit as the tool has started it."""
    return SeenUnit(
        name=unit.name,
        load_state="loaded",
        active_state="active",
        sub_state="running",
        file_state="enabled",
        invocation=invocation,
        record=start_record(wanted, observed, unit),
    )


def start_record(wanted: NodeState, observed: Observed, unit: Unit) -> StartRecord:
    """What the tool writes when it starts the unit on this machine: the plan for one on which it does not run."""
    others = {name: seen for name, seen in observed.units.items() if name != unit.name}
    stages = diff(wanted, dataclasses.replace(observed, units=others))
    (start,) = (
        action
        for stage in stages
        for action in stage.actions
        if isinstance(action, StartUnit) and action.unit.name == unit.name
    )
    restart, reload = start.record.split()
    return StartRecord(restart=restart, reload=reload, invocation="a1")


def with_file(observed: Observed, path: str, **fields: Any) -> Observed:
    """The observation with one file's fields changed (or the file new)."""
    known = observed.files.get(path, SeenFile(path=path, kind="file", mode=0o644, owner="root:root", size=1))
    return dataclasses.replace(observed, files={**observed.files, path: dataclasses.replace(known, **fields)})


def without_file(observed: Observed, path: str) -> Observed:
    files = {other: seen for other, seen in observed.files.items() if other != path}
    return dataclasses.replace(observed, files=files)


def with_unit(observed: Observed, name: str, **fields: Any) -> Observed:
    changed = dataclasses.replace(observed.units[name], **fields)
    return dataclasses.replace(observed, units={**observed.units, name: changed})


def _files(stage: Stage) -> Mapping[str, SeenFile]:
    files: dict[str, SeenFile] = {}
    for directory in stage.directories:
        files[directory.path] = SeenFile(
            path=directory.path, kind="directory", mode=directory.mode, owner=directory.owner, size=0
        )
    for binary in stage.binaries:
        files[binary.path] = SeenFile(
            path=binary.path,
            kind="file",
            mode=binary.mode,
            owner=binary.owner,
            size=binary.blob.size,
            sha256=binary.blob.sha256,
        )
    for file in (*stage.files, *(unit.file for unit in stage.units)):
        files[file.path] = SeenFile(
            path=file.path,
            kind="file",
            mode=file.mode,
            owner=file.owner,
            size=len(file.content),
            sha256=file.sha256,
        )
    for link in stage.links:
        files[link.path] = SeenFile(
            path=link.path, kind="link", mode=0o777, owner="root:root", size=0, target=link.target
        )
    return files
