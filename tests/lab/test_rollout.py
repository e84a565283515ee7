"""A change that every unit's own gate lets through, and that the nodes don't live with: the next batch never begins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.lab.operate import Operator, kubectl, until

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(300)

NODES = ("--node", "k8s-01", "--node", "k8s-02")


def without_network(document: dict[str, Any]) -> None:
    """containerd and its CRI answer; only pods can't be started."""
    config = document["components"]["containerd"].setdefault("config", {})
    runtime = config.setdefault("plugins", {}).setdefault("io.containerd.cri.v1.runtime", {})
    runtime["cni"] = {"conf_dir": "/etc/cni/nowhere"}


def ready(lab: LabState, node: str) -> str:
    condition = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return kubectl(lab, "get", "node", node, f"-o={condition}")


def test_a_node_that_does_not_become_ready_again_stops_the_rollout(deployed: LabState) -> None:
    operator = Operator(lab=deployed, file=deployed.cluster_yaml)
    # One that was not Ready to begin with would say nothing of the change.
    until(lambda: all(ready(deployed, name) == "True" for name in ("k8s-01", "k8s-02")), "both Ready")
    try:
        with operator.changed(without_network) as broken:
            done = broken.run("apply", "--yes", "--json", "--serial", "1", *NODES)
            assert done.returncode == 1, done.stderr
            results = {each["name"]: each for each in json.loads(done.stdout)["nodes"]}
            found = {name: each["status"] for name, each in results.items()}
            assert found == {"k8s-01": "failed", "k8s-02": "skipped"}, results
            assert "not Ready after 60 s" in results["k8s-01"]["error"]["message"]
            assert "cni" in results["k8s-01"]["error"]["message"]
            assert ready(deployed, "k8s-02") == "True"
    finally:
        # The machines are those of other tests too.
        operator.apply("--serial", "1", *NODES)
    # What apply says at its end is of after the restart.
    assert ready(deployed, "k8s-01") == "True"
    assert operator.plan(*NODES)["changes"] == 0
