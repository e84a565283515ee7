from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kubeworker.components import discover
from kubeworker.io import cluster_file
from kubeworker.lab import cluster_yaml, control_plane, state
from kubeworker.lab.cluster_yaml import HostTraits
from kubeworker.lab.state import LabState

SUBNET = "10.77.0.0/24"
PKI = {
    name: name.encode()
    for name in (
        *("ca.pem", "ca-key.pem", "sa.key", "sa.pub"),
        *(
            f"{pair}{suffix}"
            for pair in ("kubernetes", "etcd", "etcd-client", "kube-controller-manager", "kube-scheduler", "admin")
            for suffix in (".pem", "-key.pem")
        ),
    )
}


def a_lab(folder: Path = Path("/labs/demo")) -> LabState:
    return LabState(name="demo", folder=folder, subnet=SUBNET, machines=state.plan_machines(SUBNET, workers=1))


def test_etcd_runs_on_the_first_machine_only() -> None:
    lab = a_lab()
    first, second = lab.control_plane
    everywhere = {"kube-apiserver.service", "kube-controller-manager.service", "kube-scheduler.service"}
    assert set(control_plane.units(lab, second)) == everywhere
    assert set(control_plane.units(lab, first)) == everywhere | {"etcd.service"}
    assert f"{control_plane.PKI}/etcd-key.pem" not in control_plane.files(lab, second, PKI)


def test_both_apiservers_use_the_one_etcd_and_listen_on_their_own_address() -> None:
    lab = a_lab()
    for machine in lab.control_plane:
        text = control_plane.units(lab, machine)["kube-apiserver.service"]
        assert "--etcd-servers=https://10.77.0.11:2379" in text
        assert f"--bind-address={machine.address} " in text


def test_each_controller_manager_uses_the_apiserver_beside_it() -> None:
    lab = a_lab()
    for machine in lab.control_plane:
        files = control_plane.files(lab, machine, PKI)
        config = json.loads(files["/etc/kubernetes/kube-controller-manager.kubeconfig"])
        assert config["clusters"][0]["cluster"]["server"] == f"https://{machine.address}:6443"
        user = config["users"][0]["user"]
        assert base64.b64decode(user["client-key-data"]) == b"kube-controller-manager-key.pem"


def test_every_file_that_a_unit_names_is_there() -> None:
    lab = a_lab()
    for machine in lab.control_plane:
        files = control_plane.files(lab, machine, PKI)
        words = [word.partition("=")[2] for text in control_plane.units(lab, machine).values() for word in text.split()]
        assert {word for word in words if word.startswith("/etc/kubernetes/")} <= set(files)


@pytest.mark.parametrize("ipvs", [True, False])
@pytest.mark.parametrize("sys_resource", [True, False])
def test_the_tool_takes_the_labs_cluster_file(tmp_path: Path, ipvs: bool, sys_resource: bool) -> None:  # noqa: FBT001
    lab = a_lab(tmp_path)
    for name in ("pause.tar", "busybox.tar"):
        (tmp_path / name).touch()
    traits = HostTraits(sys_resource=sys_resource, ipvs=ipvs)
    lab.cluster_yaml.write_text(cluster_yaml.render(lab, traits, ("pause.tar", "busybox.tar")))
    cluster = cluster_file.load(lab.cluster_yaml, discover())
    assert [node.name for node in cluster.nodes] == ["k8s-01", "k8s-02", "worker-01"]
    assert cluster.components["kube_proxy"]["mode"] == ("ipvs" if ipvs else "nftables")
    assert ("config" in cluster.components["containerd"]) is not sys_resource


def test_certificates_last_as_long_as_the_lab_was_told() -> None:
    lab = a_lab()
    for machine in lab.control_plane:
        assert "--cluster-signing-duration" not in control_plane.units(lab, machine)[control_plane.MANAGER_UNIT]
        short = control_plane.units(replace(lab, signing_duration="10m"), machine)[control_plane.MANAGER_UNIT]
        assert " --cluster-signing-duration=10m " in short
    assert state.decode(state.encode(replace(lab, signing_duration="10m"))).signing_duration == "10m"
