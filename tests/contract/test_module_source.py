"""Go modules' source through the real `go`: a folder packed as a chart, and builds of edited copies."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.artifact_site import Site, node_artifacts

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, ModuleFolder, Release, SourceEdit
from kubeworker.errors import ArtifactError
from kubeworker.io import build, chart, go_modules
from kubeworker.lab import cilium

CHART = Artifact(
    name="cilium-chart",
    version="1.17.6",
    form="chart",
    releases=(Release(url="https://helm.cilium.io/cilium-1.17.6.tgz"),),
    build=ModuleFolder(module="cilium", package="github.com/cilium/cilium/install/kubernetes/cilium"),
    field="versions.cilium",
)
LOOPBACK = node_artifacts("loopback")[0]
EDIT = SourceEdit(
    package="github.com/containernetworking/plugins/pkg/utils/buildversion",
    file="buildversion.go",
    old='"CNI %s plugin %s',
    new='"edited CNI %s plugin %s',
)
SOURCES = ["cache", "build"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path / "site")


async def test_a_modules_chart_is_packed_to_the_same_bytes_everywhere(site: Site) -> None:
    blobs = await site.resolve([CHART], sources=SOURCES)
    path = site.store.path(blobs["cilium-chart"])
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert {name.split("/")[0] for name in names} == {"cilium"}
    assert {"cilium/Chart.yaml", "cilium/values.yaml", "cilium/templates/cilium-agent/daemonset.yaml"} <= set(names)
    (pin,) = site.pins.values()
    assert pin.inputs
    assert pin.toolchain.startswith("zlib ")
    assert await site.with_empty_cache().resolve([CHART], sources=SOURCES) == blobs


async def test_a_chart_of_another_version_is_not_in_the_recipe(site: Site) -> None:
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([replace(CHART, version="1.17.5")], sources=SOURCES)
    assert "the build recipes have 1.17.6; versions.cilium asks for 1.17.5" in caught.value.message


async def test_a_chart_is_checked_for_its_own_version_and_a_page_is_none(site: Site, tmp_path: Path) -> None:
    path = site.store.path((await site.resolve([CHART], sources=SOURCES))["cilium-chart"])
    with pytest.raises(ArtifactError) as caught:
        chart.check(path, replace(CHART, version="1.18.0"), subject="here")
    assert caught.value.message == "cilium-chart is a chart of version 1.17.6; 1.18.0 is asked for"
    page = tmp_path / "page.tgz"
    page.write_text("<html>not here</html>")
    with pytest.raises(ArtifactError) as caught:
        chart.check(page, CHART, subject="here")
    assert "must be a Helm chart (.tgz); it can't be read" in caught.value.message


async def test_a_folder_that_the_module_lacks_is_named(site: Site) -> None:
    lacking = replace(CHART, build=ModuleFolder(module="cilium", package="github.com/cilium/cilium/charts"))
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([lacking], sources=SOURCES)
    assert caught.value.message == "github.com/cilium/cilium has no folder charts"


def edited(artifact: Artifact, *edits: SourceEdit) -> Artifact:
    assert isinstance(artifact.build, GoBuild)
    return replace(artifact, build=replace(artifact.build, edits=edits))


async def test_an_edited_build_is_of_the_edited_text_and_the_module_cache_stays_as_it_was(site: Site) -> None:
    blobs = await site.resolve([edited(LOOPBACK, EDIT)], sources=SOURCES)
    assert says(site.store.path(blobs["loopback"])).startswith("edited CNI loopback plugin v1.7.1")
    other = Site.at(site.directory.with_name("other"))
    plain = await other.resolve([LOOPBACK], sources=SOURCES)
    assert says(other.store.path(plain["loopback"])).startswith("CNI loopback plugin v1.7.1")
    assert next(iter(other.pins.values())).inputs != next(iter(site.pins.values())).inputs


async def test_an_edited_build_does_not_tell_where_it_was_built(site: Site) -> None:
    blobs = await site.resolve([edited(LOOPBACK, EDIT)], sources=SOURCES)
    assert await site.with_empty_cache().resolve([edited(LOOPBACK, EDIT)], sources=SOURCES) == blobs
    assert str(site.store.root).encode() not in site.store.path(blobs["loopback"]).read_bytes()


async def test_an_edit_that_fits_another_version_is_refused(site: Site) -> None:
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([edited(LOOPBACK, replace(EDIT, old="no such text"))], sources=SOURCES)
    assert "buildversion.go of 1.7.1 does not hold the text to replace once" in caught.value.message


async def test_the_labs_edit_of_cilium_is_three_lines_of_one_file(tmp_path: Path) -> None:
    recipe = build.load_recipe(cilium.RECIPE)
    source = await build.module_source(cilium.MODULE, recipe, tmp_path)
    folder = tmp_path / cilium.RECIPE
    await go_modules.edit((cilium.WITHOUT_MODULES,), recipe, folder, subject="cilium-agent")
    copy = folder / "edited" / cilium.MODULE
    compared = subprocess.run(["diff", "-r", source, copy], capture_output=True, text=True, check=False).stdout
    assert [line for line in compared.splitlines() if line.startswith(("<", ">", "Only"))] == [
        "> \tif errors.Is(err, os.ErrNotExist) {",
        "> \t\treturn nil, nil",
        "> \t}",
    ]
    file = copy / "pkg/datapath/linux/modules/modules_linux.go"
    assert subprocess.run(["gofmt", "-l", file], capture_output=True, text=True, check=True).stdout == ""


async def test_the_labs_capabilities_are_the_charts_and_two_more(tmp_path: Path) -> None:
    source = await build.module_source(cilium.MODULE, build.load_recipe(cilium.RECIPE), tmp_path)
    chart_values = yaml.safe_load((source / "install/kubernetes/cilium/values.yaml").read_text())
    theirs = chart_values["securityContext"]["capabilities"]
    ours = cilium.values("1.17.6", sys_resource=True)["securityContext"]["capabilities"]
    assert ours["cleanCiliumState"] == theirs["cleanCiliumState"]
    assert ours["ciliumAgent"] == [*theirs["ciliumAgent"], "BPF", "PERFMON"]


def says(program: Path) -> str:
    ran = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return (ran.stdout + ran.stderr).strip()
