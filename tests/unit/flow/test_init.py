import re
import subprocess
import sys
from pathlib import Path

import pytest

from kubeworker.components import discover
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import InputError
from kubeworker.flow.field_docs import field_docs
from kubeworker.flow.init import template, write
from kubeworker.io.cluster_file import load

ROOT = Path(__file__).parents[3]


def test_the_template_is_valid_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    write(path, discover())
    cluster = load(path, discover())
    assert [node.name for node in cluster.nodes] == ["k8s-01", "k8s-02"]
    assert cluster.components == {}


def test_its_commented_lines_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    write(path, discover())
    as_written = load(path, discover())
    path.write_text(re.sub(r"(?m)^( *)#(?! )", r"\1", path.read_text()))
    uncommented = load(path, discover())
    assert uncommented.model_copy(update={"components": {}}) == as_written
    for component in discover():
        config = component.config.model_validate(uncommented.components[component.name])
        assert config.model_dump() == component.config().model_dump()


def test_every_field_has_a_meaning() -> None:
    names = [field.name for field in field_docs(ClusterFile) if not field.text and not field.model]
    for component in discover():
        names += [f"{component.name}.{field.name}" for field in field_docs(component.config) if not field.text]
    assert names == []
    assert "components" in template(discover())


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write(path, discover())
    assert path.read_text() == "mine"


def test_the_reference_page_is_what_the_models_say() -> None:
    command = [sys.executable, "scripts/reference", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
