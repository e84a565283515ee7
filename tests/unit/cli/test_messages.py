"""Every message of one voice: what a wrong input gets says what is wrong, with its subject and a way out.

To read them side by side: pytest tests/unit/cli/test_messages.py -k one_voice -s
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from tests.unit.cli.bad_inputs import CLUSTER_FILES, Bad, every

from kubeworker.errors import SpecError, tree
from kubeworker.io import cluster_file

IDS = {error.id for error in tree()}
INPUTS = dict(every())
# They look for keys, hosts and terminals: tests/contract has those.
OFFLINE = {name: bad for name, bad in INPUTS.items() if bad.words.split()[0] not in {"plan", "apply", "verify"}}
LINE = re.compile(r"error: (?P<what>.+) \[(?P<id>[a-z-]+)\]")


def said(bad: Bad, folder: Path, monkey: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and standard error of the command, run in that folder."""
    from kubeworker.cli.frame import run

    monkey.chdir(folder)
    bad.write(folder)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = run(shlex.split(bad.words))
    return code, errors.getvalue().replace(f"{folder}/", "")


@pytest.mark.parametrize("name", OFFLINE)
def test_messages_are_of_one_voice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, text = said(OFFLINE[name], tmp_path, monkeypatch)
    print(f"\n# {name}\n{text}")
    assert code in {1, 3}
    first, *more, hint = text.splitlines()
    match = LINE.fullmatch(first)
    assert match, first
    assert match["id"] in IDS - {"internal", "error"}
    assert not match["what"].endswith(".")
    assert not re.search(r"[Ii]nvalid value|[Pp]lease|Traceback|!|\. ", match["what"])
    assert hint.startswith("  hint: ")
    assert not hint.endswith(".")
    assert not any(line.endswith(".") for line in more)


@pytest.mark.parametrize("name", [name for name in CLUSTER_FILES if name not in {"no file", "empty"}])
def test_a_wrong_cluster_file_has_a_hint_of_its_own(name: str, tmp_path: Path) -> None:
    from kubeworker.components import discover

    CLUSTER_FILES[name].write(tmp_path)
    with pytest.raises(SpecError) as caught:
        cluster_file.load(tmp_path / "cluster.yaml", discover())
    assert caught.value.hint
    assert re.search(r"cluster\.yaml:\d+", caught.value.subject)
