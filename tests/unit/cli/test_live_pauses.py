"""The live view steps aside and comes back without taking away what was printed meanwhile."""

import io

from rich.console import Console

from kubeworker.cli.table import Table
from kubeworker.flow.events import NodeStarted

UP = "\x1b[1A"
"""CUU (ECMA-48): with it lines above are taken away."""


def test_a_view_that_comes_back_takes_no_printed_line_away() -> None:
    text = io.StringIO()
    screen = Console(file=text, width=80, height=24, force_terminal=True)
    table = Table(screen)
    with table:
        for number in range(4):
            table(NodeStarted(node=f"k8s-{number}", what="observe"))
        with table.paused():
            screen.print("printed meanwhile")
        table(NodeStarted(node="k8s-0", what="apply"))
    shown = text.getvalue().partition("printed meanwhile")[2]
    # Up to the view's first line nothing may go upwards.
    assert "k8s-0" in shown
    assert UP not in shown.partition("k8s-0")[0]
