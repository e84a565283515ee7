"""A shell file of settings (the guide's environment.sh), read without running it.

What is read is what bash would set; everything else is named with its line. A statement that may set what can't be
told (`source`, `eval`, a function) puts everything before it in doubt; what is set plainly after it is known again.
Two things are taken for granted: that the file runs to its end, and that no name has attributes (array, integer,
readonly) which this text does not show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kubeworker.core.guide.shell_values import NotRead, fields, scalar
from kubeworker.core.guide.shell_words import Assignment, Opaque, Operator, Reference, Text, Token, Word, tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """What a name is set to at the end of the file."""

    value: str | tuple[str, ...]
    """A tuple for an array."""
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A statement that was not read; `what` never holds a value, which may be a secret."""

    line: int
    what: str
    """The name that it sets, or the command."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A file as far as it could be read."""

    variables: Mapping[str, Variable]
    doubts: tuple[Doubt, ...]
    """Every statement that was kept out, in the file's order."""
    names: Mapping[str, Doubt]
    """Names that a statement sets to what could not be read."""
    everything: Doubt | None
    """The last statement that may have set any name."""

    def doubt(self, name: str) -> Doubt | None:
        """Why the name's value is not known; None where it is, and where nothing in the file can have set it."""
        return None if name in self.variables else self.names.get(name, self.everything)


def read(text: str) -> Environment:
    """Read the text of such a file."""
    found, broken = tokens(text)
    reader = _Reader()
    try:
        for token in found:
            reader.token(token)
        if broken is None:
            # What ends the last line, where no newline does.
            reader.token(Operator(text="\n", line=text.count("\n") + 1))
            if reader.open or reader.skip:
                line, what = (reader.open[-1][1], reader.open[-1][0]) if reader.open else (1, reader.skip)
                reader.doubt_all(line, what, "it has no end")
    except _Stop:
        broken = None
    if broken is not None:
        reader.doubt_all(broken.line, broken.why, "nothing from here on can be read")
    return Environment(
        variables=reader.variables,
        doubts=tuple(dict.fromkeys(reader.doubts)),
        names=reader.names,
        everything=reader.everything,
    )


class _Stop(Exception):
    """The file ends here: `return`, `exit`."""


_OPENERS = {"if": "fi", "while": "done", "until": "done", "for": "done", "select": "done", "case": "esac", "{": "}"}
_CLOSERS = set(_OPENERS.values())
_CONTINUED = {"&&", "||", "|", "|&"}
"""Operators after which a newline ends nothing."""
_BETWEEN = {"then", "do", "else", "elif", "in", "!"}
_DECLARE = {"export", "readonly", "declare", "typeset"}
_HARMLESS = {"echo", "printf", ":", "true", "false", "cat", "cd", "mkdir", "umask", "ulimit", "test", "["}
"""Commands that set no variable of the script's own (PWD apart)."""
_SET_OPTIONS = re.compile(r"[-+][euxavhET]+")
_SET_LONG = {"errexit", "nounset", "xtrace", "allexport", "verbose", "errtrace", "functrace", "pipefail"}
_SPECIAL = re.compile(
    r"_|BASH|BASHOPTS|BASHPID|BASH_\w+|COMP_\w+|COPROC|DIRSTACK|EPOCH\w+|EUID|FUNCNAME|GROUPS|HISTCMD|LINENO|OLDPWD|"
    r"OPT(ARG|ERR|IND)|PIPESTATUS|POSIXLY_CORRECT|PPID|PWD|RANDOM|READLINE_\w+|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID",
    re.ASCII,
)
"""Names that bash itself sets, or that mean something to it (bash(1), Shell Variables)."""


@dataclass(slots=True)
class _Reader:
    variables: dict[str, Variable] = field(default_factory=dict)
    names: dict[str, Doubt] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)
    everything: Doubt | None = None
    arrays: set[str] = field(default_factory=set)
    """Names that are or may be arrays: a plain assignment sets their first element only."""
    odd: dict[str, str] = field(default_factory=dict)
    """Names whose assignments mean something else, and why: integers, references."""
    readonly: set[str] = field(default_factory=set)
    """Setting one of these is an error, after which bash leaves out the rest of the line."""
    functions: set[str] = field(default_factory=set)
    own_ifs: bool = False
    """IFS may have been changed, which decides how unquoted values are split."""

    open: list[tuple[str, int]] = field(default_factory=list)
    """The compound commands around this place: the word that opened each, and its line."""
    words: list[Word | Assignment] = field(default_factory=list)
    """The simple command so far."""
    before: str = ";"
    """The operator before it."""
    skip: str = ""
    """case: a pattern or the word before `in`; for: its words; function: its name; [[: a condition."""
    closed: bool = False
    """A compound command has just ended: only redirections may follow."""
    redirected: bool = False
    """The simple command has a redirection. Should its file fail to open, bash sets nothing."""

    def token(self, token: Token) -> None:
        match token:
            case Operator():
                self._operator(token)
            case Word() | Assignment():
                if not self._reserved(token):
                    self.words.append(token)
                elif _may_set(token):
                    self.doubt_all(token.line, "an expansion", "it may set variables")

    # -- compound commands ----------------------------------------------------------------------------------------

    def _operator(self, operator: Operator) -> None:
        text = operator.text
        if self.skip == "[[" or (self.skip == "pattern" and text != ")"):
            return
        if self.skip == "pattern":
            self.skip, self.before = "", ";"
            return
        if text == ">":
            self.redirected = True
            return
        if text == "\n" and not self.words and not self.closed and self.before in _CONTINUED:
            return
        if text == "(" and len(self.words) == 1 and (name := _plain(self.words[0])):
            self.functions.add(name)
            self.words.clear()
        self._command(operator)
        self.skip, self.closed, self.redirected, self.before = "", False, False, text
        if text == "(":
            self.open.append(("(", operator.line))
        elif text == ")":
            self._close("(", operator.line)
            self.before = ";"
        elif text in {";;", ";&", ";;&"}:
            if not self.open or self.open[-1][0] != "case":
                raise self._broken(operator.line, text)
            self.skip = "pattern"

    def _reserved(self, token: Word | Assignment) -> bool:
        """Whether the word is part of a compound command's own syntax, and so belongs to no simple command."""
        word = _plain(token)
        if self.skip == "[[":
            self.skip = "" if word == "]]" else "[["
            return True
        if self.skip == "pattern":
            if word == "esac":
                self._close("case", token.line)
                self.skip, self.closed = "", True
            return True
        if self.skip == "case":
            self.skip = "pattern" if word == "in" else "case"
            return True
        if self.skip in {"for", "function"}:
            self._named(token, word)
            return True
        if self.skip == "in":
            return True
        if self.closed and not (word in _CLOSERS or word in _BETWEEN):
            raise self._broken(token.line, "text behind a compound command")
        if self.words or word is None:
            return False
        self.closed = False
        if word in _OPENERS:
            self.open.append((word, token.line))
            self.skip = {"case": "case", "for": "for", "select": "for"}.get(word, "")
        elif word in {"function", "[["}:
            self.skip = word
        elif word in _CLOSERS:
            self._closing(word, token.line)
        return word in _OPENERS or word in _BETWEEN or word in _CLOSERS or word in {"function", "[["}

    def _named(self, token: Word | Assignment, word: str | None) -> None:
        if word is None:
            self.doubt_all(token.line, self.skip, "its name can't be told")
        elif self.skip == "for":
            self._doubt(word, token.line, "a loop sets it")
        else:
            self.functions.add(word)
        self.skip = "in" if self.skip == "for" else ""

    def _closing(self, word: str, line: int) -> None:
        if not self.open or _OPENERS.get(self.open[-1][0]) != word:
            raise self._broken(line, word)
        self.open.pop()
        self.closed = True

    def _close(self, opener: str, line: int) -> None:
        if not self.open or self.open[-1][0] != opener:
            raise self._broken(line, "a bracket")
        self.open.pop()

    def _broken(self, line: int, what: str) -> _Stop:
        self.doubt_all(line, what, "it is out of place; nothing from here on is read")
        return _Stop()

    # -- simple commands ------------------------------------------------------------------------------------------

    def _command(self, after: Operator) -> None:
        words, self.words = self.words, []
        if not words:
            return
        # In a pipeline or the background it runs in a shell of its own; after && and || it may not run at all.
        alone = not self.open and self.before not in _CONTINUED and after.text not in {"|", "|&", "&"}
        self._carry_out(words, alone=alone)
        for word in words:
            if _may_set(word):
                self.doubt_all(word.line, _what(word), "an expansion in it may set variables")

    def _carry_out(self, words: Sequence[Word | Assignment], *, alone: bool) -> None:
        sure = alone and not self.redirected
        assignments = [word for word in words if isinstance(word, Assignment)]
        if len(assignments) == len(words):
            for each in assignments:
                self._assign(each, sure=sure)
            return
        first = next(index for index, word in enumerate(words) if isinstance(word, Word))
        command, rest = _plain(words[first]), words[first + 1 :]
        if command in _DECLARE and command not in self.functions and first == 0:
            self._declare(command, rest, words[0].line, sure=sure)
        elif command == "unset":
            for word in rest:
                self._unset(word)
        elif command in {"exit", "return"} and command not in self.functions:
            if alone:
                self.doubts.append(Doubt(line=words[0].line, what=command, why="the file ends here"))
                raise _Stop
        elif not self._harmless(command, rest):
            self.doubt_all(words[first].line, command or "a command", "it may set variables")

    def _harmless(self, command: str | None, rest: Sequence[Word | Assignment]) -> bool:
        if command is None or command in self.functions:
            return False
        arguments = [_plain(word) for word in rest]
        if command == "set":
            return bool(arguments) and all(
                argument is not None and (_SET_OPTIONS.fullmatch(argument) or argument in {"-o", "+o", *_SET_LONG})
                for argument in arguments
            )
        if command == "printf" and (not arguments or arguments[0] == "-v" or not _literal(rest[0])):
            return False
        return command in _HARMLESS

    def _declare(self, command: str, rest: Sequence[Word | Assignment], line: int, *, sure: bool) -> None:
        flags = ""
        values: list[Assignment] = []
        plain: list[str] = []
        for word in rest:
            text = _plain(word)
            if isinstance(word, Assignment):
                values.append(word)
            elif text is not None and re.fullmatch(r"-[axrg]+", text) and not (values or plain):
                flags += text
            elif text is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
                plain.append(text)
            else:
                self._odd_declaration(command, rest, line)
                return
        for name in plain:
            if "a" in flags and name not in self.arrays:
                self._doubt(name, line, "it is declared as an array only")
                self.arrays.add(name)
        # All values are told before any is set.
        mentioned = {part.name for each in values for part in _parts(each) if isinstance(part, Reference)}
        set_here = {each.name for each in values}
        together = len(values) > 1 and bool(mentioned & set_here or len(set_here) < len(values))
        for each in values:
            if together:
                if isinstance(each.value, tuple):
                    self.arrays.add(each.name)
                self._doubt(each.name, each.line, f"one {command} sets it and uses it, or sets it twice")
            elif "a" in flags and isinstance(each.value, Word):
                self._doubt(each.name, each.line, "an array without parentheses")
                self.arrays.add(each.name)
            else:
                self._assign(each, sure=sure)
        if "r" in flags or command == "readonly":
            self.readonly |= {*plain, *(each.name for each in values)}

    def _odd_declaration(self, command: str, rest: Sequence[Word | Assignment], line: int) -> None:
        named = [word.name if isinstance(word, Assignment) else _plain(word) for word in rest]
        if None in named:
            self.doubt_all(line, command, "it may set variables")
            return
        if named[0] in {"-f", "-F"}:
            return  # functions, not variables
        for name in named:
            if name is not None and name[:1] not in {"-", "+"}:
                self._doubt(name, line, f"{command} with an option that changes what a value means")
                self.odd.setdefault(name, f"line {line} gave it attributes")

    def _unset(self, word: Word | Assignment) -> None:
        name = _plain(word)
        if name is None:
            self.doubt_all(word.line, "unset", "it may unset anything")
        elif not name.startswith("-"):
            self._doubt(name, word.line, "it is unset")

    # -- values ---------------------------------------------------------------------------------------------------

    def _assign(self, assignment: Assignment, *, sure: bool) -> None:
        name, line = assignment.name, assignment.line
        if name in self.readonly:
            self.doubt_all(line, name, "it is readonly, and bash stops here; nothing from here on is read")
            raise _Stop
        if isinstance(assignment.value, tuple) or assignment.subscript:
            was_array = name in self.arrays
            self.arrays.add(name)
        else:
            was_array = False
        try:
            if not sure:
                raise NotRead("it is set under a condition")
            if _SPECIAL.fullmatch(name):
                raise NotRead("bash gives this name a meaning of its own")
            if name in self.odd:
                raise NotRead(self.odd[name])
            if assignment.subscript:
                raise NotRead("one element of an array")
            value = self._value(assignment, was_array=was_array)
        except NotRead as error:
            self._doubt(name, line, str(error))
            return
        self.names.pop(name, None)
        self.variables[name] = Variable(value=value, line=line)
        self.own_ifs = self.own_ifs or name == "IFS"

    def _value(self, assignment: Assignment, *, was_array: bool) -> str | tuple[str, ...]:
        old = self.variables.get(assignment.name)
        if isinstance(assignment.value, tuple):
            words = tuple(text for word in assignment.value for text in fields(word, self._known, own_ifs=self.own_ifs))
            if not assignment.append:
                return words
            if old is None and (was_array or self._mentioned(assignment.name)):
                raise NotRead("it is added to what can't be told")
            if old is not None and isinstance(old.value, str):
                raise NotRead("an array is added to a plain value")
            return (*(old.value if old is not None else ()), *words)
        if assignment.name in self.arrays:
            raise NotRead("a plain value for an array")
        text = scalar(assignment.value, self._known)
        if not assignment.append:
            return text
        if old is None and self._mentioned(assignment.name):
            raise NotRead("it is added to what can't be told")
        if old is None:
            # The shell that sources the file may have it (PATH).
            raise NotRead("it is added to what the file does not set")
        return f"{old.value}{text}"

    def _mentioned(self, name: str) -> bool:
        return name in self.names or self.everything is not None

    def _known(self, name: str) -> str | tuple[str, ...]:
        if name not in self.variables:
            why = "could not be read" if self._mentioned(name) else "is not set by this file"
            raise NotRead(f"it uses ${name}, which {why}")
        return self.variables[name].value

    # -- doubts ---------------------------------------------------------------------------------------------------

    def _doubt(self, name: str, line: int, why: str) -> None:
        doubt = Doubt(line=line, what=name, why=why)
        self.variables.pop(name, None)
        self.names[name] = doubt
        self.doubts.append(doubt)
        if name == "IFS":
            self.own_ifs = True

    def doubt_all(self, line: int, what: str, why: str) -> None:
        """Whatever was set before may be something else now."""
        self.everything = Doubt(line=line, what=what, why=why)
        self.doubts.append(self.everything)
        self.variables.clear()
        self.names.clear()
        self.own_ifs = True


def _plain(word: Word | Assignment) -> str | None:
    return word.plain if isinstance(word, Word) else None


def _may_set(word: Word | Assignment) -> bool:
    return any(isinstance(part, Opaque) and part.assigns for part in _parts(word))


def _what(word: Word | Assignment) -> str:
    return word.name if isinstance(word, Assignment) else "a command"


def _literal(word: Word | Assignment) -> bool:
    return isinstance(word, Word) and all(isinstance(part, Text) for part in word.parts)


def _parts(word: Word | Assignment) -> list[Text | Reference | Opaque]:
    if isinstance(word, Word):
        return list(word.parts)
    words = word.value if isinstance(word.value, tuple) else (word.value,)
    return [part for each in words for part in each.parts]
