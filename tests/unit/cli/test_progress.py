import json
from functools import reduce

import pytest

from kubeworker.cli.progress import Progress, Row, line, size
from kubeworker.flow.events import (
    ActionDone,
    CheckDone,
    Event,
    NodeDone,
    NodeStarted,
    Note,
    StageStarted,
    Transfer,
    Warning_,
    as_json,
)


def after(*events: Event) -> dict[str, Row]:
    return dict(reduce(Progress.after, events, Progress()).rows)


def test_a_row_follows_its_node() -> None:
    rows = after(
        NodeStarted(node="a", what="apply"),
        StageStarted(node="a", component="kubelet"),
        Transfer(node="a", subject="upload", done=5, total=10),
    )
    assert rows == {"a": Row(name="a", stage="kubelet", done=5, total=10)}
    rows = after(
        StageStarted(node="a", component="kubelet"),
        ActionDone(node="a", kind="restart", subject="kubelet.service"),
        NodeDone(node="a", status="failed", detail="gate"),
    )
    assert rows["a"].status == "failed"
    assert (rows["a"].actions, rows["a"].last, rows["a"].detail) == (1, "restart kubelet.service", "gate")


def test_a_download_is_a_row_of_its_own_and_ends_by_itself() -> None:
    rows = after(Transfer(subject="kubelet", done=1, total=2), Transfer(subject="kubelet", done=2, total=2))
    assert rows["kubelet"].status == "ok"


def test_failed_checks_are_counted() -> None:
    rows = after(CheckDone(node="a", id="x", status="passed"), CheckDone(node="a", id="y", status="failed"))
    assert (rows["a"].actions, rows["a"].failures) == (2, 1)


def test_notes_and_warnings_belong_to_no_row() -> None:
    start = Progress()
    assert start.after(Note(text="hello")) is start
    assert start.after(Warning_(subject="ipvs", text="deprecated")) is start


def test_a_screen_too_small_shows_failures_and_running_nodes_first() -> None:
    started = [NodeStarted(node=str(number)) for number in range(5)]
    done = [NodeDone(node="0", status="ok"), NodeDone(node="1", status="ok"), NodeDone(node="4", status="failed")]
    events: list[Event] = [*started, *done]
    rows, left_out = reduce(Progress.after, events, Progress()).shown(limit=3)
    assert [row.name for row in rows] == ["4", "2", "3"]
    assert left_out == 2


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (NodeStarted(node="a", what="observe"), "a: observe"),
        (ActionDone(node="", kind="rbac", subject="binding"), "cluster: rbac binding"),
        (ActionDone(node="a", kind="restart", subject="kubelet.service", seconds=2.04), "2.0 s"),
        (NodeDone(node="a", status="unreachable", detail="connection refused"), "a: unreachable: connection refused"),
        (NodeDone(node="a", status="failed", detail="not healthy\n  journal"), "a: failed: not healthy"),
        (Transfer(node="a", subject="upload", done=214_000_000, total=0), "a: upload 214 MB"),
        (Warning_(subject="kube_proxy", text="ipvs goes"), "warning: kube_proxy: ipvs goes"),
        (CheckDone(node="a", id="kubelet-10255-closed", status="failed", detail="open"), "failed: open"),
    ],
)
def test_events_read_as_lines(event: Event, text: str) -> None:
    assert text in line(event)


def test_events_are_json_lines_with_a_stable_name() -> None:
    document = json.loads(json.dumps(as_json(StageStarted(node="a", component="kubelet"))))
    assert document == {"event": "stage-started", "node": "a", "component": "kubelet"}
    assert as_json(Warning_(subject="s", text="t"))["event"] == "warning"


def test_sizes_are_for_people() -> None:
    assert [size(number) for number in (0, 999, 1000, 214_000_000, 1_500_000_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "214 MB",
        "1.5 GB",
    ]
