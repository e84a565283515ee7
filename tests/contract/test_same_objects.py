"""Runs that want the same objects at the same moment, as the pods of `kubeworker job` do: who is late looks again.

Every run here has looked before any of them writes, so that all but one of them come too late, each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import admin, cluster_of, node_document, planned, sweep

from kubeworker.core.certificates.csr import KEYS_RECORD
from kubeworker.core.cluster import manifest
from kubeworker.core.cluster.cluster_objects import OWNED_RECORD
from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.cluster.manifest import Ref
from kubeworker.core.component import Chart
from kubeworker.core.spec import NodeSpec
from kubeworker.errors import ApiConflict, ApiRefused
from kubeworker.flow import charts
from kubeworker.flow.events import ActionDone, Event, silent
from kubeworker.flow.join import ClusterPlan, apply_cluster
from kubeworker.io.kube import Kube
from kubeworker.io.objects import Objects

pytestmark = pytest.mark.timeout(90)

RUNS = 8
RBAC = "rbac.authorization.k8s.io"
BOOTSTRAP = "kubelet-bootstrap"
BINDINGS = (BOOTSTRAP, "node-client-cert-renewal", "kube-apiserver:kubelet-apis")
NODE = NodeSpec(
    name="same-01.example.com", address="10.1.2.1", labels={"zone": "a"}, taints=("dedicated=x:NoSchedule",)
)


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's connection, to a cluster that has none of the objects."""
    async with admin(control_plane) as connected:
        await _removed(connected)
        yield connected
        await _removed(connected)


async def _removed(kube: Kube) -> None:
    await sweep(kube)
    for name in BINDINGS:
        await kube.delete("ClusterRoleBinding", name)
    for name in (OWNED_RECORD, KEYS_RECORD, "kubeworker-demo"):
        await kube.delete("ConfigMap", name, namespace="kube-system")
    for which in CHART_OBJECTS:
        await Objects(kube).delete(manifest.ref(which))


async def together(kube: Kube, *plans: ClusterPlan) -> list[str]:
    """Carry them all out at once; what was done, by all of them."""
    events: list[Event] = []
    await asyncio.gather(*(apply_cluster(kube, plan.actions, events.append) for plan in plans))
    return sorted(f"{each.kind} {each.subject}" for each in events if isinstance(each, ActionDone))


def subject(name: str) -> dict[str, str]:
    return {"apiGroup": RBAC, "kind": "Group", "name": name}


async def subjects(kube: Kube, name: str) -> list[str]:
    found = await kube.get("ClusterRoleBinding", name)
    assert found is not None
    return [each["name"] for each in found["subjects"]]


def bootstrap_binding(*names: str, role: str = "system:node-bootstrapper") -> dict[str, Any]:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": BOOTSTRAP},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [subject(name) for name in names],
    }


async def test_runs_that_all_saw_no_bindings_make_each_once(control_plane: ControlPlane, kube: Kube) -> None:
    cluster = cluster_of(control_plane, NODE)
    plans = [await planned(kube, cluster) for _ in range(RUNS)]
    assert [action.verb for plan in plans for action in plan.actions] == ["create"] * len(BINDINGS) * RUNS
    assert await together(kube, *plans) == sorted(f"create-object ClusterRoleBinding {name}" for name in BINDINGS)
    assert (await planned(kube, cluster)).actions == ()


async def test_what_somebody_put_into_a_binding_that_was_made_meanwhile_stays(
    control_plane: ControlPlane, kube: Kube
) -> None:
    cluster = cluster_of(control_plane, NODE)
    plan = await planned(kube, cluster)
    await kube.create(bootstrap_binding("somebody-elses"))
    assert f"replace-object ClusterRoleBinding {BOOTSTRAP}" in await together(kube, plan)
    assert await subjects(kube, BOOTSTRAP) == ["somebody-elses", "system:bootstrappers"]


async def test_a_binding_to_another_role_that_was_made_meanwhile_is_not_removed_unasked(
    control_plane: ControlPlane, kube: Kube
) -> None:
    plan = await planned(kube, cluster_of(control_plane, NODE))
    made = await kube.create(bootstrap_binding("somebody-elses", role="view"))
    with pytest.raises(ApiConflict, match=BOOTSTRAP):
        await together(kube, plan)
    assert await kube.get("ClusterRoleBinding", BOOTSTRAP) == made


async def test_runs_that_all_add_to_a_binding_add_once_and_lose_nothing(
    control_plane: ControlPlane, kube: Kube
) -> None:
    cluster = cluster_of(control_plane, NODE)
    await together(kube, await planned(kube, cluster))
    await kube.patch(bootstrap_binding("somebody-elses"))
    plans = [await planned(kube, cluster) for _ in range(RUNS)]
    await kube.patch(bootstrap_binding("somebody-elses", "another"))
    assert await together(kube, *plans) == [f"replace-object ClusterRoleBinding {BOOTSTRAP}"]
    assert await subjects(kube, BOOTSTRAP) == ["somebody-elses", "another", "system:bootstrappers"]


async def test_a_binding_that_is_gone_when_it_is_added_to_is_made(control_plane: ControlPlane, kube: Kube) -> None:
    cluster = cluster_of(control_plane, NODE)
    await together(kube, await planned(kube, cluster))
    await kube.patch(bootstrap_binding("somebody-elses"))
    plan = await planned(kube, cluster)
    await kube.delete("ClusterRoleBinding", BOOTSTRAP)
    assert await together(kube, plan) == [f"create-object ClusterRoleBinding {BOOTSTRAP}"]
    assert await subjects(kube, BOOTSTRAP) == ["system:bootstrappers"]


async def test_a_binding_that_another_run_made_anew_is_not_made_anew_again(
    control_plane: ControlPlane, kube: Kube
) -> None:
    cluster = cluster_of(control_plane, NODE)
    await kube.create(bootstrap_binding("system:bootstrappers", role="view"))
    first, second, *others = [await planned(kube, cluster) for _ in range(RUNS)]
    assert "recreate" in [action.verb for action in first.actions]
    await together(kube, first)
    made = await kube.get("ClusterRoleBinding", BOOTSTRAP)
    assert await together(kube, second) == []
    assert await kube.get("ClusterRoleBinding", BOOTSTRAP) == made

    await kube.delete("ClusterRoleBinding", BOOTSTRAP)
    await kube.create(bootstrap_binding("system:bootstrappers", role="view"))
    await together(kube, *[await planned(kube, cluster) for _ in others])
    assert (await planned(kube, cluster)).actions == ()


async def test_a_node_that_changed_since_it_was_read_gets_its_taints_and_keeps_the_others(
    control_plane: ControlPlane, kube: Kube
) -> None:
    cluster = cluster_of(control_plane, NODE)
    await kube.create(node_document(NODE.name, NODE.address))
    plans = [await planned(kube, cluster) for _ in range(RUNS)]
    quarantine = {"key": "quarantine", "effect": "NoExecute"}
    await kube.patch({**node_document(NODE.name, NODE.address), "spec": {"taints": [quarantine]}})
    await together(kube, *plans)
    found = await kube.node(NODE.name)
    assert found is not None
    assert found.labels["zone"] == "a"
    assert {"dedicated=x:NoSchedule", "quarantine:NoExecute"} <= set(found.taints)
    assert (await planned(kube, cluster)).actions == ()


async def test_many_that_remember_keys_at_once_all_have_them_remembered(kube: Kube) -> None:
    for attempt in range(5):
        await kube.delete("ConfigMap", KEYS_RECORD, namespace="kube-system")
        wanted = {f"node-{number}": (f"key-{attempt}",) for number in range(RUNS)}
        await asyncio.gather(*(kube.remember_keys({node: keys}) for node, keys in wanted.items()))
        assert await kube.known_keys() == wanted


# ---------------------------------------------------------------------------------------------------------------
# Charts' objects

CHART = Chart(component="demo", release="demo", namespace="kube-system", artifact="", values={}, agent="none")
CONFIG: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "same-demo", "namespace": "kube-system"},
    "data": {"a": "1"},
}
AGENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "same-demo", "namespace": "kube-system"},
    "spec": {
        "selector": {"matchLabels": {"app": "same-demo"}},
        "template": {
            "metadata": {"labels": {"app": "same-demo"}},
            "spec": {"containers": [{"name": "agent", "image": "agent:1"}]},
        },
    },
}


def demo_binding(role: str) -> dict[str, Any]:
    return {**bootstrap_binding("x", role=role), "metadata": {"name": "same-demo"}}


CHART_OBJECTS = (CONFIG, AGENT, demo_binding("view"))


async def compared(kube: Kube, *documents: dict[str, Any]) -> manifest.Changes:
    wanted: tuple[Document, ...] = manifest.documents(documents, subject="components.demo")
    return await charts.compare(kube, CHART, wanted)


async def test_runs_that_all_saw_no_objects_of_a_chart_make_each_once(kube: Kube) -> None:
    for _ in range(3):
        changes = [await compared(kube, *CHART_OBJECTS) for _ in range(RUNS)]
        await asyncio.gather(*(charts.apply(kube, each.actions, silent) for each in changes))
        assert (await compared(kube, *CHART_OBJECTS)).actions == ()
        for document in CHART_OBJECTS:
            await Objects(kube).delete(manifest.ref(document))
        await kube.delete("ConfigMap", CHART.record, namespace="kube-system")


async def test_an_object_of_a_chart_that_somebody_made_meanwhile_is_not_overwritten(kube: Kube) -> None:
    changes = await compared(kube, CONFIG)
    made = await kube.create({**CONFIG, "data": {"a": "theirs"}})
    with pytest.raises(ApiRefused, match="conflict"):
        await charts.apply(kube, changes.actions, silent)
    assert await kube.get("ConfigMap", "same-demo", namespace="kube-system") == made


async def test_an_object_of_a_chart_that_another_run_made_anew_is_not_made_anew_again(kube: Kube) -> None:
    await charts.apply(kube, (await compared(kube, demo_binding("view"))).actions, silent)
    first, second, *others = [await compared(kube, demo_binding("edit")) for _ in range(RUNS)]
    assert [action.verb for action in first.actions] == ["recreate"]
    await charts.apply(kube, first.actions, silent)
    which = Ref(api_version=f"{RBAC}/v1", kind="ClusterRoleBinding", namespace="", name="same-demo")
    made = await Objects(kube).get(which)
    async with asyncio.timeout(10):
        await charts.apply(kube, second.actions, silent)
    after = await Objects(kube).get(which)
    assert made is not None
    assert after is not None
    assert after["metadata"]["uid"] == made["metadata"]["uid"]

    several = [await compared(kube, demo_binding("view")) for _ in others]
    async with asyncio.timeout(20):
        await asyncio.gather(*(charts.apply(kube, each.actions, silent) for each in several))
    assert (await compared(kube, demo_binding("view"))).actions == ()
