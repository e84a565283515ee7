"""What a stolen credential gives, asked of a real kube-apiserver: the claims of docs/security.md."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import admin, as_node, as_token, client_request, cluster_of, node_document, planned, sweep
from tests.contract.test_approver import rules

from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.spec import NodeSpec
from kubeworker.errors import ApiError
from kubeworker.flow.csr import approve
from kubeworker.flow.events import Event, Warning_
from kubeworker.flow.join import apply_cluster
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(90)

ROBBED = NodeSpec(name="node-01.example.com", address="10.1.6.1")
OTHER = NodeSpec(name="node-02.example.com", address="10.1.6.2")
TOKEN = BootstrapToken(
    id="stolen", secret="0123456789abcdef", node=OTHER.name, expires=datetime.now(UTC) + timedelta(minutes=15)
)


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's connection, on a cluster that apply has prepared; what is made is gone after each test."""
    async with admin(control_plane) as connected:
        cluster = cluster_of(control_plane, ROBBED, OTHER)
        await apply_cluster(connected, (await planned(connected, cluster)).actions, lambda _: None)
        yield connected
        await sweep(connected)


async def as_user(plane: ControlPlane, name: str, *groups: str) -> Kube:
    config = plane.kubeconfig_for(name.replace(":", "-"), common_name=name, organizations=groups)
    return await Kube.connect(config, (), plane.ca_cert)


async def own_rules(plane: ControlPlane, client: Kube) -> set[tuple[str, str, str, str]]:
    """What it may beyond what any authenticated user may."""
    async with await as_user(plane, "anybody") as anybody:
        return await rules(client, "kube-system") - await rules(anybody, "kube-system")


async def test_a_bootstrap_token_may_ask_for_certificates_and_nothing_else(
    control_plane: ControlPlane, kube: Kube
) -> None:
    await kube.create(bootstrap_token.document(TOKEN))
    async with await as_token(control_plane, TOKEN) as thief:
        csrs = ("certificates.k8s.io", "certificatesigningrequests", "")
        assert await own_rules(control_plane, thief) == {(*csrs, verb) for verb in ("create", "get", "list", "watch")}


async def test_kube_proxys_certificate_reads_services_nodes_and_endpoints_and_writes_events_alone(
    control_plane: ControlPlane, kube: Kube
) -> None:
    async with await as_user(control_plane, "system:kube-proxy", "k8s") as thief:
        found = await own_rules(control_plane, thief)
    reads = {(resource, verb) for _, resource, _, verb in found if verb in {"get", "list", "watch"}}
    assert {resource for resource, _ in reads} == {"endpoints", "endpointslices", "nodes", "services", "servicecidrs"}
    writes = {(resource, verb) for _, resource, _, verb in found if verb not in {"get", "list", "watch"}}
    assert {resource for resource, _ in writes} == {"events"}


async def test_root_on_a_node_is_that_node_and_no_other(control_plane: ControlPlane, kube: Kube) -> None:
    await kube.create(node_document(OTHER.name, OTHER.address))
    async with await as_node(control_plane, ROBBED.name) as thief:
        # Its own Node says whatever it wants, addresses of others too: so the rules do not rest on it.
        await thief.create(node_document(ROBBED.name, OTHER.address))
        for attempt in (
            thief.patch({"apiVersion": "v1", "kind": "Node", "metadata": {"name": OTHER.name, "labels": {"a": "b"}}}),
            thief.delete("Node", OTHER.name),
            thief.list("Secret", namespace="kube-system"),
            thief.get("ConfigMap", "kubeworker-issued-keys", namespace="kube-system"),
            thief.create(mirror_pod(OTHER.name)),
            thief.create(plain_pod(ROBBED.name)),
            thief.patch(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": ROBBED.name, "labels": {"node-restriction.kubernetes.io/tier": "secure"}},
                }
            ),
        ):
            with pytest.raises(ApiError, match="403"):
                await attempt


def plain_pod(node: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mine", "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    }


def mirror_pod(node: str) -> dict[str, Any]:
    pod = plain_pod(node)
    pod["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    return pod


async def test_a_second_key_approved_for_one_token_is_an_alarm(control_plane: ControlPlane, kube: Kube) -> None:
    """Thief and node both hold the token: which of them is which can't be told, but that there are two can."""
    await kube.create(bootstrap_token.document(TOKEN))
    events = list[Event]()
    async with await as_token(control_plane, TOKEN) as holder:
        for warned in (False, True):
            made = await holder.create(client_request(OTHER.name))
            done = await approve(kube, cluster_of(control_plane, ROBBED, OTHER), events.append)
            assert [each.name for each in done.approved] == [made["metadata"]["name"]]
            warnings = [each for each in events if isinstance(each, Warning_)]
            assert [made["metadata"]["name"] in each.text for each in warnings] == [True] * warned
            assert all(each.subject == OTHER.name for each in warnings)
    for each in await kube.csrs():
        await kube.delete("CertificateSigningRequest", each.name)
