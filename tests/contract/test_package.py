"""What is shipped: the wheel and the source distribution, run in an empty environment with the locked dependencies."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tests.clean_clone import ROOT, clean_clone


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ""} if command[0] == sys.executable else {**clean, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source distribution, as a packager makes it: nothing but what that holds can be in it."""
    place = tmp_path_factory.mktemp("package")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    source = clean_clone(place / "source")
    name = run(sys.executable, "-c", build, place, cwd=source).splitlines()[-1]
    with tarfile.open(place / name) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    return place / run(sys.executable, "-c", build, place, cwd=unpacked).splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """An environment with the locked dependencies and the wheel, and nothing else."""
    environment = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "--quiet", "--no-compile")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements/runtime.txt", cwd=wheel.parent)
    run(*pip, "--no-deps", wheel, cwd=wheel.parent)
    return environment


def test_the_wheel_has_what_the_program_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src/kubeworker"
    tracked = run("git", "ls-files", "-z", "src/kubeworker", cwd=ROOT).split("\0")
    files = {Path(name).relative_to("src").as_posix() for name in tracked if name and (ROOT / name).is_file()}
    assert files <= names
    assert (package / "py.typed").is_file()


def test_an_installed_wheel_runs(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin/kubeworker"
    assert run(command, "--version", cwd=tmp_path).strip()
    run(command, "init", cwd=tmp_path)
    run(command, "render", "--out", "out", cwd=tmp_path)
    assert (tmp_path / "out/k8s-01/etc/systemd/system/kubelet.service").is_file()
    assert run(
        installed / "bin/python", "-c", "import kubeworker; print(kubeworker.__file__)", cwd=tmp_path
    ).startswith(str(installed))


def test_an_installed_wheel_brings_its_man_page(installed: Path, tmp_path: Path) -> None:
    text = run("man", "-M", installed / "share/man", "kubeworker", cwd=tmp_path, MANPAGER="cat", MANWIDTH="80")
    assert "EXIT STATUS" in text


def test_the_man_page_renders_without_a_warning() -> None:
    done = subprocess.run(
        ["man", "--warnings=all", "-l", str(ROOT / "docs/man/kubeworker.1")],
        env={**os.environ, "MANPAGER": "cat", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "kubeworker apply" in done.stdout
    assert done.stderr == ""


def test_bash_completes_commands_and_options(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    install = (installed / "bin/kubeworker", "--install-completion", "--shell", "bash", "--output", script)
    run(*install, cwd=tmp_path, HOME=str(tmp_path))
    asked = """. "$1"
complete() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kubeworker; echo "${COMPREPLY[@]}"; }
complete kubeworker ap
complete kubeworker apply --max"""
    assert run("bash", "--norc", "-c", asked, "bash", script, cwd=tmp_path).split() == ["apply", "--max-failures"]
