"""nginx configuration: directives and blocks -> text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+$\[\]-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`name arguments { body }`"""

    name: str
    arguments: tuple[str, ...] = ()
    body: tuple[Statement, ...]


Directive: TypeAlias = tuple[str, ...]
"""A name and its arguments; each argument reaches nginx as it stands ($variables included)."""
Statement: TypeAlias = Directive | Block


def dump(statements: Iterable[Statement]) -> str:
    """The configuration file's text, four spaces for each level as in the guide."""
    return "".join(_lines(statements, ""))


def _lines(statements: Iterable[Statement], indent: str) -> Iterable[str]:
    for statement in statements:
        match statement:
            case Block(name=name, arguments=arguments, body=body):
                yield f"{indent}{_words((name, *arguments))} {{\n"
                yield from _lines(body, indent + "    ")
                yield f"{indent}}}\n"
            case directive:
                yield f"{indent}{_words(directive)};\n"


def _words(words: Iterable[str]) -> str:
    return " ".join(_word(word) for word in words)


def _word(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    # ngx_conf_read_token: inside double quotes only the backslash escapes, and it does so for \" \\ \t \r \n.
    escaped = (
        word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    )
    return f'"{escaped}"'
