"""systemd unit files (systemd.syntax(7), systemd.service(5)): data -> text."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kubeworker.core.formats.memo import KEPT

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line: each argument reaches the process as it stands here, whatever characters it holds."""

    arguments: tuple[str, ...]
    prefix: str = ""
    """`-`: a failure is ignored (systemd.service(5), "special executable prefixes")."""


Value: TypeAlias = str | Command
Section: TypeAlias = Mapping[str, Value | Sequence[Value]]
"""A key with several values is written once for each, in their order."""


def dump(sections: Mapping[str, Section]) -> str:
    """The unit file's text. Plain strings are written as they are: a caller who means a literal % writes %%."""
    return "\n".join(_section(name, section) for name, section in sections.items())


def _section(name: str, section: Section) -> str:
    lines = [f"[{name}]"]
    for key, values in section.items():
        many = (values,) if isinstance(values, str | Command) else values
        lines += [f"{key}={_value(value)}" for value in many]
    return "\n".join(lines) + "\n"


def _value(value: Value) -> str:
    return value if isinstance(value, str) else _command(value)


# Most commands of a fleet are the same on every node.
@functools.lru_cache(maxsize=KEPT)
def _command(command: Command) -> str:
    options = command.arguments[1:]
    # Several long options go one a line, as in the guide: a changed flag is one changed line in the plan.
    separator = " \\\n  " if len(options) > 1 and all(option.startswith("--") for option in options) else " "
    return command.prefix + separator.join(_argument(argument) for argument in command.arguments)


def _argument(text: str) -> str:
    escaped = text.replace("%", "%%").replace("$", "$$")
    if _PLAIN.fullmatch(text):
        return escaped
    escaped = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    # systemd ends a line at a carriage return too.
    escaped = escaped.replace("\r", "\\r")
    return f'"{escaped}"'
