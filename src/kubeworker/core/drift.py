"""What differs from the last apply, and who has moved: the node, what is asked for, or somebody in the cluster. Pure.

The differences are the plan's own actions, so that `status` never says another thing than `plan` does. Who moved comes
from the node's record of what was applied last (core/applied.py): asked for then, asked for now, there now.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from kubeworker.core import actions, applied
from kubeworker.core.actions import (
    Action,
    DaemonReload,
    EnableUnit,
    ImportImage,
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
from kubeworker.core.applied import Applied, Item, Key
from kubeworker.core.model import UNKNOWN, Binary, NodeState, Origin, Stage
from kubeworker.core.node.observed import Observed, SeenFile
from kubeworker.core.node.probe import DROPIN_DIRS

Who: TypeAlias = Literal["node", "input", "both", "run", "cluster", "unknown"]
"""node: changed on the machine since the last apply. input: cluster.yaml, the lock file or the tool changed, and that
is not applied yet. both. run: an apply that died half-way. cluster: somebody changed an object in the cluster."""


NOTHING_YET = "nothing was applied here yet"
"""What `Drift.by` says of a machine before its first apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One thing that is not as it should be."""

    kind: str
    """The plan's word for what would be done (file, mode, enable, start, ...); dropin; or what `status` alone looks at:
    secret, certificate, request, ready, apiservers, requirement."""
    subject: str
    what: str
    """`content differs`, `is disabled`."""
    who: Who = "unknown"
    by: str = ""
    """What changed among the inputs, or who has changed the object."""
    since: str = ""
    """When (RFC 3339, UTC, by the clock of whoever tells); empty where nothing tells."""
    diff: str = field(default="", repr=False)
    """As `plan` has it: from what is there to what is asked for. No secret is in it."""
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """The machine-readable form."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "what": self.what,
            "who": self.who,
            "by": self.by,
            "since": self.since,
            "diff": self.diff,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrift:
    """A node, held against what was applied last."""

    drifts: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()
    """What is worth knowing and no fault."""
    when: str = ""
    """The last apply that changed something here (RFC 3339); empty where nothing tells."""
    tool: str = ""
    """The version that did it."""


def assumed(state: NodeState, observed: Observed) -> tuple[NodeState, tuple[str, ...]]:
    """The state to hold a node against where some binaries' bytes are UNKNOWN, and which of them that leaves out.

    Such a binary is what the node's record says was put there in this version. Of another version there must be other
    bytes, whichever: it stays UNKNOWN. Where there is no record, it is what lies there: it is not compared.
    """
    left_out: list[str] = []

    def known(stage: Stage, binary: Binary) -> Binary:
        record = observed.applied.get(stage.component)
        put = record.items.get(("binary", binary.path)) if record else None
        there = observed.sha256(binary.path)
        if binary.blob != UNKNOWN or (put and put.note != binary.version) or not (put or there):
            return binary
        if put is None:
            left_out.append(binary.path)
        return replace(binary, blob=replace(UNKNOWN, sha256=put.value.split()[0] if put else there))

    stages = tuple(
        replace(stage, binaries=tuple(known(stage, binary) for binary in stage.binaries)) for stage in state.stages
    )
    return replace(state, stages=stages), tuple(left_out)


def judge(state: NodeState, observed: Observed, stages: Sequence[StagePlan]) -> NodeDrift:
    """Say of each thing that `stages` (the plan) would change who has moved."""
    case = _Case(state=state, observed=observed, records=observed.applied)
    found = [drift for stage in stages for drift in case.stage(stage)]
    last = max(observed.applied.values(), key=lambda record: record.when, default=None)
    return NodeDrift(
        drifts=tuple(found),
        notes=tuple(case.notes(found)),
        when=moment(last.when) if last else "",
        tool=last.origin.tool if last else "",
    )


def moment(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339; empty for 0."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def _systemd_moment(text: str) -> str:
    """`Wed 2026-11-25 06:48:31 UTC`"""
    try:
        return moment(datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    state: NodeState
    observed: Observed
    records: Mapping[str, Applied]

    def stage(self, plan: StagePlan) -> Iterator[Drift]:
        """Causes before consequences: a restart that follows from a changed file is no difference of its own."""
        causes = [each for each in plan.actions if not self._follows(each)]
        dropins = tuple(self._new_dropins(plan.stage, plan.actions))
        yield from (self._drift(plan.stage, action) for action in causes)
        yield from dropins
        if not causes and not dropins:
            for action in plan.actions:
                if not (isinstance(action, RestartUnit) and action.follows):
                    yield self._consequence(action)

    def _follows(self, action: Action) -> bool:
        match action:
            case DaemonReload() | RestartUnit() | ReloadUnit():
                return True
            case ImportImage():
                # containerd is down: what it has can't be asked.
                return self.observed.images is None
            case _:
                return False

    def notes(self, found: Iterable[Drift]) -> Iterator[str]:
        if self.observed.unfinished:
            yield f"a run died on this node; its stage began at {moment(self.observed.unfinished)}"
        told = {drift.subject for drift in found}
        for stage in self.state.stages:
            for unit in stage.units:
                for seen in self._foreign_dropins(unit.name):
                    if seen.path not in told:
                        yield f"{unit.name} has a drop-in that is not this tool's: {seen.path}"

    def _drift(self, stage: Stage, action: Action) -> Drift:
        key, wanted = self._key(stage, action)
        who, by = self._who(stage, action, key, wanted)
        return Drift(
            kind=actions.kind(action),
            subject=actions.subject(action),
            what=action.reason,
            who=who,
            by=by,
            since=self._since(action) if who in ("node", "both", "unknown") else "",
            diff=actions.difference(action),
        )

    def _who(self, stage: Stage, action: Action, key: Key, wanted: Item | None) -> tuple[Who, str]:
        if not self.records:
            # Before the first apply nothing of the tool is there, not even its start records.
            bare = not any(unit.record for unit in self.observed.units.values())
            return ("input", NOTHING_YET) if bare else ("unknown", "")
        record = self.records.get(stage.component)
        before = record.items.get(key) if record else None
        if before is None:
            return self._unrecorded(record, action, wanted)
        if self._of_a_dead_run(action):
            return "run", ""
        causes = self._causes(record.origin if record else Origin(), before, wanted)
        if before == wanted or (wanted is None and not causes):
            return "node", ""
        there = self._there(key)
        return ("input" if there is None or there == before.value else "both"), causes

    def _of_a_dead_run(self, action: Action) -> bool:
        """Whether what is there may have been written by a stage that died: nothing is said against the node then."""
        seen = self.observed.files.get(actions.subject(action))
        began = self.observed.unfinished
        return bool(began) and isinstance(action, PutFile | PutBinary) and seen is not None and seen.modified >= began

    def _unrecorded(self, record: Applied | None, action: Action, wanted: Item | None) -> tuple[Who, str]:
        """Not asked for at the last apply, or that did not come to this stage."""
        if record is None:
            return "input", "nothing of this component was applied here yet"
        if isinstance(action, RemovePath) and wanted is None:
            # A file that bears the tool's mark and that no record has.
            return "node", ""
        causes = self._causes(record.origin, None, wanted)
        return ("input", causes) if record.origin != self.state.origin else ("unknown", "")

    def _causes(self, then: Origin, before: Item | None, wanted: Item | None) -> str:
        """What has changed among the things that the desired state is computed from."""
        now = self.state.origin
        if before and wanted and before.key[0] == "binary":
            if before.note != wanted.note:
                return f"version {before.note} -> {wanted.note} in cluster.yaml"
            if before.value.split()[:1] != wanted.value.split()[:1]:
                return f"kubeworker.lock has another sha256 for version {wanted.note}"
        causes = []
        if then.inputs != now.inputs:
            causes.append("cluster.yaml")
        if then.tool != now.tool:
            causes.append(f"kubeworker {then.tool} -> {now.tool}")
        return " and ".join(causes) or "what it is made from: certificates, local files, or facts of the cluster"

    def _consequence(self, action: Action) -> Drift:
        """A restart, reload or daemon-reload that nothing else in the plan calls for."""
        unit = self.observed.units.get(actions.subject(action))
        who: Who = "unknown"
        if unit is not None and unit.record is None and self.records:
            # The record is taken away before the first file of its inputs changes, and put back at the end.
            who = "run"
        elif self.records:
            who = "node"
        return Drift(kind=actions.kind(action), subject=actions.subject(action), what=action.reason, who=who)

    # Drop-ins: systemd's own way for an operator to change a unit. The next apply restarts the unit with them, and then
    # they are inputs like others.

    def _new_dropins(self, stage: Stage, todo: Iterable[Action]) -> Iterator[Drift]:
        touched = {name for action in todo for name in _unit_names(action)}
        record = self.records.get(stage.component)
        for unit in stage.units:
            for seen in self._foreign_dropins(unit.name) if unit.name in touched else ():
                if record is None or seen.changed >= record.when:
                    yield Drift(
                        kind="dropin",
                        subject=seen.path,
                        what=f"a drop-in of {unit.name} that is not this tool's is new or changed",
                        who="node" if record else "unknown",
                        since=moment(seen.changed),
                        fix="remove it, or apply: the unit is restarted with it, and it counts as known",
                    )

    def _foreign_dropins(self, unit: str) -> Iterator[SeenFile]:
        own = {item.key[1] for stage in self.state.stages for item in applied.items(stage)}
        prefixes = tuple(f"{directory}/{unit}.d/" for directory in DROPIN_DIRS)
        for path, seen in sorted(self.observed.files.items()):
            if path.startswith(prefixes) and path not in own:
                yield seen

    # What an action is about, what of it is asked for now, and what is there.

    def _key(self, stage: Stage, action: Action) -> tuple[Key, Item | None]:
        wanted = {item.key: item for item in applied.items(stage)}
        path = actions.subject(action)
        match action:
            case SwapOff():
                candidates = [("swap", "swap")]
            case LoadModule():
                candidates = [("module", path)]
            case SetSysctl():
                candidates = [("sysctl", path)]
            case MakeDirectory():
                candidates = [("directory", path)]
            case PutBinary():
                candidates = [("binary", path)]
            case PutFile():
                candidates = [("file", path), ("kubeconfig", path)]
            case PutLink():
                candidates = [("link", path)]
            case SetMode():
                candidates = [(kind, path) for kind in ("file", "binary", "directory", "kubeconfig")]
                patterns = (each.pattern for each in stage.private)
                candidates += [("private", each) for each in patterns if fnmatch.fnmatchcase(path, each)]
            case RemovePath():
                candidates = [("absent", path), ("file", path)]
            case EnableUnit() | StartUnit():
                candidates = [("unit", path)]
            case StopUnit():
                candidates = [("no-unit", path)]
            case RemoveLeftover():
                candidates = [("leftover", path)]
            case ImportImage():
                candidates = [("image", path)]
            case _:
                candidates = [("packages", path)]
        key = next((each for each in candidates if each in wanted), candidates[-1])
        return key, wanted.get(key)

    def _there(self, key: Key) -> str | None:
        """What is there now, written as a record writes it; None where that says nothing."""
        kind, subject = key
        seen = self.observed.files.get(subject)
        match kind:
            case "file" | "binary":
                return applied.file_value(seen.sha256, seen.mode, seen.owner) if seen else ""
            case "directory":
                return applied.mode_value(seen.mode, seen.owner) if seen else ""
            case "link":
                return applied.link_value(seen.target) if seen else ""
            case "kubeconfig":
                says = self.observed.kubelet_kubeconfig
                return applied.kubeconfig_value(says.server, says.ca_data)
            case "sysctl":
                return self.observed.sysctls.get(subject, "")
            case _:
                return None

    def _since(self, action: Action) -> str:
        match action:
            case EnableUnit():
                return ""
            case StartUnit():
                unit = self.observed.units.get(actions.subject(action))
                return _systemd_moment(unit.since) if unit else ""
            case SetMode() | RemovePath():
                seen = self.observed.files.get(actions.subject(action))
                return moment(seen.changed) if seen else ""
            case _:
                seen = self.observed.files.get(actions.subject(action))
                return moment(seen.modified) if seen else ""


def _unit_names(action: Action) -> tuple[str, ...]:
    match action:
        case DaemonReload(units=units):
            return units
        case RestartUnit() | ReloadUnit() | StartUnit():
            return (actions.subject(action),)
        case _:
            return ()


# ---------------------------------------------------------------------------------------------------------------
# Objects in the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Who wrote to an object last, as metadata.managedFields has it."""

    manager: str
    """kubectl-edit, helm, ...: what the client calls itself."""
    when: str
    """RFC 3339, by the API server's clock."""


def last_writer(live: Mapping[str, Any] | None, *fields: tuple[str, ...]) -> Writer | None:
    """Who wrote last to any of these fields (fieldsV1 paths: ("f:metadata", "f:labels", "f:zone")); none: to all.

    Server-side apply and every other write are in managedFields since Kubernetes 1.18; a field that was removed is
    nobody's there any more.
    """
    entries = ((live or {}).get("metadata") or {}).get("managedFields") or ()
    touching = [
        entry
        for entry in entries
        if entry.get("subresource") != "status"
        and (not fields or any(_holds(entry.get("fieldsV1") or {}, path) for path in fields))
    ]
    last = max(touching, key=lambda entry: str(entry.get("time") or ""), default=None)
    return Writer(manager=str(last.get("manager") or ""), when=str(last.get("time") or "")) if last else None


def _holds(fields: Mapping[str, Any], path: Sequence[str]) -> bool:
    for part in path:
        if part not in fields:
            return False
        fields = fields[part]
    return True
