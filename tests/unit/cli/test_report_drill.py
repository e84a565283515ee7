"""A drill as people see it."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from kubeworker.cli.report_drill import print_drill
from kubeworker.core.api_proxy.failover import Client, Drill, Gap, Proxy, Result

CLIENT = Client(gap=Gap(seconds=3.25), after=0.2, noise=0.1)
RESULT = Result(
    case="hung",
    apiserver="k8s-02",
    held=12.0,
    recovery=0.2,
    kept=CLIENT,
    dial=CLIENT,
    watch=3.3,
    before={"k8s-01": 3, "k8s-02": 4},
    during={"k8s-01": 7, "k8s-02": 0},
    after={"k8s-01": 4, "k8s-02": 3},
    even=12.25,
    leases={"worker-01": 10.4},
    not_ready=(),
    reloads={"k8s-02": (1763976264.5,), "worker-01": (1763976265.5,)},
)
PROXY = Proxy(node="worker-01", listen="127.0.0.1:8443", balance="least_conn", probe=True, ping_seconds=(10, 5))


def shown(*results: Result) -> str:
    text = io.StringIO()
    drill = Drill(lab="try", proxy=PROXY, nodes=("k8s-02", "worker-01"), results=results)
    print_drill(Console(file=text, width=200, markup=False), drill)
    return text.getvalue()


def test_a_column_for_each_case_and_a_line_for_each_number() -> None:
    text = shown(RESULT, replace(RESULT, case="unready"))
    assert "worker-01 through 127.0.0.1:8443: least_conn, with a probe; pings after 10 + 5 s" in text
    lines = {line[:29].strip(): line[29:].split("  ") for line in text.splitlines()}
    assert "hung (k8s-02)" in text
    assert "unready (k8s-02)" in text
    assert [cell.strip() for cell in lines["longest gap, kept connection"] if cell.strip()] == ["3.2 s", "3.2 s"]
    assert "k8s-02 :24, worker-01 :25" in text
    assert text.rstrip().endswith("all aims are met")


def test_what_was_missed_stands_below_by_case() -> None:
    late = replace(RESULT, even=None, not_ready=("worker-01",), leases={"worker-01": 44.0})
    text = shown(late)
    assert "not within 60 s" in text
    assert "44.0 s, late" in text
    assert "hung: NotReady: worker-01" in text
    assert "hung: sessions were not spread again within 60 s of the return" in text
    assert "all aims are met" not in text
