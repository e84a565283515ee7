"""`cluster.apiservers` held against the cluster's own list: the EndpointSlices of the Service default/kubernetes. Pure.

Each kube-apiserver keeps its address in that list while it runs, and one that stopped is taken out of it when its lease
ends (pkg/controlplane/reconcilers/lease.go). A static list goes stale when the control plane changes, and nodes then go
on asking a machine that is gone, or never use a new one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kubeworker.core.cluster.kube_views import EndpointsStatus
from kubeworker.core.component import url_host
from kubeworker.core.drift import Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What the two lists say of each other."""

    drifts: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()


def compare(configured: Sequence[str], slices: Iterable[EndpointsStatus]) -> Compared:
    """`configured` are HOST:PORT of cluster.yaml."""
    serving = {f"{url_host(address)}:{port}" for each in slices for address in each.addresses for port in each.ports}
    if not serving:
        return Compared(notes=("default/kubernetes has no EndpointSlices: cluster.apiservers is not compared",))
    names = tuple(each for each in configured if not _is_address(each))
    own = tuple(each for each in configured if _is_address(each))
    notes = tuple(f"{each} in cluster.apiservers is a name: not compared with default/kubernetes" for each in names)
    if own and serving.isdisjoint(own):
        text = f"{', '.join(own)} is no kube-apiserver's own address (a load balancer?): not compared"
        return Compared(notes=(*notes, text))
    gone = tuple(_gone(each) for each in own if each not in serving)
    # Behind a name may be any of them.
    new = () if names else tuple(_new(each) for each in sorted(serving.difference(own)))
    return Compared(drifts=(*gone, *new), notes=notes)


def _gone(address: str) -> Drift:
    return Drift(
        kind="apiservers",
        subject=address,
        what="is in cluster.apiservers, and not among the EndpointSlices of default/kubernetes",
        who="cluster",
        fix="start that kube-apiserver (or see its --advertise-address); if it is gone for good, take it out of "
        "cluster.apiservers and apply",
    )


def _new(address: str) -> Drift:
    return Drift(
        kind="apiservers",
        subject=address,
        what="serves the API (EndpointSlices of default/kubernetes), and is not in cluster.apiservers: no node uses it",
        who="cluster",
        fix=f"add {address} to cluster.apiservers and apply",
    )


def _is_address(endpoint: str) -> bool:
    try:
        ipaddress.ip_address(endpoint.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
