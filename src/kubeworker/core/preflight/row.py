"""What a check of `preflight` says of one node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kubeworker.core.node.observed import Observed

Status: TypeAlias = Literal["ok", "failed", "warning", "host", "unknown"]
"""failed keeps the node from being changed; host: the fact is that of the machine that this container runs on, and is
not judged here or fine; unknown: it could not be found out."""

_RANK: Mapping[Status, int] = {"ok": 0, "host": 0, "unknown": 1, "warning": 2, "failed": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check on one node."""

    node: str
    id: str
    """Stable: `port-10250`, `command-nft`, `swap`, `clock`, `hostname`, ... (docs/preflight.md)."""
    status: Status
    message: str
    """What was found, or what is wrong."""
    fix: str = ""
    """How to mend it; empty where nothing is to mend."""

    def as_json(self) -> dict[str, str]:
        """The check as `preflight --json` prints it."""
        return {"id": self.id, "status": self.status, "message": self.message, "fix": self.fix}


def size(count: float) -> str:
    """Bytes, as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def distinct(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Each check of a node once, in the order of the first: where several ask the same, those that are worst off."""
    kept: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        same = kept.setdefault((row.node, row.id), [])
        if same and _RANK[row.status] > _RANK[same[0].status]:
            same[:] = [row]
        elif not same or (_RANK[row.status] == _RANK[same[0].status] > 0 and row not in same):
            same.append(row)
    return tuple(row for same in kept.values() for row in same)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """One node's rows, as all checks make them."""

    name: str
    observed: Observed

    def row(self, key: str, status: Status, message: str, fix: str = "") -> Row:
        """A row that is what it says."""
        return Row(node=self.name, id=key, status=status, message=message, fix=fix)

    def judge(self, key: str, *, good: str, wrong: str, fix: str, otherwise: Status = "failed") -> Row:
        """A check of the machine's own: `wrong` is empty where it holds."""
        return self.row(key, otherwise, wrong, fix) if wrong else self.row(key, "ok", good)

    def judge_host(self, key: str, *, good: str, wrong: str, fix: str, otherwise: Status = "failed") -> Row:
        """The same of a fact that a container takes over from its host: there is the place to change it."""
        container = self.observed.container
        if not container:
            return self.judge(key, good=good, wrong=wrong, fix=fix, otherwise=otherwise)
        owner = f"(owned by the host of this {container} container)"
        if wrong:
            return self.row(key, otherwise, f"{wrong} {owner}", f"on its host: {fix}")
        return self.row(key, "host", f"{good} {owner}")
