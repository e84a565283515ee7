"""The command `kubeworker`. Only what every call needs is imported here: see commands.py and frame.py."""

import gc
import os
import sys

from kubeworker.cli import commands


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code."""
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(list(tokens))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(tokens: list[str]) -> int:
    if commands.asks_for_overview(tokens):
        sys.stdout.write(commands.overview())
        return 0
    # Importing makes many objects and next to no garbage; with the usual threshold of 700 a tenth of it is looking for
    # some. Pydantic's is for plugins: it would read what every installed distribution says of itself.
    gc.set_threshold(50_000)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from kubeworker.cli.frame import run

    return run(tokens)
