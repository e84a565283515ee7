"""What a word of a bash script stands for, where that can be told: expansion, splitting, never a command (bash(1))."""

from __future__ import annotations

import re
from collections.abc import Callable

from kubeworker.core.guide.shell_words import Opaque, Reference, Text, Word


class NotRead(Exception):
    """A value that can't be told without running the script; its text is why."""


Lookup = Callable[[str], str | tuple[str, ...]]
"""The value of a name, a tuple for an array; NotRead where it is not known."""

_BLANKS = re.compile(r"[ \t\n]+")
_GLOB = re.compile(r"[*?\[\\]")


def scalar(word: Word, lookup: Lookup) -> str:
    """The word as an assignment takes it: nothing is split, and `*` stands for itself."""
    texts = []
    for part in word.parts:
        match part:
            case Text(text=text):
                texts.append(text)
            case Reference(index="@"):
                raise NotRead("all of an array as one value")
            case Reference():
                texts.append(_referred(part, lookup))
            case Opaque(what=what):
                raise NotRead(what)
    return "".join(texts)


def fields(word: Word, lookup: Lookup, *, own_ifs: bool) -> tuple[str, ...]:
    """The elements that the word gives inside an array: unquoted values are split at blanks.

    With `own_ifs` the script splits at something else, and an unquoted value can't be told.
    """
    parts = tuple(part for part in word.parts if part != Text(text="", quoted=True))
    if len(parts) == 1 and isinstance(parts[0], Reference) and parts[0].index == "@":
        return _elements(parts[0], lookup, own_ifs=own_ifs)
    found: list[str] = []
    current: str | None = None
    for part in word.parts:
        match part:
            case Text(text=text, quoted=quoted):
                if not quoted and _GLOB.search(text):
                    raise NotRead("a pattern of file names")
                current = (current or "") + text
            case Reference(index="@"):
                raise NotRead("an array inside a word")
            case Reference(quoted=True):
                current = (current or "") + _referred(part, lookup)
            case Reference():
                for index, piece in enumerate(_pieces(_referred(part, lookup), own_ifs=own_ifs)):
                    if index and current is not None:
                        found.append(current)
                        current = None
                    if piece:
                        current = (current or "") + piece
            case Opaque(what=what):
                raise NotRead(what)
    return (*found, current) if current is not None else tuple(found)


def _elements(reference: Reference, lookup: Lookup, *, own_ifs: bool) -> tuple[str, ...]:
    value = lookup(reference.name)
    elements = (value,) if isinstance(value, str) else value
    if reference.quoted:
        return elements
    return tuple(piece for each in elements for piece in _pieces(each, own_ifs=own_ifs) if piece)


def _pieces(value: str, *, own_ifs: bool) -> list[str]:
    if own_ifs:
        raise NotRead("an unquoted value is split at IFS, which the file sets")
    if _GLOB.search(value):
        raise NotRead("an unquoted value with a pattern of file names")
    return _BLANKS.split(value)


def _referred(reference: Reference, lookup: Lookup) -> str:
    value, index = lookup(reference.name), int(reference.index or 0)
    if isinstance(value, str):
        if index:
            raise NotRead(f"{reference.name} is no array")
        return value
    if index >= len(value):
        raise NotRead(f"{reference.name} has no element {index}")
    return value[index]
