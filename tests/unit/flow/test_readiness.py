"""When a node counts as Ready: not by what its kubelet said before it was restarted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from kubeworker.components import kubelet
from kubeworker.core.actions import RestartUnit, StagePlan
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.cluster.kube_views import node as read
from kubeworker.core.model import Stage, Unit
from kubeworker.errors import ApiUnreachable
from kubeworker.flow.plan import NodePlan
from kubeworker.flow.readiness import restarts_kubelet, unready

STARTS = {"w1": "2026-11-25T10:00:05Z"}
EARLY, LATE = "2026-11-25T10:00:04Z", "2026-11-25T10:00:05Z"


def node(*, ready: bool, heartbeat: str, reason: str = "") -> NodeStatus:
    return NodeStatus(name="w1", ready=ready, heartbeat=heartbeat, reason=reason)


def looking(*each: NodeStatus) -> Callable[[], Awaitable[tuple[NodeStatus, ...]]]:
    """These one after the other, the last one again and again."""
    left = list(each)

    async def look() -> tuple[NodeStatus, ...]:
        return (left.pop(0) if len(left) > 1 else left[0],) if left else ()

    return look


async def test_what_was_said_before_the_restart_does_not_count() -> None:
    stale, fresh = node(ready=True, heartbeat=EARLY), node(ready=True, heartbeat=LATE)
    assert await unready(looking(stale, fresh), ["w1"], STARTS, seconds=5) == {}
    assert await unready(looking(stale), ["w1"], {}, seconds=0) == {}


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ((node(ready=True, heartbeat=EARLY),), "kubelet has not reported since its restart"),
        ((node(ready=False, heartbeat=LATE, reason="cni plugin not initialized"),), "cni plugin not initialized"),
        ((), "it has not registered"),
    ],
)
async def test_a_node_that_stays_away_is_named_with_the_reason(seen: tuple[NodeStatus, ...], why: str) -> None:
    found = await unready(looking(*seen), ["w1"], STARTS, seconds=0)
    assert found["w1"].subject == "w1"
    assert found["w1"].message == f"not Ready after 0 s: {why}"
    assert "kubectl describe node w1" in found["w1"].hint


async def test_an_api_that_is_away_is_not_a_node_that_is() -> None:
    async def look() -> tuple[NodeStatus, ...]:
        raise ApiUnreachable("no kube-apiserver answers")

    found = await unready(look, ["w1"], STARTS, seconds=0)
    assert "the API can't be asked: no kube-apiserver answers" in found["w1"].message


def plan(name: str) -> NodePlan:
    action = RestartUnit(unit=Unit(name=name, content=""), record="", reason="kubelet-config.yaml changes")
    stage = StagePlan(stage=Stage(component="x"), actions=(action,), bin_dir="/opt/k8s/bin")
    return NodePlan(name="w1", stages=(stage,))


def test_only_a_restart_of_kubelet_makes_the_api_wait_for_news() -> None:
    assert restarts_kubelet(plan(kubelet.UNIT))
    assert not restarts_kubelet(plan("kube-proxy.service"))
    assert not restarts_kubelet(NodePlan(name="w1"))


def test_a_heartbeat_is_read_from_the_ready_condition() -> None:
    conditions = [
        {"type": "DiskPressure", "status": "False", "lastHeartbeatTime": "2026-11-25T09:00:00Z"},
        {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-25T10:00:00Z"},
    ]
    status = read({"metadata": {"name": "w1"}, "status": {"conditions": conditions}})
    assert (status.ready, status.heartbeat) == (True, "2026-11-25T10:00:00Z")
    assert read({"metadata": {"name": "w1"}}).heartbeat == ""
