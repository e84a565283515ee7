"""The fleet applied from inside the cluster, in two parts, by pods that hold only what was handed over to them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import mirror
from tests.lab.conftest import kubeworker
from tests.lab.operate import COMMAND, Start, contents, kubectl, restarted, sh, starts

from kubeworker import lab as labs
from kubeworker.core.sharding import job
from kubeworker.core.sharding.shard import Shard
from kubeworker.lab import LabState, approver_image

pytestmark = pytest.mark.timeout(300)

NODE = "k8s-01"
"""Where the pods run. It is in one of the parts itself."""
JOINS = "worker-01"
ROUTES = "kubeworker-routes"
"""The unit; its file is /etc/kubeworker/routes."""
ACCOUNT = f"system:serviceaccount:{job.NAMESPACE}:{job.NAME}"


@pytest.fixture(scope="module")
def cluster_yaml(deployed: LabState) -> Iterator[Path]:
    """The lab's, for a Job: nodes fetch what they lack from a mirror that has it all."""
    document = yaml.safe_load(deployed.cluster_yaml.read_text())
    path = deployed.cluster_yaml.with_name("cluster-job.yaml")
    with mirror.serving_all(deployed) as url:
        document.setdefault("artifacts", {}).update(delivery="pull", mirror=url)
        path.write_text(yaml.safe_dump(document))
        yield path
    path.unlink()


@pytest.fixture(scope="module", autouse=True)
def image(deployed: LabState) -> Iterator[None]:
    lab = deployed
    archive = lab.machine_folder(lab.machine(NODE)) / "data/kubeworker.tar"
    approver_image.write(archive, lambda _: None)
    sh(lab, NODE, "/opt/k8s/bin/ctr -n k8s.io images import /data/kubeworker.tar; rm /data/kubeworker.tar")
    yield
    sh(lab, NODE, f"/opt/k8s/bin/crictl rmi {approver_image.REFERENCE}")


@contextmanager
def done_by_job(lab: LabState, cluster_yaml: Path) -> Iterator[dict[str, Any]]:
    """What `job report --json` says once the pods have ended; they and theirs are gone afterwards."""
    arguments = ["job", "--image", approver_image.REFERENCE, "--shards", "2", "-f", str(cluster_yaml)]
    done = subprocess.run([str(COMMAND), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    objects[-1]["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": NODE}
    text = yaml.safe_dump_all(objects)
    assert (lab.cluster_yaml.parent / "ca-key.pem").read_text().splitlines()[1] not in text
    place = f"-n={job.NAMESPACE}"
    try:
        kubectl(lab, "apply", "--server-side", "-f=-", stdin=text)
        kubectl(lab, place, "wait", "--for=condition=complete", f"job/{job.NAME}", "--timeout=110s")
        done = kubeworker("job", "report", "--json", "-f", cluster_yaml)
        assert done.returncode == 0, done.stdout + done.stderr
        yield json.loads(done.stdout)
    except AssertionError:
        print(kubectl(lab, place, "logs", f"--selector={job.JOB_LABEL}={job.NAME}", "--tail=-1", "--prefix"))
        raise
    finally:
        # The records of issued keys and of labels are the cluster's, whoever applies.
        mine = [each for each in objects if each["kind"] != "ConfigMap"]
        mine = [each for each in mine if each.get("type") != "bootstrap.kubernetes.io/token"]
        kubectl(lab, "delete", "--wait=true", "--timeout=60s", "-f=-", stdin=yaml.safe_dump_all(mine))


def parts(cluster_yaml: Path) -> list[list[str]]:
    names = [each["name"] for each in yaml.safe_load(cluster_yaml.read_text())["nodes"]]
    return [[each for each in names if each in Shard(index=index, count=2)] for index in range(2)]


def test_two_pods_bring_the_fleet_back_and_their_reports_are_one(deployed: LabState, cluster_yaml: Path) -> None:
    lab = deployed
    broken = {part[0] for part in parts(cluster_yaml)}
    for name in broken:
        sh(lab, name, "rm /etc/crictl.yaml")

    with done_by_job(lab, cluster_yaml) as report:
        by_name = {node["name"]: node for node in report["nodes"]}
        assert by_name.keys() == {name for part in parts(cluster_yaml) for name in part}
        assert {name for name, node in by_name.items() if node["actions"]} == broken
        assert [(part["index"], part["phase"]) for part in report["parts"]] == [(0, "Succeeded"), (1, "Succeeded")]
        shown = kubeworker("job", "report", "-f", cluster_yaml).stdout
        assert "part 1: Succeeded" in shown
        assert shown.splitlines()[-1] == "Applied: 2 changes on 2 nodes"

        assert kubeworker("plan", "-f", lab.cluster_yaml).returncode == 0, "nothing is left to do"
        for verb, what in (("get", "secrets"), ("list", "secrets"), ("create", "secrets"), ("create", "pods")):
            asked = kubectl_says(lab, "auth", "can-i", verb, what, "-n=kube-system", f"--as={ACCOUNT}")
            assert asked == "no", (verb, what)


def test_a_node_joins_through_the_pod_of_its_part_and_the_other_part_is_not_touched(
    deployed: LabState, cluster_yaml: Path
) -> None:
    lab = deployed
    others = [name for part in parts(cluster_yaml) for name in part if JOINS not in part]
    labs.renew(lab, JOINS)
    kubectl(lab, "delete", "node", JOINS)
    chosen = [word for name in others for word in ("--node", name)]
    done = kubeworker("apply", "--yes", "-f", lab.cluster_yaml, *chosen)
    assert done.returncode == 0, "routes to what is no node any more are gone: " + done.stdout + done.stderr
    before = {name: seen(lab, name) for name in others}

    with done_by_job(lab, cluster_yaml) as report:
        by_name = {node["name"]: node for node in report["nodes"]}
        mine = by_name[JOINS]
        assert (mine["status"], mine["uploaded"], report["warnings"]) == ("ok", 0, [])
        assert mine["pulled"] > 300_000_000
        ready = "-o=jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        assert kubectl(lab, "get", "node", JOINS, ready) == "True"
        for name in others:
            units, files = seen(lab, name)
            # It learns of its new neighbour in this run or the next one, as it happens to look.
            assert restarted(before[name][0], units) <= {ROUTES}
            assert without_routes(files) == without_routes(before[name][1])
        tokens = ["get", "secrets", "-n=kube-system", "--field-selector=type=bootstrap.kubernetes.io/token", "-o=name"]
        assert kubectl(lab, *tokens) == "", "its token is of no more use, and gone"

    done = kubeworker("apply", "--yes", "-f", lab.cluster_yaml)
    assert done.returncode == 0, done.stdout + done.stderr
    assert kubeworker("plan", "-f", lab.cluster_yaml).returncode == 0, "nothing is left to do"


def seen(lab: LabState, name: str) -> tuple[dict[str, Start], str]:
    return starts(lab, name), contents(lab, name)


def without_routes(files: str) -> list[str]:
    return [
        line
        for line in files.splitlines()
        if not line.endswith("/etc/kubeworker/routes") and not line.startswith("/etc/kubeworker/routes ")
    ]


def kubectl_says(lab: LabState, *arguments: str) -> str:
    """Its answer, whatever its exit code."""
    command = [str(lab.folder / "bin/kubectl"), f"--kubeconfig={lab.kubeconfig}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
