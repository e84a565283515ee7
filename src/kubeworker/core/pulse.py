"""Whether a program that goes round and round for months still does. By the caller's clock."""

from __future__ import annotations

from dataclasses import dataclass

STUCK_SECONDS = 300.0
"""Longest honest silence of a watch: one turn in which many nodes are looked at and none of them answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The last sign of life."""

    seen: float
    """When it was, in seconds."""
    answered: bool = False
    """Whether the API answered in the last whole turn."""

    def alive(self, now: float) -> bool:
        """It goes round, or has not been still for long. An API that does not answer is no reason to be ended."""
        return now - self.seen < STUCK_SECONDS

    def ready(self, now: float) -> bool:
        """It does its work at this moment."""
        return self.alive(now) and self.answered
