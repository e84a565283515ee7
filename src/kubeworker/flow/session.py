"""What every verb opens first: cluster.yaml, credentials, artifacts, the API, and an SSH connection to each node."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from kubeworker.components import discover, kube_proxy
from kubeworker.core import desired
from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.core.certificates.pki import CaCertificate
from kubeworker.core.component import Archive, Credentials
from kubeworker.core.desired import Inputs, Registry
from kubeworker.core.model import UNKNOWN, Blob
from kubeworker.core.nearest import meant
from kubeworker.core.sharding.handed import Handed
from kubeworker.core.sharding.shard import Shard
from kubeworker.core.sharding.shard import parse as parse_shard
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.core.stage_memo import StageMemo
from kubeworker.errors import ApiUnreachable, CredentialsError, NodeUnreachable, UsageError
from kubeworker.flow import artifacts, charts, credentials
from kubeworker.flow.charts import Release
from kubeworker.flow.credentials import KubeProxyCredential
from kubeworker.flow.events import NodeDone, NodeStarted, Reporter
from kubeworker.io import cluster_file, local_files, node, oci_archive
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.fleet import Begun, Ok, Outcome
from kubeworker.io.kube import Kube
from kubeworker.io.node import Node

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator asked for, whatever the verb."""

    cluster_file: Path
    nodes: tuple[str, ...] = ()
    """Only these nodes; empty: all."""
    shard: Shard | None = None
    """Only those of these nodes that belong to this part of the fleet."""
    rehash: bool = False
    """Hash every file on the nodes again, whatever their index says."""
    accept_new_host_keys: bool = False


def request(
    cluster_file: str | os.PathLike[str],
    *,
    nodes: Sequence[str] = (),
    shard: str = "",
    rehash: bool = False,
    accept_new_host_keys: bool = False,
) -> Request:
    """As the command and the library are given it. UsageError: there is no such part of a fleet."""
    return Request(
        cluster_file=Path(cluster_file),
        nodes=tuple(nodes),
        shard=parse_shard(shard) if shard else None,
        rehash=rehash,
        accept_new_host_keys=accept_new_host_keys,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Everything that a run works with. Nodes that can't be reached are outcomes, not errors."""

    request: Request
    cluster: ClusterFile
    registry: Registry
    selected: tuple[NodeSpec, ...]
    ca: CaCertificate = field(repr=False)
    """A `Ca`, with its key, unless the run is read-only."""
    proxy: KubeProxyCredential = field(repr=False)
    blobs: Mapping[str, Blob]
    """UNKNOWN where a run only looks and the lock file does not pin them."""
    unpinned: tuple[Artifact, ...] = ()
    """Those artifacts."""
    archives: Mapping[str, Archive]
    local_files: Mapping[str, bytes] = field(repr=False)
    releases: tuple[Release, ...]
    tools: Mapping[str, Path]
    """What renders the charts, and the charts, by artifact name."""
    store: BlobStore
    kube: Kube | None
    """None: no kube-apiserver answers, and `trouble` says why."""
    trouble: str = ""
    connections: Begun[str, Node]
    """They are made while the run goes on."""
    handed: Handed | None = None
    """What was handed over for this run, in place of keys, local files and the right to make tokens."""
    report: Reporter
    memo: StageMemo = field(default_factory=StageMemo, repr=False)
    """What was computed of nodes' states so far."""

    def inputs(self, bootstrap_token: str = "") -> Inputs:
        """What a node's desired state is computed from."""
        return Inputs(
            cluster=self.cluster,
            registry=self.registry,
            blobs=self.blobs,
            archives=self.archives,
            local_files=self.local_files,
            credentials=Credentials(
                ca_cert=self.ca.pem,
                kube_proxy_cert=self.proxy.cert,
                kube_proxy_key=self.proxy.key,
                bootstrap_token=bootstrap_token,
            ),
            tool=_version(),
            memo=self.memo,
        )

    def connection(self, name: str) -> Node:
        """The connection of a node that was looked at; its error where it has none."""
        match self.connections.known(name):
            case Ok(value=connected):
                return connected
            case failed:
                raise failed.error

    async def on_nodes(self, work: Callable[[Node], Awaitable[V]]) -> dict[str, Outcome[V]]:
        """Do `work` on each selected node as soon as its own connection is there, on some of them at once."""
        names = tuple(node.name for node in self.selected)
        return await self.connections.then(names, work, limit=self.cluster.ssh.concurrency)


@functools.cache
def _version() -> str:
    """This program's own; finding it out reads a file of the installation, and it is asked for twice a node."""
    return metadata.version("kubeworker")


@asynccontextmanager
async def open_session(request: Request, report: Reporter, *, read_only: bool = False) -> AsyncIterator[Session]:
    """Read the input, then get artifacts, the API and the nodes' connections side by side; closes what it opened.

    A read-only run does not need the CA's key, and does not touch it: it may look from a host that must not have it. It
    gets no artifacts and writes no file.
    """
    registry = discover()
    cluster = cluster_file.load(request.cluster_file, registry)
    request, chosen = _chosen(request, cluster)
    now = datetime.now(UTC)
    handed = credentials.handed_over(request.cluster_file)
    ca = (credentials.load_ca_certificate if read_only or handed else credentials.load_ca)(cluster, now=now)
    lifetime = timedelta(days=desired.config(kube_proxy.COMPONENT, cluster).certificate_days)
    proxy = credentials.NO_KUBE_PROXY
    if any(kube_proxy.deployed_on(node, cluster) for node in cluster.nodes):
        proxy = credentials.kube_proxy(request.cluster_file, ca, now=now, lifetime=lifetime)
    if handed and proxy.status != "kept":
        text = f"the client certificate that was handed over is of no use: {proxy.reason}"
        raise CredentialsError(text, subject="kube-proxy", hint="render the Job again where the CA's key is")
    archives, files = desired.archives(cluster, registry), desired.local_files(cluster, registry)
    store = BlobStore.default(make=not read_only)
    archive = oci_archive.looked_at if read_only else oci_archive.read
    async with AsyncExitStack() as stack:
        connections = await _connect_nodes(request, cluster, chosen, stack, report)
        had = await _had(request, cluster, registry, store, stack, report, read_only=read_only)
        kube = had.kube
        yield Session(
            request=request,
            cluster=cluster,
            registry=registry,
            selected=chosen,
            ca=ca,
            proxy=proxy,
            blobs=had.blobs,
            unpinned=had.unpinned,
            archives=dict(zip(archives, handed.archives, strict=True))
            if handed
            else {path: archive(Path(path), store) for path in archives},
            local_files=dict(zip(files, handed.local_files, strict=True)) if handed else local_files.read(files),
            releases=() if handed else charts.releases(request.cluster_file, cluster, registry, now=now),
            tools=had.tools,
            store=store,
            kube=kube if isinstance(kube, Kube) else None,
            trouble="" if isinstance(kube, Kube) else kube.message,
            connections=connections,
            handed=handed,
            report=report,
        )


@asynccontextmanager
async def open_look(request: Request, report: Reporter) -> AsyncIterator[Session]:
    """A session that only looks at nodes: without keys, artifacts and charts, which may all be missing yet.

    Artifacts that are pinned and image archives count with their size; of those that aren't there, nothing is known.
    """
    registry = discover()
    cluster = cluster_file.load(request.cluster_file, registry)
    chosen = select(cluster, request.nodes)
    blobs, _ = _pinned(request, cluster, registry)
    async with AsyncExitStack() as stack:
        connections = await _connect_nodes(request, cluster, chosen, stack, report)
        kube = await _connect_kube(cluster, stack)
        yield Session(
            request=request,
            cluster=cluster,
            registry=registry,
            selected=chosen,
            ca=credentials.load_ca_certificate(cluster, now=datetime.now(UTC)),
            proxy=credentials.NO_KUBE_PROXY,
            blobs=blobs,
            archives={path: oci_archive.described(Path(path)) for path in desired.archives(cluster, registry)},
            local_files=local_files.read_present(desired.local_files(cluster, registry)),
            releases=(),
            tools={},
            store=BlobStore.default(),
            kube=kube if isinstance(kube, Kube) else None,
            trouble="" if isinstance(kube, Kube) else kube.message,
            connections=connections,
            report=report,
        )


def select(cluster: ClusterFile, names: Sequence[str]) -> tuple[NodeSpec, ...]:
    """The nodes of these names, in the file's order; InputError for a name that is not in it."""
    known = [each.name for each in cluster.nodes]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no node {name!r}", subject="--node", hint=meant(name, known, alike=True))
    return tuple(each for each in cluster.nodes if not names or each.name in names)


def _chosen(request: Request, cluster: ClusterFile) -> tuple[Request, tuple[NodeSpec, ...]]:
    """The nodes of the request, which names each of them where it is for a part of the fleet."""
    chosen = select(cluster, request.nodes)
    if request.shard is None:
        return request, chosen
    mine = tuple(each for each in chosen if each.name in request.shard)
    if not mine:
        text = f"no node belongs to part {request.shard}"
        raise UsageError(text, subject="--shard", hint="use fewer parts: nodes are assigned by a hash of their names")
    return replace(request, nodes=tuple(each.name for each in mine)), mine


async def connect_kube(cluster: ClusterFile) -> Kube | ApiUnreachable:
    """The API, or why none answers: a run goes on without one under the node locks alone."""
    try:
        return await Kube.connect(
            Path(cluster.cluster.kubeconfig), cluster.cluster.apiservers, Path(cluster.cluster.ca.cert)
        )
    except ApiUnreachable as error:
        return error


@asynccontextmanager
async def connect_nodes(
    cluster: ClusterFile, chosen: Sequence[NodeSpec], report: Reporter, *, accept_new_host_keys: bool
) -> AsyncIterator[Begun[str, Node]]:
    """A connection to each node, while the context lasts; it does not wait for them."""
    specs = {each.name: each for each in chosen}
    jump_hosts, logins = node.JumpHosts(), node.login_slots(cluster.ssh)

    async def work(name: str) -> Node:
        report(NodeStarted(node=name, what="connect"))
        try:
            return await node.connect(
                specs[name],
                cluster.ssh,
                accept_new_host_keys=accept_new_host_keys,
                jump_hosts=jump_hosts,
                logins=logins,
            )
        except NodeUnreachable as error:
            report(NodeDone(node=name, status="unreachable", detail=error.message))
            raise

    # The logins themselves are held to `logins`; one that waits for its next try keeps nobody from theirs.
    begun = Begun(tuple(specs), work)
    try:
        yield begun
    finally:
        for connected in await begun.end():
            await connected.close()
        await jump_hosts.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Had:
    """What is there to work with, beside the nodes."""

    kube: Kube | ApiUnreachable
    blobs: Mapping[str, Blob]
    unpinned: tuple[Artifact, ...] = ()
    tools: Mapping[str, Path]


async def _had(
    request: Request,
    cluster: ClusterFile,
    registry: Registry,
    store: BlobStore,
    stack: AsyncExitStack,
    report: Reporter,
    *,
    read_only: bool,
) -> _Had:
    file = request.cluster_file
    if read_only:
        known, unpinned = _pinned(request, cluster, registry)
        at_hand = await charts.tools_at_hand(file, cluster, registry, store=store)
        return _Had(kube=await _connect_kube(cluster, stack), blobs=known, unpinned=unpinned, tools=at_hand)
    async with asyncio.TaskGroup() as group:
        api = group.create_task(_connect_kube(cluster, stack))
        wanted = desired.artifacts(cluster, registry)
        blobs = group.create_task(artifacts.locked(file, cluster, wanted, report=report, store=store))
        tools = group.create_task(charts.tools(file, cluster, registry, store=store, report=report))
    return _Had(kube=api.result(), blobs=blobs.result(), tools=tools.result())


def _pinned(request: Request, cluster: ClusterFile, registry: Registry) -> tuple[dict[str, Blob], tuple[Artifact, ...]]:
    """Every artifact's blob as the lock file has it, and those that it does not have, whose blob is UNKNOWN."""
    wanted = desired.artifacts(cluster, registry)
    pinned = artifacts.pinned(request.cluster_file, cluster, wanted)
    return {each.name: UNKNOWN for each in wanted} | pinned, tuple(each for each in wanted if each.name not in pinned)


async def _connect_kube(cluster: ClusterFile, stack: AsyncExitStack) -> Kube | ApiUnreachable:
    reached = await connect_kube(cluster)
    if isinstance(reached, Kube):
        stack.push_async_callback(reached.close)
    return reached


async def _connect_nodes(
    request: Request, cluster: ClusterFile, chosen: Sequence[NodeSpec], stack: AsyncExitStack, report: Reporter
) -> Begun[str, Node]:
    return await stack.enter_async_context(
        connect_nodes(cluster, chosen, report, accept_new_host_keys=request.accept_new_host_keys)
    )
