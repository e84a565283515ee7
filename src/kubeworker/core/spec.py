"""cluster.yaml as typed values. The field docstrings are the reference documentation; defaults stand nowhere else.

`io/cluster_file.py` reads the file, finds line numbers and resolves paths; everything here is pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kubeworker.core.merge import stacked


class SpecModel(BaseModel):
    """Base: frozen, unknown fields refused. What is built of models waits until a document is read: start-up time."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def _endpoint(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise ValueError(f"{value!r} is not HOST:PORT")
    return value


def _cidr(value: str) -> str:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a CIDR block") from error
    if str(network.network_address) != str(ipaddress.ip_address(value.partition("/")[0])):
        raise ValueError(f"{value!r} has host bits set: the block is {network}")
    return value


def _address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not an IP address") from error
    return value


_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_TAINT = re.compile(r"[^=:\s]+(=[^=:\s]*)?:(NoSchedule|PreferNoSchedule|NoExecute)")


def _node_name(value: str) -> str:
    if len(value) > 253 or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a node name (lower-case RFC 1123 subdomain)")
    return value


def _taint(value: str) -> str:
    if not _TAINT.fullmatch(value):
        raise ValueError(f"{value!r} is not key=value:Effect with Effect NoSchedule, PreferNoSchedule or NoExecute")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return value.rstrip("/") or "/"


class ControlHostPath:
    """Marks a string as a path on the control host: `io/cluster_file.py` resolves it against the file's directory."""


LocalPath = Annotated[str, ControlHostPath()]
"""A path on the control host: relative to cluster.yaml, `~` allowed. Component configs use it too."""

Endpoint = Annotated[str, AfterValidator(_endpoint)]
Cidr = Annotated[str, AfterValidator(_cidr)]
Address = Annotated[str, AfterValidator(_address)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Version = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.-]+)?$")]


def _group() -> Any:
    """A group of fields that may be left out: each has its own default.

    An instance as the default would have pydantic build a validator for the group alone, at each start.
    """
    return Field(default={}, validate_default=True)


class CaFiles(SpecModel):
    """The cluster's certificate authority, on the control host."""

    cert: LocalPath = "ca.pem"
    """PEM certificate."""
    key: LocalPath = "ca-key.pem"
    """PEM private key. It never leaves the control host."""


class Cluster(SpecModel):
    """The control plane that nodes join, and the cluster's networks."""

    apiservers: Annotated[tuple[Endpoint, ...], Field(min_length=1)]
    """Every kube-apiserver as HOST:PORT; kube-nginx on each node balances over them."""
    cluster_cidr: Cidr
    """Pod network (the guide's CLUSTER_CIDR)."""
    service_cidr: Cidr
    """Service network (the guide's SERVICE_CIDR)."""
    dns_domain: str = "cluster.local"
    """Cluster DNS domain."""
    dns_service_ip: Address
    """ClusterIP of the cluster DNS Service, inside service_cidr."""
    ca: CaFiles = _group()
    kubeconfig: LocalPath = "~/.kube/config"
    """Admin kubeconfig, used by this tool only; it is not copied to nodes."""
    kubelet_client_user: str = "kubernetes-master"
    """The CN that kube-apiserver shows to kubelets (its --kubelet-client-certificate)."""


class Paths(SpecModel):
    """Where things lie on nodes."""

    bin_dir: AbsolutePath = "/opt/k8s/bin"
    """Binaries, and in `.store` below it the copies that they were made of."""
    k8s_dir: AbsolutePath = "/data/k8s/k8s"
    """The guide's K8S_DIR: working directories of kubelet and kube-proxy."""
    containerd_dir: AbsolutePath = "/data/k8s/containerd"
    """The guide's CONTAINERD_DIR: containerd's root."""


class NodeSsh(SpecModel):
    """How one node is reached, where it differs from `ssh:`."""

    host: str = ""
    """Name or address to connect to; default: the node's address."""
    port: int | None = Field(default=None, gt=0, lt=65536)
    """Default: as in `ssh:`."""
    user: str = ""
    """Default: as in `ssh:`."""
    identity: LocalPath = ""
    """Default: as in `ssh:`."""
    jump: str = ""
    """Default: as in `ssh:`."""


class Ssh(SpecModel):
    """How nodes are reached. ~/.ssh/config is honoured; what stands here overrides it."""

    user: str = ""
    """Default: ~/.ssh/config's User, else root. Another user than root needs passwordless sudo."""
    port: int | None = Field(default=None, gt=0, lt=65536)
    """Default: ~/.ssh/config's Port, else 22."""
    identity: LocalPath = ""
    """Private key file; default: the agent, then ~/.ssh/config's IdentityFile, then ssh's own default files."""
    jump: str = ""
    """[USER@]HOST[:PORT] of a jump host; default: ~/.ssh/config's ProxyJump."""
    config: LocalPath = "~/.ssh/config"
    """OpenSSH client configuration file; it need not exist."""
    known_hosts: LocalPath = "~/.ssh/known_hosts"
    """Host keys are checked against this file; --accept-new-host-keys adds to it."""
    connect_timeout: float = Field(default=10, gt=0)
    """Seconds until a node that does not answer counts as unreachable."""
    probe_timeout: float = Field(default=30, gt=0)
    """Seconds that looking at a node may take: one that hangs must not hold the plan back. Hashing binaries
    again gives it more."""
    keepalive: float = Field(default=15, gt=0)
    """Seconds between keepalives; three unanswered ones end the connection."""
    concurrency: int = Field(default=64, gt=0)
    """Nodes worked on at once."""
    uploads: int = Field(default=8, gt=0)
    """Nodes that artifacts are sent to at once."""


class Versions(SpecModel):
    """What runs on nodes. The defaults are the guide's."""

    kubernetes: Version = "1.33.3"
    """kubelet, kube-proxy; the API servers must not be older."""
    containerd: Version = "2.1.3"
    """containerd, its shim, ctr."""
    runc: Version = "1.3.0"
    nerdctl: Version = "2.1.3"
    crictl: Version = "1.33.0"
    nginx: Version = "1.29.0"
    cni_plugins: Version = "1.7.1"
    cilium: Version = "1.17.6"
    """With `cni: cilium`: Cilium's Helm chart, and by it the images."""
    helm: Version = "3.18.4"
    """Renders charts on the control host; it is not copied to nodes."""
    etcd: Version = "3.5.21"
    """Only the lab's control plane runs etcd."""


class Artifacts(SpecModel):
    """Where binaries come from."""

    sources: Annotated[tuple[Literal["cache", "download", "build", "local"], ...], Field(min_length=1)] = (
        "cache",
        "download",
        "build",
    )
    """Tried in this order for each artifact. Of nginx there is no binary to download: kube-nginx is built, as in the
    guide."""
    mirror: str | None = None
    """Base URL that holds the official files under their official paths: MIRROR/dl.k8s.io/release/...; with `delivery:
    pull` also what nodes fetch, below MIRROR/kubeworker/."""
    delivery: Literal["push", "pull"] = "push"
    """How binaries and image archives get to nodes. push: over SSH, from the control host. pull: each node fetches them
    from `mirror`, with curl or wget, and checks their hashes; what a node can't get there is sent over SSH. `kubeworker
    artifacts publish DIR` writes what the mirror must serve."""
    local: LocalPath = ""
    """Directory with finished binaries by artifact name (for the source `local`)."""
    nginx_source: Literal["official", "debian"] = "official"
    """Where a build of nginx takes its source tarball: the publisher, or Debian's source package."""


class NodeSpec(SpecModel):
    """One worker node."""

    name: Annotated[str, AfterValidator(_node_name)]
    """Node name in the cluster (kubelet --hostname-override)."""
    address: Address
    """Node IP: kubelet --node-ip, certificate SAN, kube-proxy's bind address."""
    labels: dict[str, str] = {}
    """Labels of the Node object: key: value."""
    taints: tuple[Annotated[str, AfterValidator(_taint)], ...] = ()
    """Taints of the Node object: key=value:Effect."""
    components: dict[str, dict[str, Any]] = {}
    """This node's own settings per component, merged over `components`: maps key by key, anything else replaces. A
    fleet of two kinds of machines, or one that changes node by node: {kube_proxy: {mode: nftables}}."""
    ssh: NodeSsh = _group()


class ClusterFile(SpecModel):
    """The whole of cluster.yaml."""

    cluster: Cluster
    paths: Paths = _group()
    ssh: Ssh = _group()
    versions: Versions = _group()
    artifacts: Artifacts = _group()
    components: dict[str, dict[str, Any]] = {}
    """Settings per component; each has its own fields."""
    cni: Literal["bridge", "cilium", "none"] = "none"
    """cilium: Cilium from its official Helm chart; bridge: routes between the nodes of one layer-2 segment; none: the
    operator installs a network plugin."""
    profile: Literal["default", "guide"] = "default"
    """guide: the guide's own values wherever they work."""
    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]
    """The worker nodes; names and addresses differ."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = (*self._network_problems(), *self._node_problems(), *self._delivery_problems())
        if problems:
            raise ValueError("\n".join(problems))  # one `field: message` a line
        return self

    def _network_problems(self) -> Iterator[str]:
        pods = ipaddress.ip_network(self.cluster.cluster_cidr)
        services = ipaddress.ip_network(self.cluster.service_cidr)
        if pods.version == services.version and pods.overlaps(services):
            yield f"cluster.service_cidr: {services} overlaps cluster.cluster_cidr {pods}"
        if ipaddress.ip_address(self.cluster.dns_service_ip) not in services:
            yield f"cluster.dns_service_ip: {self.cluster.dns_service_ip} is not inside cluster.service_cidr {services}"
        for index, node in enumerate(self.nodes):
            for what, network in (("cluster.cluster_cidr", pods), ("cluster.service_cidr", services)):
                if ipaddress.ip_address(node.address) in network:
                    yield f"nodes.{index}.address: {node.address} lies inside {what} {network}"

    def _node_problems(self) -> Iterator[str]:
        for what in ("name", "address"):
            seen: dict[str, int] = {}
            for index, node in enumerate(self.nodes):
                value = getattr(node, what)
                if value in seen:
                    yield f"nodes.{index}.{what}: {value} is also the {what} of nodes.{seen[value]}"
                seen[value] = index

    def _delivery_problems(self) -> Iterator[str]:
        if self.artifacts.delivery != "pull":
            return
        place = urlsplit(self.artifacts.mirror or "")
        if not place.netloc or place.scheme not in {"http", "https"}:
            yield "artifacts.mirror: with delivery: pull it must be the http:// or https:// URL that nodes fetch from"
        elif "@" in place.netloc:
            # Nodes' process lists would show it.
            yield "artifacts.mirror: a URL with a password can't be given to nodes (delivery: pull); serve it without"

    def node(self, name: str) -> NodeSpec:
        """The node of that name; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def as_seen_by(self, node: NodeSpec) -> ClusterFile:
        """The same file with `components` as they are for this node: its own settings merged over everybody's."""
        if not node.components:
            return self
        return self.model_copy(update={"components": stacked(self.components, node.components)})


API_PROXY = "127.0.0.1:8443"
"""Where kube-nginx listens by default, and so where kubelet and kube-proxy reach the API (guide: KUBE_APISERVER)."""
