"""Where output goes: documents and tables to standard output, progress, questions and errors to standard error.

Colours only where a terminal shows them, and not where NO_COLOR (no-color.org) is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeworker.errors import FileError, KubeworkerError, reason

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 1000
"""Columns of a table that goes to a file or a pipe: wide enough that no cell is ever wrapped."""


def console(*, stderr: bool = False) -> Console:
    """A console on one of the two streams; no markup, emoji or highlighting: texts are shown as they are."""
    from rich.console import Console  # JSON and plain progress do without

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def is_interactive() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


async def ask(question: str) -> bool:
    """Yes or no from the terminal; end of input is no. Ctrl-C cancels the task as it does elsewhere."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    # input() would keep the loop from noticing Ctrl-C until Enter; a terminal is readable once its line is complete.
    def read() -> None:
        if not line.done():
            line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin, read)
    try:
        return (await line).strip().lower() in {"y", "yes"}
    finally:
        loop.remove_reader(sys.stdin)


def print_document(document: Mapping[str, Any]) -> None:
    """The machine-readable form: one JSON document on standard output."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def check_writable(path: Path) -> None:
    """InputError where a file could not be written: known before a run, not after it."""
    folder = path.parent
    if not folder.is_dir() or path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        hint = "name a file in a folder that exists and that you can write to"
        raise FileError("can't be written", subject=str(path), hint=hint)


def check_folder(path: Path) -> None:
    """InputError where no files could be put into this folder, which need not be there yet."""
    whole = path.absolute()
    there = next(each for each in (whole, *whole.parents) if os.path.lexists(each))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        missing = f": {there} is {'not yours to write to' if there.is_dir() else 'no folder'}"
        hint = "name a folder that you can write to; it is made where there is none yet"
        raise FileError(f"can't be written{missing}", subject=str(path), hint=hint)


def write_file(path: Path, text: str) -> None:
    """Write a report file. InputError: it can't be written there."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise FileError(f"can't be written: {reason(error)}", subject=str(path), hint="name another file") from error


def print_errors(errors: Sequence[KubeworkerError], *, as_json: bool) -> None:
    """`error: subject: message [id]` and the way out on standard error; with `--json` also the document."""
    if as_json:
        more = {"errors": [error.as_json() for error in errors]} if len(errors) > 1 else {}
        print_document({"error": errors[0].as_json(), **more})
    red, dim, end = ("\033[1;31m", "\033[2m", "\033[0m") if _colours() else ("", "", "")
    for error in errors:
        what = f"{error.subject}: {error.message}" if error.subject else error.message
        first, newline, others = what.partition("\n")
        sys.stderr.write(f"{red}error:{end} {first} {dim}[{error.id}]{end}{newline}{others}\n")
        sys.stderr.write(f"{dim}  hint: {error.hint or error.way_out}{end}\n")


def _colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
