"""`profile: guide`: the guide's own values, on a fresh lab of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.lab.conftest import MakeLab
from tests.lab.operate import Operator, kubectl, sh

pytestmark = pytest.mark.timeout(240)


def guide(document: dict[str, Any]) -> None:
    document["profile"] = "guide"


def test_the_guides_values_make_ready_nodes_and_a_second_run_does_nothing(make_lab: MakeLab) -> None:
    lab = make_lab("guide")
    with Operator(lab=lab, file=lab.cluster_yaml).changed(guide) as operator:
        objects = operator.plan()["cluster"]["actions"]
        tokens = [each["reason"] for each in objects if "bootstrap-token" in each["subject"]]
        day = (datetime.now(UTC) + timedelta(hours=24)).strftime("%Y-%m-%d")
        assert len(tokens) == 2
        assert all(f"valid until {day}" in reason for reason in tokens)
        assert any(each["subject"] == "ClusterRoleBinding auto-approve-csrs-for-group" for each in objects)

        operator.apply()

        assert operator.plan()["changes"] == 0
        checks = operator.run("verify", "--json")
        assert checks.returncode == 0, checks.stdout
    assert kubectl(lab, "-n=kube-system", "get", "secrets", "-o=name") == ""
    group = "system:bootstrappers"
    bound = kubectl(lab, "get", "clusterrolebinding", "auto-approve-csrs-for-group", "-o=jsonpath={.subjects[0].name}")
    assert bound == group
    config = sh(lab, "k8s-01", "cat /etc/kubernetes/kubelet-config.yaml /opt/k8s/kube-nginx/conf/kube-nginx.conf")
    assert "hash $remote_addr consistent" in config
    assert sh(lab, "k8s-01", "cat /etc/containerd/certs.d/docker.io/hosts.toml").count("mirror.gcr.io") == 1
