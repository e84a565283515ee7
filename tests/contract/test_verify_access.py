"""What verify makes in a cluster for its time, against a real API server: it works at once, and it goes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import admin

from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.manifest import ref
from kubeworker.core.verify import objects as verify_objects
from kubeworker.core.verify.objects import KINDS, LABELS, NAMESPACE, TRAFFIC_KINDS, Run
from kubeworker.errors import ApiConflict
from kubeworker.flow.verify_access import granted, remove_stale
from kubeworker.io.https import Answer, get, tls_context
from kubeworker.io.kube import Kube
from kubeworker.io.objects import Objects

pytestmark = pytest.mark.timeout(60)

RUN = Run(id="c0ffee00")


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    async with admin(control_plane) as connected:
        # Pods are refused before it is there; the controller that makes it does not run here.
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": NAMESPACE},
        }
        with suppress(ApiConflict):
            await connected.create(account)
        yield connected


async def made(kube: Kube) -> list[str]:
    return [each["metadata"]["name"] for kind in KINDS for each in await kube.list(kind, labels=LABELS)]


async def test_every_caller_is_who_it_should_be_and_all_of_it_goes_again(
    kube: Kube, control_plane: ControlPlane
) -> None:
    trust = tls_context(control_plane.ca_cert.read_bytes())
    port = int(control_plane.endpoint.rpartition(":")[2])

    async def status(path: str, authorization: str = "") -> int:
        url = f"{control_plane.server}{path}"
        answer = await get(url, port=port, context=trust, authorization=authorization)
        assert isinstance(answer, Answer), answer
        return answer.status

    async with granted(kube, RUN, trust) as access:
        assert access.missing == ""
        assert len(access.token) == 2
        # The kubelet API's rights are rights to the API's nodes/metrics; an API server answers 404 to who may ask.
        nodes = "/api/v1/nodes/none/metrics"
        assert [await status(nodes, each.authorization) for each in access.token] == [404, 404]
        assert await status(nodes, access.token_without_rights[0].authorization) == 403
        assert await status("/version", access.token_without_rights[0].authorization) == 200
        (administrator,) = access.admin
        answer = await get(f"{control_plane.server}{nodes}", port=port, context=administrator.context)
        assert isinstance(answer, Answer)
        assert answer.status == 404
        assert set(await made(kube)) == {*RUN.with_rights, RUN.without_rights, RUN.binding}
    assert await made(kube) == []


async def test_all_of_it_goes_when_the_run_is_cancelled(kube: Kube, control_plane: ControlPlane) -> None:
    trust = tls_context(control_plane.ca_cert.read_bytes())
    inside = asyncio.Event()

    async def run() -> None:
        async with granted(kube, RUN, trust):
            await kube.create(verify_objects.pod(RUN, "nowhere", "busybox"))
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await inside.wait()
    assert RUN.pod("nowhere") in await made(kube)
    task.cancel()
    # Cancelled once more while it cleans up (an impatient second Ctrl-C).
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await made(kube) == []


async def test_what_a_killed_run_left_goes_once_it_is_old_and_other_objects_stay(kube: Kube) -> None:
    await kube.create(verify_objects.service_account(RUN, RUN.without_rights))
    await kube.create(verify_objects.binding(RUN))
    await kube.create(verify_objects.pod(RUN, "nowhere", "busybox"))
    foreign = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "foreign", "namespace": NAMESPACE}}
    await kube.create(foreign)
    now = datetime.now(UTC)
    await remove_stale(kube, now=now)
    assert set(await made(kube)) == {RUN.without_rights, RUN.binding, RUN.pod("nowhere")}
    await remove_stale(kube, now=now + timedelta(minutes=11))
    assert await made(kube) == []
    assert await kube.delete("ServiceAccount", "foreign", namespace=NAMESPACE)


POLICIES = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ciliumnetworkpolicies.cilium.io"},
    "spec": {
        "group": "cilium.io",
        "scope": "Namespaced",
        "names": {
            "plural": "ciliumnetworkpolicies",
            "kind": "CiliumNetworkPolicy",
            "listKind": "CiliumNetworkPolicyList",
            "singular": "ciliumnetworkpolicy",
        },
        "versions": [
            {
                "name": "v2",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""Stands in for Cilium's own definition, which its operator makes."""


async def test_services_and_policies_of_a_killed_run_go_too_and_do_without_ciliums_kinds(kube: Kube) -> None:
    kinds = (*KINDS, *TRAFFIC_KINDS)
    later = datetime.now(UTC) + timedelta(minutes=11)
    await kube.create(verify_objects.pod(RUN, "nowhere", "busybox"))
    await kube.create(verify_objects.traffic_service(RUN, 0))
    await remove_stale(kube, now=later, kinds=kinds)  # no such kind as CiliumNetworkPolicy yet
    assert await made(kube) == []
    assert await kube.list("Service", labels=LABELS) == ()

    api = Objects(kube)
    definition = ObjectAction(verb="apply", document=POLICIES, reason="")
    await api.carry_out(definition)
    try:
        await api.apply(verify_objects.traffic_policy(RUN), force=True)
        assert len(await kube.list("CiliumNetworkPolicy", labels=LABELS)) == 1
        await remove_stale(kube, now=later, kinds=kinds)
        assert await kube.list("CiliumNetworkPolicy", labels=LABELS) == ()
    finally:
        await api.delete(ref(POLICIES))
