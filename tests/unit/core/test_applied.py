from dataclasses import replace

import pytest
from tests.unit.core.engine_states import after, bare, blob, state, with_file
from tests.unit.samples import cluster

from kubeworker.core import applied, diff
from kubeworker.core.applied import Applied, Item
from kubeworker.core.model import (
    Absent,
    AbsentUnit,
    Binary,
    Directory,
    File,
    Image,
    Leftover,
    Link,
    Module,
    NodeState,
    Origin,
    Private,
    Stage,
    Sysctl,
    Unit,
)
from kubeworker.core.node import node_script

STAGE = Stage(
    component="c",
    swap_off=True,
    modules=(Module(name="overlay"),),
    sysctls=(Sysctl(key="net.ipv4.ip_local_port_range", value="1024\t65000"),),
    directories=(Directory(path="/etc/c", mode=0o750),),
    binaries=(Binary(path="/opt/k8s/bin/c", blob=blob(b"elf"), version="1.2"),),
    files=(File(path="/etc/c/conf", content=b"a"), File(path="/etc/c/key", content=b"k", mode=0o600, secret=True)),
    links=(Link(path="/etc/c/link", target="some\nwhere\telse"),),
    private=(Private(pattern="/etc/c/*.pem"),),
    absent=(Absent(path="/etc/c/old", reason="r"),),
    units=(Unit(name="c.service", content="[Service]\n"),),
    absent_units=(
        AbsentUnit(name="d.service", reason="r", paths=("/opt/d",)),
        AbsentUnit(name="e.service", reason="r", waits_for="the agent is Ready"),
    ),
    leftovers=(Leftover(name="rules", present="true", remove="true", reason="r"),),
    images=(Image(reference="pause:1", archive=blob(b"oci"), ctr="/opt/k8s/bin/ctr"),),
)
ORIGIN = Origin(tool="1.0", inputs="abc")
HEAD = f"{applied.FORMAT}\t1700000000\t1.0\tabc"


def written(stage: Stage = STAGE) -> list[str]:
    return [HEAD, *applied.text(stage).splitlines()]


def test_a_record_says_again_what_a_stage_asks_for() -> None:
    found = applied.parse("c", written())
    assert found == Applied(
        component="c",
        when=1700000000.0,
        origin=ORIGIN,
        items={item.key: item for item in applied.items(STAGE)},
    )
    assert found.items["binary", "/opt/k8s/bin/c"] == Item(
        key=("binary", "/opt/k8s/bin/c"), value=f"{blob(b'elf').sha256} 0755 root:root", note="1.2"
    )
    assert ("no-unit", "e.service") not in found.items  # still to come


@pytest.mark.parametrize(
    "lines", [[], [""], ["kubeworker-applied 2\t1\ta\tb"], ["\0garbage"], [HEAD.replace("1700000000", "soon")]]
)
def test_what_is_no_record_is_none(lines: list[str]) -> None:
    assert applied.parse("c", lines) is None


def test_a_record_that_was_cut_off_is_read_as_far_as_it_goes() -> None:
    found = applied.parse("c", [HEAD, "file\tx 0644 root:root\t\t/etc/a", "file\tx 06"])
    assert found is not None
    assert set(found.items) == {("file", "/etc/a")}


def test_a_record_holds_no_content() -> None:
    secret = File(path="/etc/c/key", content=b"hunter2-hunter2", mode=0o600, secret=True)
    assert "hunter2" not in applied.text(Stage(component="c", files=(secret,)))


def test_another_nodes_coming_and_going_is_no_other_input() -> None:
    spec = cluster()
    node = spec.nodes[0]
    alone = spec.model_copy(update={"nodes": (node,)})
    assert applied.inputs_digest(spec, node) == applied.inputs_digest(alone, node)
    labelled = node.model_copy(update={"labels": {"zone": "a"}})
    assert applied.inputs_digest(spec, node) != applied.inputs_digest(spec, labelled)


# ---------------------------------------------------------------------------------------------------------------
# When it is written


def two() -> NodeState:
    first = Stage(component="first", files=(File(path="/etc/first", content=b"1"),))
    second = Stage(component="second", files=(File(path="/etc/second", content=b"2"),))
    return replace(state(first, second), origin=ORIGIN)


def test_a_stage_without_a_change_is_recorded_by_the_first_one_that_has_some() -> None:
    wanted = two()
    seen = with_file(after(wanted), "/etc/second", sha256="0" * 64)
    (plan,) = diff.diff(wanted, seen)
    assert [stage.component for stage in plan.settled] == ["first"]
    script = node_script.stage_script(plan)
    assert script.index("record_applied first 1.0 abc") < script.index("record_applied second 1.0 abc")
    assert script.index("commit\n") < script.index("record_applied first 1.0 abc") < script.index("finished=yes\n")


def test_what_the_record_says_already_is_not_written_again() -> None:
    wanted = two()
    record = applied.parse("first", [HEAD, *applied.text(wanted.stages[0]).splitlines()])
    assert record is not None
    seen = replace(with_file(after(wanted), "/etc/second", sha256="0" * 64), applied={"first": record})
    (plan,) = diff.diff(wanted, seen)
    assert plan.settled == ()


@pytest.mark.parametrize("record", [None, "another"])
def test_a_record_alone_is_no_reason_to_do_anything(record: str | None) -> None:
    wanted = two()
    other = Applied(component="first", when=1.0, origin=Origin(tool="0.1", inputs="else"))
    assert diff.diff(wanted, replace(after(wanted), applied={"first": other} if record else {})) == ()


@pytest.mark.parametrize(
    ("mode", "owner", "heals"),
    [(0o644, "root:root", True), (0o640, "root:root", True), (0o600, "nobody:root", True), (0o400, "root:root", False)],
)
def test_keys_that_others_may_read_are_roots_alone_again(mode: int, owner: str, *, heals: bool) -> None:
    wanted = state(Stage(component="c", private=(Private(pattern="/etc/c/kubelet-client-*.pem"),)))
    seen = with_file(bare(), "/etc/c/kubelet-client-1.pem", mode=mode, owner=owner)
    seen = with_file(seen, "/etc/c/kubelet-client-current.pem", kind="link", mode=0o777)
    seen = with_file(seen, "/etc/c/ca.pem", mode=0o644)
    plans = diff.diff(wanted, seen)
    assert [action.path for plan in plans for action in plan.actions if hasattr(action, "path")] == (
        ["/etc/c/kubelet-client-1.pem"] if heals else []
    )
