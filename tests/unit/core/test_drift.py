from dataclasses import replace
from typing import Any

import pytest
from tests.unit.core.engine_states import after, bare, blob, start_record, state, with_file, with_unit, without_file

from kubeworker.core import applied, diff, drift
from kubeworker.core.applied import Applied
from kubeworker.core.drift import Drift, NodeDrift, last_writer
from kubeworker.core.model import UNKNOWN, Absent, Binary, File, Image, NodeState, Origin, Stage, Sysctl, Unit
from kubeworker.core.node.observed import Observed

NOW = Origin(tool="1.1", inputs="now")
APPLIED_AT = 1_700_000_000.0
CONF = "/etc/c/conf"
PROGRAM = "/opt/k8s/bin/c"


def wanted(
    *,
    conf: bytes = b"a=1\n",
    elf: bytes = b"elf",
    version: str = "1.2",
    origin: Origin = NOW,
    more: tuple[File, ...] = (),
) -> NodeState:
    stage = Stage(
        component="c",
        sysctls=(Sysctl(key="net.ipv4.ip_forward", value="1"),),
        binaries=(Binary(path=PROGRAM, blob=blob(elf), version=version),),
        files=(File(path=CONF, content=conf), *more),
        absent=(Absent(path="/etc/c/old", reason="of an earlier version"),),
        units=(Unit(name="c.service", content="[Service]\n", restart_on=(CONF, PROGRAM)),),
    )
    return replace(state(stage), origin=origin)


def record(then: NodeState) -> dict[str, Applied]:
    (stage,) = then.stages
    items = {item.key: item for item in applied.items(stage)}
    return {"c": Applied(component="c", when=APPLIED_AT, origin=then.origin, items=items)}


def left(then: NodeState) -> Observed:
    """The node as the last apply has left it."""
    seen = after(then)
    seen = replace(seen, files={path: replace(each, modified=1.0, changed=2.0) for path, each in seen.files.items()})
    return replace(seen, applied=record(then))


def judged(now: NodeState, seen: Observed) -> NodeDrift:
    return drift.judge(now, seen, diff.diff(now, seen))


def only(now: NodeState, seen: Observed) -> Drift:
    (found,) = judged(now, seen).drifts
    return found


def test_a_node_as_it_was_left_has_no_drift_and_says_when_that_was() -> None:
    assert judged(wanted(), left(wanted())) == NodeDrift(when="2023-11-14T22:13:20Z", tool="1.1")


def test_a_file_edited_by_hand_is_the_nodes_and_its_restart_is_no_news() -> None:
    seen = with_file(left(wanted()), CONF, sha256=blob(b"a=2\n").sha256, content=b"a=2\n", modified=1_700_000_100.0)
    found = only(wanted(), seen)
    assert (found.kind, found.subject, found.what, found.who) == ("file", CONF, "content differs", "node")
    assert found.since == "2023-11-14T22:15:00Z"
    assert "-a=2" in found.diff


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda seen: without_file(seen, CONF), ("file", CONF, "missing")),
        (lambda seen: with_file(seen, CONF, mode=0o666), ("mode", CONF, "mode or owner differs")),
        (lambda seen: with_file(seen, PROGRAM, sha256="0" * 64), ("binary", PROGRAM, "content differs")),
        (lambda seen: with_file(seen, "/etc/c/old"), ("remove", "/etc/c/old", "of an earlier version")),
        (lambda seen: with_unit(seen, "c.service", file_state="disabled"), ("enable", "c.service", "is disabled")),
        (lambda seen: with_unit(seen, "c.service", file_state="masked"), ("enable", "c.service", "is masked")),
        (
            lambda seen: with_unit(seen, "c.service", active_state="failed", sub_state="failed"),
            ("start", "c.service", "is failed (failed)"),
        ),
        (lambda seen: replace(seen, sysctls={}), ("sysctl", "net.ipv4.ip_forward", "is not there")),
    ],
)
def test_each_kind_of_damage_is_the_nodes(damage: Any, expected: tuple[str, str, str]) -> None:
    found = only(wanted(), damage(left(wanted())))
    assert (found.kind, found.subject, found.what) == expected
    assert (found.who, found.by) == ("node", "")


def test_images_of_a_containerd_that_is_down_are_no_news() -> None:
    image = Image(reference="pause:1", archive=blob(b"oci"), ctr="/opt/k8s/bin/ctr")
    (stage,) = wanted().stages
    now = replace(wanted(), stages=(replace(stage, images=(image,)),))
    down = replace(with_unit(left(now), "c.service", active_state="inactive"), images=None)
    assert only(now, down).kind == "start"
    assert only(now, replace(left(now), images=frozenset())).kind == "image"


def test_a_stopped_unit_says_since_when() -> None:
    seen = with_unit(left(wanted()), "c.service", active_state="inactive", since="Wed 2026-11-25 06:48:31 UTC")
    assert only(wanted(), seen).since == "2026-11-25T06:48:31Z"
    assert only(wanted(), with_unit(seen, "c.service", since="n/a")).since == ""


@pytest.mark.parametrize(
    ("then", "now", "by"),
    [
        (wanted(origin=Origin(tool="1.1", inputs="then")), wanted(conf=b"b\n"), "cluster.yaml"),
        (wanted(origin=Origin(tool="1.0", inputs="now")), wanted(conf=b"b\n"), "kubeworker 1.0 -> 1.1"),
        (
            wanted(origin=Origin(tool="1.0", inputs="then")),
            wanted(conf=b"b\n"),
            "cluster.yaml and kubeworker 1.0 -> 1.1",
        ),
        (wanted(), wanted(conf=b"b\n"), "what it is made from: certificates, local files, or facts of the cluster"),
        (wanted(), wanted(elf=b"new", version="1.3"), "version 1.2 -> 1.3 in cluster.yaml"),
        (wanted(), wanted(elf=b"new"), "kubeworker.lock has another sha256 for version 1.2"),
        (
            wanted(origin=Origin(tool="1.1", inputs="then")),
            wanted(more=(File(path="/etc/c/new", content=b"n"),)),
            "cluster.yaml",
        ),
    ],
)
def test_what_is_asked_for_and_not_applied_yet_names_what_has_changed(then: NodeState, now: NodeState, by: str) -> None:
    found = only(now, left(then))
    assert (found.who, found.by, found.since) == ("input", by, "")


def test_both_may_have_moved() -> None:
    then = wanted(origin=Origin(tool="1.1", inputs="then"))
    seen = with_file(left(then), CONF, sha256="0" * 64, modified=1_700_000_100.0)
    found = only(wanted(conf=b"b\n"), seen)
    assert (found.who, found.by, found.since) == ("both", "cluster.yaml", "2023-11-14T22:15:00Z")


def test_a_bare_node_waits_for_its_first_apply() -> None:
    found = judged(wanted(), bare())
    assert {(each.who, each.by) for each in found.drifts} == {("input", "nothing was applied here yet")}
    assert found.when == ""


def test_a_node_that_an_older_version_has_set_up_blames_nobody() -> None:
    seen = replace(with_file(left(wanted()), CONF, sha256="0" * 64), applied={})
    assert only(wanted(), seen).who == "unknown"


def test_a_component_that_a_dead_run_did_not_get_to_is_not_applied_yet() -> None:
    now = replace(wanted(), stages=(*wanted().stages, Stage(component="d", files=(File(path="/d", content=b"d"),))))
    found = only(now, left(wanted()))
    assert (found.subject, found.who) == ("/d", "input")


def test_a_run_that_died_between_a_file_and_its_restart_is_named() -> None:
    then = wanted(origin=Origin(tool="1.1", inputs="then"))
    seen = replace(
        with_unit(left(wanted(conf=b"b\n")), "c.service", record=None), applied=record(then), unfinished=60.0
    )
    found = judged(wanted(conf=b"b\n"), seen)
    assert [(each.kind, each.who) for each in found.drifts] == [("restart", "run")]
    assert found.notes == ("a run died on this node; its stage began at 1970-01-01T00:01:00Z",)


@pytest.mark.parametrize(("modified", "who"), [(1_700_000_100.0, "run"), (1_699_999_900.0, "node")])
def test_what_a_dead_run_wrote_is_not_held_against_the_node(modified: float, who: str) -> None:
    """cluster.yaml has been put back meanwhile: the file is neither what is asked for nor what was applied."""
    seen = with_file(left(wanted()), CONF, sha256="0" * 64, modified=modified)
    assert only(wanted(), replace(seen, unfinished=1_700_000_000.0)).who == who


DROPIN = "/etc/systemd/system/c.service.d/mine.conf"


def test_a_drop_in_is_named_and_the_restart_that_follows_is_not() -> None:
    seen = with_file(left(wanted()), DROPIN, sha256="1" * 64, changed=APPLIED_AT + 60)
    found = only(wanted(), seen)
    assert (found.kind, found.subject, found.who) == ("dropin", DROPIN, "node")
    assert found.since == "2023-11-14T22:14:20Z"


def test_a_drop_in_that_the_last_apply_took_in_is_a_note() -> None:
    seen = with_file(left(wanted()), DROPIN, sha256="1" * 64, changed=APPLIED_AT - 60)
    known = with_unit(seen, "c.service", dropins=(DROPIN,))
    start = start_record(wanted(), known, wanted().stages[0].units[0])
    known = with_unit(known, "c.service", record=start)
    found = judged(wanted(), known)
    assert found.drifts == ()
    assert found.notes == (f"c.service has a drop-in that is not this tool's: {DROPIN}",)


def test_a_drop_in_that_went_is_a_restart_of_the_nodes_making() -> None:
    start = left(wanted()).units["c.service"].record
    assert start is not None
    seen = with_unit(left(wanted()), "c.service", record=replace(start, restart="with a drop-in"))
    found = only(wanted(), seen)
    assert (found.kind, found.who) == ("restart", "node")


# ---------------------------------------------------------------------------------------------------------------
# Binaries that no lock file pins


def unpinned(now: NodeState) -> NodeState:
    (stage,) = now.stages
    binaries = tuple(replace(each, blob=UNKNOWN) for each in stage.binaries)
    return replace(now, stages=(replace(stage, binaries=binaries),))


def alone(now: NodeState, seen: Observed) -> tuple[tuple[str, ...], tuple[Drift, ...]]:
    """What is not compared, and what differs, where this host has no lock file."""
    state, left_out = drift.assumed(unpinned(now), seen)
    return left_out, judged(state, seen).drifts


def test_without_a_lock_file_a_binary_is_held_against_what_was_put_there() -> None:
    assert alone(wanted(), left(wanted())) == ((), ())
    for seen in (with_file(left(wanted()), PROGRAM, sha256="1" * 64), without_file(left(wanted()), PROGRAM)):
        left_out, (found,) = alone(wanted(), seen)
        assert (left_out, found.kind, found.subject, found.who) == ((), "binary", PROGRAM, "node")


def test_without_a_lock_file_another_version_is_not_applied_yet() -> None:
    left_out, (found,) = alone(wanted(version="1.3"), left(wanted()))
    assert left_out == ()
    assert (found.kind, found.who, found.by) == ("binary", "input", "version 1.2 -> 1.3 in cluster.yaml")


def test_without_a_lock_file_and_a_record_what_lies_there_is_not_compared_and_what_is_missing_is() -> None:
    seen = replace(left(wanted()), applied={})
    assert alone(wanted(), seen) == ((PROGRAM,), ())
    left_out, (found,) = alone(wanted(), without_file(seen, PROGRAM))
    assert (left_out, found.kind, found.what) == ((), "binary", "missing")


def test_what_is_pinned_is_held_against_the_pin() -> None:
    assert drift.assumed(wanted(), replace(left(wanted()), applied={})) == (wanted(), ())


# ---------------------------------------------------------------------------------------------------------------
# Objects


def managed(*entries: tuple[str, str, dict[str, Any]], subresource: str = "") -> dict[str, Any]:
    return {
        "metadata": {
            "managedFields": [
                {"manager": manager, "time": time, "fieldsV1": fields}
                | ({"subresource": subresource} if subresource else {})
                for manager, time, fields in entries
            ]
        }
    }


def test_the_last_writer_of_a_field_is_told() -> None:
    live = managed(
        ("kubeworker", "2026-01-01T00:00:00Z", {"f:roleRef": {}, "f:subjects": {}}),
        ("kubectl-edit", "2026-01-02T00:00:00Z", {"f:subjects": {}}),
        ("kubectl-annotate", "2026-01-03T00:00:00Z", {"f:metadata": {"f:annotations": {}}}),
    )
    writer = last_writer(live, ("f:subjects",))
    assert writer is not None
    assert (writer.manager, writer.when) == ("kubectl-edit", "2026-01-02T00:00:00Z")
    last = last_writer(live)
    assert last is not None
    assert last.manager == "kubectl-annotate"
    assert last_writer(live, ("f:metadata", "f:labels", "f:zone")) is None


@pytest.mark.parametrize("live", [None, {}, {"metadata": {}}, managed(("kubelet", "2026", {}), subresource="status")])
def test_an_object_may_not_tell_who_wrote_it(live: dict[str, Any] | None) -> None:
    assert last_writer(live) is None
