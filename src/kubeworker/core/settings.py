"""A file's text as flat settings, by the kind of file that its name tells: what can be compared, and explained, by key.

A key says where a value stands (`stream.server.listen`, `Service.ExecStart --node-ip`), a value is its text.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from typing import Any

import yaml

from kubeworker.core.formats import nginx
from kubeworker.core.formats.nginx import Block

Settings = dict[str, str]
"""Value by key; a key is where the value stands, a value its text."""

WHOLE = "the file"
"""The key of a file that has no settings of its own."""


def settings(path: str, text: str) -> Settings:
    """A file's settings; a file of no known kind is one setting, WHOLE."""
    name = path.rpartition("/")[2]
    if name.endswith(".service"):
        return unit_settings(text)
    if name in {"kube-nginx.conf", "apiservers.conf"}:
        return nginx_settings(text)
    if name.endswith(".toml"):
        return flat(tomllib.loads(text))
    if name.endswith((".yaml", ".kubeconfig", ".conflist")):
        return flat(yaml.safe_load(text))  # JSON is YAML
    return {WHOLE: text}


def flat(value: Any, key: str = "") -> Settings:
    """Nested maps as dotted keys, lists as JSON where they hold plain values, else by position."""
    match value:
        case dict() if value or not key:
            return {
                inner: text for name, each in value.items() for inner, text in flat(each, _dotted(key, name)).items()
            }
        case list() if any(isinstance(each, dict) for each in value):
            return {
                inner: text for index, each in enumerate(value) for inner, text in flat(each, f"{key}[{index}]").items()
            }
        case str() if value and value == value.strip():
            return {key: value}
        case _:
            return {key: json.dumps(value)}


def _dotted(key: str, name: str) -> str:
    last = json.dumps(name) if "." in name else name
    return f"{key}.{last}" if key else last


def unit_settings(text: str) -> Settings:
    """Section and key; of a command line each `--option` is a setting of its own. Several values stand in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.strip():
            name, _, value = line.partition("=")
            words = value.split()
            options = [word for word in words if word.startswith("--") and "=" in word]
            found.setdefault(f"{section}.{name}", []).append(" ".join(word for word in words if word not in options))
            for option in options:
                flag, _, argument = option.partition("=")
                found.setdefault(f"{section}.{name} {flag}", []).append(argument)
    return {key: "; ".join(values) for key, values in found.items()}


def nginx_settings(text: str) -> Settings:
    """Blocks as dotted keys; a directive that stands several times has its values in order."""
    found: dict[str, list[str]] = {}

    def walk(statements: Iterable[nginx.Statement], prefix: str) -> None:
        for statement in statements:
            if isinstance(statement, Block):
                walk(statement.body, f"{prefix}{' '.join((statement.name, *statement.arguments))}.")
            else:
                found.setdefault(prefix + statement[0], []).append(" ".join(statement[1:]))

    walk(nginx.parse(text), "")
    return {key: "; ".join(values) for key, values in found.items()}


def without_positions(key: str) -> str:
    """The key with `[]` for each place in a list: what all items of the list have in common."""
    return re.sub(r"\[\d+\]", "[]", key)
