"""`kubeworker --help` is written from data, and every command says about itself all that it has to say."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from cyclopts import App

from kubeworker.cli import commands
from kubeworker.cli.frame import app


def test_the_overview_has_every_command_and_fits_a_terminal() -> None:
    lines = commands.overview().splitlines()
    shown = {line.split()[0].rstrip(",") for line in lines if line.startswith("  ")}
    assert shown >= {name for name in app if not name.startswith("-")}
    assert {"--help", "--version", "--install-completion"} <= shown
    assert max(map(len, lines)) <= 80


def test_each_command_is_where_the_table_says() -> None:
    for name in commands.COMMANDS:
        assert app[name].name == (name,)


def walked(parsed: App, name: str = "kubeworker") -> Iterator[tuple[str, App]]:
    for word in parsed:
        if not word.startswith("-"):
            yield f"{name} {word}", parsed[word]
            yield from walked(parsed[word], f"{name} {word}")


def options(parsed: App) -> set[str]:
    return {name for argument in parsed.assemble_argument_collection() for name in argument.names}


TELLING = {"--quiet", "-q", "--plain", "--json-events"}


def test_every_command_with_progress_can_be_told_how_in_the_same_way() -> None:
    found = {name: options(parsed) & TELLING for name, parsed in walked(app) if parsed.default_command}
    told = {name for name, taken in found.items() if taken == TELLING}
    verbs = (
        "preflight",
        "plan",
        "apply",
        "verify",
        "status",
        "render",
        "artifacts fetch",
        "artifacts import",
        "csr approve",
        "lab up",
    )
    assert told >= {f"kubeworker {verb}" for verb in verbs}
    assert {name for name, taken in found.items() if taken & {"--plain", "--json-events"}} == told


def test_a_commands_help_is_all_of_its_docstring() -> None:
    for name, parsed in walked(app):
        if function := parsed.default_command:
            documented = inspect.getdoc(function) or ""
            assert parsed.help.split() == documented.split(), name
