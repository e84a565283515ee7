from pathlib import Path

import pytest

from kubeworker.errors import InputError
from kubeworker.io import local_files


def test_contents_come_by_path_and_only_what_is_there_where_that_will_do(tmp_path: Path) -> None:
    there, missing = str(tmp_path / "ca.pem"), str(tmp_path / "key.pem")
    Path(there).write_bytes(b"x\n")
    assert local_files.read([there]) == {there: b"x\n"}
    assert local_files.read_present([there, missing]) == {there: b"x\n"}


@pytest.mark.parametrize(("content", "message"), [(None, "can't be read: no such file"), (b" \n", "is empty")])
def test_a_file_that_is_of_no_use_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        local_files.read([str(path)])
    assert caught.value.subject == str(path)
    assert "cluster.yaml names it" in caught.value.hint
