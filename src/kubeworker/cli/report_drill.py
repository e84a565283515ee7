"""A drill for people: a column for each case, then the aims that were missed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kubeworker.cli.styles import STYLES
from kubeworker.core.api_proxy.failover import Drill, measures


def print_drill(screen: Console, drill: Drill) -> None:
    """The table and the verdict."""
    screen.print(Text(f"{drill.proxy.node} through {drill.proxy.listen}: {drill.proxy.text}", style="dim"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for result in drill.results:
        table.add_column(f"{result.case} ({result.apiserver})")
    columns = [measures(result) for result in drill.results]
    for measure in columns[0] if columns else ():
        table.add_row(Text(measure, style="bold"), *(column[measure] for column in columns))
    screen.print(table)
    for case, text in drill.missed:
        screen.print(Text(f"{case}: {text}", style=STYLES["failed"]), soft_wrap=True)
    if not drill.missed:
        screen.print(Text("all aims are met", style=STYLES["passed"]))
