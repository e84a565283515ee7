"""The live view as text: what fits a terminal of 80 columns with a few nodes, and with a fleet."""

from collections.abc import Iterable

import pytest

from kubeworker.cli.live import View, drawn
from kubeworker.cli.progress import Progress
from kubeworker.flow.events import (
    ActionDone,
    ActionStarted,
    CheckDone,
    Event,
    NodeDone,
    NodeQueued,
    NodeStarted,
    StageStarted,
    Transfer,
    Waiting,
)

TURN = "a turn to be sent its artifacts"


def sends(node: str) -> list[Event]:
    return [
        NodeStarted(node=node, what="apply"),
        Transfer(node=node, subject="artifacts", done=120_000_000, total=214_000_000),
    ]


def works(node: str) -> list[Event]:
    return [
        StageStarted(node=node, component="kubelet"),
        *(ActionDone(node=node, kind="write", subject=f"/etc/{number}") for number in range(12)),
        ActionStarted(node=node, kind="restart", subject="kubelet.service"),
    ]


def progress(events: Iterable[Event], at: float = 2.0) -> Progress:
    made = Progress()
    for event in events:
        made = made.after(event, at)
    return made


def queued(*names: str) -> list[Event]:
    return [NodeQueued(node=name, steps=34) for name in names]


def fleet(number: int) -> Progress:
    names = [f"k8s-{each:03}" for each in range(1, number + 1)]
    events = queued(*names)
    for index, name in enumerate(names):
        match index % 4:
            case 1:
                events += sends(name)
            case 2:
                events += works(name)
            case 3:
                events.append(NodeDone(node=name, status="ok") if index % 8 == 3 else Waiting(node=name, what=TURN))
            case _:
                pass
    events.append(NodeDone(node="k8s-001", status="failed", detail=f"kubelet.service: {'not healthy ' * 20}"))
    return progress(events)


def text(made: Progress) -> list[str]:
    return [line.plain.rstrip() for line in drawn(made, View(now=12.0))]


def test_a_line_for_each_node_and_a_summary() -> None:
    assert text(fleet(4)) == [
        "k8s-001  ✗ failed      kubelet.service: not healthy not healthy not healthy not…",
        "k8s-002  ⠦ artifacts   ━━━━━━━━────────  120 MB of 214 MB  12 MB/s          10 s",
        "k8s-003  ⠦ kubelet     12/34  restart kubelet.service                       10 s",
        "k8s-004  ✓ done",
        "⠦ 1 of 4 nodes done, 1 failed, 12 of 136 changes, 120 MB sent, 12 s",
    ]


def test_a_fleet_is_counted_by_state_and_shows_as_many_nodes_as_fit() -> None:
    lines = text(fleet(200))
    assert lines[:6] == [
        "failed         1  k8s-001",
        "artifacts     50  6.0 GB of 10.7 GB  k8s-002, k8s-006, k8s-010 and 47 more",
        "kubelet       50  k8s-003, k8s-007, k8s-011, k8s-015, k8s-019 and 45 more",
        "waits         25  a turn to be sent its artifacts",
        "queued        49",
        "done          25",
    ]
    assert lines[6].startswith("k8s-002  ⠦ artifacts   ━━━━━━━━────────")
    assert lines[-1] == "⠦ 25 of 200 nodes done, 1 failed, 600 of 6800 changes, 6.0 GB sent, 12 s"


@pytest.mark.parametrize("number", [1, 3, 22, 23, 200, 1000])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (40, 10), (20, 5)])
def test_it_fits_the_terminal(number: int, width: int, height: int) -> None:
    lines = drawn(fleet(number), View(now=3600.0, width=width, height=height))
    assert all(line.cell_len <= width for line in lines)
    assert len(lines) < height


def test_a_terminal_without_unicode_gets_none() -> None:
    view = View(now=12.0, ascii=True)
    assert all(line.plain.isascii() for made in (fleet(4), fleet(200)) for line in drawn(made, view))


def test_what_a_node_waits_for_stands_in_its_line() -> None:
    made = progress([NodeDone(node="a", status="ok"), Waiting(node="a", what="its Node to be Ready")])
    assert text(made)[0].split() == ["a", "⠦", "waits", "its", "Node", "to", "be", "Ready", "10", "s"]


def test_checks_and_downloads_have_lines_too() -> None:
    made = progress(
        [
            NodeStarted(node="a", what="verify", steps=58),
            CheckDone(node="a", id="kubelet.unit", status="failed"),
            Transfer(subject="containerd 2.1.3", done=5_000_000, total=0),
        ]
    )
    assert text(made) == [
        "containerd 2.1.3  ⠦ download    5 MB  500 kB/s                              10 s",
        "a                 ⠦ verify      1/58  1 failed  kubelet.unit                10 s",
        "⠦ 0 of 1 node done, 1 of 58 checks, 1 download, 12 s",
    ]


def test_nothing_is_drawn_before_anything_happens() -> None:
    assert drawn(Progress(), View()) == ()
