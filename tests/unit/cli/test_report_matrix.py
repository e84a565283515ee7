"""Who reaches whom, as people see it below preflight's table."""

from __future__ import annotations

import io

from rich.console import Console

from kubeworker.cli.report_preflight import print_checks
from kubeworker.core.reachability.rows import Matrix
from kubeworker.flow.preflight import Preflight

MATRIX = Matrix(
    targets=("k8s-01", "k8s-02", "w-01"), cells={"k8s-01": ("-", "10250 mtu", "ok"), "k8s-02": ("ok", "-", "?")}
)


def test_the_matrix_has_a_line_for_each_that_asks() -> None:
    screen = Console(file=io.StringIO(), width=80)
    print_checks(screen, Preflight(nodes=(), matrix=MATRIX))
    assert isinstance(screen.file, io.StringIO)
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    assert lines[1:4] == [
        "FROM \\ TO  k8s-01  k8s-02     w-01",
        "k8s-01     -       10250 mtu  ok",
        "k8s-02     ok      -          ?",
    ]


def test_programs_get_it_by_name() -> None:
    document = Preflight(nodes=(), matrix=MATRIX).as_json()
    assert document["reachability"]["k8s-01"] == {"k8s-01": "-", "k8s-02": "10250 mtu", "w-01": "ok"}
    assert Preflight(nodes=()).as_json()["reachability"] is None
