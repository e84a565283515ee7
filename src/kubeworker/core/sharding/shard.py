"""A part of the fleet that one run works on: nodes are assigned by their names, so that every run agrees on it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from kubeworker.errors import UsageError

FLEET = "kubeworker"
"""The Lease, in kube-system, that a run over the whole fleet (or named nodes of it) holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part `index` of `count`, counted from 0 as an Indexed Job counts."""

    index: int
    count: int

    def __contains__(self, name: str) -> bool:
        """Whether the node of this name belongs to it. Other nodes that come or go change nothing of that."""
        return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % self.count == self.index

    def __str__(self) -> str:
        """As it is written: 0/4."""
        return f"{self.index}/{self.count}"

    @property
    def lease(self) -> str:
        """The Lease that its run holds."""
        return lease_of(self.index)


def parse(text: str) -> Shard:
    """`I/N`, I from 0 to N-1; UsageError for anything else."""
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UsageError(f"{text!r} is no part of a fleet", subject="--shard", hint="write I/N, I from 0 to N-1: 0/4")
    return Shard(index=int(found[1]), count=int(found[2]))


def lease_of(index: int) -> str:
    """The Lease of the run over part `index`, however many parts there are."""
    return f"{FLEET}-shard-{index}"


def is_shard(lease: str) -> bool:
    """Whether a Lease of this name is that of a run over a part."""
    return lease.startswith(f"{FLEET}-shard-")
