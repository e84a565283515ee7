"""Joining against a real API server and controller-manager: what a kubelet does is done here by hand."""

from __future__ import annotations

import pytest
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import (
    admin,
    approving,
    as_node,
    as_token,
    client_request,
    cluster_of,
    issued,
    no_tokens,
    node_document,
    planned,
    serving_request,
    until,
)

from kubeworker.core.certificates import csr
from kubeworker.core.spec import NodeSpec
from kubeworker.flow.events import CsrDecision, Event
from kubeworker.flow.join import apply_cluster

pytestmark = pytest.mark.timeout(60)


async def test_a_node_joins_under_guarded_approval_and_its_token_is_taken_back(control_plane: ControlPlane) -> None:
    node = NodeSpec(
        name="join-01.example.com", address="10.1.0.1", labels={"zone": "a"}, taints=("dedicated=x:NoSchedule",)
    )
    cluster = cluster_of(control_plane, node)
    events: list[Event] = []
    async with admin(control_plane) as kube:
        plan = await planned(kube, cluster, node.name)
        await apply_cluster(kube, plan.actions, events.append)
        assert [token.node for token in plan.tokens] == [node.name]
        assert plan.token(node.name) not in repr(plan)

        async with approving(kube, cluster, plan, events):
            async with await as_token(control_plane, plan.tokens[0]) as kubelet:
                request = await kubelet.create(client_request(node.name))
                await until(lambda: issued(kubelet, request["metadata"]["name"]))
            assert await kube.tokens(), "the token must live until the node has registered with its certificate"
            async with await as_node(control_plane, node.name) as kubelet:
                await kubelet.create(node_document(node.name, node.address))
                request = await kubelet.create(serving_request(node.name, node.address))
                await until(lambda: issued(kube, request["metadata"]["name"]))
            await until(lambda: no_tokens(kube))

        decisions = [(each.signer, each.decision) for each in events if isinstance(each, CsrDecision)]
        assert decisions == [(csr.CLIENT_SIGNER, "approved"), (csr.SERVING_SIGNER, "approved")]

        again = await planned(kube, cluster)
        assert [action.subject for action in again.actions] == [
            f"Node {node.name}",
            "ConfigMap kube-system/kubeworker-owned",
        ]
        await apply_cluster(kube, again.actions, events.append)
        assert (await planned(kube, cluster)).actions == ()
        await kube.delete("Node", node.name)
