"""What flows tell while they work, as values; `cli/report.py` shows them. Flows themselves never print."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from kubeworker.errors import KubeworkerError, NodeUnreachable

NodeOutcome: TypeAlias = Literal["ok", "failed", "unreachable", "skipped"]


def outcome_of(error: KubeworkerError | None) -> NodeOutcome:
    """What became of a node with this error."""
    match error:
        case None:
            return "ok"
        case NodeUnreachable():
            return "unreachable"
        case _:
            return "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something worth a line that is neither progress nor a warning."""

    text: str
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning_:  # noqa: N801 (Python's own Warning is a builtin)
    """Something that works now and may hurt later, or that the operator probably did not mean."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeQueued:
    """Work on a node is due and has not begun: its batch is not on, or as many as allowed are worked on already."""

    node: str
    steps: int
    """How many actions that will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted:
    """Work on a node begins; `what` is the verb: connect, observe, apply, verify."""

    node: str
    what: str = ""
    steps: int = 0
    """How many checks that will be; 0: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A node has told its state: it is looked at."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """One component's stage begins on a node."""

    node: str
    component: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionStarted:
    """One action of the plan begins on a node; its ActionDone follows, or the node's failure."""

    node: str
    kind: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A node's work can't go on before this is so: a turn to be sent to, its certificate, that it is Ready."""

    node: str
    what: str
    """Empty once it is so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionDone:
    """One action of the plan was carried out on a node (or, with an empty node, on the cluster's objects)."""

    node: str
    kind: str
    subject: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Bytes moved so far: a download, a file on this host that is worked through, or an upload to a node."""

    subject: str
    done: int
    total: int
    """0 while the size is unknown."""
    node: str = ""
    what: str = ""
    """What is done with a file on this host: check, unpack; empty for what comes from elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactReady:
    """An artifact was got from `source`, checked, and lies in the store now; one that was in the cache says nothing."""

    name: str
    version: str
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDone:
    """Work on a node ended."""

    node: str
    status: NodeOutcome
    detail: str = ""
    """Why it failed or was skipped; one line."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CsrDecision:
    """A certificate signing request was approved or left pending."""

    name: str
    node: str
    signer: str
    decision: Literal["approved", "pending"]
    rule: str = ""
    """The rule that it breaks, where it stays pending."""
    detail: str = ""
    """What was seen that breaks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDone:
    """One check of `verify` has its verdict. An empty node stands for the cluster."""

    node: str
    id: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""


Event: TypeAlias = (
    Note
    | Warning_
    | NodeQueued
    | NodeStarted
    | NodeSeen
    | StageStarted
    | ActionStarted
    | ActionDone
    | Waiting
    | Transfer
    | ArtifactReady
    | NodeDone
    | CsrDecision
    | CheckDone
)

Reporter: TypeAlias = Callable[[Event], None]


def silent(_event: Event) -> None:
    """A reporter for those who don't listen."""


def as_json(event: Event) -> dict[str, Any]:
    """The event's JSON object: `event` names it (`node-started`, `transfer`, `warning`), its fields follow."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(event).__name__.rstrip("_")).lower()
    return {"event": name} | {each.name: getattr(event, each.name) for each in fields(event)}
