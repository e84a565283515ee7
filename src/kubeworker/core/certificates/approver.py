"""`csr approve --watch` as a service: a systemd unit for the control host, or objects for a Deployment in the cluster.

In the cluster it has the inventory (names and addresses of cluster.yaml) and a ServiceAccount that may do what it does
and no more. Neither has the CA's key, an SSH key or a bootstrap token.
"""

from __future__ import annotations

from typing import Any

from kubeworker.core.certificates.csr import KEYS_RECORD, SERVING_SIGNER
from kubeworker.core.certificates.issuing import LEADER
from kubeworker.core.cluster.cluster_objects import RBAC
from kubeworker.core.formats import unit, yaml
from kubeworker.core.pulse import STUCK_SECONDS
from kubeworker.core.spec import ClusterFile, NodeSpec

NAMESPACE = "kube-system"
"""The record of issued keys and the controller-manager's Lease are there."""
NAME = "kubeworker-csr-approver"
FOLDER = "/etc/kubeworker"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where kubelet mounts the ServiceAccount's token and the cluster's CA certificate."""

HEALTH_PORT = 10283
"""Of the pod's own address, for its kubelet's probes: yes or no, nothing else."""
TOKEN_SECONDS = 3600
"""Of the ServiceAccount's token; kubelet fetches a new one at 80 %. One that is mounted without an own volume lasts a
year (kube-apiserver's --service-account-extend-token-expiration)."""

CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""Of every container in which this tool runs in the cluster."""

_APPROVE = ("csr", "approve", "--watch", "--serving-only")


def systemd_unit(*, program: str, cluster_file: str, user: str) -> str:
    """The unit file. `program` and `cluster_file` are absolute paths on the control host."""
    return unit.dump(
        {
            "Unit": {
                "Description": "Approve kubelets' serving certificates by the rules of kubeworker",
                "Wants": "network-online.target",
                "After": "network-online.target",
                # It fails at its start while no API server answers: this is what waits at boot.
                "StartLimitIntervalSec": "0",
            },
            "Service": {
                # Ready at the first answer of the API; one that does not go round any more is started anew.
                "Type": "notify",
                "WatchdogSec": f"{STUCK_SECONDS:.0f}",
                # Not by SIGABRT: a core would hold its credentials.
                "WatchdogSignal": "SIGKILL",
                "User": user,
                "ExecStart": unit.Command(arguments=(program, *_APPROVE, "-f", cluster_file)),
                "Restart": "always",
                "RestartSec": "10",
                "CapabilityBoundingSet": "",
                "LockPersonality": "yes",
                "NoNewPrivileges": "yes",
                "PrivateDevices": "yes",
                "PrivateTmp": "yes",
                "ProtectClock": "yes",
                "ProtectControlGroups": "yes",
                # Not "yes": the kubeconfig that cluster.yaml names may lie in a home directory.
                "ProtectHome": "read-only",
                "ProtectHostname": "yes",
                "ProtectKernelLogs": "yes",
                "ProtectKernelModules": "yes",
                "ProtectKernelTunables": "yes",
                "ProtectProc": "invisible",
                "ProtectSystem": "strict",
                "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
                "RestrictNamespaces": "yes",
                "RestrictRealtime": "yes",
                "RestrictSUIDSGID": "yes",
                "SystemCallArchitectures": "native",
                "SystemCallFilter": ("@system-service", "~@privileged @resources"),
                "UMask": "0077",
            },
            "Install": {"WantedBy": "multi-user.target"},
        }
    )


def manifest(cluster: ClusterFile, *, image: str) -> str:
    """`objects` as one YAML stream for `kubectl apply -f -`."""
    return "---\n".join(yaml.dump(each) for each in objects(cluster, image=image))


def objects(cluster: ClusterFile, *, image: str) -> tuple[dict[str, Any], ...]:
    """ServiceAccount, rights, inventory and Deployment. `image` has `kubeworker` on its PATH."""
    metadata = {"name": NAME, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": NAME}}
    return (
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata,
            "automountServiceAccountToken": False,
        },
        *_rights(),
        # It exists beforehand: the right to make ConfigMaps can't be held to a name.
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": KEYS_RECORD, "namespace": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {
                "cluster.yaml": yaml.dump(inventory(cluster)),
                "kubeconfig": yaml.dump(_kubeconfig(cluster.cluster.apiservers[0])),
            },
        },
        _deployment(metadata, image),
    )


def inventory(cluster: ClusterFile) -> dict[str, Any]:
    """A cluster.yaml of what the rules need: no SSH, no labels, no path of the control host."""
    port = _port(cluster.components)
    return {
        "cluster": {
            "apiservers": list(cluster.cluster.apiservers),
            "cluster_cidr": cluster.cluster.cluster_cidr,
            "service_cidr": cluster.cluster.service_cidr,
            "dns_service_ip": cluster.cluster.dns_service_ip,
            "ca": {"cert": f"{ACCOUNT}/ca.crt"},
            "kubeconfig": f"{FOLDER}/kubeconfig",
        },
        **({"components": port} if port else {}),
        "nodes": [_node(each) for each in cluster.nodes],
    }


def _node(node: NodeSpec) -> dict[str, Any]:
    port = _port(node.components)
    return {"name": node.name, "address": node.address, **({"components": port} if port else {})}


def _port(components: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of the components' settings what says where kubelet's certificate is to be seen; {} where nothing does."""
    config = components.get("kubelet", {}).get("config", {})
    return {"kubelet": {"config": {"port": config["port"]}}} if "port" in config else {}


def _rights() -> tuple[dict[str, Any], ...]:
    """What `csr approve --watch --serving-only` does, verb by verb (tests/contract/test_approver.py compares)."""
    group = "certificates.k8s.io"
    cluster_rules = [
        {"apiGroups": [group], "resources": ["certificatesigningrequests"], "verbs": ["list"]},
        {"apiGroups": [group], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
        {"apiGroups": [group], "resources": ["signers"], "resourceNames": [SERVING_SIGNER], "verbs": ["approve"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]},
    ]
    own_rules = [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [KEYS_RECORD], "verbs": ["get", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [LEADER], "verbs": ["get"]},
    ]
    everywhere, here = {"name": NAME}, {"name": NAME, "namespace": NAMESPACE}
    return (
        _role("ClusterRole", everywhere, cluster_rules),
        _binding("ClusterRole", everywhere),
        _role("Role", here, own_rules),
        _binding("Role", here),
    )


def _role(kind: str, metadata: dict[str, str], rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": metadata, "rules": rules}


def _binding(kind: str, metadata: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": f"{kind}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    }


def _kubeconfig(apiserver: str) -> dict[str, Any]:
    """The ServiceAccount's, by files that kubelet keeps fresh: the token is read again when it is refused."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "cluster",
                "cluster": {"server": f"https://{apiserver}", "certificate-authority": f"{ACCOUNT}/ca.crt"},
            }
        ],
        "users": [{"name": NAME, "user": {"tokenFile": f"{ACCOUNT}/token"}}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": NAME}}],
        "current-context": "cluster",
    }


def _deployment(metadata: dict[str, Any], image: str) -> dict[str, Any]:
    health = ("--health-port", str(HEALTH_PORT))
    container = {
        "name": "approver",
        "image": image,
        "command": ["kubeworker", *_APPROVE, *health, "--json-events", "-f", f"{FOLDER}/cluster.yaml"],
        "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
        "livenessProbe": _probe("/healthz", seconds=20) | {"terminationGracePeriodSeconds": 5},
        "readinessProbe": _probe("/readyz", seconds=10),
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
        "securityContext": CONTAINER_SECURITY,
        # Not by subPath: such a file would never follow a change of the ConfigMap.
        "volumeMounts": [
            {"name": "inventory", "mountPath": FOLDER, "readOnly": True},
            {"name": "account", "mountPath": ACCOUNT, "readOnly": True},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": metadata["labels"]},
            "template": {
                "metadata": {"labels": metadata["labels"]},
                "spec": {
                    "serviceAccountName": NAME,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 10,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": [{"name": "inventory", "configMap": {"name": NAME}}, account_volume()],
                },
            },
        },
    }


def _probe(path: str, *, seconds: int) -> dict[str, Any]:
    """Three failures in a row count. A busy node may be slow to answer."""
    return {"httpGet": {"path": path, "port": "health"}, "periodSeconds": seconds, "timeoutSeconds": 5}


def account_volume() -> dict[str, Any]:
    """Token and CA certificate of the ServiceAccount; kubelet makes the token's file 0600 of the pod's user."""
    return {
        "name": "account",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ]
        },
    }
