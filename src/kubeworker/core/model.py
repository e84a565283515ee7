"""What a node is to look like, as values: the vocabulary that components speak and the engine compares.

Everything here is frozen and total: tuples, no None where an empty value says the same, no behaviour beyond
small derivations. A component returns one `Stage`; all stages of a node make its `NodeState`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """An artifact's bytes, known by hash: they lie in the control host's store and are sent only where missing."""

    sha256: str
    """Lower-case hex digest of the whole file."""
    size: int
    """Bytes."""


UNKNOWN = Blob(sha256="0" * 64, size=0)
"""Stands for an artifact of which this host knows no bytes; no file has this hash."""


# Of most files a fleet has one content, which is asked for its hash several times a node.
@functools.lru_cache(maxsize=8192)
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory that must exist with this mode and owner; what is in it is not looked at."""

    path: str
    mode: int = 0o755
    owner: str = "root:root"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A small text file: compared by hash, shown as a diff in the plan, replaced by atomic rename."""

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root:root"
    secret: bool = False
    """Never shown: the plan prints hashes only. Secret files have mode 0600."""

    @property
    def sha256(self) -> str:
        """Lower-case hex digest of the content."""
        return _sha256(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """An executable at its visible path: a copy (reflink where possible) or hard link of a store blob, no symlink."""

    path: str
    blob: Blob
    version: str
    """What the binary reports of itself; shown in plans."""
    mode: int = 0o755
    owner: str = "root:root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A file that must not exist, with the reason that the plan shows."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Files that the tool writes under names it can't know later: their first line tells that they are its own.

    One that no stage names any more is removed, and its folder where that is empty then.
    """

    pattern: str
    """Of their paths, as sh expands it: /etc/containerd/certs.d/*/*"""
    line: str
    """Their first line."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """Files that the component writes itself and that hold keys: root's alone, whoever has opened them to others."""

    pattern: str
    """Of their paths, as sh expands it: /etc/kubernetes/cert/kubelet-client-*.pem"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """A file that will be desired later, in this same run, once a fact is known (a node's podCIDR, say).

    The probe looks at its path already, so that the set of probed paths does not depend on facts.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A kernel module that must be loaded or built in; persisted in modules-load.d by the owning component's File."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A kernel setting's value, dotted name as in sysctl.d(5)."""

    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A container image that must be in containerd's `k8s.io` namespace, imported from an OCI archive."""

    reference: str
    """Full name as containerd lists it: registry.k8s.io/pause:3.10"""
    archive: Blob
    ctr: str
    """Path of `ctr` on the node."""
    root: str = ""
    """What containerd's root lies below, and where the image takes room when it is unpacked; one of RequireDisk's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A symbolic link (never used for binaries)."""

    path: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeconfigTarget:
    """A kubeconfig that the component itself writes when it joins (kubelet.kubeconfig). From then on it must exist with
    this server and CA; anything else in it is the component's own business.
    """

    path: str
    server: str
    ca: bytes
    """PEM of the cluster's CA."""
    content: bytes = field(default=b"", repr=False)
    """The whole file, to put where server or CA are not these; it names the credentials by path and holds none.
    Empty until the component has written it once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsEndpoint:
    """An address on the node that must show a certificate of the cluster's CA, valid for the address's own host.

    Checked from the control host through the node's SSH connection once the stage's units are up, before any later
    stage writes a kubeconfig that names the address.
    """

    address: str
    """HOST:PORT as the node sees it."""
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigCheck:
    """The component's own checker, run on the node over candidate files before any of them goes live.

    In `command`, `{/some/path}` stands for a managed path: the candidate where that file is about to change, the
    live file elsewhere. `{tmp}` is a fresh directory, removed afterwards.
    """

    name: str
    command: tuple[str, ...]
    expect: str = ""
    """Text that the output must hold; where set, the exit status is not looked at."""
    reject: tuple[str, ...] = ()
    """Texts that make the check fail even at exit status 0: "lenient decoding" hides a typo."""
    inputs: tuple[str, ...] = ()
    """The check runs when one of these managed paths changes."""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What must hold after a (re)start or reload before a unit counts as healthy; polled until `timeout`."""

    http: tuple[str, ...] = ()
    """Plain-http URLs on the node that must answer 200."""
    listen: tuple[str, ...] = ()
    """`address:port` that must be listening."""
    command: tuple[str, ...] = ()
    """A command that must exit 0."""
    otherwise: str = ""
    """What is wrong where the command does not, for the error; empty: the command and its output."""
    timeout: int = 60
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A systemd unit that the tool owns, enabled and active; its file is /etc/systemd/system/<name>."""

    name: str
    content: str
    restart_on: tuple[str, ...] = ()
    """Managed paths whose change needs a restart (the unit file itself and its drop-ins always do)."""
    reload_on: tuple[str, ...] = ()
    """Managed paths whose change needs `systemctl reload` only."""
    read_at_start: tuple[str, ...] = ()
    """Managed paths that matter at the start only and then go or change by themselves: writing one needs a restart,
    removing it none, and they leave no trace in the start record."""
    requires: tuple[str, ...] = ()
    """Units named in Requires=: systemd restarts this one with them, and the plan says so."""
    forks_workers: bool = False
    """nginx: a reload is over when the former worker processes take no more connections, which they show by the words
    "is shutting down" in their title."""
    oneshot: bool = False
    """Type=oneshot with RemainAfterExit=yes."""
    gate: Gate = Gate()

    @property
    def path(self) -> str:
        """Where the unit file lies (systemd.unit(5))."""
        return f"/etc/systemd/system/{self.name}"

    @property
    def file(self) -> File:
        """The unit file as a managed file."""
        return File(path=self.path, content=self.content.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Traces that something left in the node's kernel and that nobody takes away (kube-proxy's rules of another mode).

    Removed when no unit makes them any more: once the stage's units are healthy, or its absent unit has stopped.
    """

    name: str
    """What a plan calls it: `kube-proxy's ipvs rules`."""
    present: str
    """POSIX sh that looks only: exit status 0 where there is something to remove. It may use the words of
    core/node/chain_look.py, and does not leave the shell that runs it (the probe's) or change its folder."""
    remove: str
    """POSIX sh that removes it, or what is left of it; another exit status than 0 fails the stage with its output."""
    reason: str
    keep: str = ""
    """POSIX sh that lets it do its work until `remove` (which undoes this too), for a unit that takes it away when it
    starts and does the same work only later. Run before the stage's units; nothing depends on its success."""
    unkeep: str = ""
    """POSIX sh that undoes `keep`, for when the stage fails and the former unit is back."""
    seconds: int = 60
    """How long each of them may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentUnit:
    """A systemd unit that must not be there, nor what only it needs: stopped and disabled, leftovers and files removed.

    In this order, so that a run that dies half-way is finished by the next: the files that name it go last. Where
    something fails before that, the unit runs again.
    """

    name: str
    reason: str
    paths: tuple[str, ...] = ()
    """Binaries and files that go with it; the unit file and its drop-ins below /etc and /run do so without a word."""
    directories: tuple[str, ...] = ()
    """Removed with the files where empty by then."""
    leftovers: tuple[Leftover, ...] = ()
    waits_for: str = ""
    """What must come true before it may go, where that is still open: nothing is done yet, and the plan says so of a
    unit that is there."""

    @property
    def path(self) -> str:
        """Where the unit file lies (systemd.unit(5))."""
        return f"/etc/systemd/system/{self.name}"


# ---------------------------------------------------------------------------------------------------------------
# Requirements: what preflight asks of a node before anything is changed. A broken one names a fix.


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireCommand:
    """A command that must be on the node's PATH (sbin included)."""

    name: str
    package: str
    """Debian package that has it, for the fix line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequirePort:
    """A port that must be free, or held by the unit that is to hold it."""

    port: int
    unit: str
    """Who needs it; of what runs in a pod, in words."""
    protocol: Literal["tcp", "udp"] = "tcp"
    process: str = ""
    """What holds it where that is no unit but a pod's process, as ss(8) names it. A UDP port may be the kernel's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireDisk:
    """Free space below a path, in bytes, beyond what is already installed."""

    path: str
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireModule:
    """A kernel feature: loaded, built in, or loadable."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireSysctl:
    """A kernel setting that must have this value (the component does not set it)."""

    key: str
    value: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireSwapOff:
    """No active swap (kubelet's failSwapOn)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireProxyMode:
    """The kernel can do this kube-proxy mode (ipvs, nftables, iptables)."""

    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireMasquerade:
    """The kernel can hide source addresses behind the node's, with nf_tables or else with iptables."""

    family: Literal["ip", "ip6"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireClock:
    """The node's clock is within this many seconds of the control host's."""

    skew: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireCgroup:
    """The node's cgroup version is one that the Kubernetes version accepts (KEP-5573: v1 refused from 1.35)."""

    versions: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireKernel:
    """The kernel is of this version or later."""

    version: str
    """Two numbers: 5.13."""
    name: str
    """Of what needs it, for the check's id."""
    why: str
    refuses: bool = True
    """What needs it does not start without; else that is a warning: distributions bring features to older kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireMachine:
    """Memory and processors, of the machine. Too few are warned of: kubelet starts all the same."""

    memory: int
    """Bytes."""
    cpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireReserved:
    """The machine has what is kept from pods: kubelet does not start where that is more than there is."""

    memory: Fraction
    """Bytes."""
    memory_share: Fraction
    """Of the machine's memory, beside that (evictionHard in per cent)."""
    cpus: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireCgroupDriver:
    """Who makes cgroups does so with this driver: all on a node must agree, or pods are killed at random."""

    of: str
    """kubelet, containerd."""
    driver: str
    """systemd or cgroupfs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireResolvConf:
    """No name server in the file that pods' resolv.conf is made of is on loopback: in a pod that is the pod itself."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequirePodAddresses:
    """The node's pod network has an address for as many pods as it takes."""

    pods: int
    cidr: str
    """Empty: not known before it has joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarnOfTraces:
    """Something that is looked for on the node and named in the plan, no more: what another network plugin left."""

    name: str
    look: str
    """POSIX sh that looks only and prints what it found, in one line; nothing where there is nothing. Part of the
    probe."""
    message: str
    """Where it holds `{found}`, what was found stands there."""
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeToNode:
    """A port of the node that the other nodes must reach, from wherever in the cluster its callers run."""

    protocol: Literal["tcp", "udp"]
    port: int
    why: str
    """Who calls, and what for."""
    process: str = ""
    """What holds the port once the component runs, as ss(8) names it; empty: the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMtu:
    """IP packets that the node sends to the others arrive in one piece up to this size."""

    packet: int
    """Bytes, IP header included; 0: the MTU of the interface that has the node's address."""
    udp_port: int = 0
    """Where such packets go to: no other port may be open between the nodes. 0: anything else (ICMP echo is tried)."""
    why: str
    setting: str
    """The field of cluster.yaml that says how large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SameSegment:
    """No router stands between the nodes: each is the next hop to its own pods."""

    why: str


Requirement: TypeAlias = (
    RequireCommand
    | RequirePort
    | RequireDisk
    | RequireModule
    | RequireSysctl
    | RequireSwapOff
    | RequireProxyMode
    | RequireMasquerade
    | RequireClock
    | RequireCgroup
    | RequireKernel
    | RequireMachine
    | RequireReserved
    | RequireCgroupDriver
    | RequireResolvConf
    | RequirePodAddresses
    | WarnOfTraces
    | NodeToNode
    | PathMtu
    | SameSegment
)


# ---------------------------------------------------------------------------------------------------------------
# Checks: what `verify` proves on the live node. The id is stable; scripts and dashboards name it.


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitActive:
    """The unit is active, enabled, and runs the inputs that the tool last started it with."""

    id: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """The port listens on exactly these addresses ("*" for the wildcard) and on no other."""

    id: str
    port: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortClosed:
    """Nothing listens on the port on any address."""

    id: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMode:
    """The file exists, with this owner and exactly this mode."""

    id: str
    path: str
    mode: int
    owner: str = "root:root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A client certificate on the node: signed by the cluster's CA, this user's, and good for `days` more days."""

    id: str
    path: str
    """A PEM file (a key in it is not read), or a kubeconfig with `client-certificate-data`."""
    common_name: str
    """The Kubernetes user: system:node:<name>, system:kube-proxy."""
    days: int = 0
    rotates: bool = False
    """kubelet renews it by itself (core/certificates/expiry.py): it must not be late with that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCommand:
    """A command on the node exits 0 and its output holds `contains`."""

    id: str
    command: tuple[str, ...]
    contains: str = ""


Caller: TypeAlias = Literal["anonymous", "admin", "token", "token-without-rights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """An HTTP(S) request to an address of the node, made through the node's SSH connection."""

    id: str
    url: str
    """https is verified against the cluster's CA and the URL's host."""
    caller: Caller = "anonymous"
    """admin: the kubeconfig's client certificate; token: a TokenRequest token, with or without kubelet rights."""
    status: int = 200
    contains: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyReaches:
    """Through the node, this apiserver answers /readyz (401 and 403 count as alive)."""

    id: str
    apiserver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCertificate:
    """What this port of the node shows over TLS is the certificate that the cluster issued for it last."""

    id: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServers:
    """kube-proxy's virtual servers (mode ipvs) are those that the API's Services and EndpointSlices ask for here."""

    id: str
    scheduler: str = "rr"
    node_port_addresses: tuple[str, ...] = ()
    """CIDR blocks of the node's addresses that have NodePorts; () for all of them."""
    exclude: tuple[str, ...] = ()
    """CIDR blocks of virtual servers that are somebody else's (ipvs.excludeCIDRs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPull:
    """The node can download an image from the hosts that are meant to serve it. Made by `verify --deep` only."""

    id: str
    image: str
    """Full name: docker.io/library/busybox:latest. Empty: none is known, and the check fails for that."""
    ctr: str
    """Path of `ctr` on the node."""
    folder: str
    """The registry's folder in the hosts directory."""
    mirror: str = ""
    """URL of the one mirror that is asked, and nothing else; empty: the node's own hosts.toml, fallback included."""
    served_by: tuple[str, ...]
    """HOST[:PORT] of those that are meant to serve it."""
    resolves: bool = True
    """The mirror finds the digest of a tag; else it is asked by a digest that the others give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReady:
    """The network plugin's agent on the node: its DaemonSet's pod is there, Ready, and of the present configuration."""

    id: str
    namespace: str
    daemon_set: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCommand:
    """A command in the agent's pod on the node exits 0 and its output holds `contains`."""

    id: str
    namespace: str
    daemon_set: str
    container: str
    command: tuple[str, ...]
    contains: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentKnowsPods:
    """Every running pod of the node that has a network of its own is one that the agent made it for."""

    id: str
    namespace: str
    daemon_set: str
    container: str
    command: tuple[str, ...]
    """Prints NAMESPACE/NAME of each pod that the agent knows, a line each."""


Route: TypeAlias = Literal["pod-to-pod", "pod-to-service", "node-to-service", "policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Real packets between pods that verify makes for it: from this node to a pod on another, to a Service, and through
    a policy that lets one pod in and another not.
    """

    id: str
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCheck:
    """A check that the Kubernetes API takes part in; `flow/verify` has one function for each id."""

    id: str


Check: TypeAlias = (
    UnitActive
    | Listening
    | PortClosed
    | FileMode
    | Certificate
    | NodeCommand
    | Http
    | ProxyReaches
    | ServingCertificate
    | VirtualServers
    | MirrorPull
    | AgentReady
    | AgentCommand
    | AgentKnowsPods
    | Traffic
    | ClusterCheck
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """All that one component wants on one node, in the order in which a stage is carried out.

    requirements -> modules, sysctls -> directories -> blobs sent -> config checks -> binaries, files, links, absent
    -> units (daemon-reload, enable, restart or reload, gate) -> leftovers -> images. Absent units stop, and their
    leftovers go, before the first file changes.
    """

    component: str
    requirements: tuple[Requirement, ...] = ()
    modules: tuple[Module, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    swap_off: bool = False
    """Turn swap off and keep it off (host: {disable_swap: true})."""
    packages: tuple[str, ...] = ()
    """Debian packages to install where their command is missing (host: {packages: true})."""
    directories: tuple[Directory, ...] = ()
    binaries: tuple[Binary, ...] = ()
    files: tuple[File, ...] = ()
    links: tuple[Link, ...] = ()
    absent: tuple[Absent, ...] = ()
    marked: tuple[Marked, ...] = ()
    deferred: tuple[Deferred, ...] = ()
    config_checks: tuple[ConfigCheck, ...] = ()
    units: tuple[Unit, ...] = ()
    absent_units: tuple[AbsentUnit, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    images: tuple[Image, ...] = ()
    kubeconfigs: tuple[KubeconfigTarget, ...] = ()
    private: tuple[Private, ...] = ()
    tls_endpoints: tuple[TlsEndpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a desired state was computed from, to tell later what has changed."""

    tool: str = ""
    """The tool's version."""
    inputs: str = ""
    """Digest of what cluster.yaml says that concerns the node (`applied.inputs_digest`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The desired state of one node: its stages in the order in which they are carried out."""

    node: str
    bin_dir: str
    """The content-addressed store lies in `<bin_dir>/.store`."""
    stages: tuple[Stage, ...]
    origin: Origin = Origin()
