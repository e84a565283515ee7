"""The words of a bash script, without running it (bash(1): QUOTING, EXPANSION): text in, tokens with their lines out.

Only what a value can be told from is taken apart: quotes, backslashes, `$NAME`, `${NAME}`, `${NAME[0]}`, `${NAME[@]}`,
arrays and comments. Every other expansion becomes an `Opaque` part that names itself, and what leaves its own end in
doubt ends the reading: what stands behind it is then not known either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Characters as they are."""

    text: str
    quoted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`$NAME`, `${NAME}`, `${NAME[0]}` (index "0") or `${NAME[@]}` (index "@")."""

    name: str
    index: str
    quoted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """An expansion whose result can't be told without running the script."""

    what: str
    assigns: bool = False
    """It may set a variable: `${X:=1}`, `$((X += 1))`."""


Part: TypeAlias = Text | Reference | Opaque


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word, or the value of an assignment."""

    parts: tuple[Part, ...]
    line: int

    @property
    def plain(self) -> str | None:
        """The word where it is unquoted text and nothing else; reserved words and commands are told by it."""
        match self.parts:
            case (Text(text=text, quoted=False),):
                return text
            case _:
                return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """`NAME=word`, `NAME+=word`, `NAME=(words)`, `NAME[subscript]=word`."""

    name: str
    subscript: bool
    append: bool
    value: Word | tuple[Word, ...]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A newline, `;`, `&&`, `|`, a parenthesis, or a redirection with its target (`>`)."""

    text: str
    line: int


Token: TypeAlias = Word | Assignment | Operator


class Unreadable(Exception):
    """From here on the script can't be taken apart; `line` is where."""

    def __init__(self, line: int, why: str) -> None:
        """Keep both."""
        super().__init__(why)
        self.line, self.why = line, why


def tokens(text: str) -> tuple[tuple[Token, ...], Unreadable | None]:
    """The script's tokens, up to its end or to what can't be taken apart."""
    reader = _Reader(text)
    try:
        reader.all()
    except Unreadable as error:
        return tuple(reader.found), error
    return tuple(reader.found), None


_BLANK = " \t"
_METACHARACTERS = " \t\n;&|()<>"
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\[[A-Za-z0-9_@*]*\])?(\+?)=")
_SIMPLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_BRACED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:\[(@|[0-9]{1,6})\])?\}")
_SETS = re.compile(r"=|\+\+|--")
_OPERATORS = ("&>>", "<<<", "<<-", ";;&", "&&", "||", ";;", ";&", "|&", "&>", "<<", ">>", "<&", ">&", "<>", ">|")
_REDIRECTIONS = {"&>>", "<<<", "&>", ">>", "<&", ">&", "<>", ">|", "<", ">"}
_UNQUOTED_OPAQUE = {"~": "a tilde", "{": "a brace", "}": "a brace"}


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 1
        self.found: list[Token] = []
        self.here: list[tuple[str, bool, bool]] = []
        """Here-documents that begin at the next line: delimiter, tabs stripped, expanded."""

    def all(self) -> None:
        while self.at < len(self.text):
            self._token()
        if self.here:
            raise Unreadable(self.line, "a here-document without an end")

    def _token(self) -> None:
        char = self._peek()
        if self._starts("\\\n"):
            self._take(2)
        elif char in _BLANK:
            self._take(1)
        elif char == "#":
            while self.at < len(self.text) and self._peek() != "\n":
                self.at += 1
        elif char == "\n":
            self.found.append(Operator(text="\n", line=self.line))
            self._take(1)
            self._here_documents()
        elif self._starts("(("):
            self._arithmetic_command()
        elif char in ";&|()<>":
            self._operator()
        else:
            self.found.append(self._assignment() or self._word())

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _starts(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _take(self, count: int) -> str:
        taken = self.text[self.at : self.at + count]
        self.at += count
        self.line += taken.count("\n")
        return taken

    # -- operators ------------------------------------------------------------------------------------------------

    def _operator(self) -> None:
        line = self.line
        operator = next((each for each in _OPERATORS if self._starts(each)), self._peek())
        if operator in {"<", ">"} and self.text[self.at + 1 : self.at + 2] == "(":
            raise Unreadable(line, "a process substitution")
        self._take(len(operator))
        if operator in {"<<", "<<-"}:
            self._here_delimiter(strip=operator == "<<-")
            operator = ">"
        elif operator in _REDIRECTIONS:
            self._skip_blanks()
            target = self._word()
            if not target.parts:
                raise Unreadable(line, f"{operator} without a file")
            if any(isinstance(part, Opaque) and part.assigns for part in target.parts):
                raise Unreadable(line, "a redirection that sets a variable")
            operator = ">"
        self.found.append(Operator(text=operator, line=line))

    def _here_delimiter(self, *, strip: bool) -> None:
        self._skip_blanks()
        word = self._word()
        if not word.parts or not all(isinstance(part, Text) for part in word.parts):
            raise Unreadable(self.line, "a here-document with an unusual end")
        delimiter = "".join(part.text for part in word.parts if isinstance(part, Text))
        expanded = not any(isinstance(part, Text) and part.quoted for part in word.parts)
        self.here.append((delimiter, strip, expanded))

    def _here_documents(self) -> None:
        for delimiter, strip, expanded in self.here:
            line = self.line
            body = ""
            while True:
                if self.at >= len(self.text):
                    raise Unreadable(line, "a here-document without an end")
                end = self.text.find("\n", self.at)
                text = self._take((end + 1 if end >= 0 else len(self.text)) - self.at).removesuffix("\n")
                if (text.lstrip("\t") if strip else text) == delimiter:
                    break
                body += text + "\n"
            if expanded and "$" in body and _SETS.search(body):
                raise Unreadable(line, "a here-document that may set variables")
        self.here.clear()

    def _arithmetic_command(self) -> None:
        line = self.line
        inner = self._balanced(2, "))")
        self.found.append(Word(parts=(Opaque(what="arithmetic", assigns=bool(_SETS.search(inner))),), line=line))

    # -- words ----------------------------------------------------------------------------------------------------

    def _assignment(self) -> Assignment | None:
        found = _ASSIGNMENT.match(self.text, self.at)
        if found is None:
            return None
        line = self.line
        self.at = found.end()
        while self._starts("\\\n"):
            self._take(2)
        value = self._array() if self._peek() == "(" else self._word()
        return Assignment(name=found[1], subscript=found[2] is not None, append=bool(found[3]), value=value, line=line)

    def _array(self) -> tuple[Word, ...]:
        line = self.line
        self._take(1)
        words: list[Word] = []
        while self._peek() != ")":
            if self.at >= len(self.text):
                raise Unreadable(line, "an array without an end")
            if self._peek() in " \t\n":
                self._take(1)
            elif self._starts("\\\n"):
                self._take(2)
            elif self._peek() == "#":
                while self.at < len(self.text) and self._peek() != "\n":
                    self.at += 1
            elif self._peek() in ";&|(<>":
                raise Unreadable(self.line, f"{self._peek()!r} inside an array")
            else:
                words.append(self._word())
        self._take(1)
        if self._peek() and self._peek() not in _METACHARACTERS:
            raise Unreadable(self.line, "text right behind an array")
        return tuple(words)

    def _skip_blanks(self) -> None:
        while self._starts("\\\n") or (self._peek() and self._peek() in _BLANK):
            self._take(2 if self._peek() == "\\" else 1)

    def _word(self) -> Word:
        line, parts = self.line, list[Part]()
        while self.at < len(self.text) and self._peek() not in _METACHARACTERS:
            char = self._peek()
            if self._starts("\\\n"):
                self._take(2)
            elif char == "\\":
                self._take(1)
                if self.at >= len(self.text):
                    raise Unreadable(line, "a backslash at the end")
                parts.append(Text(text=self._take(1), quoted=True))
            elif char == "'":
                parts.append(Text(text=self._single_quoted(), quoted=True))
            elif char == '"':
                parts += self._double_quoted()
            elif self._starts("$'") or self._starts('$"'):
                parts.append(self._dollar_quoted())
            elif char in {"$", "`"}:
                parts.append(self._expansion(quoted=False))
            elif char in _UNQUOTED_OPAQUE:
                # Alone they are reserved words.
                parts.append(Opaque(what=_UNQUOTED_OPAQUE[char]) if not self._alone() else _unquoted(char))
                self._take(1)
            else:
                parts.append(_unquoted(self._take(1)))
        return Word(parts=_joined(parts), line=line)

    def _alone(self) -> bool:
        before, after = self.text[self.at - 1 : self.at], self.text[self.at + 1 : self.at + 2]
        return (not before or before in _METACHARACTERS) and (not after or after in _METACHARACTERS)

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise Unreadable(self.line, "a quote without an end")
        return self._take(end + 1 - self.at)[1:-1]

    def _dollar_quoted(self) -> Opaque:
        self._take(1)
        if self._peek() == '"':
            self._double_quoted()
            return Opaque(what='a $"..." string')
        line = self.line
        self._take(1)
        while self._peek() != "'":
            if self.at >= len(self.text):
                raise Unreadable(line, "a quote without an end")
            self._take(2 if self._peek() == "\\" else 1)
        self._take(1)
        return Opaque(what="a $'...' string")

    def _double_quoted(self) -> list[Part]:
        line = self.line
        self._take(1)
        # An empty pair of quotes is a word too.
        parts: list[Part] = [Text(text="", quoted=True)]
        while self._peek() != '"':
            if self.at >= len(self.text):
                raise Unreadable(line, "a quote without an end")
            if self._starts("\\\n"):
                self._take(2)
            elif self._peek() == "\\" and self.text[self.at + 1 : self.at + 2] in {"$", "`", '"', "\\"}:
                parts.append(Text(text=self._take(2)[1], quoted=True))
            elif self._peek() in {"$", "`"}:
                parts.append(self._expansion(quoted=True))
            else:
                parts.append(Text(text=self._take(1), quoted=True))
        self._take(1)
        return parts

    # -- expansions -----------------------------------------------------------------------------------------------

    def _expansion(self, *, quoted: bool) -> Part:
        for pattern in (_SIMPLE, _BRACED):
            if found := pattern.match(self.text, self.at):
                self.at = found.end()
                if pattern is _SIMPLE and self._starts("\\\n"):
                    return Opaque(what="a name that goes on in the next line")
                index = found[2] or "" if pattern is _BRACED else ""
                return Reference(name=found[1], index=index, quoted=quoted)
        if self._starts("$\\\n"):
            raise Unreadable(self.line, "an expansion that goes on in the next line")
        if self._starts("`"):
            return self._backquoted()
        if self._starts("$(("):
            return Opaque(what="arithmetic", assigns=bool(_SETS.search(self._balanced(3, "))"))))
        if self._starts("$("):
            self._balanced(2, ")")
            return Opaque(what="a command substitution")
        if self._starts("${"):
            inner = self._balanced(2, "}")
            return Opaque(what="a ${...} with more than a name", assigns="=" in inner)
        if self._starts("$["):
            raise Unreadable(self.line, "old arithmetic, $[...]")
        after = self.text[self.at + 1 : self.at + 2]
        if after and after in "0123456789@*#?$!-":
            self._take(2)
            return Opaque(what=f"${after}")
        return Text(text=self._take(1), quoted=True)

    def _backquoted(self) -> Opaque:
        line = self.line
        self._take(1)
        while self._peek() != "`":
            if self.at >= len(self.text):
                raise Unreadable(line, "a command substitution without an end")
            self._take(2 if self._peek() == "\\" else 1)
        self._take(1)
        return Opaque(what="a command substitution")

    def _balanced(self, opening: int, end: str) -> str:
        """What stands between an opening and its end, quotes and nested ones skipped.

        Comments, `case` and here-documents may hold a bracket that closes nothing: with one of them inside, the end
        is in doubt.
        """
        line, start = self.line, self.at
        self._take(opening)
        depth = 0
        while True:
            char = self._peek()
            if self.at >= len(self.text):
                raise Unreadable(line, "an expansion without an end")
            if depth == 0 and self._starts(end):
                self._take(len(end))
                return self.text[start : self.at]
            if char == "\\":
                self._take(2)
            elif char == "'":
                if end == "}":
                    raise Unreadable(line, "a single quote inside ${...}")
                self._single_quoted()
            elif char == '"':
                self._double_quoted()
            elif self._starts("$(") or self._starts("${") or char == "`":
                self._expansion(quoted=True)
            elif (char == "#" and self.text[self.at - 1] in " \t\n;(" and end != "}") or (
                end == ")" and (self._starts("<<") or re.match(r"\bcase\b", self.text[self.at : self.at + 5]))
            ):
                raise Unreadable(line, "a command substitution with a comment, `case` or `<<` inside")
            else:
                depth += (char == "(") - (char == ")") if end != "}" else 0
                if depth < 0:
                    raise Unreadable(line, "a bracket that closes nothing")
                self._take(1)


def _unquoted(text: str) -> Text:
    return Text(text=text, quoted=False)


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Neighbouring texts of the same kind put together."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text) and last.quoted == part.quoted:
            joined[-1] = Text(text=last.text + part.text, quoted=part.quoted)
        else:
            joined.append(part)
    return tuple(joined)
