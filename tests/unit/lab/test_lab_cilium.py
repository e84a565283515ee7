from __future__ import annotations

from pathlib import Path

import pytest

from kubeworker.core.artifacts.artifact import GoBuild
from kubeworker.core.artifacts.recipe import groups
from kubeworker.core.spec import Versions
from kubeworker.io.build import load_recipe
from kubeworker.io.cluster_file import load
from kubeworker.lab import cilium, cluster_yaml, kernel, state
from kubeworker.lab.cluster_yaml import HostTraits
from kubeworker.lab.state import Cni, LabState

TRAITS = HostTraits(sys_resource=True, ipvs=False)
LESS = HostTraits(sys_resource=False, ipvs=False)
IMAGES = ("images/pause.tar", "images/busybox.tar", "images/cilium.tar", "images/cilium-operator.tar")


def a_lab(folder: Path, cni: Cni) -> LabState:
    subnet = "10.77.3.0/24"
    return LabState(name="x", folder=folder, subnet=subnet, machines=state.plan_machines(subnet, 0), cni=cni)


def test_all_of_ciliums_commands_are_built_by_one_command() -> None:
    together = groups(cilium.artifacts(Versions()))
    assert [len(group.artifacts) for group in together] == [8, 1]
    assert [edit.file for edit in together[0].build.edits] == ["modules_linux.go"]


def test_the_recipes_have_the_versions_that_a_lab_asks_for() -> None:
    for each in cilium.artifacts(Versions()):
        assert isinstance(each.build, GoBuild)
        assert load_recipe(each.build.module).version(each.build.package) == each.version


def test_images_have_upstreams_names_and_are_never_pulled() -> None:
    values = cilium.values("1.17.6", sys_resource=True)
    assert values["image"] == {"override": "quay.io/cilium/cilium:v1.17.6", "pullPolicy": "Never"}
    assert values["operator"]["image"]["override"] == "quay.io/cilium/operator-generic:v1.17.6"


@pytest.mark.parametrize("sys_resource", [True, False])
def test_no_capability_is_asked_for_that_machines_have_not(sys_resource: bool) -> None:  # noqa: FBT001
    lists = cilium.values("1.17.6", sys_resource=sys_resource)["securityContext"]["capabilities"]
    assert all(("SYS_RESOURCE" in names) is sys_resource for names in lists.values())
    assert {"BPF", "PERFMON"} <= set(lists["ciliumAgent"])


@pytest.mark.parametrize("traits", [TRAITS, LESS])
def test_the_tool_accepts_the_cluster_file_of_a_lab_with_cilium(tmp_path: Path, traits: HostTraits) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(cluster_yaml.render(a_lab(tmp_path, "cilium"), traits, IMAGES))
    cluster = load(path)
    assert cluster.cni == "cilium"
    assert cluster.components["cilium"]["values"]["l7Proxy"] is False


def test_a_lab_with_the_bridge_plugin_says_nothing_of_cilium(tmp_path: Path) -> None:
    document = cluster_yaml.document(a_lab(tmp_path, "bridge"), TRAITS, IMAGES[:2])
    assert document["cni"] == "bridge"
    assert "cilium" not in document["components"]


def test_a_lab_keeps_its_network_plugin_and_one_from_before_there_was_a_choice_has_the_bridge(tmp_path: Path) -> None:
    text = state.encode(a_lab(tmp_path, "cilium"))
    assert state.decode(text).cni == "cilium"
    assert state.decode(text.replace('  "cni": "cilium",\n', "")).cni == "bridge"


def test_modules_builtin_names_what_the_kernel_has_and_nothing_else() -> None:
    config = "CONFIG_NETFILTER_XT_MATCH_SOCKET=y\nCONFIG_IP_SET=m\n# CONFIG_IP_NF_RAW is not set\nCONFIG_IP_NF_NAT=y\n"
    assert kernel.builtin(config) == "kernel/net/netfilter/iptable_nat.ko\nkernel/net/netfilter/xt_socket.ko\n"
