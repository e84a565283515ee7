"""TOML documents (containerd, nerdctl, hosts.toml), keys in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from kubeworker.core.formats.memo import remembered


@remembered
def dump(document: Mapping[str, Any]) -> str:
    """The document as text; tomllib reads the same document back."""
    return tomli_w.dumps(document)
