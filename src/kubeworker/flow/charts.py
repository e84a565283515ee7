"""Charts that components have installed in the cluster: rendered here, compared by the API, applied, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from kubeworker.core import desired
from kubeworker.core.cluster import kube_views, manifest
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import Document, PodStatus
from kubeworker.core.cluster.manifest import Found, Ref, Stale
from kubeworker.core.component import Chart, Component, KeyPair
from kubeworker.core.desired import Registry
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiNotFound, ApiRefused, ChartError
from kubeworker.flow import artifacts, chart_credentials
from kubeworker.flow.chart_credentials import ChartCredentials
from kubeworker.flow.events import Reporter
from kubeworker.flow.join import apply_cluster
from kubeworker.io import helm, objects
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.kube import FEW, Kube
from kubeworker.io.objects import Objects

AGENT_SECONDS = 300.0
"""How long no further agent may become Ready before the wait is given up: images may have to be pulled."""
POLL_SECONDS = 1.0

_PARALLEL = 6
"""Objects that are compared at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A component's chart, ready to be rendered."""

    chart: Chart = field(repr=False)
    credentials: ChartCredentials = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """A chart's agents, as the API has them."""

    ready: frozenset[str] = frozenset()
    """Nodes whose agent is Ready and runs the present configuration."""
    running: frozenset[str] = frozenset()
    """Nodes whose agent is Ready, with whatever configuration."""
    troubles: Mapping[str, str] = field(default_factory=dict)
    """By node, what keeps its agent from being Ready."""
    pods: Mapping[str, str] = field(default_factory=dict)
    """By node, the name of its agent's pod."""
    replaces_proxy: bool = False
    """The live configuration makes the agents do kube-proxy's work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartsPlan:
    """The charts' part of a plan."""

    actions: tuple[ObjectAction, ...] = ()
    warnings: tuple[str, ...] = ()
    agents: Agents = Agents()


def releases(cluster_file: Path, cluster: ClusterFile, registry: Registry, *, now: datetime) -> tuple[Release, ...]:
    """The charts of this cluster, with the certificates that are kept for them or newly made."""
    made = []
    for component in _with_chart(cluster, registry):
        settings = desired.config(component, cluster)
        lifetime = timedelta(days=getattr(settings, "certificate_days", 0) or chart_credentials.CA_LIFETIME.days)
        wanted = component.certificates(cluster, settings)
        credentials = chart_credentials.load(cluster_file, component.name, wanted, now=now, lifetime=lifetime)
        assert component.chart is not None
        made.append(Release(chart=component.chart(cluster, settings, credentials.pairs), credentials=credentials))
    return tuple(made)


def stand_ins(cluster: ClusterFile, registry: Registry) -> tuple[Chart, ...]:
    """The charts with stand-ins for certificates and keys, for a rendering that shows no secret."""
    made = []
    for component in _with_chart(cluster, registry):
        settings = desired.config(component, cluster)
        names = [each.name for each in component.certificates(cluster, settings)]
        pair = KeyPair(cert=b"certificate", key=b"key")
        assert component.chart is not None
        made.append(component.chart(cluster, settings, dict.fromkeys((*names, chart_credentials.CA), pair)))
    return tuple(made)


def _with_chart(cluster: ClusterFile, registry: Registry) -> Iterable[Component[Any]]:
    return (each for each in registry if each.enabled(cluster) and each.chart is not None)


async def tools(
    cluster_file: Path, cluster: ClusterFile, registry: Registry, *, store: BlobStore, report: Reporter
) -> dict[str, Path]:
    """What renders the charts, and the charts: checked files of the cache, by artifact name."""
    wanted = desired.tools(cluster, registry)
    if not wanted:
        return {}
    blobs = await artifacts.resolve(cluster_file, cluster, wanted, report=report, store=store)
    return {name: await asyncio.to_thread(store.path, blob) for name, blob in blobs.items()}


async def tools_at_hand(
    cluster_file: Path, cluster: ClusterFile, registry: Registry, *, store: BlobStore
) -> dict[str, Path]:
    """Those of them that are pinned and in the cache; nothing is got, and nothing written."""
    pinned = artifacts.pinned(cluster_file, cluster, desired.tools(cluster, registry))
    there = {name: blob for name, blob in pinned.items() if store.has(blob)}
    return {name: await asyncio.to_thread(store.path, blob) for name, blob in there.items()}


async def render(chart: Chart, files: Mapping[str, Path], kube_version: str) -> tuple[Document, ...]:
    """The chart's objects for a cluster of this version."""
    return await helm.template(
        files["helm"],
        files[chart.artifact],
        release=chart.release,
        namespace=chart.namespace,
        kube_version=kube_version,
        values=chart.values,
        subject=f"components.{chart.component}",
    )


# ---------------------------------------------------------------------------------------------------------------
# Plan


async def plan(
    kube: Kube, several: Sequence[Release], files: Mapping[str, Path], nodes: Collection[str] | None
) -> ChartsPlan:
    """What would change in the cluster, and how the agents on these nodes are (None: on all).

    A chart whose `files` are not all there, as where a run only looks, is not compared, and that is told.
    """
    if not several:
        return ChartsPlan()
    actions: list[ObjectAction] = []
    warnings: list[str] = []
    agents = Agents()
    version = await kube.version()
    for release in several:
        chart = release.chart
        if absent := [name for name in ("helm", chart.artifact) if name not in files]:
            agents = await look(kube, chart, nodes)
            why = f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not in this host's cache"
            warnings.append(
                f"the objects of {chart.component} are not compared: {why}; get: kubeworker artifacts fetch"
            )
            continue
        rendered, agents = await asyncio.gather(render(chart, files, version), look(kube, chart, nodes))
        changes = await compare(kube, chart, rendered)
        actions += changes.actions
        warnings += changes.warnings
    return ChartsPlan(actions=tuple(actions), warnings=tuple(warnings), agents=agents)


def not_ready(planned: ChartsPlan, nodes: Iterable[str]) -> tuple[str, ...]:
    """Nodes whose agent is not Ready though there is nothing to change: a plan must not pass for "all is well"."""
    troubles = {} if planned.actions else planned.agents.troubles
    return tuple(
        f"the network plugin's agent on {name} is not Ready: {troubles[name]}"
        for name in nodes
        if name in troubles and name not in planned.agents.ready
    )


async def compare(kube: Kube, chart: Chart, rendered: Sequence[Document]) -> manifest.Changes:
    """What makes the live objects the rendered ones; InputError where they are somebody else's."""
    api = Objects(kube)
    kinds = manifest.defined_kinds(rendered)
    wanted = tuple(
        [
            manifest.labelled(await _in_namespace(api, each, chart.namespace, kinds), chart.component)
            for each in rendered
        ]
    )
    inventory = await kube.get("ConfigMap", chart.record, namespace="kube-system")
    gone = manifest.gone(manifest.recorded(inventory), wanted)
    namespaces = {each["metadata"]["name"] for each in wanted if each["kind"] == "Namespace"}
    limit = asyncio.Semaphore(_PARALLEL)

    async def find(document: Document) -> Found:
        async with limit:
            return await _find(api, document, kinds, namespaces)

    async def stale(which: Ref) -> Stale:
        async with limit:
            count = await api.count(which) if which.kind == "CustomResourceDefinition" else 0
            return Stale(ref=which, live=await api.get(which), instances=count)

    try:
        async with asyncio.TaskGroup() as group:
            found = {manifest.ref(each): group.create_task(find(each)) for each in wanted}
            left = [group.create_task(stale(each)) for each in gone]
    except ExceptionGroup as several:
        # The same trouble mostly: one is enough to read.
        raise several.exceptions[0] from several
    changes = manifest.changes(
        chart.record,
        wanted,
        {which: task.result() for which, task in found.items()},
        inventory,
        [task.result() for task in left],
    )
    if not changes.foreign:
        return changes
    if not chart.adopt:
        raise _foreign(chart, changes.foreign)
    return replace(changes, warnings=(*changes.warnings, *await _helms(kube, chart, wanted)))


def _foreign(chart: Chart, names: Sequence[str]) -> ChartError:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ChartError(
        f"the cluster has objects of it that this tool did not make: {', '.join(names[:4])}{more}",
        subject=f"components.{chart.component}",
        hint=f"to take them over: components.{chart.component}: {{adopt: true}}, and look at the plan; to leave the "
        "network plugin to what made them: cni: none",
    )


async def _helms(kube: Kube, chart: Chart, wanted: Sequence[Document]) -> tuple[str, ...]:
    """What stays of a Helm release that is taken over."""
    labels = {"owner": "helm", "name": chart.release}
    records = await kube.list("Secret", namespace=chart.namespace, labels=labels)
    if not records:
        return ()
    command = f"kubectl --namespace {chart.namespace} delete secret --selector owner=helm,name={chart.release}"
    first = f"Helm still knows the release {chart.release}, and `helm upgrade` would take its objects back"
    told = [f"{first}. Once this plan is carried out: {command}"]
    if left := manifest.gone(manifest.helm_objects(records), wanted):
        names = ", ".join(map(str, left))
        told.append(f"of Helm's release these are not in the chart with these values; remove them yourself: {names}")
    return tuple(told)


async def forgotten(kube: Kube, cluster: ClusterFile, registry: Registry) -> tuple[str, ...]:
    """Charts that an earlier cluster.yaml had installed and this one no longer names."""
    told = []
    for component in registry:
        if component.chart is not None and not component.enabled(cluster):
            name = f"kubeworker-{component.name}"
            inventory = await kube.get("ConfigMap", name, namespace="kube-system")
            if left := manifest.recorded(inventory):
                told.append(
                    f"{component.name} is no longer wanted, but its {len(left)} objects are still in the cluster "
                    f"(ConfigMap kube-system/{name} lists them). No pod may lose it unawares: docs/cilium.md "
                    "has the way off it"
                )
    return tuple(told)


async def _in_namespace(
    api: Objects, document: Document, namespace: str, kinds: Mapping[tuple[str, str], tuple[str, bool]]
) -> Document:
    """With the release's namespace where it names none, as Helm's install does it."""
    if document["metadata"].get("namespace"):
        return document
    key = document["apiVersion"], document["kind"]
    served = await api.resource(*key)
    namespaced = served.namespaced if served else kinds.get(key, ("", False))[1]
    return {**document, "metadata": {**document["metadata"], "namespace": namespace}} if namespaced else document


async def _find(
    api: Objects, document: Document, kinds: Mapping[tuple[str, str], tuple[str, bool]], namespaces: Collection[str]
) -> Found:
    which = manifest.ref(document)
    live = await api.get(which)
    try:
        return Found(live=live, applied=await api.apply(document, force=False, dry_run=True))
    except ApiNotFound:
        # Its kind or its namespace comes with the chart itself: there is nothing yet to compare with.
        if live is None and ((which.api_version, which.kind) in kinds or which.namespace in namespaces):
            return Found()
        raise
    except ApiRefused as error:
        if held := objects.conflicts(error):
            return await _forced(api, document, Found(live=live, conflicts=held))
        if live is not None and (fields := objects.immutable(error)):
            return Found(live=live, immutable=fields)
        raise


async def _forced(api: Objects, document: Document, found: Found) -> Found:
    try:
        applied = await api.apply(document, force=True, dry_run=True)
    except ApiRefused as error:
        if fields := objects.immutable(error):
            return Found(live=found.live, immutable=fields)
        raise
    return Found(live=found.live, applied=applied, conflicts=found.conflicts)


# ---------------------------------------------------------------------------------------------------------------
# Apply


async def apply(kube: Kube, actions: Iterable[ObjectAction], report: Reporter) -> int:
    """Carry out a plan's actions, in its order; how many there were to do."""
    return await apply_cluster(Objects(kube), actions, report)


async def wait(kube: Kube, chart: Chart, nodes: Collection[str]) -> dict[str, str]:
    """Wait for the agents of these nodes, as long as they make progress; of those that don't get there, what is wrong.

    A rolling update of a fleet takes its time: only a standstill ends the wait.
    """
    loop = asyncio.get_running_loop()
    most, end = 0, loop.time() + AGENT_SECONDS
    while True:
        agents = await look(kube, chart, nodes)
        missing = set(nodes) - agents.ready
        if not missing or loop.time() > end:
            return {name: agents.troubles.get(name, "it has no pod yet") for name in sorted(missing)}
        if len(agents.ready) > most:
            most, end = len(agents.ready), loop.time() + AGENT_SECONDS
        await asyncio.sleep(POLL_SECONDS)


async def look(kube: Kube, chart: Chart, nodes: Collection[str] | None) -> Agents:
    """How the chart's agents are, on these nodes (None: on all)."""
    agents, replaces_proxy = await asyncio.gather(
        look_at(kube, chart.namespace, chart.agent, nodes), _proxy_config(kube, chart)
    )
    return replace(agents, replaces_proxy=replaces_proxy)


async def look_at(kube: Kube, namespace: str, daemon_set: str, nodes: Collection[str] | None) -> Agents:
    """How the pods of a DaemonSet are."""
    daemon = await kube.get("DaemonSet", daemon_set, namespace=namespace)
    if daemon is None:
        return Agents()
    labels = daemon["spec"]["selector"]["matchLabels"]
    names: Sequence[str] = sorted(nodes) if nodes is not None and len(nodes) <= FEW else [""]
    found = await asyncio.gather(
        *(
            kube.list("Pod", namespace=namespace, labels=labels, fields={"spec.nodeName": name} if name else None)
            for name in names
        )
    )
    return agents_of(daemon, [each for several in found for each in several])


async def _proxy_config(kube: Kube, chart: Chart) -> bool:
    if not chart.proxy_setting:
        return False
    name, key, value = chart.proxy_setting
    found = await kube.get("ConfigMap", name, namespace=chart.namespace)
    return ((found or {}).get("data") or {}).get(key) == value


_GENERATION = "deprecated.daemonset.template.generation"
_POD_GENERATION = "pod-template-generation"
"""The DaemonSet controller writes them: which pods are of the present template."""


def agents_of(daemon: Document, pods: Iterable[Document]) -> Agents:
    """What a DaemonSet and its pods tell of the nodes."""
    present = (daemon["metadata"].get("annotations") or {}).get(_GENERATION)
    # Until the controller has seen the last change, no pod is known to be of the present template.
    settled = (daemon.get("status") or {}).get("observedGeneration") == daemon["metadata"].get("generation")
    ready, running, troubles, names = set[str](), set[str](), dict[str, str](), dict[str, str]()
    for document in pods:
        pod = kube_views.pod(document)
        going = bool(document["metadata"].get("deletionTimestamp"))
        current = settled and (document["metadata"].get("labels") or {}).get(_POD_GENERATION) == present
        if not going:
            names[pod.node] = pod.name
        if pod.ready and not going:
            running.add(pod.node)
            if current:
                ready.add(pod.node)
                continue
        troubles.setdefault(pod.node, _trouble(pod, going=going, current=current))
    return Agents(ready=frozenset(ready), running=frozenset(running), troubles=troubles, pods=names)


def _trouble(pod: PodStatus, *, going: bool, current: bool) -> str:
    if going:
        return f"pod {pod.name} is ending"
    if not current:
        return f"pod {pod.name} is of the former configuration"
    return f"pod {pod.name} is {pod.phase or 'new'}: {pod.waiting or 'not Ready'}"
