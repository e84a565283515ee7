"""Cilium: the pod network (and, where asked, Services) from its official Helm chart."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, ModuleFolder, Release, helm_ldflags
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.component import (
    Certificate,
    Chart,
    Component,
    ComponentConfig,
    Context,
    KeyPair,
    api_proxy_url,
    replaces_kube_proxy,
)
from kubeworker.core.merge import merge
from kubeworker.core.model import (
    AbsentUnit,
    AgentCommand,
    AgentKnowsPods,
    AgentReady,
    Check,
    ClusterCheck,
    Directory,
    Leftover,
    NodeToNode,
    PathMtu,
    RequireKernel,
    Requirement,
    RequirePort,
    SameSegment,
    Stage,
    Traffic,
    WarnOfTraces,
)
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import SpecError


class Config(ComponentConfig):
    """`components.cilium`, with `cni: cilium`. It holds for the whole cluster."""

    values: dict[str, Any] = Field(default_factory=dict)
    """Values of Cilium's Helm chart, merged last over the computed ones: maps key by key, anything else replaces, null
    removes. What a field below sets is set there, not here."""
    kube_proxy_replacement: bool = False
    """Services by Cilium's BPF programs: kube-proxy is not deployed, and an existing one is taken away from a node once
    Cilium's agent there has taken over."""
    ipam: Literal["kubernetes", "cluster-pool"] = "kubernetes"
    """Where pods' addresses come from. kubernetes: the podCIDR that kube-controller-manager gives each Node
    (--allocate-node-cidrs, --cluster-cidr); cluster-pool: Cilium's operator cuts cluster_cidr itself."""
    pool_mask: int = Field(default=0, ge=0, le=128)
    """With cluster-pool: prefix length of a node's block. 0: 24, or 120 with IPv6."""
    routing: Literal["vxlan", "native"] = "vxlan"
    """vxlan: a tunnel between nodes (UDP 8472), any network will do; native: the nodes route pods' addresses to each
    other, which needs them in one layer-2 segment, or `values: {autoDirectNodeRoutes: false}` and a network that
    knows the way."""
    mtu: int = Field(default=0, ge=0)
    """MTU of the nodes' network, of which Cilium derives that of pods; 0: as it finds it."""
    hubble: bool = True
    """Flow observation: the agents serve it on port 4244 with client certificates. Relay and UI come by `values`."""
    certificate_days: int = Field(default=1095, gt=30)
    """Lifetime of Hubble's certificates; apply renews them when 30 days are left."""
    adopt: bool = False
    """Take over a Cilium that something else has installed (helm, kubectl, cilium-cli): its objects become this tool's
    own. Without it such a cluster is refused."""


_NAMESPACE = "kube-system"
_AGENT = "cilium"
_CHART = "cilium-chart"
_HELM_KUBERNETES = 33
"""The minor version of helm's client-go; of no effect here, since charts are always rendered for a named version."""


def _tools(cluster: ClusterFile, _config: Config) -> tuple[Artifact, ...]:
    helm, cilium = cluster.versions.helm, cluster.versions.cilium
    url = f"https://get.helm.sh/helm-v{helm}-linux-{{arch}}.tar.gz"
    return (
        Artifact(
            name="helm",
            version=helm,
            releases=(Release(url=url, member="linux-{arch}/helm", checksum_url=f"{url}.sha256sum"),),
            build=GoBuild(
                module="helm",
                package="helm.sh/helm/v3/cmd/helm",
                ldflags=helm_ldflags(helm, kubernetes_minor=_HELM_KUBERNETES),
            ),
            # --short would add the commit to the version in the project's own builds.
            report=("version", "--template={{.Version}}"),
            field="versions.helm",
            control_host=True,
        ),
        Artifact(
            name=_CHART,
            version=cilium,
            releases=(Release(url=f"https://helm.cilium.io/cilium-{cilium}.tgz"),),
            build=ModuleFolder(module="cilium", package="github.com/cilium/cilium/install/kubernetes/cilium"),
            form="chart",
            field="versions.cilium",
            control_host=True,
        ),
    )


# ---------------------------------------------------------------------------------------------------------------
# Hubble's certificates, with the names that the chart's own ones have


_CLUSTER = "default"
"""The chart's `cluster.name`."""


def _certificates(_cluster: ClusterFile, config: Config) -> tuple[Certificate, ...]:
    if not config.hubble:
        return ()
    name = str((config.values.get("cluster") or {}).get("name") or _CLUSTER).replace(".", "-")
    return tuple(
        Certificate(name=each, common_name=host, dns_names=(host,))
        for each, host in (
            ("hubble-server", f"*.{name}.hubble-grpc.cilium.io"),
            ("hubble-relay", "*.hubble-relay.cilium.io"),
            ("hubble-ui", "*.hubble-ui.cilium.io"),
            ("hubble-metrics", f"{name}.hubble-metrics.cilium.io"),
        )
    )


def _hubble(pairs: Mapping[str, KeyPair]) -> dict[str, Any]:
    """The values that hand over the certificates. The authority's key stays on the control host."""

    def pair(name: str) -> dict[str, str]:
        return {"cert": _base64(pairs[name].cert), "key": _base64(pairs[name].key)}

    return {
        "hubble": {
            "enabled": True,
            "tls": {"auto": {"enabled": False}, "server": pair("hubble-server")},
            "relay": {"tls": {"client": pair("hubble-relay"), "server": pair("hubble-relay")}},
            "ui": {"tls": {"client": pair("hubble-ui")}},
            "metrics": {"tls": {"server": pair("hubble-metrics")}},
        },
        "tls": {"ca": {"cert": _base64(pairs["ca"].cert)}},
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


# ---------------------------------------------------------------------------------------------------------------
# Values


def values(cluster: ClusterFile, config: Config, pairs: Mapping[str, KeyPair]) -> dict[str, Any]:
    """The chart's values: computed of cluster.yaml, with the operator's own merged over them."""
    return merge(_computed(cluster, config) | (_hubble(pairs) if config.hubble else _NO_HUBBLE), config.values)


_NO_HUBBLE: dict[str, Any] = {"hubble": {"enabled": False}}


def _computed(cluster: ClusterFile, config: Config) -> dict[str, Any]:
    host, _, port = api_proxy_url(cluster).removeprefix("https://").rpartition(":")
    pods, ipv6 = cluster.cluster.cluster_cidr, _ipv6(cluster)
    family = "IPv6" if ipv6 else "IPv4"
    computed: dict[str, Any] = {
        # Agents run in the node's network, so they reach the API as kubelet does, before any Service works.
        "k8sServiceHost": host.strip("[]"),
        "k8sServicePort": int(port),
        "kubeProxyReplacement": str(config.kube_proxy_replacement).lower(),
        "ipv4": {"enabled": not ipv6},
        "ipv6": {"enabled": ipv6},
        "ipam": {"mode": config.ipam},
        "operator": {
            # Two of them can't run on one node (the chart's anti-affinity).
            "replicas": min(2, len(cluster.nodes)),
            "rollOutPods": True,
        },
        # Without it the agents go on with the old configuration when it changes.
        "rollOutCiliumPods": True,
        "cni": {"exclusive": True},
    }
    if config.ipam == "kubernetes":
        computed["k8s"] = {f"require{family}PodCIDR": True}
    else:
        pool = {f"clusterPool{family}PodCIDRList": [pods], f"clusterPool{family}MaskSize": _pool_mask(cluster, config)}
        computed["ipam"]["operator"] = pool
    if config.routing == "native":
        computed |= {"routingMode": "native", f"ipv{6 if ipv6 else 4}NativeRoutingCIDR": pods}
        computed["autoDirectNodeRoutes"] = True
    else:
        computed |= {"routingMode": "tunnel", "tunnelProtocol": "vxlan"}
    if config.mtu:
        computed["MTU"] = config.mtu
    return computed


def _ipv6(cluster: ClusterFile) -> bool:
    return ipaddress.ip_network(cluster.cluster.cluster_cidr).version == 6


def _pool_mask(cluster: ClusterFile, config: Config) -> int:
    return config.pool_mask or (120 if _ipv6(cluster) else 24)


def _chart(cluster: ClusterFile, config: Config, pairs: Mapping[str, KeyPair]) -> Chart:
    return Chart(
        component="cilium",
        release="cilium",
        namespace=_NAMESPACE,
        artifact=_CHART,
        values=values(cluster, config, pairs),
        agent=_AGENT,
        proxy_setting=("cilium-config", "kube-proxy-replacement", "true"),
        adopt=config.adopt,
    )


# ---------------------------------------------------------------------------------------------------------------
# What does not fit together


_OWN_FIELDS: Mapping[tuple[str, ...], str] = {
    ("kubeProxyReplacement",): "kube_proxy_replacement",
    ("ipam", "mode"): "ipam",
    ("ipam", "operator", "clusterPoolIPv4MaskSize"): "pool_mask",
    ("ipam", "operator", "clusterPoolIPv6MaskSize"): "pool_mask",
    ("routingMode",): "routing",
    ("tunnelProtocol",): "routing",
    ("MTU",): "mtu",
    ("hubble", "enabled"): "hubble",
}
"""Values that a field of this component sets, so that there is one place for each."""

_ISSUED = (("hubble", "tls", "auto"), ("hubble", "tls", "server"), ("tls", "ca"))
"""Values by which the chart would make certificates anew at each rendering, or by Jobs that only Helm's hooks run."""


def _validate(cluster: ClusterFile, config: Config) -> None:
    where = "components.cilium"
    for path, name in _OWN_FIELDS.items():
        if _given(config.values, path):
            text = f"{'.'.join(path)} is set by the field {name}"
            raise SpecError(text, subject=f"{where}.values", hint=f"set {where}.{name} and take it out of values")
    for path in _ISSUED if config.hubble else ():
        if _given(config.values, path):
            raise SpecError(
                f"{'.'.join(path)}: this tool issues Hubble's certificates itself",
                subject=f"{where}.values",
                hint="take it out; `hubble: false` turns Hubble off",
            )
    pods = ipaddress.ip_network(cluster.cluster.cluster_cidr)
    if config.ipam == "cluster-pool":
        mask = _pool_mask(cluster, config)
        if not pods.prefixlen <= mask < pods.max_prefixlen:
            text = f"blocks of /{mask} can't be cut of cluster_cidr {pods}"
            raise SpecError(text, subject=f"{where}.pool_mask", hint="give a larger cluster_cidr or a longer prefix")
        if 1 << (mask - pods.prefixlen) < len(cluster.nodes):
            text = f"cluster_cidr {pods} has {1 << (mask - pods.prefixlen)} blocks of /{mask}"
            hint = f"there are {len(cluster.nodes)} nodes: give a longer prefix"
            raise SpecError(text, subject=f"{where}.pool_mask", hint=hint)
    elif config.pool_mask:
        text = "has no meaning with ipam: kubernetes"
        hint = "kube-controller-manager's --node-cidr-mask-size sets it there"
        raise SpecError(text, subject=f"{where}.pool_mask", hint=hint)


def _given(settings: Mapping[str, Any], path: Sequence[str]) -> bool:
    at: Any = settings
    for part in path:
        if not isinstance(at, Mapping) or part not in at:
            return False
        at = at[part]
    return True


def _warnings(cluster: ClusterFile, config: Config) -> tuple[str, ...]:
    return tuple(_odd_values(cluster, config))


def _odd_values(cluster: ClusterFile, config: Config) -> Iterator[str]:
    computed = _computed(cluster, config)
    for key in ("k8sServiceHost", "k8sServicePort"):
        if key in config.values and config.values[key] != computed[key]:
            yield (
                f"components.cilium.values.{key} is {config.values[key]!r}: agents reach the API there and not through "
                f"each node's own proxy ({computed[key]}), which is up whichever kube-apiserver is down"
            )
    if not config.kube_proxy_replacement and not cluster.components.get("kube_proxy", {}).get("enabled", True):
        yield (
            "components.kube_proxy.enabled and components.cilium.kube_proxy_replacement are false: pods reach Services,"
            " nodes do not"
        )
    if config.values.get("cni", {}).get("exclusive") is False:
        yield (
            "components.cilium.values.cni.exclusive is false: other files in /etc/cni/net.d stay, and of all files "
            "there the runtime takes the first by name"
        )


def _node_warnings(cluster: ClusterFile, config: Config, nodes: Sequence[NodeStatus]) -> tuple[str, ...]:
    return tuple(_odd_nodes(cluster, config, nodes))


def _odd_nodes(cluster: ClusterFile, config: Config, nodes: Sequence[NodeStatus]) -> Iterator[str]:
    own = {node.name for node in cluster.nodes}
    host = _computed(cluster, config)["k8sServiceHost"]
    outside = sorted(node.name for node in nodes if node.name not in own)
    if outside and "k8sServiceHost" not in config.values and "nodeSelector" not in config.values:
        yield (
            f"{_listed(outside)}: in the cluster but not in cluster.yaml, so no API proxy of this tool runs there and "
            f"Cilium's agent, which asks {host}, can't reach the API. Add it to `nodes:`, or keep Cilium off it with "
            "components.cilium.values.nodeSelector"
        )
    lacking = sorted(node.name for node in nodes if node.name in own and not node.pod_cidr)
    if config.ipam == "kubernetes" and lacking:
        yield (
            f"{_listed(lacking)}: registered, but without a podCIDR, which `ipam: kubernetes` needs. Run "
            "kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set components.cilium.ipam: "
            "cluster-pool"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ---------------------------------------------------------------------------------------------------------------
# The node's part


def _stage(context: Context[Config]) -> Stage:
    return Stage(
        component="cilium",
        requirements=(*_traces(context.config), *_network(context.cluster, context.config)),
        # The chart mounts them; what is in them is the agent's.
        directories=(Directory(path="/opt/cni/bin"), Directory(path=_CONF_DIR)),
        absent_units=(_bridge(context.facts.network_ready),),
    )


_AGENT_PROCESS = "cilium-agent"
_VXLAN_PORT = 8472
"""The chart's default for vxlan (values.yaml, tunnelPort: 0)."""
_HEALTH_PORT = 4240
"""cluster-health-port's default (Cilium's pkg/defaults/defaults.go)."""
_GOPS_PORT = 9890
"""GopsPortAgent in Cilium's pkg/defaults/defaults.go; the chart has no value for it."""
_WIREGUARD_PORT = 51871
"""Cilium's pkg/wireguard/types/types.go."""


def _network(cluster: ClusterFile, config: Config) -> tuple[Requirement, ...]:
    """What must pass between nodes."""
    return (*_passing(cluster, config), *_own(config))


def _own(config: Config) -> Iterator[Requirement]:
    """The agent's ports (Cilium's "System Requirements", firewall rules) and its kernel.

    A vendor's kernel of an older number may have what it needs, so that is a warning.
    """
    why = "Cilium asks for it, or a distribution's kernel with the same features"
    yield RequireKernel(version="5.4", name="cilium", why=why, refuses=False)
    ports = [_HEALTH_PORT] if config.values.get("healthChecking", True) else []
    ports += [4244] if config.hubble else []
    ports.append(int(config.values.get("healthPort") or 9879))
    ports.append(_GOPS_PORT)
    if (metrics := config.values.get("prometheus") or {}).get("enabled"):
        ports.append(int(metrics.get("port") or 9962))
    for port in ports:
        yield RequirePort(port=port, unit="Cilium's agent", process=_AGENT_PROCESS)
    for port in _envoy_ports(config.values):
        yield RequirePort(port=port, unit="Cilium's Envoy", process="cilium-envoy")
    if config.routing == "vxlan":
        tunnel = int(config.values.get("tunnelPort") or _VXLAN_PORT)
        yield RequirePort(port=tunnel, unit="Cilium's vxlan", protocol="udp")


def _envoy_ports(given: Mapping[str, Any]) -> Iterator[int]:
    """Of the DaemonSet for layer 7 that the chart has by default (envoyDaemonSetEnabled in its _helpers.tpl)."""
    envoy = given.get("envoy") or {}
    if given.get("l7Proxy", True) is False:
        return
    if envoy.get("enabled") is not False:
        yield int(envoy.get("healthPort") or 9878)
    # The agent's own Envoy (envoy.enabled: false) has these too, once the first layer-7 policy makes it start.
    metrics = envoy.get("prometheus") or {}
    if metrics.get("enabled", True):
        yield int(metrics.get("port") or 9964)
    admin = (envoy.get("debug") or {}).get("admin") or {}
    if admin.get("enabled"):
        yield int(admin.get("port") or 9901)


def _passing(cluster: ClusterFile, config: Config) -> Iterator[Requirement]:
    given = config.values
    if given.get("healthChecking", True):
        health = int(given.get("clusterHealthPort") or _HEALTH_PORT)
        why = "Cilium's health checks between nodes"
        yield NodeToNode(protocol="tcp", port=health, why=why, process=_AGENT_PROCESS)
    if config.hubble:
        hubble = int(str((given.get("hubble") or {}).get("listenAddress") or ":4244").rpartition(":")[2])
        why = "Hubble relay asks each node's agent"
        yield NodeToNode(protocol="tcp", port=hubble, why=why, process=_AGENT_PROCESS)
    encryption = given.get("encryption") or {}
    if encryption.get("enabled") and encryption.get("type", "ipsec") == "wireguard":
        yield NodeToNode(protocol="udp", port=_WIREGUARD_PORT, why="pods' traffic, encrypted by WireGuard")
    setting = "components.cilium.mtu"
    if config.routing == "native":
        yield PathMtu(packet=config.mtu, why="pods' packets are routed as they are (routing: native)", setting=setting)
        if given.get("autoDirectNodeRoutes", True):
            yield SameSegment(why="each node is the next hop to its own pods' addresses (autoDirectNodeRoutes)")
        return
    tunnel = int(given.get("tunnelPort") or _VXLAN_PORT)
    yield NodeToNode(protocol="udp", port=tunnel, why="pods' traffic between nodes (vxlan)")
    overhead = 70 if _ipv6(cluster) else 50
    why = f"vxlan: pods' packets and {overhead} bytes of outer headers"
    yield PathMtu(packet=config.mtu, udp_port=tunnel, why=why, setting=setting)


_CONF_DIR = "/etc/cni/net.d"
_BRIDGE = "kw0"
_BRIDGE_CONF = "10-kubeworker.conflist"


def _bridge(ready: bool) -> AbsentUnit:  # noqa: FBT001 - a fact, named at the one call
    """What `cni: bridge` has on a node: it goes once Cilium's agent there is Ready, so that pods have one or the other.

    With cni.exclusive (the chart's default) the agent has renamed the configuration by then.
    """
    return AbsentUnit(
        name="kubeworker-routes.service",
        reason="cni: cilium takes the place of cni: bridge",
        paths=(
            f"{_CONF_DIR}/{_BRIDGE_CONF}",
            f"{_CONF_DIR}/{_BRIDGE_CONF}.cilium_bak",
            "/etc/kubeworker/routes",
            "/etc/kubeworker/masquerade.nft",
            "/etc/kubeworker/masquerade.iptables",
        ),
        directories=("/etc/kubeworker",),
        leftovers=(
            Leftover(
                name=f"the bridge {_BRIDGE}",
                present=f"[ -d /sys/class/net/{_BRIDGE} ]",
                remove=f"[ ! -d /sys/class/net/{_BRIDGE} ] || ip link delete {_BRIDGE}",
                reason="cni: cilium takes the place of cni: bridge",
            ),
        ),
        waits_for="" if ready else "Cilium's agent on the node is Ready",
    )


_LINKS = "flannel.1 flannel-v6.1 cni0 vxlan.calico cali* weave vethwe* antrea-gw0 ovn-k8s-mp0 kube-bridge"
"""Network interfaces of flannel, its bridge, Calico, Weave, Antrea, OVN-Kubernetes and kube-router."""


def _traces(config: Config) -> tuple[WarnOfTraces, ...]:
    exclusive = (config.values.get("cni") or {}).get("exclusive", True) is not False
    then = (
        "Cilium's agent renames them to *.cilium_bak"
        if exclusive
        else "with cni.exclusive: false they stay, and of all there the runtime takes the first by name"
    )
    return (
        WarnOfTraces(
            name="cni-config",
            look=f"cd {_CONF_DIR} && for file in *.conf *.conflist *.json; do\n"
            f"  case $file in '*.'*|05-cilium.conflist|{_BRIDGE_CONF}) ;; *) printf '%s ' \"$file\" ;; esac\n"
            "done",
            message=f"other network plugins' configuration in {_CONF_DIR}: {{found}}; {then}",
            fix=f"remove from {_CONF_DIR} what no longer serves",
        ),
        WarnOfTraces(
            name="cni-links",
            look=f'cd /sys/class/net && for link in {_LINKS}; do [ ! -e "$link" ] || printf \'%s \' "$link"; done',
            message="another network plugin's interfaces: {found}; its routes and rules may still catch pods' packets: "
            "take it out of the cluster, then reboot the node",
            fix="reboot the node once the other plugin is gone",
        ),
        WarnOfTraces(
            name="bridge-pods",
            look=f"for port in /sys/class/net/{_BRIDGE}/brif/*; do\n"
            '  [ ! -e "$port" ] || echo\n'
            'done | grep -c "" | grep -vx 0',
            message="{found} pods are on the bridge of cni: bridge: they lose their network when Cilium takes over, "
            "and have it again once they are made anew (kubectl delete pod, or drain the node before)",
            fix="kubectl drain the node before, or delete its pods afterwards",
        ),
    )


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    def agent(check_id: str, *command: str, contains: str) -> AgentCommand:
        return AgentCommand(
            id=check_id,
            namespace=_NAMESPACE,
            daemon_set=_AGENT,
            container="cilium-agent",
            command=command,
            contains=contains,
        )

    replaces = replaces_kube_proxy(context.cluster)
    mode = "True" if replaces else "False"
    return (
        AgentReady(id="cilium.agent", namespace=_NAMESPACE, daemon_set=_AGENT),
        agent("cilium.status", "cilium-dbg", "status", "--brief", "--timeout", "10s", contains="OK"),
        agent("cilium.proxy", "cilium-dbg", "status", "--timeout", "10s", "-o", _PROXY_MODE, contains=mode),
        AgentKnowsPods(
            id="cilium.pods",
            namespace=_NAMESPACE,
            daemon_set=_AGENT,
            container="cilium-agent",
            command=("cilium-dbg", "endpoint", "list", "-o", _ENDPOINTS),
        ),
        Traffic(id="cilium.pod_to_pod", route="pod-to-pod"),
        Traffic(id="cilium.pod_to_service", route="pod-to-service"),
        Traffic(id="cilium.node_to_service", route="node-to-service"),
        Traffic(id="cilium.policy", route="policy"),
        # Without kube-proxy it is Cilium that has to bring the node to a ClusterIP.
        *((ClusterCheck(id="service.kubernetes"),) if replaces else ()),
    )


_ENDPOINTS = (
    "jsonpath={range [*]}{.status.external-identifiers.k8s-namespace}/{.status.external-identifiers.k8s-pod-name}"
    '{"\\n"}{end}'
)

_PROXY_MODE = "jsonpath={.kube-proxy-replacement.mode}"
"""cilium-dbg's StatusResponse (api/v1/openapi.yaml): whether it does kube-proxy's work."""


COMPONENT = Component(
    name="cilium",
    config=Config,
    stage=_stage,
    checks=_checks,
    enabled=lambda cluster: cluster.cni == "cilium",
    validate=_validate,
    warnings=_warnings,
    node_warnings=_node_warnings,
    cluster_wide=tuple(Config.model_fields),
    tools=_tools,
    certificates=_certificates,
    chart=_chart,
    after=("host", "containerd", "kubelet"),
)
