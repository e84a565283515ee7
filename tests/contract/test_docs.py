"""The docs site: built of a clean clone, without a warning, and readable without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.clean_clone import ROOT, clean_clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = clean_clone(tmp_path_factory.mktemp("docs") / "kubeworker")
    (clone / ".venv").symlink_to(ROOT / ".venv")
    return clone


def built(clone: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scripts/docs"],
        cwd=clone,
        env={**os.environ, "KUBEWORKER_DOCS_VENV": str(ROOT / "build/docs-venv")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(clone: Path) -> None:
    done = built(clone)
    assert done.returncode == 0, done.stdout + done.stderr
    site = clone / "build/site"
    pages = {path.relative_to(clone / "docs").with_suffix(".html") for path in (clone / "docs").rglob("*.md")}
    assert [page for page in pages if not (site / page).is_file()] == []
    start = (site / "index.html").read_text()
    named = set(re.findall(r'href="([^":#]+\.html)"', start))
    assert {"troubleshooting.html", "commands.html", "components/kubelet.html", "adr/index.html"} <= named
    loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]+)"|<link[^>]* rel="stylesheet"[^>]* href="([^"]+)"', start)
    assert loaded
    assert all((site / (source or sheet)).is_file() for source, sheet in loaded)


def test_a_link_to_nowhere_ends_the_build(clone: Path) -> None:
    page = clone / "docs/concepts.md"
    page.write_text(page.read_text() + "\n[gone](no-such-page.md)\n")
    done = built(clone)
    assert done.returncode == 1
    assert "no-such-page.md" in done.stderr


def test_the_generated_pages_are_what_the_models_and_commands_say() -> None:
    command = [sys.executable, "scripts/reference", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
