"""The Kubernetes objects that `verify` makes and removes: two ServiceAccounts, a binding, and a pod per node.

All carry the same label and a random run id, so that a run finds its own objects, and leftovers of a killed one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kubeworker.core.kube_views import Document, PodStatus

NAMESPACE = "default"
"""A namespace of its own would need the controller-manager, and seconds, to go away again."""

LABELS = {"app.kubernetes.io/managed-by": "kubeworker-verify"}
"""What everything that any run made carries."""

RUN_LABEL = "kubeworker.dev/verify-run"

KINDS = ("Pod", "ClusterRoleBinding", "ServiceAccount")
"""What a run makes, in the order in which it is removed."""

STALE = timedelta(minutes=10)
"""Older objects with our label belong to a run that was killed; no run lasts that long."""

FALLBACK_IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.36.1-1"
"""Pulled where cluster.yaml preloads no image with a shell."""

MARK_VARIABLE = "KUBEWORKER_VERIFY"

_HOPELESS = frozenset(
    {
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "StartError",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's name for everything it makes; `id` is random, lower-case letters and digits."""

    id: str

    @property
    def with_rights(self) -> tuple[str, str]:
        """ServiceAccounts that may use the kubelet API: one, and its spare."""
        return f"kubeworker-verify-{self.id}-a", f"kubeworker-verify-{self.id}-b"

    @property
    def without_rights(self) -> str:
        """A ServiceAccount that may nothing."""
        return f"kubeworker-verify-{self.id}-none"

    @property
    def binding(self) -> str:
        """The ClusterRoleBinding for `with_rights`."""
        return f"kubeworker-verify-{self.id}"

    def pod(self, node: str) -> str:
        """The pod of one node. Node names may be longer than what is left of a pod name's 253 characters."""
        return f"kubeworker-verify-{self.id}-{node}"[:253].rstrip("-.")

    @property
    def labels(self) -> dict[str, str]:
        """What everything that this run made carries."""
        return LABELS | {RUN_LABEL: self.id}


def service_account(run: Run, name: str) -> Document:
    """A ServiceAccount; its tokens are asked for (TokenRequest), no Secret is made."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(run, name) | {"namespace": NAMESPACE},
        "automountServiceAccountToken": False,
    }


def binding(run: Run) -> Document:
    """The guide's `kubectl create clusterrolebinding --clusterrole=system:kubelet-api-admin`."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": _metadata(run, run.binding),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:kubelet-api-admin",
        },
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE} for name in run.with_rights],
    }


def pod(run: Run, node: str, image: str) -> Document:
    """A pod on exactly this node (nodeName: no scheduler takes part) that logs the run's id and then waits.

    It meets the "restricted" Pod Security Standard, and tolerates a node that is not ready: whether it runs is the
    kubelet's and the runtime's answer alone.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(run, run.pod(node)) | {"namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": int(STALE.total_seconds()),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", f'echo "${MARK_VARIABLE}"; trap "exit 0" TERM; sleep 600 & wait'],
                    "env": [{"name": MARK_VARIABLE, "value": run.id}],
                    "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def default_image(preloaded: Iterable[str]) -> str:
    """The first preloaded image that is no pause image, else one that is pulled."""
    usable = (name for name in preloaded if not name.partition("@")[0].rpartition(":")[0].endswith("/pause"))
    return next(usable, FALLBACK_IMAGE)


def is_stale(document: Document, now: datetime) -> bool:
    """Whether the object was left behind by a run that was killed."""
    created = datetime.fromisoformat(document["metadata"]["creationTimestamp"])
    return now - created > STALE


def will_not_run(pod: PodStatus) -> bool:
    """Whether waiting longer is of no use: the pod ended, or its container can't be made."""
    return pod.phase in {"Failed", "Succeeded"} or pod.waiting.partition(":")[0] in _HOPELESS


def _metadata(run: Run, name: str) -> dict[str, Any]:
    return {"name": name, "labels": run.labels}
