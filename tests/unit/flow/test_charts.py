"""Which nodes' agents are Ready, as the API's objects say it."""

from __future__ import annotations

from typing import Any

from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.flow.charts import ChartsPlan, agents_of, not_ready

GENERATION = "deprecated.daemonset.template.generation"


def daemon(*, template: int = 2, generation: int = 5, observed: int = 5) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "agent", "generation": generation, "annotations": {GENERATION: str(template)}},
        "status": {"observedGeneration": observed},
    }


def pod(node: str, *, template: int = 2, ready: bool = True, going: bool = False) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"agent-{node}",
            "namespace": "kube-system",
            "labels": {"pod-template-generation": str(template)},
            **({"deletionTimestamp": "2026-11-25T00:00:00Z"} if going else {}),
        },
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}] * (not ready),
        },
    }


def test_a_ready_pod_of_the_present_template_counts() -> None:
    seen = agents_of(daemon(), [pod("a")])
    assert seen.ready == seen.running == {"a"}
    assert seen.pods == {"a": "agent-a"}


def test_a_pod_of_the_former_template_runs_and_is_waited_for() -> None:
    seen = agents_of(daemon(), [pod("a", template=1)])
    assert not seen.ready
    assert seen.running == {"a"}
    assert seen.troubles["a"] == "pod agent-a is of the former configuration"


def test_no_pod_counts_before_the_controller_has_seen_the_change() -> None:
    assert not agents_of(daemon(generation=6), [pod("a")]).ready


def test_a_pod_that_is_ending_does_not_count_and_its_successor_is_named() -> None:
    seen = agents_of(daemon(), [pod("a", going=True)])
    assert not seen.ready
    assert not seen.running
    assert not seen.pods
    assert seen.troubles["a"] == "pod agent-a is ending"


def test_what_keeps_a_pod_from_being_ready_is_said() -> None:
    seen = agents_of(daemon(), [pod("a", ready=False)])
    assert not seen.running
    assert seen.troubles["a"] == "pod agent-a is Running: ErrImagePull: no"


def test_a_plan_without_changes_still_says_which_agents_are_not_ready() -> None:
    agents = agents_of(daemon(), [pod("a", ready=False), pod("b")])
    (text,) = not_ready(ChartsPlan(agents=agents), ["a", "b", "new"])
    assert text.startswith("the network plugin's agent on a is not Ready: pod agent-a is Running")
    action = ObjectAction(verb="apply", document={}, reason="")
    assert not_ready(ChartsPlan(agents=agents, actions=(action,)), ["a", "b"]) == ()
