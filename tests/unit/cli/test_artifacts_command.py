from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.artifact_site import SHELL

from kubeworker.cli.app import main

CLUSTER = """\
cluster:
  apiservers: [10.1.0.1:6443]
  cluster_cidr: 172.30.0.0/16
  service_cidr: 10.254.0.0/16
  dns_service_ip: 10.254.0.2
artifacts: {sources: [cache, local], local: bin}
cni: bridge
nodes: [{name: k8s-01, address: 10.1.0.1}]
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "bin").mkdir()
    return tmp_path / "cluster.yaml"


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["artifacts", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_listing_before_a_first_fetch_shows_what_is_to_be_had(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", "-f", cluster, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    kubelet = next(each for each in document["artifacts"] if each["name"] == "kubelet")
    assert kubelet["version"] == "1.33.3"
    assert (kubelet["state"], kubelet["sha256"], kubelet["source"]) == ("not pinned", None, None)


def test_an_unknown_artifact_is_wrong_input_and_the_known_ones_are_named(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fetch", "-f", cluster, "--only", "kubelett") == 3
    message = capsys.readouterr().err
    assert "there is no artifact 'kubelett'" in message
    assert "kubelet" in message


def test_publishing_looks_at_the_folder_before_it_gets_anything(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("publish", cluster, "-f", cluster, "--only", "bridge") == 3
    said = capsys.readouterr().err
    assert f"{cluster}/kubeworker: can't be written: {cluster} is no folder [file]" in said
    assert "hint: name a folder that you can write to" in said
    assert run("publish", cluster.parent / "new", "-f", cluster, "--only", "bridge") == 1
    assert str(cluster.parent / "bin/bridge") in capsys.readouterr().err, "no source has it"
    assert not (cluster.parent / "new").exists()


def test_what_no_source_has_is_one_error_that_names_the_file(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fetch", "-f", cluster, "--only", "bridge") == 1
    assert str(cluster.parent / "bin/bridge") in capsys.readouterr().err


def test_a_file_that_is_another_program_is_refused_with_the_field_to_set(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SHELL, cluster.parent / "bin/kubelet")
    assert run("fetch", "-f", cluster, "--only", "kubelet") == 1
    message = capsys.readouterr().err
    assert "kubelet" in message
    assert not (cluster.parent / "kubeworker.lock").exists()


def test_a_bundle_that_is_none_is_named(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", cluster, "-f", cluster) == 1
    assert str(cluster) in capsys.readouterr().err
