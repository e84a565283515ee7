"""`profile: guide`: from the guide's environment.sh to nodes that are Ready, on a fresh lab of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from tests.lab.conftest import MakeLab, kubeworker
from tests.lab.operate import Operator, kubectl, sh

from kubeworker.io.cluster_file import load
from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(240)

ENVIRONMENT = """\
#!/usr/bin/bash
# What the guide's scripts source, for the machines of this lab.
export ENCRYPTION_KEY=$(head -c 32 /dev/urandom | base64)
export NODE_IPS=({addresses})
export NODE_NAMES=({names})
export ETCD_ENDPOINTS="https://${{NODE_IPS[0]}}:2379"
export KUBE_APISERVER="https://127.0.0.1:8443"
DATA=/data/k8s
export K8S_DIR="$DATA/k8s" CONTAINERD_DIR="$DATA/containerd"
SERVICE_CIDR="{service_cidr}"
CLUSTER_CIDR='{cluster_cidr}'
export CLUSTER_DNS_SVC_IP="{dns_service_ip}"
export CLUSTER_DNS_DOMAIN="cluster.local"
export PATH=/opt/k8s/bin:$PATH
"""
KUBE_NGINX = "stream {{ upstream backend {{ {servers} }} server {{ listen 127.0.0.1:8443; proxy_pass backend; }} }}\n"


def from_environment(lab: LabState) -> Path:
    """cluster.yaml as `init --from-env` makes it, with what a lab needs beyond what the guide's files can say."""
    lab_document = yaml.safe_load(lab.cluster_yaml.read_text())
    machines, cluster = lab_document["nodes"], lab_document["cluster"]
    (lab.folder / "environment.sh").write_text(
        ENVIRONMENT.format(
            addresses=" ".join(each["address"] for each in machines),
            names=" ".join(each["name"] for each in machines),
            **cluster,
        )
    )
    servers = " ".join(f"server {each} max_fails=3;" for each in cluster["apiservers"])
    (lab.folder / "kube-nginx.conf").write_text(KUBE_NGINX.format(servers=servers))
    path = lab.folder / "guide.yaml"
    path.unlink(missing_ok=True)
    done = kubeworker(
        "init", "--from-env", lab.folder / "environment.sh", "--kube-nginx-conf", lab.folder / "kube-nginx.conf",
        "--out", path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ENCRYPTION_KEY: not read: a command substitution" in done.stdout
    rendered = kubeworker("render", "-f", path, "--out", lab.folder / "rendered")
    assert rendered.returncode == 0, rendered.stderr

    made, given = load(path), load(lab.cluster_yaml)
    assert made.profile == "guide"
    assert [(node.name, node.address) for node in made.nodes] == [(node.name, node.address) for node in given.nodes]
    assert made.cluster == given.cluster.model_copy(update={"kubeconfig": made.cluster.kubeconfig})
    document = yaml.safe_load(path.read_text())
    document["cluster"]["kubeconfig"] = cluster["kubeconfig"]
    document |= {key: lab_document[key] for key in ("ssh", "versions", "artifacts", "cni", "components")}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def test_the_guides_values_make_ready_nodes_and_a_second_run_does_nothing(make_lab: MakeLab) -> None:
    lab = make_lab("guide")
    operator = Operator(lab=lab, file=from_environment(lab))
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
    # The guide's name for it, which containerd 2.1 still reads: the pods above were made with it.
    assert 'bin_dir = "/opt/cni/bin"' in sh(lab, "k8s-01", "cat /etc/containerd/config.toml")
