"""The approver as a service: what a unit and the objects of a Deployment say, and what they leave out."""

from __future__ import annotations

from typing import Any

import yaml

from kubeworker.core.certificates import approver
from kubeworker.core.spec import Cluster, ClusterFile, NodeSpec

CLUSTER = ClusterFile.model_validate(
    {
        "cluster": {
            "apiservers": ["10.1.0.9:6443", "10.1.0.10:6443"],
            "cluster_cidr": "172.30.0.0/16",
            "service_cidr": "10.254.0.0/16",
            "dns_service_ip": "10.254.0.2",
            "ca": {"cert": "/etc/pki/ca.pem", "key": "/etc/pki/ca-key.pem"},
            "kubeconfig": "/root/.kube/config",
        },
        "ssh": {"identity": "/root/.ssh/id_ed25519"},
        "components": {"kubelet": {"config": {"port": 10350, "maxPods": 50}}, "kube_proxy": {"mode": "nftables"}},
        "nodes": [
            {"name": "worker-01", "address": "10.1.0.1", "labels": {"zone": "a"}, "ssh": {"host": "gate"}},
            {"name": "worker-02", "address": "10.1.0.2", "components": {"kubelet": {"config": {"port": 10351}}}},
        ],
    }
)


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(approver.manifest(CLUSTER, image="registry.example.com/kubeworker:1")))


def of_kind(kind: str, name: str = approver.NAME) -> dict[str, Any]:
    (found,) = [each for each in objects() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def test_the_inventory_in_the_cluster_is_a_cluster_yaml_of_names_addresses_and_ports_alone() -> None:
    text = of_kind("ConfigMap")["data"]["cluster.yaml"]
    document = yaml.safe_load(text)
    found = ClusterFile.model_validate(document)
    assert found.nodes == (
        NodeSpec(name="worker-01", address="10.1.0.1"),
        NodeSpec(name="worker-02", address="10.1.0.2", components={"kubelet": {"config": {"port": 10351}}}),
    )
    assert found.components == {"kubelet": {"config": {"port": 10350}}}
    assert document["cluster"].keys() == {*Cluster.model_fields} - {"dns_domain", "kubelet_client_user"}
    assert not [word for word in ("ca-key", "id_ed25519", "/root", "gate") if word in text]


def test_no_object_holds_a_secret() -> None:
    assert "Secret" not in {each["kind"] for each in objects()}
    kubeconfig = yaml.safe_load(of_kind("ConfigMap")["data"]["kubeconfig"])
    assert kubeconfig["users"][0]["user"] == {"tokenFile": f"{approver.ACCOUNT}/token"}


def test_the_pod_may_nothing_that_the_approver_does_not_need() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert not [each for each in container["volumeMounts"] if "subPath" in each or not each["readOnly"]]
    assert "--serving-only" in container["command"]


def test_the_pods_token_lasts_an_hour_and_no_other_one_is_mounted() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    assert not pod["automountServiceAccountToken"]
    assert not of_kind("ServiceAccount")["automountServiceAccountToken"]
    sources = [source for each in pod["volumes"] for source in each.get("projected", {}).get("sources", ())]
    (token,) = [each["serviceAccountToken"] for each in sources if "serviceAccountToken" in each]
    # 3607 would be taken for kubelet's own mount, and be made a year (WarnOnlyBoundTokenExpirationSeconds).
    assert token == {"path": "token", "expirationSeconds": 3600}


def test_a_pod_that_does_not_go_round_any_more_is_started_anew_and_one_without_an_api_is_not() -> None:
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert f"--health-port {port['containerPort']}" in " ".join(container["command"])
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}


def test_only_the_signer_of_serving_certificates_may_be_approved_for() -> None:
    (rule,) = [each for each in of_kind("ClusterRole")["rules"] if each["resources"] == ["signers"]]
    assert (rule["resourceNames"], rule["verbs"]) == (["kubernetes.io/kubelet-serving"], ["approve"])


def test_a_path_with_a_space_or_a_percent_sign_reaches_the_command_as_it_is() -> None:
    text = approver.systemd_unit(program="/opt/kw/bin/kubeworker", cluster_file="/srv/my 100%/cluster.yaml", user="kw")
    assert (
        'ExecStart=/opt/kw/bin/kubeworker csr approve --watch --serving-only -f "/srv/my 100%%/cluster.yaml"\n' in text
    )
    assert "User=kw\n" in text


def test_systemd_ends_a_unit_that_does_not_go_round_any_more() -> None:
    text = approver.systemd_unit(program="/opt/kw/bin/kubeworker", cluster_file="/srv/cluster.yaml", user="kw")
    assert "Type=notify\nWatchdogSec=300\nWatchdogSignal=SIGKILL\n" in text
