"""What the probe tells of records, dead runs and keys, asked of real shells over files of the test's own."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest
from tests.unit.core.engine_states import state
from tests.unit.shells import SHELLS

from kubeworker.core import applied
from kubeworker.core.model import File, NodeState, Private, Stage
from kubeworker.core.node import probe
from kubeworker.core.node.observed import Observed, parse

STAGE = Stage(component="c", files=(File(path="/nowhere/c", content=b"c"),))


def look(wanted: NodeState, home: Path, shell: str = "sh") -> Observed:
    text = probe.script(wanted, home=str(home))
    return parse("n1", subprocess.run([shell, "-c", text], capture_output=True, text=True, check=True).stdout)


def keep(home: Path, text: str) -> None:
    (home / "applied").mkdir(parents=True)
    (home / "applied" / "c").write_text(text)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_record_comes_with_the_rest(shell: str, tmp_path: Path) -> None:
    keep(tmp_path, f"{applied.FORMAT}\t1700000000\t1.0\tabc\n{applied.text(STAGE)}")
    found = look(state(STAGE), tmp_path, shell).applied["c"]
    assert found.when == 1700000000.0
    assert found.items == {item.key: item for item in applied.items(STAGE)}


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "end\nclock\t0\nhash\tx\ty\n", f"{applied.FORMAT}\t"])
def test_a_broken_record_breaks_nothing(text: str, tmp_path: Path) -> None:
    keep(tmp_path, text)
    seen = look(state(STAGE), tmp_path)
    assert seen.applied == {}
    assert seen.clock > 0


@pytest.mark.parametrize("shell", SHELLS)
def test_a_run_that_died_is_told_from_one_that_works(shell: str, tmp_path: Path) -> None:
    (tmp_path / "work.abcdef").mkdir()
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look(state(STAGE), tmp_path, shell).unfinished == 0.0
    assert look(state(STAGE), tmp_path, shell).unfinished >= 1.6e9


@pytest.mark.parametrize("shell", SHELLS)
def test_keys_are_found_by_their_pattern(shell: str, tmp_path: Path) -> None:
    (tmp_path / "kubelet-client-1.pem").write_text("key")
    (tmp_path / "kubelet-client-1.pem").chmod(0o640)
    (tmp_path / "kubelet-client-current.pem").symlink_to("kubelet-client-1.pem")
    (tmp_path / "other.pem").write_text("other")
    wanted = state(Stage(component="c", private=(Private(pattern=f"{tmp_path}/kubelet-client-*.pem"),)))
    files = look(wanted, tmp_path / "home", shell).files
    kinds = {Path(path).name: (seen.kind, seen.mode) for path, seen in files.items()}
    assert kinds["kubelet-client-1.pem"] == ("file", 0o640)
    assert kinds["kubelet-client-current.pem"][0] == "link"
    assert "other.pem" not in kinds
    assert files[f"{tmp_path}/kubelet-client-1.pem"].content is None


def test_when_a_file_was_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text("c")
    seen = look(state(Stage(component="c", files=(File(path=str(path), content=b"c"),))), tmp_path).files[str(path)]
    assert seen.modified == pytest.approx(path.stat().st_mtime)
    assert seen.changed == pytest.approx(path.stat().st_ctime)
