"""The watcher of `make chaos` must be able to see what it says it never saw: on this host's own inotify."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from tests.chaos.watcher import Watcher


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder


def test_a_file_that_is_renamed_into_place_arrives_whole(etc: Path) -> None:
    watcher = Watcher(etc.parent, ["/etc/conf"])
    (etc / ".conf.new").write_text("new")
    (etc / ".conf.new").rename(etc / "conf")
    watcher.stop()
    (arrival,) = watcher.arrivals
    assert (arrival.path, arrival.sha256) == ("/etc/conf", hashlib.sha256(b"new").hexdigest())
    assert abs(arrival.at - time.monotonic()) < 5
    assert watcher.broken == []


@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_visible_file_that_is_written_to_is_seen(etc: Path, mode: str) -> None:
    (etc / "conf").write_text("old")
    watcher = Watcher(etc.parent, ["/etc/conf"])
    with (etc / "conf").open(mode) as file:
        file.write("half of it")
    watcher.stop()
    assert "/etc/conf: modify" in watcher.broken


def test_a_name_that_appears_before_its_content_is_seen(etc: Path) -> None:
    watcher = Watcher(etc.parent, ["/etc/conf"])
    (etc / "conf").touch()
    watcher.stop()
    assert "/etc/conf: create" in watcher.broken


def test_folders_that_are_made_later_are_watched_and_what_lies_in_them_already_is_told_apart(etc: Path) -> None:
    watcher = Watcher(etc.parent, ["/etc/a/b/conf", "/etc/a/b/other"])
    made = etc / "made"
    (made / "b").mkdir(parents=True)
    (made / "b/conf").write_text("x")
    made.rename(etc / "a")
    time.sleep(0.3)
    (etc / "a/b/other").write_text("y")
    watcher.stop()
    assert [(each.path, each.late) for each in watcher.arrivals] == [("/etc/a/b/conf", True)]
    assert "/etc/a/b/other: create" in watcher.broken


def test_what_is_not_managed_may_be_written_to(etc: Path) -> None:
    watcher = Watcher(etc.parent, ["/etc/conf"])
    (etc / "log").write_text("x")
    watcher.stop()
    assert (watcher.arrivals, watcher.broken) == ([], [])
