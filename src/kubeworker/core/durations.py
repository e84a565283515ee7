"""Lengths of time: since a moment that the API tells, and as people read them."""

from __future__ import annotations

from datetime import datetime


def since(moment: str, now: datetime) -> float:
    """Seconds since an RFC 3339 moment; 0 where there is none."""
    return (now - datetime.fromisoformat(moment)).total_seconds() if moment else 0.0


def text(seconds: float) -> str:
    """In the largest unit that leaves at least two of it: `364 days`, `23 h`, `8 min`, `45 s`; at least 0 s."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(max(seconds, 0))} s"
