"""How many things may be under way at once, as experience teaches: additive increase, multiplicative decrease.

As TCP does with its window (RFC 5681): slow start, in which each success makes room for one more, so that the limit
doubles with every round; after a loss half of it, and from there one more for each full round of successes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TRIES = 5
"""How often a login that the other end drops is tried while no other login succeeds."""
FIRST_WAIT = 0.2
LONGEST_WAIT = 2.0
"""Seconds between two tries, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The limit at one moment."""

    ceiling: int
    """It never gets above this."""
    allowed: float
    """How many may be under way now; the fraction is the way to one more."""
    slow_start: bool = True
    """Nothing was lost yet."""
    epoch: int = 0
    """Counts the losses that lowered it. What began before the last one can't tell anything of the limit since."""

    def gained(self) -> Limit:
        """After a success."""
        more = 1.0 if self.slow_start else 1.0 / self.allowed
        return replace(self, allowed=min(float(self.ceiling), self.allowed + more))

    def lost(self, *, began: int) -> Limit:
        """After a loss of something that began in epoch `began`; the losses of one epoch count once."""
        if began < self.epoch:
            return self
        return replace(self, allowed=max(1.0, self.allowed / 2), slow_start=False, epoch=self.epoch + 1)


def starting(*, ceiling: int, first: int) -> Limit:
    """The limit before anything was tried."""
    return Limit(ceiling=ceiling, allowed=float(min(ceiling, first)))


def wait(tries: int, chance: float) -> float:
    """Seconds until the next try after so many in vain; `chance`, from 0 to 1, keeps many from coming back at once."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tries - 1))
    return longest * (0.5 + chance / 2)
