"""YAML documents as Kubernetes components read them: block style, keys in the order given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from kubeworker.core.formats.memo import remembered

_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_PLAIN = re.compile(
    r"""
      [A-Za-z/] ([A-Za-z0-9_./=+,@%:-]* [A-Za-z0-9_/=+@%-])?  # words, paths, URLs, base64
    | [0-9]+ (ns|us|ms|s|m|h|Ki|Mi|Gi|Ti|%)                   # durations and quantities
    | [0-9]+ (\.[0-9]+){3} ([:/][0-9]+)?                      # IPv4 addresses, with port or prefix length
    """,
    re.VERBOSE,
)
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
"""YAML 1.1 reads these, in any case, as booleans, null or numbers. PyYAML writes y and n unquoted, and Kubernetes'
reader (go-yaml) takes them for booleans: a taint's value y would be true."""


class _Dumper(_Base):  # type: ignore[misc]
    """Quotes every string that some YAML reader could take for something else."""


def _string(dumper: Any, text: str) -> Any:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    # A file within a document (a ConfigMap's) stays readable; what a block can't hold PyYAML quotes all the same.
    style = "|" if "\n" in text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else style)


_Dumper.add_representer(str, _string)


@remembered
def dump(document: Mapping[str, Any]) -> str:
    """The document as text; what is a string here is a string to every reader."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=10**6)
    return text
