"""`kubeworker --help` is written from data; neither it nor a command's help imports what only a run needs, nor a plan
what only an apply needs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from kubeworker.cli import commands
from kubeworker.cli.frame import app

ENGINE = {"asyncssh", "cryptography", "httpx2", "lightkube", "pydantic", "stamina", "tomli_w", "websockets", "yaml"}
"""Libraries that a run needs, and no help."""

PARSER = {"asyncio", "cyclopts", "inspect", "logging", "rich", "ssl", "typing"}
"""What reading a command line with options needs, and the overview does not."""

APPLYING = {
    "kubeworker.flow.artifact_sources",  # downloads and builds
    "kubeworker.flow.checks_http",
    "kubeworker.flow.csr",  # the approver
    "kubeworker.io.build",
    "kubeworker.io.fetch",
    "stamina",
    "tenacity",
}
"""What applies, verifies or gets artifacts that are missing: no plan of what is there needs it."""

SHOWING = {"rich", "kubeworker.cli.live", "kubeworker.cli.table"}
"""What draws on a terminal."""

LOADED = """
import sys
from collections.abc import Iterator
from kubeworker.cli.app import main
try:
    main(sys.argv[1:])
finally:
    sys.stderr.write(" ".join(sys.modules))
"""


def run(*words: str, exit_code: int = 0) -> tuple[str, set[str]]:
    """What is printed, and the names of the modules that were imported for it."""
    # -I: what the environment or a site's own start-up files import is not the command's doing.
    command = [sys.executable, "-I", "-c", LOADED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == exit_code
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_overview_imports_no_library(words: tuple[str, ...]) -> None:
    text, modules = run(*words)
    assert text == commands.overview()
    assert not modules & (ENGINE | PARSER)


@pytest.mark.parametrize("command", ["plan", "apply", "status"])
def test_a_commands_help_imports_nothing_of_the_engine(command: str) -> None:
    text, modules = run(command, "--help")
    assert f"kubeworker {command}" in text
    assert not modules & ENGINE


def test_a_plan_imports_nothing_that_only_an_apply_needs(tmp_path: Path) -> None:
    _, modules = run("plan", "--json", "-f", str(tmp_path / "none.yaml"), exit_code=3)
    assert {"kubeworker.flow.plan", "asyncssh"} <= modules
    assert not modules & (APPLYING | SHOWING)


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
    verbs = ("preflight", "plan", "apply", "verify", "status", "render", "artifacts fetch", "csr approve", "lab up")
    assert told >= {f"kubeworker {verb}" for verb in verbs}
    assert {name for name, taken in found.items() if taken & {"--plain", "--json-events"}} == told


def test_a_commands_help_is_all_of_its_docstring() -> None:
    for name, parsed in walked(app):
        if function := parsed.default_command:
            documented = inspect.getdoc(function) or ""
            assert parsed.help.split() == documented.split(), name
