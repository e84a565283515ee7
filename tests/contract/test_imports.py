"""Each command imports what it needs and no more: an overview no library, a help nothing of the engine, a plan nothing
that only an apply needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kubeworker.cli import commands

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
