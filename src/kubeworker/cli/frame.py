"""What every command runs in: the parser, and the one place where errors become messages and exit codes.

Commands are imported when they run, so that their `--help` and completion answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cyclopts import App, CycloptsError

from kubeworker.cli import commands
from kubeworker.errors import InternalError, KubeworkerError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""

app = App(
    name="kubeworker",
    help=commands.HELP,
    help_epilogue=commands.EPILOGUE,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
for order, (command, (where, _)) in enumerate(commands.COMMANDS.items()):
    # Without `help`, which would take the place of all that the command's docstring says.
    app.command(f"kubeworker.cli.{where}", name=command, sort_key=order)
app.register_install_completion_command()


def run(tokens: list[str]) -> int:
    """Run the command; its exit code."""
    with _stop_signals():
        return _run(tokens)


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
