"""Merge an operator's maps: `config` over a rendered document, and one map of settings over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top: maps are merged key by key, any other value replaces, null removes the key.

    The order of `base` is kept and new keys follow, so that a merged file's diff is small.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = merge(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def stacked(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of settings as one: merged over a document it gives what `base` and then `over` would give.

    As `merge`, but a null is kept: it still has to remove a key of the document. The one exception to the rule: where
    `base` replaces or removes a map of the document and `over` gives a map again, the document's is merged in.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = stacked(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
