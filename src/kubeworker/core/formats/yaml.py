"""YAML documents as Kubernetes components read them: block style, keys in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def dump(document: Mapping[str, Any]) -> str:
    """The document as text; strings that YAML would read as something else are quoted."""
    text: str = yaml.dump(document, Dumper=_DUMPER, sort_keys=False, default_flow_style=False, width=1000)
    return text
