"""What was probably meant by a word that is none of those known: one voice for all hints of this kind. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection

SHOWN = 16
"""Known words that a hint lists; more are no help in one line."""


def nearest(word: str, known: Collection[str], *, count: int = 1) -> tuple[str, ...]:
    """The known words that look most like it, the likeliest first; case is no difference."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=count, cutoff=0.6)
    return tuple(folded[each] for each in close)


def meant(word: str, known: Collection[str], *, prefix: str = "", alike: bool = False) -> str:
    """`did you mean NODE?`, or what there is; empty where there is nothing.

    `prefix` stands before the likeliest. `alike`: names such as those of nodes, of which many are equally near.
    """
    close = nearest(word, known)
    names = sorted(known)
    shown = names if len(names) <= SHOWN + 1 else [*names[:SHOWN], f"and {len(names) - SHOWN} more"]
    there = f"there {'are' if len(names) > 1 else 'is only'} {', '.join(shown)}" if names else ""
    if not close:
        return there
    return f"did you mean {prefix}{close[0]}?" + (f" {there}" if alike else "")
