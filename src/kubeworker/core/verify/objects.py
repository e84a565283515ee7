"""The Kubernetes objects that `verify` makes and removes: two ServiceAccounts, a binding, and a pod per node.

All carry the same label and a random run id, so that a run finds its own objects, and leftovers of a killed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from kubeworker.core.cluster.kube_views import Document, PodStatus

NAMESPACE = "default"
"""A namespace of its own would need the controller-manager, and seconds, to go away again."""

LABELS = {"app.kubernetes.io/managed-by": "kubeworker-verify"}
"""What everything that any run made carries."""

RUN_LABEL = "kubeworker.dev/verify-run"

KINDS = ("Pod", "ClusterRoleBinding", "ServiceAccount")
"""What every run makes, in the order in which it is removed."""

TRAFFIC_KINDS = ("Service", "CiliumNetworkPolicy")
"""What a run makes besides where the network plugin is Cilium. The policy goes first where a run is cut short: it
selects this run's own pods only."""

ROLE_LABEL = "kubeworker.dev/verify-role"
Role: TypeAlias = Literal["open", "guarded"]
"""open: every pod may reach it; guarded: with the policy, only open ones may."""

_SIDE_LABEL = "kubeworker.dev/verify-side"

PORT = 8080
"""Where the pods of `traffic_pod` answer, with the run's id."""

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


def traffic_pod_name(run: Run, node: str, side: int, role: Role) -> str:
    """The name of that `traffic_pod`."""
    return f"kubeworker-verify-{run.id}-{role}{side}-{node}"[:253].rstrip("-.")


def traffic_pod(run: Run, node: str, side: int, role: Role, image: str) -> Document:
    """A pod on exactly this node that answers on PORT with the run's id; its image needs `sh` and `nc`.

    Pods are of one of two sides (0, 1): each asks the Service of the other one, so that no pod is answered by itself,
    which every network and every policy lets it do.
    """
    document = pod(run, node, image)
    serve = f'trap "exit 0" TERM; while :; do echo "${MARK_VARIABLE}" | nc -l -p {PORT}; done & wait'
    (container,) = document["spec"]["containers"]
    return {
        **document,
        "metadata": {
            **document["metadata"],
            "name": traffic_pod_name(run, node, side, role),
            "labels": {**run.labels, ROLE_LABEL: role, _SIDE_LABEL: str(side)},
        },
        "spec": {**document["spec"], "containers": [{**container, "command": ["sh", "-c", serve]}]},
    }


def traffic_client(address: str, port: int, *, seconds: int) -> tuple[str, ...]:
    """A command for such a pod: asks an address three times, since the other side listens anew after each answer.

    `seconds` is the patience of each time. Exit status 0 with the answer, 1 without one, 127 where there is no nc.
    """
    script = (
        "command -v nc > /dev/null || exit 127; n=0; "
        'while [ $n -lt 3 ]; do said=$(nc -w "$3" "$1" "$2" < /dev/null 2> /dev/null); '
        '[ -z "$said" ] || { echo "$said"; exit 0; }; n=$((n + 1)); sleep 0.2; done; exit 1'
    )
    return ("sh", "-c", script, "sh", address, str(port), str(seconds))


def traffic_service(run: Run, side: int) -> Document:
    """A Service of the run's open pods of one side."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(run, f"kubeworker-verify-{run.id}-{side}") | {"namespace": NAMESPACE},
        "spec": {
            "selector": {RUN_LABEL: run.id, ROLE_LABEL: "open", _SIDE_LABEL: str(side)},
            "ports": [{"port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def traffic_policy(run: Run) -> Document:
    """A CiliumNetworkPolicy by which guarded pods of the run can be reached by its open ones only."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": _metadata(run, f"kubeworker-verify-{run.id}") | {"namespace": NAMESPACE},
        "spec": {
            "endpointSelector": {"matchLabels": {RUN_LABEL: run.id, ROLE_LABEL: "guarded"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {RUN_LABEL: run.id, ROLE_LABEL: "open"}}]}],
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


def goes_on(events: Sequence[str], before: Sequence[str]) -> bool:
    """Whether a pod got a step further since the events `before`, and nothing failed: a slow machine, not a broken one.

    The steps are few (Pulled, Created, Started), so waiting for the next one comes to an end.
    """
    return len(events) > len(before) and not any(event.startswith(_SETBACKS) for event in events)


_SETBACKS = ("Failed", "BackOff", "Unhealthy", "Killing", "NetworkNotReady")
"""Reasons of kubelet's events (pkg/kubelet/events) that tell of more than slowness."""


def _metadata(run: Run, name: str) -> dict[str, Any]:
    return {"name": name, "labels": run.labels}
