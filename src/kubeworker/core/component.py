"""What a component is: five nouns, a name and an order (design, style rule 2).

A component module defines its pydantic `Config`, pure functions, and one value `COMPONENT = Component(...)`.
`kubeworker.components.discover()` finds it; one more component is one more file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.model import Binary, Blob, Check, Requirement, Stage
from kubeworker.core.spec import API_PROXY, ClusterFile, NodeSpec


class ComponentConfig(BaseModel):
    """Base of every component's config: unknown fields are refused, values are frozen; built where it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Keys and certificates that files on nodes are made of; all PEM. `repr` never shows them."""

    ca_cert: bytes = field(repr=False)
    kube_proxy_cert: bytes = field(default=b"", repr=False)
    kube_proxy_key: bytes = field(default=b"", repr=False)
    bootstrap_token: str = field(default="", repr=False)
    """This node's `<id>.<secret>`; used only while the node has not joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another node, as far as routes to its pods are concerned."""

    name: str
    address: str
    pod_cidr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the desired state needs to know of the live cluster; unknown facts have their empty value.

    A component must name the same set of paths whatever the facts are (as File, Absent or Deferred), since the
    probe is written before the facts are known.
    """

    joined: bool = False
    """The node has a client certificate that is valid now and was signed by the cluster's CA."""
    pod_cidr: str = ""
    peers: tuple[Peer, ...] = ()
    network_ready: bool = False
    """The network plugin's agent on this node is Ready: what another plugin left may go."""
    service_proxy_replaced: bool = False
    """Services work on this node without kube-proxy: the network plugin's agent here is Ready and says that it does
    kube-proxy's work. kube-proxy is taken away only then, where `replaces_kube_proxy` asks for it."""
    container: str = ""
    """The container manager (systemd-nspawn, lxc) where the node is a container: its kernel is another machine's."""
    masquerade: Literal["nft", "iptables"] = "nft"
    """The command that the node's kernel takes rules from which hide source addresses (`RequireMasquerade`)."""
    resolv_conf: str = "/etc/resolv.conf"
    """The resolv.conf that pods should use: systemd-resolved's stub would loop (127.0.0.53)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An OCI image archive on the control host, as its index describes it."""

    references: tuple[str, ...]
    """Full image names (io.containerd.image.name annotations): registry.k8s.io/pause:3.10"""
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(Generic[ConfigT]):
    """All that a component may look at to say what it wants on one node."""

    cluster: ClusterFile
    """Its `components` are as they are for this node (`ClusterFile.as_seen_by`)."""
    node: NodeSpec
    config: ConfigT
    blobs: Mapping[str, Blob]
    """By artifact name. For `render`, which needs no artifacts, a blob of size 0 stands in."""
    archives: Mapping[str, Archive]
    """By the path that the component's `archives` named."""
    local_files: Mapping[str, bytes] = field(repr=False)
    """By the path that the component's `local_files` named. Empty content, or none, where they are not read: whether a
    cluster file holds together, and what `verify` looks at, does not depend on them."""
    credentials: Credentials
    facts: Facts
    needs: tuple[Requirement, ...] = ()
    """What the node's other components require; only a component that `gathers` is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that a component needs in the cluster (not on nodes)."""

    name: str
    """How it is kept and handed over: hubble-server."""
    common_name: str
    dns_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate and its key, PEM."""

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A Helm chart with its values: rendered on the control host, applied by this tool."""

    component: str
    release: str
    """Helm's name for an installation; charts put it into names and labels."""
    namespace: str
    artifact: str
    """The name of the chart's artifact."""
    values: Mapping[str, Any] = field(repr=False)
    """They may hold keys."""
    agent: str
    """Name, in `namespace`, of the DaemonSet whose pod must be Ready before a node counts as healthy."""
    proxy_setting: tuple[str, str, str] | tuple[()] = ()
    """ConfigMap in `namespace`, key and value that say that the agents do kube-proxy's work."""
    adopt: bool = False
    """Objects that something else has made may be taken over."""

    @property
    def record(self) -> str:
        """The ConfigMap in kube-system that says which objects are this tool's to remove."""
        return f"kubeworker-{self.component}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Generic[ConfigT]):
    """A thing that runs on a worker node, as values and pure functions."""

    name: str
    """The key under `components:` in cluster.yaml."""
    config: type[ConfigT]
    stage: Callable[[Context[ConfigT]], Stage]
    artifacts: Callable[[ClusterFile, ConfigT], tuple[Artifact, ...]] = lambda _cluster, _config: ()
    archives: Callable[[ClusterFile, ConfigT], tuple[str, ...]] = lambda _cluster, _config: ()
    """Paths of OCI archives on the control host that nodes must have imported."""
    local_files: Callable[[ClusterFile, ConfigT], tuple[str, ...]] = lambda _cluster, _config: ()
    """Paths of small files on the control host whose content goes into files on nodes: CAs, keys."""
    checks: Callable[[Context[ConfigT]], tuple[Check, ...]] = lambda _context: ()
    enabled: Callable[[ClusterFile], bool] = lambda _cluster: True
    """Whether this cluster has the component at all (bridge_cni: only with `cni: bridge`)."""
    validate: Callable[[ClusterFile, ConfigT], None] = lambda _cluster, _config: None
    """Raises SpecError for what the models alone can't see (a version that the component can't be set up for)."""
    gathers: bool = False
    """The stage is computed last and told what the other components require (host: fixes where asked)."""
    cluster_wide: tuple[str, ...] = ()
    """Fields of the config that hold for the whole cluster: a node can't have its own."""
    after: tuple[str, ...] = ()
    """Components whose stage is carried out before this one's."""
    node_warnings: Callable[[ClusterFile, ConfigT, Sequence[NodeStatus]], tuple[str, ...]] = lambda *_: ()
    """What a plan should warn of, seeing the cluster's Nodes (a run for a few nodes sees those only)."""
    tools: Callable[[ClusterFile, ConfigT], tuple[Artifact, ...]] = lambda _cluster, _config: ()
    """Artifacts for the control host: what renders the chart, and the chart."""
    certificates: Callable[[ClusterFile, ConfigT], tuple[Certificate, ...]] = lambda _cluster, _config: ()
    """What the tool issues for the chart, from a certificate authority of the component's own."""
    chart: Callable[[ClusterFile, ConfigT, Mapping[str, KeyPair]], Chart] | None = None
    """The Helm chart that is installed in the cluster; the key pairs are the `certificates` by name, and `ca`."""
    warnings: Callable[[ClusterFile, ConfigT], tuple[str, ...]] = lambda _cluster, _config: ()
    """What a plan should warn of (a mode that a later version removes)."""


def binary(artifact: Artifact, directory: str, blobs: Mapping[str, Blob]) -> Binary:
    """The artifact, installed under its own name in `directory`."""
    return Binary(path=f"{directory}/{artifact.name}", blob=blobs[artifact.name], version=artifact.version)


HTTP2_PING = "HTTP2_READ_IDLE_TIMEOUT_SECONDS=10 HTTP2_PING_TIMEOUT_SECONDS=5"
"""Environment of a unit that talks to the API: client-go drops a connection to a vanished API server after 15 s instead
of 45 s (apimachinery, util/net/http.go), well before the node counts as lost (node-monitor-grace-period)."""


def url_host(address: str) -> str:
    """An IP address as URLs and HOST:PORT have it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def replaces_kube_proxy(cluster: ClusterFile) -> bool:
    """Whether the network plugin does kube-proxy's work: Cilium with `kube_proxy_replacement: true`.

    Read from the file and not from the component, since no component may know another.
    """
    settings = cluster.components.get("cilium", {})
    return str(cluster.cni) == "cilium" and bool(settings.get("kube_proxy_replacement", False))


def api_proxy_url(cluster: ClusterFile) -> str:
    """The API's URL as nodes reach it (the guide's KUBE_APISERVER): the local kube-nginx.

    Read from the file and not from the component, since no component may know another.
    """
    listen: str = cluster.components.get("kube_nginx", {}).get("listen", API_PROXY)
    return f"https://{listen}"
