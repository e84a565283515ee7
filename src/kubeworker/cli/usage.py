"""Wrong command lines in this tool's own words: what is wrong as the message, what was meant as the hint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from kubeworker.core.nearest import meant
from kubeworker.errors import UsageError

_MEANT = re.compile(r"\s*Did you mean \"?(?P<name>[^\"?]+)\"?\?")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "Path": "a path"}
_NOT_A = re.compile(r"Invalid value for (?P<option>\S+): unable to convert \"(?P<value>.*)\" into (?P<kind>\w+)\.$")
_BOUND = re.compile(r"Invalid value \"(?P<value>.*)\" for (?P<option>[^.]+)\. Must be (?P<bound>.+)\.$")
_NONE_OF = re.compile(r"Invalid value \"(?P<value>[^\"]*)\" for (?P<option>[^\s.]+)\.?")
_CHOICE = re.compile(r"\s*Choose from: (?P<names>.+?)\.$")


def usage_error(app: App, tokens: Sequence[str], error: CycloptsError) -> UsageError:
    """The parser's error as ours; the subject is the command as far as it was understood."""
    words = [token for token in tokens if not token.startswith("-")]
    chain = list(_known(app, words))
    name = " ".join(("kubeworker", *chain))
    if chain and tokens[0].startswith("-"):
        hint = f"{name} {tokens[0]}"
        return UsageError(f"{tokens[0]} stands before the command", subject="kubeworker", hint=hint)
    if isinstance(error, UnknownCommandError) and len(words) > len(chain):
        hint = meant(words[len(chain)], _commands(_below(app, chain)), prefix=f"{name} ")
        return UsageError(f"there is no command {words[len(chain)]!r}", subject=name, hint=hint)
    text, hint = " ".join(str(error).split()), f"{name} --help shows what there is"
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        close = _MEANT.search(text)
        return UsageError(
            f"there is no option {option}", subject=name, hint=f"did you mean {close['name']}?" if close else hint
        )
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        needs = "needs a value" if error.argument.name in tokens else "is required"
        return UsageError(f"{error.argument.name} {needs}", subject=name, hint=hint)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return UsageError(f"{error.unused_tokens[0]!r} is a word too many", subject=name, hint=hint)
    if choice := _CHOICE.search(_MEANT.sub("", text)):
        close = _MEANT.search(text)
        names = choice["names"].replace('"', "")
        hint = f"did you mean {close['name']}?" if close else f"it is one of {names}"
        text = _CHOICE.sub("", _MEANT.sub("", text))
    return UsageError(_reworded(text), subject=name, hint=hint)


def _reworded(text: str) -> str:
    """A sentence of the parser's as the end of our line."""
    if wrong := _NOT_A.fullmatch(text):
        kind = _KINDS.get(wrong["kind"], wrong["kind"])
        return f"{wrong['option']} takes {kind}, not {wrong['value']!r}"
    if wrong := _BOUND.fullmatch(text):
        return f"{wrong['option']} must be {wrong['bound']}, not {wrong['value']}"
    if wrong := _NONE_OF.fullmatch(text):
        return f"{wrong['option']} can't be {wrong['value']!r}"
    return (text[:1].lower() + text[1:]).removesuffix(".").replace('"', "'")


def _known(app: App, words: Sequence[str]) -> Iterator[str]:
    """The words that are commands, from the left."""
    for word in words:
        if word not in _commands(app):
            return
        yield word
        app = _below(app, [word])


def _below(app: App, chain: Sequence[str]) -> App:
    for word in chain:
        app = app[word]
    return app


def _commands(app: App) -> tuple[str, ...]:
    return tuple(name for name in app if not name.startswith("-"))
