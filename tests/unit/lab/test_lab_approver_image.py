"""The image of the approver: what is in it is what requirements/runtime.txt locks, and no tool of developers."""

from __future__ import annotations

import re
import stat
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from kubeworker.errors import LabError
from kubeworker.lab import approver_image

ROOT = Path(__file__).parents[3]


def locked() -> dict[str, str]:
    text = (ROOT / "requirements/runtime.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", text, flags=re.MULTILINE))


def test_its_libraries_are_those_that_are_locked() -> None:
    assert {each.name.lower().replace("_", "-"): each.version for each in approver_image.libraries()} == locked()


def test_a_library_that_is_not_what_pip_installed_is_refused(tmp_path: Path) -> None:
    installed = tmp_path / "site/tool.py"
    installed.parent.mkdir()
    installed.write_text("import os\n")
    info = installed.with_name("tool-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Name: tool\nVersion: 1.0\n")
    digest = "PxKCV7CT8NDNVKXL2cBhRd3a_VP3zMHJc3OGwUcyiYE"
    (info / "RECORD").write_text(f"tool.py,sha256={digest},10\n../../bin/tool,sha256={digest},10\n")
    with pytest.raises(LabError, match="is not what pip installed"):
        approver_image.copy(Distribution.at(info), tmp_path / "image")


def test_it_holds_this_product_and_a_command_whatever_the_umask(tmp_path: Path) -> None:
    approver_image.place_own(tmp_path)
    command = tmp_path / "usr/bin/kubeworker"
    assert command.read_text() in (ROOT / "packaging/Containerfile").read_text().replace("\\n", "\n")
    package = tmp_path / "usr/lib/python3/dist-packages/kubeworker"
    assert (package / "cli/csr.py").is_file()
    assert list(package.glob("cli/__pycache__/csr.*.pyc"))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o755, 0o644}
    assert modes[command] == 0o755
