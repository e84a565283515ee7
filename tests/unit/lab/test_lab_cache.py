from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kubeworker.lab import cache


def test_it_is_made_once_whoever_asks(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        target.write_text("x")

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: cache.once(tmp_path / "cache/thing", make), range(4)))
    assert found == [tmp_path / "cache/thing"] * 4
    assert len(made) == 1
    assert found[0].read_text() == "x"


def test_what_a_killed_run_left_is_neither_used_nor_kept(tmp_path: Path) -> None:
    (tmp_path / "thing.tmp").mkdir()
    (tmp_path / "thing.tmp/half").touch()
    (tmp_path / "other.tmp").touch()
    cache.once(tmp_path / "thing", lambda target: target.mkdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "thing"]


def test_a_failure_leaves_nothing_under_the_finished_name(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache.once(tmp_path / "thing", fail)
    assert not (tmp_path / "thing").exists()
