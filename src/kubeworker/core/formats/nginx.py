"""nginx configuration: directives and blocks -> text, and back."""

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


def parse(text: str) -> tuple[Statement, ...]:
    """The statements of a configuration file, `include` files not read; ValueError, with the line, where it is none.

    Quotes and backslashes as ngx_conf_read_token has them (src/core/ngx_conf_file.c).
    """
    statements, _ = _statements(tuple(_tokens(text)), 0, inside=False)
    return statements


_PUNCTUATION = {";", "{", "}"}
_TOKEN = re.compile(
    r"""
      (?P<blank> [ \t\r\n]+ | \#[^\n]* )
    | (?P<punctuation> [;{}] )
    | "(?P<double> (?: [^"\\] | \\. )* )"
    | '(?P<single> (?: [^'\\] | \\. )* )'
    | (?P<plain> (?!["']) (?: \$\{[^}]*\} | \\. | [^ \t\r\n;{}\\] )+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    text: str
    punctuation: bool
    line: int


def _tokens(text: str) -> Iterable[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"line {line}: a quote or a backslash without an end")
        match found.lastgroup:
            case "punctuation":
                yield _Token(text=found[0], punctuation=True, line=line)
            case "double" | "single" | "plain" as kind:
                word = _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[0]), found[kind])
                yield _Token(text=word, punctuation=False, line=line)
        at, line = found.end(), line + found[0].count("\n")


def _statements(tokens: tuple[_Token, ...], at: int, *, inside: bool) -> tuple[tuple[Statement, ...], int]:
    statements: list[Statement] = []
    words: list[str] = []
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if not token.punctuation:
            words.append(token.text)
        elif token.text == "}":
            if words or not inside:
                raise ValueError(f"line {token.line}: unexpected }}")
            return tuple(statements), at
        elif not words:
            raise ValueError(f"line {token.line}: unexpected {token.text}")
        elif token.text == ";":
            statements.append(tuple(words))
            words = []
        else:
            body, at = _statements(tokens, at, inside=True)
            statements.append(Block(name=words[0], arguments=tuple(words[1:]), body=body))
            words = []
    if words or inside:
        raise ValueError(f"line {tokens[-1].line}: the file ends inside a {'block' if inside else 'directive'}")
    return tuple(statements), at


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
