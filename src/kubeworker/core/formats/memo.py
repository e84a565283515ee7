"""A document's text, kept: most documents of a fleet are the same on every node, and each is rendered twice per run.

Rendering one costs up to half a millisecond, which is what the whole comparison of a node costs (docs/performance.md).
"""

from __future__ import annotations

import functools
import marshal
from collections.abc import Callable, Mapping
from typing import Any

KEPT = 4096
"""Texts that a renderer keeps, the last used, each a kilobyte or two: enough for the two that each of a thousand nodes
has of its own, which are needed before and after it was looked at."""


def remembered(render: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    """The renderer, which must be a pure function of its document, with the texts of its last documents kept.

    The order of keys and the types of values (1, 1.0 and True) count: another document is another text.
    """

    @functools.lru_cache(maxsize=KEPT)
    def known(encoded: bytes) -> str:
        return render(marshal.loads(encoded))  # noqa: S302  # made one line below, in this process

    @functools.wraps(render)
    def dump(document: Mapping[str, Any]) -> str:
        plain: Any = document
        try:
            # Version 2 has no references: equal documents are equal bytes, whatever objects they share.
            encoded = marshal.dumps(plain, 2)
        except ValueError:  # it holds what is no plain value (a date of the operator's own YAML)
            return render(document)
        return known(encoded)

    return dump
