"""What a real API server keeps of who wrote an object, from which `status` tells who has moved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import admin

from kubeworker.core.cluster import manifest
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.drift import Drift
from kubeworker.flow.status_cluster import Known, object_drift
from kubeworker.io.kube import Kube
from kubeworker.io.objects import Objects

pytestmark = pytest.mark.timeout(60)

PATH = "/api/v1/namespaces/kube-system/configmaps/status-test"


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    async with admin(control_plane) as connected:
        yield connected
        await connected.delete("ConfigMap", "status-test", namespace="kube-system")


def wanted(value: str = "ours") -> dict[str, Any]:
    metadata = {"name": "status-test", "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"key": value}}


async def judged(kube: Kube, value: str = "ours") -> Drift:
    action = ObjectAction(verb="apply", document=wanted(value), reason="differs from the chart with these values")
    live = await Objects(kube).get(manifest.ref(action.document))
    return object_drift(action, live, Known(objects=frozenset({manifest.ref(wanted())})))


async def test_a_charts_object_tells_who_has_changed_it(kube: Kube) -> None:
    await Objects(kube).apply(wanted(), force=True)
    # Nobody but this tool has written it: what differs is asked for anew.
    assert (await judged(kube, "another")).who == "input"

    change = {"data": {"key": "theirs"}}
    manager = f"{PATH}?fieldManager=kubectl-edit"
    merge = "application/merge-patch+json"
    await kube.request("PATCH", manager, subject="test", body=change, content_type=merge)
    found = await judged(kube)
    assert (found.who, found.by) == ("cluster", "kubectl-edit")
    assert found.since.startswith("20")

    # Taken back, it is the tool's again.
    await Objects(kube).apply(wanted(), force=True)
    assert (await judged(kube, "another")).who == "input"

    await kube.delete("ConfigMap", "status-test", namespace="kube-system")
    gone = await judged(kube)
    assert (gone.who, gone.what.partition(";")[0]) == ("cluster", "deleted")
