"""Events as plain lines, for logs and CI: no colours, no cursor, nothing that is written over."""

from __future__ import annotations

from typing import assert_never

from kubeworker.cli.progress import headline, size
from kubeworker.flow.events import (
    ActionDone,
    ActionStarted,
    ArtifactReady,
    CheckDone,
    CsrDecision,
    Event,
    NodeDone,
    NodeQueued,
    NodeSeen,
    NodeStarted,
    Note,
    StageStarted,
    Transfer,
    Waiting,
    Warning_,
)


def line(event: Event) -> str:
    """The event as one plain line."""
    match event:
        case NodeQueued(node=node, steps=steps):
            return f"{node}: {steps} changes to do"
        case NodeStarted(node=node, what=what):
            return f"{node}: {what or 'started'}"
        case NodeSeen(node=node):
            return f"{node}: seen"
        case StageStarted(node=node, component=component):
            return f"{node}: {component}"
        case ActionStarted(node=node, kind=kind, subject=subject):
            return f"{node}: {kind} {subject} ..."
        case ActionDone(node=node, kind=kind, subject=subject, seconds=seconds):
            took = f" ({seconds:.1f} s)" if seconds >= 0.1 else ""
            return f"{node or 'cluster'}: {kind} {subject}{took}"
        case Waiting(node=node, what=what):
            return f"{node}: waits for {what}" if what else f"{node}: goes on"
        case CheckDone(node=node, id=check, status=status, detail=detail):
            return f"{node or 'cluster'}: {check}: {status}{f': {detail}' if detail and status != 'passed' else ''}"
        case Transfer(node=node, subject=subject, done=done, total=total, what=what):
            whose = f"{node}: " * bool(node) + f"{what} " * bool(what)
            return f"{whose}{subject} {size(done)}{f' of {size(total)}' if total else ''}"
        case NodeDone(node=node, status=status, detail=detail, seconds=seconds):
            took = f" after {seconds:.1f} s" if seconds else ""
            return f"{node}: {status}{took}{f': {headline(detail)}' if detail else ''}"
        case Note(subject=subject, text=text):
            return f"{subject}: {text}" if subject else text
        case Warning_(subject=subject, text=text):
            return f"warning: {subject}: {text}" if subject else f"warning: {text}"
        case ArtifactReady(name=name, version=version, source=source):
            return f"{name} {version}: from {source}"
        case CsrDecision(name=name, node=node, signer=signer, decision=decision, rule=rule, detail=detail):
            return ": ".join(filter(None, (node, f"{decision} {name} ({signer})", rule, detail)))
        case _:
            assert_never(event)


def is_told(event: Event) -> bool:
    """Whether plain lines have it: what a log needs, not each step that a live view shows for a moment."""
    match event:
        case CheckDone(status="passed") | ActionStarted() | NodeSeen() | NodeQueued():
            return False
        case NodeStarted(what="connect" | "observe" | "apply") | Waiting():
            # A line for each of a fleet, and more than once: where it takes long they are counted instead.
            return False
        case _:
            return True
