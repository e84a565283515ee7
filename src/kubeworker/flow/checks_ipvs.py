"""verify's check that kube-proxy's virtual servers on a node are what the API's Services ask for."""

from __future__ import annotations

from dataclasses import dataclass

from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.model import VirtualServers
from kubeworker.core.verify import ipvs
from kubeworker.core.verify.checks import Verdict, failed, passed
from kubeworker.core.verify.ipvs import NodeView
from kubeworker.flow.checks_cluster import ClusterView, Shared
from kubeworker.flow.polling import settled
from kubeworker.io.kube import Kube
from kubeworker.io.node import Node

ZONE = "topology.kubernetes.io/zone"
READ_SECONDS = 15.0
SETTLE_SECONDS = 10.0
"""How long kube-proxy may take to follow a change: a sync of many Services takes seconds on a slow node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesView:
    """Every Service and EndpointSlice of the cluster."""

    services: tuple[Document, ...]
    slices: tuple[Document, ...]


async def services(kube: Kube) -> ServicesView:
    """Read them."""
    return ServicesView(services=await kube.list("Service"), slices=await kube.list("EndpointSlice"))


async def virtual_servers(
    check: VirtualServers, name: str, node: Node, nodes: Shared[ClusterView], wanted: Shared[ServicesView]
) -> Verdict:
    """The verdict on one node; looked at again for a moment: kube-proxy may be about to follow a change."""
    return await settled(lambda: _once(check, name, node, nodes, wanted), seconds=SETTLE_SECONDS)


async def _once(
    check: VirtualServers, name: str, node: Node, nodes: Shared[ClusterView], wanted: Shared[ServicesView]
) -> Verdict:
    answer = await node.run(ipvs.SCRIPT, timeout=READ_SECONDS)
    if answer.status != 0:
        return failed(check, f"the virtual servers can't be read: {answer.stderr.strip()[-300:]}")
    status = (await nodes.get()).nodes.get(name)
    view = NodeView(name=name, zone=status.labels.get(ZONE, "") if status is not None else "")
    api = await wanted.get()
    return judge(check, view, api, ipvs.parse(answer.stdout))


def judge(check: VirtualServers, node: NodeView, api: ServicesView, seen: ipvs.Seen) -> Verdict:
    """The verdict on what the node showed."""
    wanted = ipvs.wanted(api.services, api.slices, node, seen, check)
    faults = ipvs.differences(wanted, seen, check)
    return failed(check, "\n".join(faults)) if faults else passed(check, ipvs.summary(wanted))
