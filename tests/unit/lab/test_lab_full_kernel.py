from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.io import cluster_file
from kubeworker.lab import cluster_yaml, full_kernel, full_kernel_image, kinds, state
from kubeworker.lab.cluster_yaml import HostTraits
from kubeworker.lab.state import LabState

SUBNET = "10.77.0.0/24"


def a_lab(folder: Path) -> LabState:
    machines = state.plan_machines(SUBNET, workers=0, full_kernel=1)
    return LabState(name="demo", folder=folder, subnet=SUBNET, machines=machines)


@pytest.mark.parametrize("sys_resource", [True, False])
def test_the_tool_takes_the_labs_file_with_the_machines_own_settings(tmp_path: Path, sys_resource: bool) -> None:  # noqa: FBT001
    lab = a_lab(tmp_path)
    traits = HostTraits(sys_resource=sys_resource, ipvs=False)
    lab.cluster_yaml.write_text(cluster_yaml.render(lab, traits, ()))
    cluster = cluster_file.load(lab.cluster_yaml, discover())
    seen = {node.name: cluster.as_seen_by(node) for node in cluster.nodes}
    configs = {
        name: {each.name: desired.config(each, of).model_dump() for each in discover()} for name, of in seen.items()
    }
    assert {name: each["kube_proxy"]["mode"] for name, each in configs.items()} == {
        "k8s-01": "nftables",
        "k8s-02": "nftables",
        "fk-01": "ipvs",
    }
    assert configs["fk-01"]["host"]["sysctls"]
    assert not configs["k8s-01"]["host"]["sysctls"]
    # The file drops what only containers need.
    assert configs["fk-01"]["kube_proxy"]["config"] == {"conntrack": None}


def test_a_first_boot_lays_the_disk_over_the_image_and_later_ones_take_the_disk_as_it_is(tmp_path: Path) -> None:
    lab = a_lab(tmp_path)
    own = lab.machine("fk-01")
    folder = lab.machine_folder(own)
    folder.mkdir(parents=True)
    first = full_kernel.options(lab, own, Path("/cache/one.ext4"))
    assert f"ubd0={folder}/disk.cow,/cache/one.ext4" in first
    (folder / "disk.cow").touch()
    later = full_kernel.options(lab, own, Path("/cache/another.ext4"))
    assert f"ubd0={folder}/disk.cow" in later
    assert f"vec0:transport=tap,ifname={lab.link(own)},depth=128,gro=1" in later


def test_its_own_files_are_one_archive_with_their_modes(tmp_path: Path) -> None:
    key = tmp_path / "upper/etc/ssh/ssh_host_ed25519_key"
    key.parent.mkdir(parents=True)
    key.write_text("secret")
    key.chmod(0o600)
    full_kernel.write_seed(tmp_path)
    with tarfile.open(full_kernel.seed(tmp_path)) as archive:
        member = archive.getmember("./etc/ssh/ssh_host_ed25519_key")
        assert member.mode == 0o600
    # A disk of whole sectors: user-mode-linux reads no half ones.
    assert full_kernel.seed(tmp_path).stat().st_size % 512 == 0
    assert full_kernel.seed(tmp_path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("shell", "text"),
    [
        ("sh", kinds.driver(state.plan_machines(SUBNET, workers=0)[0]).setup),
        ("sh", full_kernel.SETUP_SCRIPT),
        ("bash", full_kernel.VM_SCRIPT),
        ("sh", full_kernel_image.BOOT_SCRIPT),
    ],
    ids=["container", "full-kernel", "vm", "boot"],
)
def test_scripts_are_clean_shell(shell: str, text: str) -> None:
    command = ["shellcheck", f"--shell={shell}", "--severity=warning", "-"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
