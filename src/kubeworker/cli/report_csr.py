"""Certificate requests for people: one line each, with what stops it; then each way out once."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.styles import STYLES
from kubeworker.core import durations
from kubeworker.core.certificates.csr import Pending
from kubeworker.core.certificates.issuing import Halted
from kubeworker.flow.csr import Listed


def print_requests(screen: Console, listed: Sequence[Listed]) -> None:
    """Name, node, signer, requester, age, state and verdict of each request."""
    if not listed:
        screen.print("no certificate signing requests")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "NODE", "SIGNER", "REQUESTER", "AGE", "STATE", "VERDICT"):
        table.add_column(column, overflow="fold")
    for each in listed:
        request = each.request
        table.add_row(
            request.name,
            request.node,
            request.signer.removeprefix("kubernetes.io/"),
            request.username,
            durations.text(each.age),
            request.state,
            _verdict(each),
        )
    screen.print(table)
    hints = dict.fromkeys(each.verdict.hint for each in listed if isinstance(each.verdict, Halted))
    for hint in hints:
        screen.print(Text(f"hint: {hint}", style="dim"), soft_wrap=True)


def _verdict(each: Listed) -> Text:
    match each.verdict:
        case None:
            return Text("")
        case Pending(rule=rule, detail=detail):
            return Text(f"{rule}: {detail}", style=STYLES["pending"])
        case Halted(rule=rule, detail=detail):
            return Text(f"{rule}: {detail}", style=STYLES["failed"])
        case _:
            return Text("holds every rule: kubeworker csr approve", style=STYLES["ok"])
