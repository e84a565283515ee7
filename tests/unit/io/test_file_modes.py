from pathlib import Path

import pytest

from kubeworker.io.file_modes import open_to_others


@pytest.mark.parametrize(
    ("mode", "told"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o620, True)]
)
def test_a_file_that_others_may_read_or_change_is_told(mode: int, tmp_path: Path, *, told: bool) -> None:
    path = tmp_path / "ca-key.pem"
    path.write_text("key")
    path.chmod(mode)
    found = open_to_others((path, tmp_path / "missing"))
    assert [(each.path, each.mode) for each in found] == ([(path, mode)] if told else [])


def test_folders_are_looked_through(tmp_path: Path) -> None:
    (tmp_path / "cilium").mkdir()
    for name in ("a.pem", "cilium/b.pem"):
        (tmp_path / name).write_text("key")
        (tmp_path / name).chmod(0o644)
    assert [each.path.name for each in open_to_others((tmp_path,))] == ["a.pem", "b.pem"]
