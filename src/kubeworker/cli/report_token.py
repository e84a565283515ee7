"""Bootstrap tokens for people: one line each, those that should not be there coloured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.report_plan import count
from kubeworker.core import durations
from kubeworker.flow.tokens import Listed, Revoked

STYLES = {"valid": "green", "joined": "yellow", "expired": "dim", "unusable": "dim"}


def print_tokens(screen: Console, listed: Sequence[Listed]) -> None:
    """Id, node, TTL, state and maker of each token."""
    if not listed:
        screen.print("no bootstrap tokens")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "NODE", "TTL", "STATE", "MADE BY", "DESCRIPTION"):
        table.add_column(column, overflow="fold")
    for each in listed:
        table.add_row(
            Text(each.token.id),
            Text(each.token.node),
            _left(each),
            Text(_state(each), style=STYLES[each.state]),
            Text(each.token.maker),
            Text(each.token.description),
        )
    screen.print(table)


def print_revoked(screen: Console, done: Revoked) -> None:
    """What was deleted, and of what there was nothing."""
    for token in done.tokens:
        of = f" ({token.node})" if token.node else ""
        screen.print(Text(f"revoked {token.id}{of}"), soft_wrap=True)
    for word in done.gone:
        screen.print(Text(f"{word}: no token, nothing to do"), soft_wrap=True)
    screen.print(Text(f"{count(len(done.tokens), 'token')} revoked", style="bold"))


def _left(each: Listed) -> Text:
    if each.token.fault:
        return Text("")
    if each.seconds_left is None:
        return Text("for ever", style="bold yellow")
    return Text(durations.text(each.seconds_left) if each.seconds_left else "")


def _state(each: Listed) -> str:
    match each.state:
        case "joined":
            return "valid, though its node has joined"
        case "unusable":
            return f"unusable: {each.token.fault}"
        case state:
            return state
