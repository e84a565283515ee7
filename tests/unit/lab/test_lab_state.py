from __future__ import annotations

from pathlib import Path

import pytest

from kubeworker.errors import InputError, LabError
from kubeworker.lab import state
from kubeworker.lab.state import LabState


def a_lab(folder: Path, workers: int = 1) -> LabState:
    return LabState(
        name=folder.name,
        folder=folder,
        subnet="10.77.3.0/24",
        machines=state.plan_machines("10.77.3.0/24", workers),
    )


def test_the_first_network_that_nothing_else_uses_is_chosen() -> None:
    assert state.choose_subnet(()) == "10.77.0.0/24"
    assert state.choose_subnet(("10.77.0.0/24", "10.77.1.17", "192.168.0.0/16")) == "10.77.2.0/24"
    assert state.choose_subnet(("10.77.0.0/17",)) == "10.77.128.0/24"


def test_a_host_address_inside_a_wider_network_counts_too() -> None:
    assert state.choose_subnet(("10.77.0.200/23",)) == "10.77.2.0/24"


def test_no_network_left_is_an_error_with_a_way_out() -> None:
    with pytest.raises(LabError) as caught:
        state.choose_subnet(("10.0.0.0/8",))
    assert "lab down" in caught.value.hint


def test_two_machines_with_a_control_plane_come_first() -> None:
    machines = state.plan_machines("10.77.3.0/24", workers=2)
    assert [(each.name, each.address, each.is_control_plane) for each in machines] == [
        ("k8s-01", "10.77.3.11", True),
        ("k8s-02", "10.77.3.12", True),
        ("worker-01", "10.77.3.13", False),
        ("worker-02", "10.77.3.14", False),
    ]
    assert len({each.machine_id for each in machines}) == 4


def test_a_lab_that_grows_or_shrinks_keeps_its_machines_identities() -> None:
    two = state.plan_machines("10.77.3.0/24", workers=2)
    three = state.plan_machines("10.77.3.0/24", workers=3, known=two)
    assert three[:4] == two
    assert state.plan_machines("10.77.3.0/24", workers=2, known=three) == two


def test_full_kernel_machines_and_workers_come_and_go_without_each_other() -> None:
    both = state.plan_machines("10.77.3.0/24", workers=1, full_kernel=1)
    assert [(each.name, each.address, each.kind) for each in both[2:]] == [
        ("worker-01", "10.77.3.13", "nspawn"),
        ("fk-01", "10.77.3.101", "full-kernel"),
    ]
    more = state.plan_machines("10.77.3.0/24", workers=state.MAX_WORKERS, full_kernel=state.MAX_FULL_KERNEL, known=both)
    assert {each.name: each for each in more}.items() >= {each.name: each for each in both}.items()
    assert len({each.address for each in more}) == len({each.index for each in more}) == len(more)
    assert state.plan_machines("10.77.3.0/24", workers=1, known=both) == both[:3]


def test_a_record_without_kinds_is_of_containers(tmp_path: Path) -> None:
    lab = a_lab(tmp_path / "demo")
    lab.folder.mkdir()
    (lab.folder / "lab.json").write_text(
        state.encode(lab).replace('"kind": "nspawn",', "").replace(',\n      "kind": "nspawn"', "")
    )
    assert '"kind"' not in (lab.folder / "lab.json").read_text()
    assert state.load(lab.folder) == lab


@pytest.mark.parametrize("count", [-1, state.MAX_FULL_KERNEL + 1])
def test_a_number_of_full_kernel_machines_that_no_lab_can_have_is_wrong_input(count: int) -> None:
    with pytest.raises(InputError, match=str(count)):
        state.check_full_kernel(count)


def test_names_of_the_largest_labs_links_fit_linux(tmp_path: Path) -> None:
    lab = a_lab(tmp_path / "x", workers=state.MAX_WORKERS)
    last = lab.machines[-1]
    assert max(len(f"vb-{lab.nspawn_name(last)}"), len(lab.bridge)) <= 15


def test_no_machines_scope_begins_another_ones_name(tmp_path: Path) -> None:
    lab = a_lab(tmp_path / "x", workers=state.MAX_WORKERS)
    scopes = [lab.scope(each) for each in lab.machines]
    assert not [(one, two) for one in scopes for two in scopes if one != two and two.startswith(one)]


@pytest.mark.parametrize("count", [-1, state.MAX_WORKERS + 1])
def test_a_number_of_workers_that_no_lab_can_have_is_wrong_input(count: int) -> None:
    with pytest.raises(InputError, match=str(count)):
        state.check_workers(count)


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "../x", "a/b", "-a", "a-", "a" * 33])
def test_a_name_that_is_no_plain_word_is_wrong_input(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        state.lab_folder(name, tmp_path)


def test_labs_of_one_name_in_two_folders_share_nothing(tmp_path: Path) -> None:
    one, two = a_lab(tmp_path / "a" / "demo"), a_lab(tmp_path / "b" / "demo")
    assert one.bridge != two.bridge
    assert one.scope(one.machines[0]) != two.scope(two.machines[0])


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    lab = a_lab(tmp_path / "demo")
    state.save(lab)
    assert state.load(lab.folder) == lab
    assert lab.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"machines": [{}]}', "null"])
def test_a_record_that_a_killed_run_left_unusable_is_no_lab(text: str, tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text(text)
    assert state.load(tmp_path) is None


def test_no_folder_is_no_lab(tmp_path: Path) -> None:
    assert state.load(tmp_path / "absent") is None


def test_the_labs_folder_is_the_argument_else_the_variable_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(state.STATE_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state.labs_folder() == tmp_path / "kubeworker" / "labs"
    monkeypatch.setenv(state.STATE_DIR_VARIABLE, str(tmp_path / "v"))
    assert state.labs_folder() == tmp_path / "v"
    assert state.labs_folder(tmp_path / "argument") == tmp_path / "argument"


def test_a_machine_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(LabError) as caught:
        a_lab(tmp_path).machine("k8s-09")
    assert "k8s-01, k8s-02, worker-01" in caught.value.hint


@pytest.mark.parametrize("text", ["10m", "3m", "180s", "8760h", "1h30m"])
def test_a_signing_duration_is_written_as_the_controller_manager_reads_it(text: str) -> None:
    state.check_signing_duration(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no duration"),
        ("10", "no duration"),
        ("ten", "no duration"),
        ("1d", "no duration"),
        ("2m59s", "as soon as"),
    ],
)
def test_a_signing_duration_that_no_lab_can_live_with_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        state.check_signing_duration(text)
