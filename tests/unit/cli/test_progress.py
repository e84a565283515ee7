import json
from functools import reduce

import pytest

from kubeworker.cli.lines import is_told, line
from kubeworker.cli.progress import Progress, Row, size, summary
from kubeworker.flow.events import (
    ActionDone,
    ActionStarted,
    CheckDone,
    Event,
    NodeDone,
    NodeQueued,
    NodeSeen,
    NodeStarted,
    Note,
    StageStarted,
    Transfer,
    Waiting,
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
    assert rows == {"a": Row(name="a", stage="upload", done=5, total=10)}
    rows = after(
        StageStarted(node="a", component="kubelet"),
        ActionDone(node="a", kind="restart", subject="kubelet.service"),
        NodeDone(node="a", status="failed", detail="gate"),
    )
    assert rows["a"].status == "failed"
    assert (rows["a"].actions, rows["a"].last, rows["a"].detail) == (1, "restart kubelet.service", "gate")


def test_a_download_is_a_row_of_its_own_and_ends_by_itself() -> None:
    rows = after(Transfer(subject="kubelet", done=1, total=2), Transfer(subject="kubelet", done=2, total=2))
    assert rows["download kubelet"].status == "ok"


def test_a_file_that_is_worked_through_is_one_row_that_says_with_what() -> None:
    check = Transfer(subject="bundle.tar.gz", done=2, total=2, what="check")
    unpack = Transfer(subject="bundle.tar.gz", done=1, total=5, what="unpack")
    rows = after(check, unpack)
    (row,) = rows.values()
    assert (row.name, row.state, row.done, row.total) == ("bundle.tar.gz", "unpack", 1, 5)
    assert summary(reduce(Progress.after, (check, unpack), Progress()), 12) == "unpack bundle.tar.gz, 12 s"
    assert line(check) == "check bundle.tar.gz 2 B of 2 B"


def test_failed_checks_are_counted() -> None:
    rows = after(CheckDone(node="a", id="x", status="passed"), CheckDone(node="a", id="y", status="failed"))
    assert (rows["a"].actions, rows["a"].failures) == (2, 1)


def test_notes_and_warnings_belong_to_no_row() -> None:
    start = Progress()
    assert start.after(Note(text="hello")) is start
    assert start.after(Warning_(subject="ipvs", text="deprecated")) is start


def test_a_node_that_is_looked_at_is_not_done_yet_and_one_that_waits_is_so_again() -> None:
    seen = (NodeStarted(node="a", what="connect"), NodeStarted(node="a", what="observe"), NodeSeen(node="a"))
    assert after(*seen)["a"].state == "seen"
    queued = (*seen, NodeQueued(node="a", steps=5))
    assert (after(*queued)["a"].state, after(*queued)["a"].steps) == ("queued", 5)
    done = (*queued, NodeStarted(node="a", what="apply"), NodeDone(node="a", status="ok"))
    assert after(*done)["a"].state == "done"
    waits = (*done, Waiting(node="a", what="Ready"))
    assert (after(*waits)["a"].state, after(*waits)["a"].moves) == ("waits", True)
    assert after(*waits, Waiting(node="a", what=""))["a"].state == "done"
    assert after(*waits, NodeDone(node="a", status="failed"))["a"].state == "failed"


def test_a_second_round_adds_to_the_first() -> None:
    rows = after(
        NodeQueued(node="a", steps=2),
        ActionDone(node="a", kind="write", subject="/x"),
        ActionDone(node="a", kind="write", subject="/y"),
        NodeDone(node="a", status="ok"),
        NodeStarted(node="a", what="observe"),
        NodeSeen(node="a"),
    )
    assert rows["a"].state == "done"
    assert (
        after(NodeQueued(node="a", steps=2), ActionDone(node="a", kind="", subject=""), NodeQueued(node="a", steps=3))[
            "a"
        ].steps
        == 4
    )


def test_bytes_of_transfers_that_are_over_are_kept() -> None:
    rows = after(*(Transfer(node="a", subject="artifacts", done=n, total=10) for n in (4, 10, 10)))
    assert (rows["a"].moved, rows["a"].done, rows["a"].state) == (20, 0, "artifacts")


def test_an_artifact_may_have_a_nodes_name() -> None:
    assert len(after(Transfer(subject="kubelet", done=1, total=2), NodeStarted(node="kubelet"))) == 2


def test_the_time_in_a_state_begins_when_it_does() -> None:
    progress = Progress().after(StageStarted(node="a", component="kubelet"), at=5)
    progress = progress.after(ActionStarted(node="a", kind="write", subject="/x"), at=7)
    assert progress.rows["a"].since == 5
    assert progress.after(StageStarted(node="a", component="kube_proxy"), at=9).rows["a"].since == 9


def test_the_summary_leaves_out_its_middle_where_it_does_not_fit() -> None:
    events: list[Event] = [NodeQueued(node="a", steps=9), NodeQueued(node="b", steps=9)]
    events += [NodeDone(node="a", status="failed"), Transfer(node="b", subject="artifacts", done=5, total=10)]
    progress = reduce(Progress.after, events, Progress())
    assert summary(progress, 75) == "0 of 2 nodes done, 1 failed, 0 of 18 changes, 5 B sent, 1:15 min"
    assert summary(progress, 75, width=45) == "0 of 2 nodes done, 1 failed, 1:15 min"
    assert summary(Progress(), 1) == ""


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
        (Waiting(node="a", what="that it is Ready"), "a: waits for that it is Ready"),
        (ActionStarted(node="a", kind="write", subject="/x"), "a: write /x ..."),
        (CheckDone(node="a", id="kubelet-10255-closed", status="failed", detail="open"), "failed: open"),
    ],
)
def test_events_read_as_lines(event: Event, text: str) -> None:
    assert text in line(event)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (NodeStarted(node="a", what="observe"), False),
        (NodeStarted(node="a", what="verify"), True),
        (NodeSeen(node="a"), False),
        (NodeQueued(node="a", steps=1), False),
        (Waiting(node="a", what="Ready"), False),
        (NodeDone(node="a", status="ok"), True),
    ],
)
def test_a_log_has_what_matters_afterwards(event: Event, *, told: bool) -> None:
    assert is_told(event) is told


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
