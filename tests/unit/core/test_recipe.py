from __future__ import annotations

from dataclasses import replace

import pytest

from kubeworker.components import discover
from kubeworker.core.artifacts.artifact import Artifact, GoBuild, ModuleFolder, SourceEdit
from kubeworker.core.artifacts.recipe import (
    Recipe,
    command,
    environment,
    executable,
    folder_inputs,
    go_inputs,
    groups,
    older,
)
from kubeworker.io.build import load_recipe

MOD = b"""module nodetools

go 1.26.8

tool k8s.io/kubernetes/cmd/kubelet

replace k8s.io/api => k8s.io/api v0.33.3

require k8s.io/kubernetes v1.33.3

require (
	github.com/containerd/containerd/v2 v2.1.3 // indirect
	github.com/containerd/containerd/api v1.9.0 // indirect
	github.com/docker/cli v28.2.2+incompatible // indirect
)
"""
RECIPE = Recipe(module="k8s", files={"go.mod": MOD, "go.sum": b""})


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("k8s.io/kubernetes/cmd/kubelet", "1.33.3"),
        ("github.com/containerd/containerd/v2/cmd/ctr", "2.1.3"),
        ("github.com/docker/cli", "28.2.2"),
        ("github.com/docker/client", ""),
    ],
)
def test_version_of_the_module_that_holds_a_package(package: str, version: str) -> None:
    assert RECIPE.version(package) == version
    assert RECIPE.go == "1.26.8"


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("github.com/opencontainers/runc", "runc"),
    ],
)
def test_the_file_that_go_build_writes(package: str, name: str) -> None:
    assert executable(package) == name


def artifact(name: str, **build: object) -> Artifact:
    defaults: dict[str, object] = {"module": "k8s", "package": f"k8s.io/kubernetes/cmd/{name}"}
    return Artifact(name=name, version="1.33.3", build=GoBuild(**(defaults | build)))  # type: ignore[arg-type]


def test_commands_of_one_module_and_flags_are_built_together() -> None:
    together = groups([artifact("kubelet"), artifact("runc", module="runc", cgo=True), artifact("kube-proxy")])
    assert [[each.name for each in group.artifacts] for group in together] == [["kubelet", "kube-proxy"], ["runc"]]
    assert command(together[0], "/tmp/out") == (
        *("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", "/tmp/out/"),
        *("k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy"),
    )


def test_other_flags_make_another_build() -> None:
    assert len(groups([artifact("kubelet"), artifact("kube-proxy", ldflags="-s")])) == 2


def test_settings_of_go_env_are_overridden_and_the_toolchain_is_left_to_the_operator() -> None:
    env = environment(GoBuild(module="k8s", package="x"), "arm64")
    assert env["GOFLAGS"] == "-mod=readonly"
    assert env["GOARCH"] == "arm64"
    assert env["CGO_ENABLED"] == "0"
    assert not {"GOTOOLCHAIN", "GOPROXY"} & env.keys()


EDIT = SourceEdit(package="k8s.io/kubernetes/cmd/kubelet", file="kubelet.go", old="a", new="b")


def test_a_command_of_edited_source_is_not_built_with_the_others() -> None:
    assert len(groups([artifact("kubelet", edits=(EDIT,)), artifact("kube-proxy")])) == 2


def test_inputs_of_a_packed_folder_are_the_modules_pins_and_the_folder() -> None:
    chart = ModuleFolder(module="k8s", package="k8s.io/kubernetes/chart")
    hashes = {
        folder_inputs(RECIPE, chart),
        folder_inputs(RECIPE, replace(chart, package="k8s.io/kubernetes/other")),
        folder_inputs(replace(RECIPE, files={**RECIPE.files, "go.sum": b"x"}), chart),
    }
    assert len(hashes) == 3


def test_inputs_change_with_anything_that_goes_into_a_build() -> None:
    build = GoBuild(module="k8s", package="k8s.io/kubernetes/cmd/kubelet")
    changed = [
        (RECIPE, replace(build, ldflags="-s")),
        (RECIPE, replace(build, tags="seccomp")),
        (RECIPE, replace(build, cgo=True)),
        (RECIPE, replace(build, package="k8s.io/kubernetes/cmd/kubectl")),
        (RECIPE, replace(build, edits=(EDIT,))),
        (RECIPE, replace(build, edits=(replace(EDIT, new="d"),))),
        (replace(RECIPE, files={**RECIPE.files, "go.sum": b"x"}), build),
        (replace(RECIPE, files={**RECIPE.files, "stub/t.go": b""}), build),
    ]
    hashes = {go_inputs(RECIPE, build), *(go_inputs(*each) for each in changed)}
    assert len(hashes) == len(changed) + 1


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("go1.26.8", "ok"), ("go1.27rc1", "ok"), ("go1.24", "older"), ("go1.26.7-X:nocoverageredesign", "older")],
)
def test_go_versions_compare_by_number(version: str, verdict: str) -> None:
    assert older(version, "1.26.8") is (verdict == "older")


def test_every_recipe_that_a_component_names_comes_with_the_package() -> None:
    from kubeworker.core.desired import artifacts
    from kubeworker.core.spec import ClusterFile

    cluster = ClusterFile.model_validate(
        {
            "cluster": {
                "apiservers": ["10.1.0.1:6443"],
                "cluster_cidr": "172.30.0.0/16",
                "service_cidr": "10.254.0.0/16",
                "dns_service_ip": "10.254.0.2",
            },
            "versions": {"crictl": "1.34.0"},
            "cni": "bridge",
            "nodes": [{"name": "k8s-01", "address": "10.1.0.1"}],
        }
    )
    built = [each for each in artifacts(cluster, discover()) if isinstance(each.build, GoBuild)]
    assert built
    for each in built:
        assert isinstance(each.build, GoBuild)
        assert load_recipe(each.build.module).version(each.build.package) == each.version
