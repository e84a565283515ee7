"""Clusters and node states for unit tests of components."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.component import Archive, Credentials, Facts
from kubeworker.core.model import Blob, Check, File, NodeState, Stage, Unit
from kubeworker.core.spec import ClusterFile

REGISTRY = discover()
CREDENTIALS = Credentials(
    ca_cert=b"the CA's certificate\n",
    kube_proxy_cert=b"a certificate\n",
    kube_proxy_key=b"a key\n",
    bootstrap_token="abcdef.0123456789abcdef",
)


def cluster(**changes: Any) -> ClusterFile:
    """Two nodes as in the guide, with these top-level fields changed."""
    document: dict[str, Any] = {
        "cluster": {
            "apiservers": ["172.31.39.151:6443", "172.31.32.72:6443"],
            "cluster_cidr": "172.30.0.0/16",
            "service_cidr": "10.254.0.0/16",
            "dns_service_ip": "10.254.0.2",
        },
        "nodes": [{"name": "k8s-01", "address": "172.31.39.151"}, {"name": "k8s-02", "address": "172.31.32.72"}],
    }
    return ClusterFile.model_validate(document | changes)


def with_component(name: str, *, profile: str = "default", cni: str = "none", **settings: Any) -> ClusterFile:
    """The same cluster with one component's settings."""
    return cluster(components={name: settings}, profile=profile, cni=cni)


def archives(spec: ClusterFile) -> dict[str, Archive]:
    """One image in each archive that the cluster names."""
    return {
        path: Archive(references=(f"example.org/{path}:1",), blob=Blob(sha256="b" * 64, size=2))
        for path in desired.archives(spec, REGISTRY)
    }


def state(
    spec: ClusterFile,
    *,
    node: str = "k8s-01",
    facts: Facts | None = None,
    credentials: Credentials = CREDENTIALS,
    local_files: Mapping[str, bytes] = MappingProxyType({}),
) -> NodeState:
    """What the node is to look like."""
    blobs = {each.name: Blob(sha256="a" * 64, size=1) for each in desired.artifacts(spec, REGISTRY)}
    return desired.desired(
        spec,
        spec.node(node),
        registry=REGISTRY,
        blobs=blobs,
        archives=archives(spec),
        local_files=local_files,
        credentials=credentials,
        facts=facts or Facts(),
    )


def stage(spec: ClusterFile, component: str, **how: Any) -> Stage:
    """One component's part of it."""
    return next(each for each in state(spec, **how).stages if each.component == component)


def files(of: NodeState) -> dict[str, File]:
    """Every text file by path, unit files among them."""
    return {file.path: file for stage in of.stages for file in (*stage.files, *(unit.file for unit in stage.units))}


def text(of: NodeState, path: str) -> str:
    """One file's text."""
    return files(of)[path].content.decode()


def units(of: NodeState) -> dict[str, Unit]:
    """Every unit by name."""
    return {unit.name: unit for stage in of.stages for unit in stage.units}


def checks(spec: ClusterFile, *, node: str = "k8s-01", facts: Facts | None = None) -> dict[str, Check]:
    """What verify proves of the node, by id."""
    found = desired.checks(
        spec,
        spec.node(node),
        registry=REGISTRY,
        archives=archives(spec),
        credentials=CREDENTIALS,
        facts=facts or Facts(),
    )
    return {check.id: check for check in found}


def changed(before: NodeState, after: NodeState) -> set[str]:
    """Paths whose file comes, goes or differs."""
    old, new = files(before), files(after)
    return {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}


def restarted(before: NodeState, after: NodeState) -> set[str]:
    """Units that the change restarts, by what they declare."""
    differ = changed(before, after)
    return {name for name, unit in units(after).items() if differ & {unit.path, *unit.restart_on}}


def reloaded(before: NodeState, after: NodeState) -> set[str]:
    """Units that the change reloads."""
    differ = changed(before, after)
    return {name for name, unit in units(after).items() if differ & {*unit.reload_on}} - restarted(before, after)
