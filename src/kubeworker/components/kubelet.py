"""kubelet: joins the node by TLS bootstrap and runs its pods."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from kubeworker.core import quantity
from kubeworker.core.artifacts.artifact import Artifact, GoBuild, Release, kubernetes_ldflags
from kubeworker.core.certificates import kubeconfig
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
from kubeworker.core.merge import merge
from kubeworker.core.model import (
    Absent,
    Certificate,
    Check,
    ClusterCheck,
    ConfigCheck,
    Deferred,
    Directory,
    File,
    FileMode,
    Gate,
    Http,
    KubeconfigTarget,
    Listening,
    NodeToNode,
    PortClosed,
    Private,
    RequireCgroupDriver,
    RequirePodAddresses,
    RequirePort,
    RequireReserved,
    RequireResolvConf,
    RequireSysctl,
    ServingCertificate,
    Stage,
    Unit,
    UnitActive,
)
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import SpecError


class Config(ComponentConfig):
    """`components.kubelet`: the node agent."""

    max_pods: int = Field(default=220, gt=0)
    """Upper bound per node; the node's pod CIDR must hold it (a /24, kube-controller-manager's default, has 254
    addresses)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Merged over the rendered KubeletConfiguration: maps key by key, anything else replaces, null removes. An unknown
    key fails the config check before anything is swapped in."""
    client_csr: Literal["guarded", "auto"] | None = None
    """guarded: the tool approves a bootstrap CSR only for the node that its token was made for. auto: the guide's
    binding lets kube-controller-manager approve every bootstrap token's CSR, for any node name. Default: guarded;
    with `profile: guide` auto."""
    token_minutes: int | None = Field(default=None, ge=15)
    """Lifetime of a bootstrap token, deleted when the node has joined. Binaries are sent meanwhile: the slowest node
    must be done within it. Default: 20; with `profile: guide` 1440."""

    def client_csr_for(self, cluster: ClusterFile) -> Literal["guarded", "auto"]:
        """`client_csr` or the profile's default."""
        return self.client_csr or ("auto" if cluster.profile == "guide" else "guarded")

    def token_minutes_for(self, cluster: ClusterFile) -> int:
        """`token_minutes` or the profile's default."""
        return self.token_minutes or (1440 if cluster.profile == "guide" else 20)


def port(config: Config) -> int:
    """Where kubelet serves its API; a null in `config` removes the key, and then it is kubelet's own default."""
    return int(config.config.get("port") or 10250)


CA = "/etc/kubernetes/cert/ca.pem"
CERT_DIR = "/etc/kubernetes/cert"
BOOTSTRAP = "/etc/kubernetes/kubelet-bootstrap.kubeconfig"
KUBECONFIG = "/etc/kubernetes/kubelet.kubeconfig"
_CONFIG = "/etc/kubernetes/kubelet-config.yaml"
UNIT = "kubelet.service"
_SOCKET = "unix:///run/containerd/containerd.sock"
_CLIENT_CERT = f"{CERT_DIR}/kubelet-client-current.pem"
_SERVING_CERT = f"{CERT_DIR}/kubelet-server-current.pem"
_JOIN_SECONDS = 120
"""A first start waits for the client certificate too: token, CSR, approval and signing."""
_START_SECONDS = 60


def _artifacts(cluster: ClusterFile, _config: Config) -> tuple[Artifact, ...]:
    version = cluster.versions.kubernetes
    url = f"https://dl.k8s.io/release/v{version}/bin/linux/{{arch}}/kubelet"
    return (
        Artifact(
            name="kubelet",
            version=version,
            releases=(Release(url=url, checksum_url=f"{url}.sha256"),),
            build=GoBuild(module="k8s", package="k8s.io/kubernetes/cmd/kubelet", ldflags=kubernetes_ldflags(version)),
            # The official kubelet is not among Kubernetes' static binaries (hack/lib/golang.sh).
            libraries=("libc", "libpthread", "libdl", "libresolv"),
            dynamic=True,
            field="versions.kubernetes",
        ),
    )


def _stage(context: Context[Config]) -> Stage:
    cluster, paths = context.cluster, context.cluster.paths
    (artifact,) = _artifacts(cluster, context.config)
    program = binary(artifact, paths.bin_dir, context.blobs)
    document = _config_file(context)
    bootstrap = _bootstrap(context)
    return Stage(
        component="kubelet",
        requirements=(
            RequirePort(port=port(context.config), unit=UNIT),
            RequirePort(port=int(document.get("healthzPort", 10248)), unit=UNIT),
            RequireCgroupDriver(of="kubelet", driver=str(document.get("cgroupDriver", "cgroupfs"))),
            RequireResolvConf(path=str(document.get("resolvConf", "/etc/resolv.conf"))),
            *_pod_addresses(context, document),
            *_kept_from_pods(document),
            *_kernel_defaults(document),
            NodeToNode(
                protocol="tcp",
                port=port(context.config),
                why="kubelet's API: logs, exec and probes of kube-apiserver, metrics for pods on any node",
                process="kubelet",
            ),
        ),
        directories=_directories(context),
        binaries=(program,),
        files=(
            File(path=CA, content=context.credentials.ca_cert),
            File(path=_CONFIG, content=yaml.dump(document).encode()),
            *((bootstrap,) if isinstance(bootstrap, File) else ()),
        ),
        absent=(bootstrap,) if isinstance(bootstrap, Absent) else (),
        deferred=(bootstrap,) if isinstance(bootstrap, Deferred) else (),
        config_checks=(_config_check(program.path),),
        units=(
            Unit(
                name=UNIT,
                content=_unit_file(context),
                # Never what kubelet writes itself: rotated certificates and kubelet.kubeconfig.
                restart_on=(program.path, _CONFIG, CA),
                # kubelet asks for its certificate with the token that it read when it started.
                read_at_start=(BOOTSTRAP, KUBECONFIG),
                requires=("containerd.service",),
                gate=_gate(document, joins=isinstance(bootstrap, File)),
            ),
        ),
        kubeconfigs=(
            KubeconfigTarget(
                path=KUBECONFIG,
                server=api_proxy_url(cluster),
                ca=context.credentials.ca_cert,
                content=_own_kubeconfig(context) if context.facts.joined else b"",
            ),
        ),
        private=tuple(Private(pattern=f"{CERT_DIR}/kubelet-{name}-*.pem") for name in ("client", "server")),
    )


def _pod_addresses(context: Context[Config], document: dict[str, Any]) -> tuple[RequirePodAddresses, ...]:
    """Not where Cilium cuts the blocks: the Node's podCIDR is of no account there."""
    if context.cluster.components.get("cilium", {}).get("ipam", "kubernetes") != "kubernetes":
        return ()
    try:
        pods = int(document.get("maxPods", 110))
    except (TypeError, ValueError):
        return ()  # kubelet's own checker says so, with the field's name.
    return (RequirePodAddresses(pods=pods, cidr=context.facts.pod_cidr),)


def _kept_from_pods(document: dict[str, Any]) -> tuple[RequireReserved, ...]:
    """What kubelet subtracts from the machine (its container manager's GetNodeAllocatableReservation)."""
    parts = [document.get(key) or {} for key in ("kubeReserved", "systemReserved")]
    # Where the whole map is absent, kubelet's default (DefaultEvictionHard) has the same figure for memory.
    eviction = document.get("evictionHard")
    try:
        limit = str((eviction if eviction is not None else _EVICTION).get("memory.available", 0))
        memory = sum((quantity.parse(part.get("memory", 0)) for part in parts), Fraction(0))
        cpus = sum((quantity.parse(part.get("cpu", 0)) for part in parts), Fraction(0))
        share = Fraction(limit[:-1]) / 100 if limit.endswith("%") else Fraction(0)
        memory += 0 if limit.endswith("%") else quantity.parse(limit)
    except (ValueError, AttributeError):
        return ()  # kubelet's own checker says so, with the field's name.
    return (RequireReserved(memory=memory, memory_share=share, cpus=cpus),)


_KERNEL_DEFAULTS = {
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "kernel.keys.root_maxkeys": "1000000",
    "kernel.keys.root_maxbytes": "25000000",
}
"""What kubelet sets by itself, and with protectKernelDefaults insists on (setupKernelTunables in pkg/kubelet/cm)."""


def _kernel_defaults(document: dict[str, Any]) -> tuple[RequireSysctl, ...]:
    if document.get("protectKernelDefaults") is not True:
        return ()
    then = "or components.host: {sysctls: true}; kubelet does not start otherwise (protectKernelDefaults)"
    return tuple(
        RequireSysctl(key=key, value=value, fix=f"sysctl -w {key}={value} and a line in /etc/sysctl.d, {then}")
        for key, value in _KERNEL_DEFAULTS.items()
    )


def _directories(context: Context[Config]) -> tuple[Directory, ...]:
    root = f"{context.cluster.paths.k8s_dir}/kubelet"
    guides = (Directory(path=f"{root}/kubelet-plugins/volume/exec"),) if context.cluster.profile == "guide" else ()
    return (
        Directory(path=context.cluster.paths.bin_dir),
        Directory(path="/etc/kubernetes"),
        Directory(path=CERT_DIR),
        # kubelet makes its root 0750 where there is none (kubelet.go, setupDataDirs).
        Directory(path=root, mode=0o750),
        *guides,
    )


def _bootstrap(context: Context[Config]) -> File | Absent | Deferred:
    if context.facts.joined:
        return Absent(path=BOOTSTRAP, reason="the node has joined; its bootstrap token is of no more use")
    if not context.credentials.bootstrap_token:
        return Deferred(path=BOOTSTRAP, reason="a bootstrap token is made when the node is about to join")
    content = kubeconfig.with_token(
        server=api_proxy_url(context.cluster),
        ca=context.credentials.ca_cert,
        user="kubelet-bootstrap",
        token=context.credentials.bootstrap_token,
    )
    return File(path=BOOTSTRAP, content=content, mode=0o600, secret=True)


def _own_kubeconfig(context: Context[Config]) -> bytes:
    """What kubelet writes for itself when it has joined (client-go's bootstrap.LoadClientConfig)."""
    return kubeconfig.with_certificate_file(
        server=api_proxy_url(context.cluster),
        ca=context.credentials.ca_cert,
        user="default-auth",
        path=_CLIENT_CERT,
    )


def _gate(document: dict[str, Any], *, joins: bool) -> Gate:
    if not joins:
        return Gate(http=(_healthz(document),), timeout=_START_SECONDS)
    # healthz answers before there is a certificate, with which alone it has joined. One of a former membership, which
    # has expired or is of another CA, does not count.
    return Gate(
        http=(_healthz(document),),
        command=("test", _CLIENT_CERT, "-nt", BOOTSTRAP),
        otherwise="it got no client certificate (kubeworker csr list shows requests that wait)",
        timeout=_JOIN_SECONDS,
    )


def _config_check(program: str) -> ConfigCheck:
    return ConfigCheck(
        name="kubelet --config",
        command=(
            f"{{{program}}}",
            f"--config={{{_CONFIG}}}",
            # The file names the CA's final path, where nothing may lie yet; the flag overrides it for the check.
            f"--client-ca-file={{{CA}}}",
            "--cert-dir={tmp}",
            "--root-dir={tmp}",
            # Ends kubelet after the whole configuration was read and validated and before anything is started.
            "--exit-on-lock-contention",
        ),
        expect="no lock file specified",
        # kubelet says so of an unknown field, drops it and goes on: a typo would go unseen.
        reject=("lenient decoding",),
        inputs=(program, _CONFIG, CA),
        hint="components.kubelet.config is merged over this file",
    )


def _config_file(context: Context[Config]) -> dict[str, Any]:
    document = _guide_config(context) if context.cluster.profile == "guide" else _default_config(context)
    if context.node.taints:
        document["registerWithTaints"] = [_taint(text) for text in context.node.taints]
    return merge(document, context.config.config)


def _default_config(context: Context[Config]) -> dict[str, Any]:
    """The guide's configuration without its stale values (docs/guide-differences.md has each one's reason)."""
    return {
        **_head(context),
        "port": 10250,
        "readOnlyPort": 0,
        "rotateCertificates": True,
        "serverTLSBootstrap": True,
        **_AUTHENTICATION,
        "healthzPort": 10248,
        "healthzBindAddress": "127.0.0.1",
        **_dns(context),
        "containerRuntimeEndpoint": _SOCKET,
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "1m",
        **_IMAGE_GC,
        "cgroupDriver": "systemd",
        "runtimeRequestTimeout": "10m",
        "maxPods": context.config.max_pods,
        "podPidsLimit": 4096,
        "resolvConf": context.facts.resolv_conf,
        "maxOpenFiles": 1000000,
        "serializeImagePulls": False,
        "maxParallelImagePulls": 5,
        "evictionHard": _EVICTION,
        "failSwapOn": True,
        **_LOGS,
        "systemReserved": {"cpu": "100m", "memory": "256Mi"},
        "kubeReserved": {"cpu": "100m", "memory": "256Mi"},
        "enforceNodeAllocatable": ["pods"],
    }


def _guide_config(context: Context[Config]) -> dict[str, Any]:
    """The guide's file, value by value and in its order."""
    return {
        **_head(context),
        "staticPodPath": "",
        "syncFrequency": "1m",
        "fileCheckFrequency": "20s",
        "httpCheckFrequency": "20s",
        "staticPodURL": "",
        "port": 10250,
        "readOnlyPort": 0,
        "rotateCertificates": True,
        "serverTLSBootstrap": True,
        **_AUTHENTICATION,
        "registryPullQPS": 0,
        "registryBurst": 20,
        "eventRecordQPS": 0,
        "eventBurst": 20,
        "enableDebuggingHandlers": True,
        "enableContentionProfiling": True,
        "healthzPort": 10248,
        "healthzBindAddress": context.node.address,
        **_dns(context),
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "1m",
        **_IMAGE_GC,
        "volumeStatsAggPeriod": "1m",
        "kubeletCgroups": "",
        "systemCgroups": "",
        "cgroupRoot": "",
        "cgroupsPerQOS": True,
        "cgroupDriver": "systemd",
        "runtimeRequestTimeout": "10m",
        "hairpinMode": "promiscuous-bridge",
        "maxPods": context.config.max_pods,
        "podCIDR": context.cluster.cluster.cluster_cidr,
        "podPidsLimit": -1,
        "resolvConf": "/etc/resolv.conf",
        "maxOpenFiles": 1000000,
        "kubeAPIQPS": 1000,
        "kubeAPIBurst": 2000,
        "serializeImagePulls": False,
        "evictionHard": _EVICTION,
        "evictionSoft": {},
        "enableControllerAttachDetach": True,
        "failSwapOn": True,
        **_LOGS,
        "systemReserved": {},
        "kubeReserved": {},
        "systemReservedCgroup": "",
        "kubeReservedCgroup": "",
        "enforceNodeAllocatable": ["pods"],
    }


def _head(context: Context[Config]) -> dict[str, Any]:
    return {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": context.node.address,
    }


def _dns(context: Context[Config]) -> dict[str, Any]:
    cluster = context.cluster.cluster
    return {"clusterDomain": cluster.dns_domain, "clusterDNS": [cluster.dns_service_ip]}


_AUTHENTICATION: dict[str, Any] = {
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": CA},
    },
    "authorization": {"mode": "Webhook"},
}
_IMAGE_GC = {"imageMinimumGCAge": "2m", "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80}
_EVICTION = {
    "memory.available": "100Mi",
    "nodefs.available": "10%",
    "nodefs.inodesFree": "5%",
    "imagefs.available": "15%",
}
_LOGS = {"containerLogMaxSize": "20Mi", "containerLogMaxFiles": 10}


def _taint(text: str) -> dict[str, str]:
    left, _, effect = text.rpartition(":")
    key, equals, value = left.partition("=")
    return {"key": key, **({"value": value} if equals else {}), "effect": effect}


def _healthz(document: dict[str, Any]) -> str:
    host = str(document.get("healthzBindAddress") or "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{url_host(host)}:{document.get('healthzPort', 10248)}/healthz"


def _address(document: dict[str, Any]) -> str:
    """Where kubelet listens: "*" for every address, its own default."""
    address = str(document.get("address") or "0.0.0.0")  # noqa: S104
    return "*" if address in {"0.0.0.0", "::"} else address  # noqa: S104


def _unit_file(context: Context[Config]) -> str:
    cluster, node, guide = context.cluster, context.node, context.cluster.profile == "guide"
    root = f"{cluster.paths.k8s_dir}/kubelet"
    labels = ",".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
    command = (
        f"{cluster.paths.bin_dir}/kubelet",
        f"--bootstrap-kubeconfig={BOOTSTRAP}",
        f"--cert-dir={CERT_DIR}",
        f"--kubeconfig={KUBECONFIG}",
        f"--config={_CONFIG}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        *((f"--node-labels={labels}",) if labels else ()),
        # The flag is deprecated in favour of the configuration's containerRuntimeEndpoint.
        *(("--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock",) if guide else ()),
        f"--root-dir={root}",
        "--v=2",
    )
    service: dict[str, unit.Value] = {
        "WorkingDirectory": root,
        **({} if guide else {"Environment": HTTP2_PING}),
        "ExecStart": unit.Command(arguments=command),
        "Restart": "always",
        "RestartSec": "5",
        # Since systemd 230 the setting stands in [Unit], under another name; the old place is still read.
        **({"StartLimitInterval": "0"} if guide else {}),
    }
    return unit.dump(
        {"Unit": _unit_head(guide=guide), "Service": service, "Install": {"WantedBy": "multi-user.target"}}
    )


def _unit_head(*, guide: bool) -> dict[str, unit.Value]:
    if guide:
        return {
            "Description": "Kubernetes Kubelet",
            "Documentation": "https://github.com/GoogleCloudPlatform/kubernetes",
            "After": "containerd.service",
            "Requires": "containerd.service",
        }
    return {
        "Description": "Kubernetes Kubelet",
        "Documentation": "https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/",
        "After": "containerd.service kube-nginx.service",
        "Requires": "containerd.service",
        "StartLimitIntervalSec": "0",
    }


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    document = _config_file(context)
    api = f"https://{url_host(context.node.address)}:{port(context.config)}"
    user = f"system:node:{context.node.name}"
    rotates = bool(document.get("rotateCertificates"))
    return (
        UnitActive(id="kubelet.unit", unit=UNIT),
        Listening(id="kubelet.listen", port=port(context.config), addresses=(_address(document),)),
        PortClosed(id="kubelet.read_only_port", port=10255),
        Http(id="kubelet.healthz", url=_healthz(document), contains="ok"),
        Http(id="kubelet.anonymous", url=f"{api}/metrics", status=401),
        Http(id="kubelet.client_certificate", url=f"{api}/metrics", caller="admin", contains="kubelet_"),
        Http(id="kubelet.token", url=f"{api}/metrics", caller="token", contains="kubelet_"),
        Http(id="kubelet.token_forbidden", url=f"{api}/metrics", caller="token-without-rights", status=403),
        Http(id="kubelet.cadvisor", url=f"{api}/metrics/cadvisor", caller="admin", contains="cadvisor_version_info"),
        FileMode(id="kubelet.ca_mode", path=CA, mode=0o644),
        FileMode(id="kubelet.kubeconfig_mode", path=KUBECONFIG, mode=0o600),
        FileMode(id="kubelet.cert_mode", path=_CLIENT_CERT, mode=0o600),
        FileMode(id="kubelet.serving_cert_mode", path=_SERVING_CERT, mode=0o600),
        # No days in hand are asked for: kubelet renews both itself, and a cluster may sign for hours only.
        Certificate(id="kubelet.client_cert", path=_CLIENT_CERT, common_name=user, rotates=rotates),
        Certificate(id="kubelet.serving_cert", path=_SERVING_CERT, common_name=user, rotates=rotates),
        ServingCertificate(id="kubelet.serving_cert_in_use", port=port(context.config)),
        *(
            ClusterCheck(id=check_id)
            for check_id in (
                "node.registered",
                "node.version",
                "node.ready",
                "node.csr",
                "pod.run",
                "pod.logs",
                "pod.exec",
            )
        ),
    )


# Labels that a kubelet may set on its own Node (kubelet/pkg/apis/well_known_labels.go of 1.33.3).
_OWN_LABELS = {
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
}
_OWN_NAMESPACES = ("kubelet.kubernetes.io", "node.kubernetes.io")
_LABELS = "use letters, digits, - _ and . (at most 63), before a key's name also a domain and /: example.org/role"
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def _validate(cluster: ClusterFile, config: Config) -> None:
    for key in ("port", "healthzPort"):
        value = config.config.get(key)
        if value is not None and (type(value) is not int or not 0 < value < 65536):
            hint = "write a whole number from 1 to 65535"
            raise SpecError(f"{value!r} is not a port number", subject=f"components.kubelet.config.{key}", hint=hint)
    for index, node in enumerate(cluster.nodes):
        for key, value in node.labels.items():
            subject = f"nodes.{index}.labels.{key}"
            prefix, slash, name = key.rpartition("/")
            if not _LABEL_NAME.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
                raise SpecError(f"{key!r} is not a label key", subject=subject, hint=_LABELS)
            if value and not _LABEL_NAME.fullmatch(value):
                raise SpecError(f"{value!r} is not a label value", subject=subject, hint=_LABELS)
            if _reserved(prefix) and not (key in _OWN_LABELS or _under(prefix, _OWN_NAMESPACES)):
                raise SpecError(
                    f"a kubelet may not set {key} on its own node",
                    subject=subject,
                    hint=f"use a prefix of your own, {' or '.join(_OWN_NAMESPACES)}, "
                    f"or: kubectl label node {node.name} {key}={value}",
                )


def _reserved(prefix: str) -> bool:
    return _under(prefix, ("kubernetes.io", "k8s.io"))


def _under(prefix: str, domains: tuple[str, ...]) -> bool:
    return any(prefix == domain or prefix.endswith(f".{domain}") for domain in domains)


def _warnings(_cluster: ClusterFile, config: Config) -> tuple[str, ...]:
    if config.max_pods <= 253:
        return ()
    limit = "a node's /24 holds 253 (kube-controller-manager --node-cidr-mask-size default)"
    return (f"components.kubelet.max_pods: {config.max_pods}, but {limit}",)


COMPONENT = Component(
    name="kubelet",
    config=Config,
    stage=_stage,
    artifacts=_artifacts,
    checks=_checks,
    validate=_validate,
    warnings=_warnings,
    cluster_wide=("client_csr", "token_minutes"),
    after=("host", "kube_nginx", "containerd"),
)
