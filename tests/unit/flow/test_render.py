"""render, and through it every file of every node: golden/<cluster>/<node>/<absolute path>.

After a deliberate change: KUBEWORKER_GOLDEN=write pytest tests/unit/flow/test_render.py, then read `git diff`.
"""

import difflib
import os
import shutil
from pathlib import Path

import pytest
from tests.unit.samples import REGISTRY, cluster

from kubeworker.errors import InputError, SpecError
from kubeworker.flow.render import PLACEHOLDER, render
from kubeworker.io import cluster_file

GOLDEN = Path(__file__).parent.parent / "golden"
REWRITE = "KUBEWORKER_GOLDEN=write pytest tests/unit/flow/test_render.py, if the change is meant"


def tree(root: Path) -> dict[str, str]:
    """Text by path below the root; the cluster's own file and render's marker are no node's."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.parent != root
    }


def differences(golden: dict[str, str], rendered: dict[str, str]) -> str:
    lines: list[str] = []
    for name in sorted(golden.keys() | rendered.keys()):
        if name not in rendered:
            lines.append(f"{name}: is no longer rendered")
        elif name not in golden:
            lines.append(f"{name}: is new")
        old, new = golden.get(name, "").splitlines(), rendered.get(name, "").splitlines()
        lines += difflib.unified_diff(old, new, f"golden/{name}", f"rendered/{name}", lineterm="")
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["default", "guide"])
def test_every_file_is_the_golden_one(name: str, tmp_path: Path) -> None:
    golden = GOLDEN / name
    render(cluster_file.load(golden / "cluster.yaml", REGISTRY), REGISTRY, tmp_path)
    rendered = tree(tmp_path)
    if os.environ.get("KUBEWORKER_GOLDEN") == "write":
        for folder in (path for path in golden.iterdir() if path.is_dir()):
            shutil.rmtree(folder)
        for path, text in rendered.items():
            (golden / path).parent.mkdir(parents=True, exist_ok=True)
            (golden / path).write_text(text)
    found = differences(tree(golden), rendered)
    assert not found, f"{found}\n\n{REWRITE}"


def test_a_difference_names_the_file_and_shows_the_lines() -> None:
    found = differences({"n/etc/a": "x\ny\n", "n/etc/gone": "z\n"}, {"n/etc/a": "x\nw\n", "n/etc/new": "v\n"})
    assert "rendered/n/etc/a" in found
    assert "\n-y\n+w" in found
    assert "n/etc/gone: is no longer rendered" in found
    assert "n/etc/new: is new" in found


def test_secrets_are_never_rendered(tmp_path: Path) -> None:
    written = render(cluster(), REGISTRY, tmp_path)
    secret = [path for path in written if path.read_bytes() == PLACEHOLDER]
    assert {path.name for path in secret} == {"kubelet-bootstrap.kubeconfig", "kube-proxy.kubeconfig"}


def test_rendering_again_replaces_what_render_wrote(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = render(cluster(), REGISTRY, out)
    (out / "k8s-01" / "stale").touch()
    assert render(cluster(), REGISTRY, out) == first
    assert not (out / "k8s-01" / "stale").exists()


def test_a_directory_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="was not made by render"):
        render(cluster(), REGISTRY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_wrong_settings_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        render(cluster(components={"nope": {}}), REGISTRY, tmp_path / "out")
    assert not (tmp_path / "out").exists()
