"""What is explained, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from kubeworker.flow.explain import Explained, made_by

FULL = 4
"""So many are explained in full; of more only the names are shown, to ask again."""
WIDTH = 100
"""Columns of a wide terminal, or of none, that are used."""
LABEL = 12
NODES = 3
"""Nodes that are named beside a value."""


def print_explained(screen: Console, found: Sequence[Explained]) -> None:
    """Each with a line for all that is known; of many the names."""
    if len(found) > FULL:
        screen.print(f"{len(found)} things are called so; ask for one of them:")
        for each in found:
            screen.print(Text(f"  {each.entry.title}"), soft_wrap=True)
        return
    for number, each in enumerate(found):
        if number:
            screen.print()
        screen.print(Text(_heading(each), style="bold"), soft_wrap=True)
        for name, text in _lines(each):
            for label, line in _wrapped(name, text, min(screen.width, WIDTH)):
                screen.print(Text.assemble((f"  {label:<{LABEL}}", "dim"), line), soft_wrap=True)


def _wrapped(name: str, text: str, width: int) -> Iterator[tuple[str, str]]:
    """The lines of a text beside its name; an address stays whole."""
    for paragraph in text.splitlines():
        for line in textwrap.wrap(paragraph, width - LABEL - 2, break_long_words=False, break_on_hyphens=False):
            yield name, line
            name = ""


def print_names(stream: TextIO, names: Sequence[str]) -> None:
    """One a line, for grep and completion."""
    stream.writelines(f"{name}\n" for name in names)


def print_kinds(screen: Console, kinds: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """What can be asked for."""
    for kind, (text, names) in kinds.items():
        screen.print(Text.assemble((f"{kind:<{LABEL}}", "bold"), f"{len(names):>4}  {text}"), soft_wrap=True)
    screen.print(Text("kubeworker explain KIND lists all of a kind", style="dim"), soft_wrap=True)


def _heading(each: Explained) -> str:
    entry = each.entry
    match entry.kind:
        case "key" if entry.shared:
            return f"{entry.name}: a key of several files (*{entry.file})"
        case "key":
            return f"{entry.name}: a key of {entry.file}"
        case "check":
            return f"{entry.name}: a check of verify"
        case "preflight":
            return f"{entry.name}: a check of preflight"
        case "action":
            return f"{entry.name}: a kind of action"
        case "error":
            return f"{entry.name}: an error"
        case "path" | "unit":
            return entry.name


def _lines(each: Explained) -> Iterator[tuple[str, str]]:
    entry = each.entry
    option = f"{entry.option}\n{each.field}" if each.field else entry.option
    lines = (
        ("what", entry.what),
        ("why", entry.why),
        ("what to do", entry.way_out),
        ("made by", made_by(entry)),
        ("moved by", option),
        ("the guide", each.guide),
        ("here", "\n".join(f"{value}{_nodes(nodes)}" for value, nodes in each.here)),
        ("source", entry.source),
    )
    yield from ((name, text) for name, text in lines if text)


def _nodes(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - NODES} more" if len(nodes) > NODES else ""
    return f"  ({', '.join(nodes[:NODES])}{more})"
