"""kube-proxy: Services' addresses on the node."""

from __future__ import annotations

import re
import shlex
from typing import Any, cast, get_args

from pydantic import Field

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, Release, kubernetes_ldflags
from kubeworker.core.certificates import kubeconfig
from kubeworker.core.component import (
    HTTP2_PING,
    Component,
    ComponentConfig,
    Context,
    api_proxy_url,
    binary,
    replaces_kube_proxy,
    url_host,
)
from kubeworker.core.formats import unit, yaml
from kubeworker.core.horizon import IPVS, at_least, warning
from kubeworker.core.merge import merge
from kubeworker.core.model import (
    AbsentUnit,
    Certificate,
    Check,
    ClusterCheck,
    ConfigCheck,
    Directory,
    File,
    FileMode,
    Gate,
    Http,
    Leftover,
    Listening,
    NodeCommand,
    RequireCommand,
    RequireKernel,
    Requirement,
    RequireModule,
    RequirePort,
    RequireProxyMode,
    Stage,
    Unit,
    UnitActive,
    VirtualServers,
)
from kubeworker.core.node import chain_look, proxy_rules
from kubeworker.core.node.proxy_rules import Mode
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.errors import SpecError


class Config(ComponentConfig):
    """`components.kube_proxy`: Services on the node."""

    enabled: bool = True
    """false: no kube-proxy, and one that is there is taken away with its rules: something else must do its work. With
    Cilium's `kube_proxy_replacement: true` it is not deployed either, and taken away from a node once Cilium's agent
    there is Ready."""
    mode: Mode = "ipvs"
    """ipvs is the guide's, deprecated from Kubernetes 1.35 on; nftables is its successor (GA since 1.33). Another
    mode restarts kube-proxy, and the former mode's rules go when the new ones are there."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Merged over the rendered KubeProxyConfiguration: maps key by key, anything else replaces, null removes.
    `{ipvs: {strictARP: true}}` sets arp_ignore and arp_announce, as load balancers need that answer ARP for a Service's
    address (MetalLB); `{ipvs: {scheduler: wrr}}` needs the kernel's module ip_vs_wrr."""
    certificate_days: int = Field(default=3650, gt=30)
    """Lifetime of the client certificate, which never outlives the CA; apply renews it when 30 days are left. The
    default is ten years since only apply renews it: a site that runs apply often can do with less."""


_CONFIG = "/etc/kubernetes/kube-proxy-config.yaml"
_KUBECONFIG = "/etc/kubernetes/kube-proxy.kubeconfig"
_UNIT = "kube-proxy.service"


def deployed(cluster: ClusterFile, config: Config) -> bool:
    """Whether nodes have a kube-proxy at all."""
    return config.enabled and not replaces_kube_proxy(cluster)


def deployed_on(node: NodeSpec, cluster: ClusterFile) -> bool:
    """Whether this node has a kube-proxy: it may have settings of its own."""
    seen = cluster.as_seen_by(node)
    return deployed(seen, Config.model_validate(seen.components.get("kube_proxy", {})))


def _artifacts(cluster: ClusterFile, config: Config) -> tuple[Artifact, ...]:
    if not deployed(cluster, config):
        return ()
    version = cluster.versions.kubernetes
    url = f"https://dl.k8s.io/release/v{version}/bin/linux/{{arch}}/kube-proxy"
    return (
        Artifact(
            name="kube-proxy",
            version=version,
            releases=(Release(url=url, checksum_url=f"{url}.sha256"),),
            build=GoBuild(
                module="k8s", package="k8s.io/kubernetes/cmd/kube-proxy", ldflags=kubernetes_ldflags(version)
            ),
            field="versions.kubernetes",
        ),
    )


def _stage(context: Context[Config]) -> Stage:
    cluster, paths = context.cluster, context.cluster.paths
    if not deployed(cluster, context.config):
        return Stage(component="kube_proxy", absent_units=(_absent(context),))
    (artifact,) = _artifacts(cluster, context.config)
    program = binary(artifact, paths.bin_dir, context.blobs)
    document = _config_file(context)
    return Stage(
        component="kube_proxy",
        requirements=_requirements(document),
        directories=(
            Directory(path=paths.bin_dir),
            Directory(path="/etc/kubernetes"),
            Directory(path=f"{paths.k8s_dir}/kube-proxy"),
        ),
        binaries=(program,),
        files=(
            File(path=_KUBECONFIG, content=_kubeconfig(context), mode=0o600, secret=True),
            File(path=_CONFIG, content=yaml.dump(document).encode()),
        ),
        config_checks=(
            ConfigCheck(
                name="kube-proxy --write-config-to",
                command=(
                    f"{{{program.path}}}",
                    "--config",
                    f"{{{_CONFIG}}}",
                    "--write-config-to",
                    "{tmp}/kube-proxy-config.yaml",
                ),
                # kube-proxy says so of an unknown field, drops it and goes on: a typo would go unseen.
                reject=("lenient decoding",),
                inputs=(program.path, _CONFIG),
                hint="components.kube_proxy.config is merged over this file",
            ),
        ),
        units=(
            Unit(
                name=_UNIT,
                content=_unit_file(context),
                restart_on=(program.path, _CONFIG, _KUBECONFIG),
                gate=Gate(http=(f"http://{_reachable(_healthz(document))}/healthz",), timeout=60),
            ),
        ),
        leftovers=_leftovers(context),
    )


def _absent(context: Context[Config]) -> AbsentUnit:
    """kube-proxy taken away: what it did, something else has to do by then.

    Where that is Cilium, the unit waits until Cilium's agent on the node does it: before, Services would have no
    addresses there. Cilium itself comes up without Services: it reaches the API through kube-nginx.
    """
    config, paths = context.config, context.cluster.paths
    program = f"{paths.bin_dir}/kube-proxy"
    reason = "components.kube_proxy.enabled is false" if not config.enabled else "Cilium does kube-proxy's work"
    waits = config.enabled and not context.facts.service_proxy_replaced
    return AbsentUnit(
        name=_UNIT,
        reason=reason,
        paths=(program, _CONFIG, _KUBECONFIG),
        directories=(f"{paths.k8s_dir}/kube-proxy",),
        leftovers=_leftovers(context),
        waits_for="Cilium's agent on the node is Ready and does its work" if waits else "",
    )


def _leftovers(context: Context[Config]) -> tuple[Leftover, ...]:
    """The rules of modes that kube-proxy does not run in here (any more)."""
    here = deployed(context.cluster, context.config)
    mode = _mode(_config_file(context)) if here else None
    return proxy_rules.leftovers(
        mode,
        kube_proxy=f"{context.cluster.paths.bin_dir}/kube-proxy",
        service_cidr=context.cluster.cluster.service_cidr,
        reason=f"kube-proxy's mode is {mode}" if mode else "there is no kube-proxy",
    )


def _kubeconfig(context: Context[Config]) -> bytes:
    credentials = context.credentials
    return kubeconfig.with_certificate(
        server=api_proxy_url(context.cluster),
        ca=credentials.ca_cert,
        user="kube-proxy",
        cert=credentials.kube_proxy_cert,
        key=credentials.kube_proxy_key,
    )


def _config_file(context: Context[Config]) -> dict[str, Any]:
    address = url_host(context.node.address)
    guide = context.cluster.profile == "guide"
    document = {
        "kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "bindAddress": context.node.address,
        "clientConnection": {"burst": 200, "kubeconfig": _KUBECONFIG, "qps": 100},
        "clusterCIDR": context.cluster.cluster.cluster_cidr,
        # Load balancers outside the cluster ask 10256, so it stays on the node's address; metrics need no caller
        # without credentials from elsewhere.
        "healthzBindAddress": f"{address}:10256",
        "hostnameOverride": context.node.name,
        "metricsBindAddress": f"{address}:10249" if guide else "127.0.0.1:10249",
        "mode": context.config.mode,
    }
    return merge(document, context.config.config)


# `config` may have removed a key; these are kube-proxy's own defaults then.


def _healthz(document: dict[str, Any]) -> str:
    return str(document.get("healthzBindAddress") or "0.0.0.0:10256")


def _metrics(document: dict[str, Any]) -> str:
    return str(document.get("metricsBindAddress") or "127.0.0.1:10249")


def _mode(document: dict[str, Any]) -> Mode:
    return cast("Mode", document.get("mode") or "iptables")


def _scheduler(document: dict[str, Any]) -> str:
    return str((document.get("ipvs") or {}).get("scheduler") or "rr")


def _reachable(bind: str) -> str:
    """An address to ask what listens on `bind`."""
    host, _, port = bind.rpartition(":")
    return f"127.0.0.1:{port}" if host in {"0.0.0.0", "[::]"} else bind  # noqa: S104


# What each mode's proxier runs (pkg/proxy of 1.33.3). conntrack is no longer among them: netlink since 1.32.
_IPTABLES = RequireCommand(name="iptables", package="iptables")


def _needs(document: dict[str, Any]) -> tuple[Requirement, ...]:
    match _mode(document):
        case "iptables":
            return (_IPTABLES,)
        case "nftables":
            # kube-proxy ends on an older one (pkg/proxy/nftables, supported.go).
            kernel = RequireKernel(version="5.13", name="nftables", why="kube-proxy mode nftables refuses it")
            return (RequireCommand(name="nft", package="nftables"), kernel)
        case "ipvs":
            scheduler = _scheduler(document)
            modules = {
                "ip_vs": "kube-proxy mode ipvs",
                f"ip_vs_{scheduler}": f"kube-proxy mode ipvs: its scheduler {scheduler}",
                "nf_conntrack": "kube-proxy mode ipvs",
                "dummy": "kube-proxy mode ipvs: the device kube-ipvs0",
            }
            return (
                _IPTABLES,
                RequireCommand(name="ipset", package="ipset"),
                *(RequireModule(name=name, why=why) for name, why in modules.items()),
            )


def _requirements(document: dict[str, Any]) -> tuple[Requirement, ...]:
    ports = {int(bind.rpartition(":")[2]) for bind in (_healthz(document), _metrics(document))}
    return (
        RequireProxyMode(mode=_mode(document)),
        *_needs(document),
        *(RequirePort(port=port, unit=_UNIT) for port in sorted(ports)),
    )


def _unit_file(context: Context[Config]) -> str:
    paths, guide = context.cluster.paths, context.cluster.profile == "guide"
    environment = {} if guide else {"Environment": HTTP2_PING}
    documentation = (
        "https://github.com/GoogleCloudPlatform/kubernetes"
        if guide
        else "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/"
    )
    return unit.dump(
        {
            "Unit": {
                "Description": "Kubernetes Kube-Proxy Server",
                "Documentation": documentation,
                "After": "network.target" if guide else "network.target kube-nginx.service",
            },
            "Service": {
                "WorkingDirectory": f"{paths.k8s_dir}/kube-proxy",
                **environment,
                "ExecStart": unit.Command(arguments=(f"{paths.bin_dir}/kube-proxy", f"--config={_CONFIG}", "--v=2")),
                "Restart": "on-failure" if guide else "always",
                "RestartSec": "5",
                "LimitNOFILE": "65536",
            },
            "Install": {"WantedBy": "multi-user.target"},
        }
    )


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    rules = NodeCommand(id="kube_proxy.rules", command=("sh", "-c", _no_leftovers(context)), contains="no rules")
    if not deployed(context.cluster, context.config):
        gone = f'[ "$(systemctl is-active {_UNIT})" = inactive ] || {{ echo "{_UNIT} runs"; exit 1; }}; echo none runs'
        return (NodeCommand(id="kube_proxy.absent", command=("sh", "-c", gone), contains="none runs"), rules)
    document = _config_file(context)
    healthz, metrics = _healthz(document), _metrics(document)
    return (
        UnitActive(id="kube_proxy.unit", unit=_UNIT),
        _listening("kube_proxy.healthz_listen", healthz),
        _listening("kube_proxy.metrics_listen", metrics),
        Http(id="kube_proxy.healthz", url=f"http://{_reachable(healthz)}/healthz"),
        Http(id="kube_proxy.metrics", url=f"http://{_reachable(metrics)}/metrics", contains="kubeproxy_"),
        Http(id="kube_proxy.mode", url=f"http://{_reachable(metrics)}/proxyMode", contains=_mode(document)),
        FileMode(id="kube_proxy.kubeconfig_mode", path=_KUBECONFIG, mode=0o600),
        # apply renews it when 30 days are left; a week before its end somebody has to be told.
        Certificate(id="kube_proxy.client_cert", path=_KUBECONFIG, common_name="system:kube-proxy", days=7),
        rules,
        *((_virtual_servers(context, document),) if _mode(document) == "ipvs" else ()),
        ClusterCheck(id="service.kubernetes"),
    )


def _no_leftovers(context: Context[Config]) -> str:
    """POSIX sh that fails where there are rules of a mode that is not this one's, and names the mode."""
    tests = (
        f"! (\n{each.present}\n) > /dev/null 2>&1 || {{ echo there are {shlex.quote(each.name)}; found=yes; }}"
        for each in _leftovers(context)
    )
    return "\n".join(
        (chain_look.ALONE, "found=''", *tests, '[ -z "$found" ] || exit 1', "echo no rules of another mode")
    )


def _virtual_servers(context: Context[Config], document: dict[str, Any]) -> VirtualServers:
    blocks = tuple(document.get("nodePortAddresses") or ())
    if blocks == ("primary",):
        # The node's own address, as kube-proxy reads the word (cmd/kube-proxy/app/server.go).
        address = context.node.address
        blocks = (f"{address}/{128 if ':' in address else 32}",)
    return VirtualServers(
        id="kube_proxy.ipvs",
        scheduler=_scheduler(document),
        node_port_addresses=blocks,
        exclude=tuple((document.get("ipvs") or {}).get("excludeCIDRs") or ()),
    )


def _listening(check_id: str, bind: str) -> Listening:
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    return Listening(id=check_id, port=int(port), addresses=("*" if host in {"0.0.0.0", "::"} else host,))  # noqa: S104


_BIND = re.compile(r"[^/]+:[0-9]{1,5}")


def _validate(cluster: ClusterFile, config: Config) -> None:
    if config.mode == "nftables" and not at_least(cluster.versions.kubernetes, "1.31.0"):
        raise SpecError(
            f"kube-proxy {cluster.versions.kubernetes} has no nftables mode by default",
            subject="components.kube_proxy.mode",
            hint="use Kubernetes 1.31 or later, or ipvs",
        )
    mode = config.config.get("mode")
    if mode and mode not in get_args(Mode):
        raise SpecError(
            f"{mode!r} is no mode of kube-proxy on Linux",
            subject="components.kube_proxy.config.mode",
            hint=f"components.kube_proxy.mode is one of {', '.join(get_args(Mode))}",
        )
    for key in ("healthzBindAddress", "metricsBindAddress"):
        value = config.config.get(key)
        if value and not _BIND.fullmatch(str(value)):
            hint = "write both, such as 127.0.0.1:10249 or [::1]:10249"
            raise SpecError(f"{value!r} is not ADDRESS:PORT", subject=f"components.kube_proxy.config.{key}", hint=hint)


def _warnings(cluster: ClusterFile, config: Config) -> tuple[str, ...]:
    if not deployed(cluster, config):
        if cluster.cni == "bridge":
            text = "no kube-proxy and no network plugin that does its work: Services have no addresses on nodes"
            return (text,)
        return ()
    return (warning(IPVS, cluster.versions.kubernetes),) if config.mode == "ipvs" else ()


COMPONENT = Component(
    name="kube_proxy",
    config=Config,
    stage=_stage,
    artifacts=_artifacts,
    checks=_checks,
    validate=_validate,
    warnings=_warnings,
    cluster_wide=("certificate_days",),
    after=("host", "kube_nginx", "containerd", "kubelet"),
)
