"""The frame of the command: exit codes, signals, pipes, questions. Each runs in a process of its own."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FRAME = """
import asyncio, sys
from kubeworker.cli.app import main
from kubeworker.cli.frame import app
from kubeworker.errors import ActionFailed, NodeUnreachable

@app.command
async def wait(*, json: bool = False):
    try:
        print("ready", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleaned", flush=True)

@app.command
def fault(*, json: bool = False):
    raise ValueError("boom")

@app.command
async def several(*, json: bool = False):
    async def fail(error):
        raise error
    async with asyncio.TaskGroup() as group:
        group.create_task(fail(ActionFailed("gate", subject="a", hint="look")))
        group.create_task(fail(NodeUnreachable("down", subject="b", hint="look")))

@app.command
def talk():
    for number in range(100_000):
        print(number)

@app.command
async def question():
    from kubeworker.cli.output import ask
    print("yes" if await ask("Apply it?") else "no", flush=True)

main()
"""


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "KUBEWORKER_DEBUG"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FRAME, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_its_clean_up(number: signal.Signals) -> None:
    # Whoever runs these tests may have SIGHUP ignored (nohup), and it would be so for the command too.
    command = ["env", "--default-signal=HUP", sys.executable, "-c", FRAME, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
    assert output == "cleaned\n"
    assert process.returncode == 130
    assert errors == "\ninterrupted; what was not finished is finished by the next run\n"


def test_a_command_in_a_scripts_background_can_be_stopped_too() -> None:
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", FRAME, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        output, _ = process.communicate(timeout=10)
    assert (output, process.returncode) == ("cleaned\n", 130)


def test_a_fault_of_the_program_is_one_line_and_says_how_to_report_it() -> None:
    result = run("fault")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "error: unexpected ValueError: boom [internal]",
        "  hint: run it again with KUBEWORKER_DEBUG=1 and report what it prints",
    ]


def test_errors_of_several_tasks_are_all_told_and_the_worst_code_wins() -> None:
    result = run("several", "--json")
    assert result.returncode == 4
    document = json.loads(result.stdout)
    assert [error["subject"] for error in document["errors"]] == ["a", "b"]
    assert document["error"] == document["errors"][0]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    script = tmp_path / "frame.py"
    script.write_text(FRAME)
    shell = f"{sys.executable} {script} talk | head -1"
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, timeout=30)
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.mark.parametrize(("typed", "answer"), [(b"y\n", "yes"), (b"YES\n", "yes"), (b"n\n", "no"), (b"\n", "no")])
def test_a_question_takes_only_a_yes_for_yes(typed: bytes, answer: str) -> None:
    assert answered(typed).stdout == f"{answer}\n"


def test_the_end_of_input_is_no() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FRAME, "question"], stdin=subprocess.PIPE, capture_output=True, check=False, text=True
    )
    assert result.stdout == "no\n"


def test_ctrl_c_at_a_question_ends_the_command() -> None:
    result = answered(b"\x03")
    assert result.returncode == 130
    assert result.stdout == ""


def answered(typed: bytes) -> subprocess.CompletedProcess[str]:
    """Run the question on a terminal of its own and type an answer."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", FRAME, "question"]
    # A new session whose controlling terminal is the pty: Ctrl-C then is a signal, as for a person.
    controlling = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", controlling, *command],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stderr
        while process.stderr.read(1) != "]":
            pass
        os.write(ours, typed)
        output, errors = process.communicate(timeout=10)
    os.close(ours)
    os.close(theirs)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
