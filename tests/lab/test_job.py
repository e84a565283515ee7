"""The fleet applied from inside the cluster, in two parts, by pods that hold only what was handed over to them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.lab.conftest import kubeworker
from tests.lab.operate import COMMAND, kubectl, sh

from kubeworker.core import job
from kubeworker.core.shard import Shard
from kubeworker.lab import LabState, approver_image

pytestmark = pytest.mark.timeout(300)

NODE = "worker-01"
"""Where the pods run. It is in one of the parts itself."""
ACCOUNT = f"system:serviceaccount:{job.NAMESPACE}:{job.NAME}"


@pytest.fixture
def cluster_yaml(deployed: LabState) -> Iterator[Path]:
    """The lab's, for a Job: nodes would fetch what they lack from a mirror. They lack nothing."""
    document = yaml.safe_load(deployed.cluster_yaml.read_text())
    document.setdefault("artifacts", {}).update(delivery="pull", mirror="http://mirror.invalid")
    path = deployed.cluster_yaml.with_name("cluster-job.yaml")
    path.write_text(yaml.safe_dump(document))
    yield path
    path.unlink()


@pytest.fixture
def image(deployed: LabState) -> Iterator[None]:
    lab = deployed
    archive = lab.machine_folder(lab.machine(NODE)) / "data/kubeworker.tar"
    approver_image.write(archive, lambda _: None)
    sh(lab, NODE, "/opt/k8s/bin/ctr -n k8s.io images import /data/kubeworker.tar; rm /data/kubeworker.tar")
    yield
    sh(lab, NODE, f"/opt/k8s/bin/crictl rmi {approver_image.REFERENCE}")


@pytest.fixture
def objects(deployed: LabState, image: None, cluster_yaml: Path) -> Iterator[list[dict[str, object]]]:
    """What the command prints, held to that node; gone at the end, but for what the cluster keeps."""
    arguments = ["job", "--image", approver_image.REFERENCE, "--shards", "2", "-f", str(cluster_yaml)]
    done = subprocess.run([str(COMMAND), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = list(yaml.safe_load_all(done.stdout))
    found[-1]["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": NODE}
    yield found
    # The records of issued keys and of labels are the cluster's, whoever applies.
    mine = [each for each in found if each["kind"] != "ConfigMap"]
    kubectl(deployed, "delete", "--wait=true", "--timeout=60s", "-f=-", stdin=yaml.safe_dump_all(mine))


def test_two_pods_bring_the_fleet_back_and_their_reports_are_one(
    deployed: LabState, cluster_yaml: Path, objects: list[dict[str, object]]
) -> None:
    lab = deployed
    names = [each["name"] for each in yaml.safe_load(cluster_yaml.read_text())["nodes"]]
    parts = [[each for each in names if each in Shard(index=index, count=2)] for index in range(2)]
    assert all(parts)
    for name in (parts[0][0], parts[1][0]):
        sh(lab, name, "rm /etc/crictl.yaml")
    text = yaml.safe_dump_all(objects)
    ca_key = (lab.cluster_yaml.parent / "ca-key.pem").read_text().splitlines()[1]
    assert ca_key not in text

    kubectl(lab, "apply", "--server-side", "-f=-", stdin=text)
    place = f"-n={job.NAMESPACE}"
    kubectl(lab, place, "wait", "--for=condition=complete", f"job/{job.NAME}", "--timeout=120s")
    done = kubeworker("job", "report", "--json", "-f", cluster_yaml)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    by_name = {node["name"]: node for node in report["nodes"]}
    assert by_name.keys() == {name for part in parts for name in part}
    assert {name for name, node in by_name.items() if node["actions"]} == {parts[0][0], parts[1][0]}
    assert [(part["index"], part["phase"]) for part in report["parts"]] == [(0, "Succeeded"), (1, "Succeeded")]
    shown = kubeworker("job", "report", "-f", cluster_yaml).stdout
    assert "part 1: Succeeded" in shown
    assert shown.splitlines()[-1] == "Applied: 2 changes on 2 nodes"

    assert kubeworker("plan", "-f", lab.cluster_yaml).returncode == 0, "nothing is left to do"
    for verb, what in (("get", "secrets"), ("list", "secrets"), ("create", "secrets"), ("create", "pods")):
        asked = kubectl_says(lab, "auth", "can-i", verb, what, "-n=kube-system", f"--as={ACCOUNT}")
        assert asked == "no", (verb, what)


def kubectl_says(lab: LabState, *arguments: str) -> str:
    """Its answer, whatever its exit code."""
    command = [str(lab.folder / "bin/kubectl"), f"--kubeconfig={lab.kubeconfig}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
