"""What a mirror is to serve, written once and whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from tests.artifact_site import SHELL, Site

from kubeworker.core.node.pull_script import file_name
from kubeworker.errors import FileError
from kubeworker.flow.artifact_publish import publish


async def test_each_artifact_is_a_file_named_by_its_hash_and_written_once(tmp_path: Path) -> None:
    site, served = Site.at(tmp_path / "site"), tmp_path / "served"
    blob = site.store.add_file(SHELL)
    first = await publish([blob], (), served, store=site.store)
    file = served / "kubeworker" / file_name(blob)
    assert gzip.decompress(file.read_bytes()) == SHELL.read_bytes()
    assert (first.written, first.kept, first.size) == (1, 0, file.stat().st_size)
    assert file.stat().st_mode & 0o777 == 0o644, "a web server reads it"
    before = file.stat().st_ino
    again = await publish([blob], (), served, store=site.store)
    assert (again.written, again.kept) == (0, 1)
    assert file.stat().st_ino == before
    assert [each.name for each in (served / "kubeworker").iterdir()] == [file_name(blob)]


async def test_a_folder_that_can_not_be_is_named(tmp_path: Path) -> None:
    site = Site.at(tmp_path / "site")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can't be written: not a directory\n") as caught:
        await publish([site.store.add_file(SHELL)], (), tmp_path / "file", store=site.store)
    assert caught.value.subject.startswith(str(tmp_path / "file"))


async def test_what_keeps_several_files_from_being_written_is_told_once(tmp_path: Path) -> None:
    """Nobody can make a file in /proc."""
    site, served = Site.at(tmp_path / "site"), tmp_path / "served"
    blobs = [site.store.add_file(SHELL), site.store.add_file(Path("/bin/cat"))]
    served.mkdir()
    (served / "kubeworker").symlink_to("/proc/self/fd")
    with pytest.raises(FileError, match="can't be written: ") as caught:
        await publish(blobs, (), served, store=site.store)
    assert (caught.value.subject, bool(caught.value.hint)) == (str(served / "kubeworker"), True)
