"""`kubeworker job`: an Indexed Job whose pods each apply one part of the fleet, with all that they need and no more.

The pods hold an SSH key and the finished credentials of nodes, in a namespace of their own, so that who may read
Secrets elsewhere can't read these. They do not hold the CA's key, an administrator's kubeconfig, or the right to read
or make any Secret: bootstrap tokens are made beforehand, and pods may delete and prolong exactly those, by name.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubeworker.core.certificates.approver import ACCOUNT, CONTAINER_SECURITY, FOLDER, account_volume
from kubeworker.core.certificates.csr import CLIENT_SIGNER, KEYS_RECORD, SERVING_SIGNER
from kubeworker.core.certificates.issuing import LEADER
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.cluster.cluster_objects import OWNED_RECORD, RBAC
from kubeworker.core.formats import yaml
from kubeworker.core.sharding import shard

NAMESPACE = "kubeworker"
NAME = "kubeworker-apply"
SYSTEM = "kube-system"
INDEX = "JOB_COMPLETION_INDEX"
"""Kubernetes gives it to the pods of an Indexed Job (batch/v1)."""
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
JOB_LABEL = "batch.kubernetes.io/job-name"
LARGEST = 1_000_000
"""Bytes of one Secret: the API server takes 1 MiB."""

_LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/managed-by": "kubeworker"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What pods find below /etc/kubeworker, by path."""

    inputs: Mapping[str, bytes] = field(repr=False)
    """cluster.yaml, kubeworker.lock, the CA's certificate, a kubeconfig of the pods' own, the credentials."""
    ssh: Mapping[str, bytes] = field(repr=False)
    """Private keys, and the known host keys."""


def manifest(
    parcel: Parcel, bindings: Iterable[Mapping[str, Any]], tokens: Iterable[BootstrapToken], *, image: str, shards: int
) -> str:
    """`objects` as one YAML stream."""
    return "---\n".join(yaml.dump(each) for each in objects(parcel, bindings, tokens, image=image, shards=shards))


def objects(
    parcel: Parcel, bindings: Iterable[Mapping[str, Any]], tokens: Iterable[BootstrapToken], *, image: str, shards: int
) -> tuple[dict[str, Any], ...]:
    """Everything for `kubectl apply --server-side`, in order. `image` has `kubeworker` on its PATH.

    `bindings` are those that kubelets need to join; pods may not make them.
    """
    issued = tuple(tokens)
    mine = {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS}
    return (
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        },
        *(dict(each) for each in bindings),
        *(bootstrap_token.document(each) for each in issued),
        # They exist beforehand: the right to make objects can't be held to a name.
        *(_system("v1", "ConfigMap", name) for name in (OWNED_RECORD, KEYS_RECORD)),
        *(_system("coordination.k8s.io/v1", "Lease", shard.lease_of(index)) for index in range(shards)),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": mine, "automountServiceAccountToken": False},
        *_rights(issued, shards),
        _secret(mine, parcel.inputs),
        _secret(mine | {"name": f"{NAME}-ssh"}, parcel.ssh),
        _job(mine, parcel, image, shards),
    )


def kubeconfig(apiserver: str) -> dict[str, Any]:
    """The pods' own, by files that kubelet keeps fresh."""
    cluster = {"server": f"https://{apiserver}", "certificate-authority": f"{ACCOUNT}/ca.crt"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": NAME, "user": {"tokenFile": f"{ACCOUNT}/token"}}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": NAME}}],
        "current-context": "cluster",
    }


def _system(version: str, kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": SYSTEM}}


def _secret(metadata: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    data = {_key(path): base64.b64encode(content).decode() for path, content in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": dict(metadata), "data": data}


def _key(path: str) -> str:
    """A Secret's key for a path: letters, digits, `-`, `_` and `.`."""
    return path.replace("/", "__")


def _rights(tokens: Iterable[BootstrapToken], shards: int) -> tuple[dict[str, Any], ...]:
    """What `apply --shard` does with what was handed over, verb by verb."""
    certificates = "certificates.k8s.io"
    everywhere = [
        {"apiGroups": [certificates], "resources": ["certificatesigningrequests"], "verbs": ["list"]},
        {"apiGroups": [certificates], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
        {
            "apiGroups": [certificates],
            "resources": ["signers"],
            "resourceNames": [CLIENT_SIGNER, SERVING_SIGNER],
            "verbs": ["approve"],
        },
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "patch"]},
    ]
    leases = [shard.lease_of(index) for index in range(shards)]
    named = [
        ("", "configmaps", [OWNED_RECORD, KEYS_RECORD], ["get", "patch"]),
        ("coordination.k8s.io", "leases", leases, ["get", "update"]),
        ("coordination.k8s.io", "leases", [shard.FLEET, LEADER], ["get"]),
        ("", "secrets", [each.secret_name for each in tokens], ["delete", "patch"]),
    ]
    here = [
        {"apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs}
        for group, resource, names, verbs in named
        if names
    ]
    return (
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": everywhere},
        _binding("ClusterRole", {"name": NAME}),
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": NAME, "namespace": SYSTEM}, "rules": here},
        _binding("Role", {"name": NAME, "namespace": SYSTEM}),
    )


def _binding(kind: str, metadata: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": f"{kind}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    }


def _job(metadata: dict[str, Any], parcel: Parcel, image: str, shards: int) -> dict[str, Any]:
    container = {
        "name": "apply",
        "image": image,
        "command": ["kubeworker", "apply", "--yes", "--json", f"--shard=$({INDEX})/{shards}"],
        "args": ["-f", f"{FOLDER}/cluster.yaml"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "XDG_CACHE_HOME", "value": "/tmp/cache"}],  # noqa: S108
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "parcel", "mountPath": FOLDER, "readOnly": True},
            {"name": "account", "mountPath": ACCOUNT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (the pod's own, in memory)
        ],
    }
    pod = {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        # What was begun on nodes ends by itself; the Leases are given back.
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "parcel", "projected": {"defaultMode": 0o440, "sources": _sources(parcel)}},
            account_volume(),
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": shards,
            # A part that failed is tried once more, and keeps no other from its end.
            "backoffLimitPerIndex": 1,
            "maxFailedIndexes": shards,
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        },
    }


def _sources(parcel: Parcel) -> list[dict[str, Any]]:
    both = ((NAME, parcel.inputs), (f"{NAME}-ssh", parcel.ssh))
    return [
        {"secret": {"name": name, "items": [{"key": _key(path), "path": path} for path in files]}}
        for name, files in both
    ]
