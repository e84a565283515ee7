"""kube-proxy: Services' addresses on the node."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from kubeworker.core import kubeconfig
from kubeworker.core.artifact import Artifact, GoBuild, Release, kubernetes_ldflags
from kubeworker.core.component import (
    HTTP2_PING,
    Component,
    ComponentConfig,
    Context,
    api_proxy_url,
    binary,
    url_host,
)
from kubeworker.core.formats import unit, yaml
from kubeworker.core.horizon import IPVS, at_least, warning
from kubeworker.core.merge import merge
from kubeworker.core.model import (
    Certificate,
    Check,
    ClusterCheck,
    ConfigCheck,
    Directory,
    File,
    FileMode,
    Gate,
    Http,
    Listening,
    RequireCommand,
    Requirement,
    RequireModule,
    RequirePort,
    RequireProxyMode,
    Stage,
    Unit,
    UnitActive,
)
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import SpecError

Mode = Literal["ipvs", "nftables", "iptables"]


class Config(ComponentConfig):
    """`components.kube_proxy`: Services on the node."""

    mode: Mode = "ipvs"
    """ipvs is the guide's, deprecated from Kubernetes 1.35 on; nftables is its successor (GA since 1.33)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Merged over the rendered KubeProxyConfiguration: maps key by key, anything else replaces, null removes."""
    certificate_days: int = Field(default=3650, gt=30)
    """Lifetime of the client certificate, which never outlives the CA; apply renews it when 30 days are left. The
    default is ten years since only apply renews it: a site that runs apply often can do with less."""


_CONFIG = "/etc/kubernetes/kube-proxy-config.yaml"
_KUBECONFIG = "/etc/kubernetes/kube-proxy.kubeconfig"
_UNIT = "kube-proxy.service"


def _artifacts(cluster: ClusterFile, _config: Config) -> tuple[Artifact, ...]:
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


def _mode(document: dict[str, Any]) -> str:
    return str(document.get("mode") or "iptables")


def _reachable(bind: str) -> str:
    """An address to ask what listens on `bind`."""
    host, _, port = bind.rpartition(":")
    return f"127.0.0.1:{port}" if host in {"0.0.0.0", "[::]"} else bind  # noqa: S104


# What each mode's proxier runs (pkg/proxy of 1.33.3). conntrack is no longer among them: netlink since 1.32.
_IPTABLES = (RequireCommand(name="iptables", package="iptables"),)
_NEEDS: dict[str, tuple[Requirement, ...]] = {
    "iptables": _IPTABLES,
    "ipvs": (
        *_IPTABLES,
        RequireCommand(name="ipset", package="ipset"),
        RequireModule(name="ip_vs", why="kube-proxy mode ipvs"),
        RequireModule(name="ip_vs_rr", why="kube-proxy mode ipvs: its default scheduler"),
        RequireModule(name="nf_conntrack", why="kube-proxy mode ipvs"),
    ),
    "nftables": (RequireCommand(name="nft", package="nftables"),),
}


def _requirements(document: dict[str, Any]) -> tuple[Requirement, ...]:
    mode = _mode(document)
    ports = {int(bind.rpartition(":")[2]) for bind in (_healthz(document), _metrics(document))}
    return (
        RequireProxyMode(mode=mode),
        *_NEEDS.get(mode, ()),
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
        ClusterCheck(id="service.kubernetes"),
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
    for key in ("healthzBindAddress", "metricsBindAddress"):
        value = config.config.get(key)
        if value and not _BIND.fullmatch(str(value)):
            raise SpecError(f"{value!r} is not ADDRESS:PORT", subject=f"components.kube_proxy.config.{key}")


def _warnings(cluster: ClusterFile, config: Config) -> tuple[str, ...]:
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
