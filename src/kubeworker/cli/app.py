"""The command `kubeworker`: its commands, and the one place where errors become messages and exit codes.

Commands are named here and imported when they run, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from cyclopts import App, CycloptsError

from kubeworker.errors import InternalError, KubeworkerError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""

app = App(
    name="kubeworker",
    help="Turns plain Linux machines into Kubernetes worker nodes over SSH.",
    help_epilogue="Exit codes: 0 done or nothing to do, 1 failed, 2 changes pending (plan), 3 wrong input, "
    "4 some nodes unreachable. KUBEWORKER_DEBUG=1 shows where an error came from.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "init": ("init:init", "Write a commented cluster.yaml, also from the guide's environment.sh."),
    "artifacts": ("artifacts:app", "Get, check and pack the binaries."),
    "render": ("render:render", "Write every file of every node, offline."),
    "preflight": ("preflight:preflight", "Check the nodes before anything is changed."),
    "plan": ("plan:plan", "Show what would change, and why."),
    "apply": ("apply:apply", "Show the plan, ask, and do exactly that."),
    "verify": ("verify:verify", "Prove on the live cluster that everything works."),
    "status": ("status:status", "What has changed since the last apply, and who has changed it."),
    "csr": ("csr:app", "Certificate requests of nodes: list them, approve by the rules."),
    "token": ("token:app", "Bootstrap tokens: list them, take them back."),
    "lab": ("lab:app", "A local lab of real machines with a real control plane."),
    "drill": ("drill:app", "Failures on purpose, on a lab, and what they cost."),
}
"""Command -> where it lies in this package, and its line in --help."""

for order, (command, (where, summary)) in enumerate(COMMANDS.items()):
    app.command(f"kubeworker.cli.{where}", name=command, help=summary, sort_key=order)
app.register_install_completion_command()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _stop_signals():
            code = _run(tokens)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(tokens: list[str]) -> int:
    from kubeworker.cli.output import print_errors

    as_json = "--json" in tokens
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was not finished is finished by the next run\n")
        return INTERRUPTED
    except CycloptsError as error:
        from kubeworker.cli.usage import usage_error

        error.verbose = False
        print_errors([usage_error(app, tokens, error)], as_json=as_json)
        return UsageError.exit_code
    except Exception as error:
        _debug()
        known = tuple(_known(error))
        print_errors(known, as_json=as_json)
        return max(each.exit_code for each in known)
    return result if isinstance(result, int) else 0


def _known(error: BaseException) -> Iterator[KubeworkerError]:
    """Our errors as they are, those of a group one by one; anything else is a fault of this program, and said so."""
    match error:
        case KubeworkerError():
            yield error
        case BaseExceptionGroup(exceptions=inner):
            for each in inner:
                yield from _known(each)
        case _:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            yield InternalError(f"unexpected {what}")


def _debug() -> None:
    if os.environ.get("KUBEWORKER_DEBUG"):
        traceback.print_exc()


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end a command as Ctrl-C does: with its clean-up."""

    def as_interrupt(_number: int, _frame: FrameType | None) -> None:
        # asyncio turns SIGINT into a cancelled main task; an exception from here would tear the loop instead.
        signal.raise_signal(signal.SIGINT)

    stops = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asked for that
        stops.append(signal.SIGHUP)
    before = {number: signal.signal(number, as_interrupt) for number in stops}
    # A shell starts `command &` with SIGINT ignored; asyncio then leaves it alone and none of the three would stop us.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
