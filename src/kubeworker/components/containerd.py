"""containerd with runc, and the tools an operator uses beside it: ctr, crictl, nerdctl."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from kubeworker.core import outlook, registry_hosts
from kubeworker.core.artifacts.artifact import (
    RUNC_LDFLAGS,
    Artifact,
    GoBuild,
    Release,
    crictl_ldflags,
    runtime_ldflags,
)
from kubeworker.core.component import Component, ComponentConfig, Context, binary
from kubeworker.core.formats import toml, unit, yaml
from kubeworker.core.horizon import CNI_BIN_DIR, PAIRS_SOURCE, REGISTRY_CREDENTIALS, at_least, warning
from kubeworker.core.merge import merge
from kubeworker.core.model import (
    Absent,
    Check,
    ConfigCheck,
    Directory,
    File,
    FileMode,
    Gate,
    Image,
    Marked,
    NodeCommand,
    RequireCgroupDriver,
    Stage,
    Unit,
    UnitActive,
)
from kubeworker.core.registry_hosts import (
    CERTS_D,
    DEFAULT,
    MARK,
    Mirror,
    Registry,
    hosts_path,
    server_url,
)
from kubeworker.core.spec import ClusterFile, LocalPath
from kubeworker.errors import SpecError


def _writable(config: dict[str, Any]) -> dict[str, Any]:
    try:
        toml.dump(merge({}, config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"can't be written as TOML: {error}") from error
    return config


class Config(ComponentConfig):
    """`components.containerd`: the container runtime."""

    config: Annotated[dict[str, Any], AfterValidator(_writable)] = Field(default_factory=dict)
    """Merged over the rendered config.toml: maps key by key, anything else replaces, null removes."""
    mirrors: registry_hosts.Registries | None = None
    """Per registry (HOST, HOST:PORT, or _default for every other) a mirror's URL, a list of mirrors in the order in
    which they are tried, or fields; written to /etc/containerd/certs.d/REGISTRY/hosts.toml. containerd reads these
    files at each pull, so a change restarts nothing. A registry taken out, or with an empty list, has its files
    removed. Default: none; with `profile: guide` docker.io: [https://mirror.gcr.io]."""
    sandbox_image: str = "registry.k8s.io/pause:3.10"
    """The pod sandbox's image; a site without internet names its own, or preloads this one."""
    preload_images: tuple[LocalPath, ...] = ()
    """OCI archives on the control host, imported into the namespace k8s.io."""


_SOCKET = "unix:///run/containerd/containerd.sock"
_CONFIG = "/etc/containerd/config.toml"
_UNIT = "containerd.service"
_RUNTIME = "io.containerd.cri.v1.runtime"
_IMAGES = "io.containerd.cri.v1.images"


def _artifacts(cluster: ClusterFile, _config: Config) -> tuple[Artifact, ...]:
    versions = cluster.versions
    return (
        *(_containerd(name, versions.containerd, versions.nerdctl) for name in _CONTAINERD_COMMANDS),
        _runc(versions.runc),
        _nerdctl(versions.nerdctl, versions.containerd),
        _crictl(versions.crictl),
    )


_CONTAINERD_COMMANDS = {
    # name -> arguments that make it print its version
    "containerd": ("--version",),
    "containerd-shim-runc-v2": ("-v",),
    "ctr": ("--version",),
}


def _containerd(name: str, version: str, nerdctl: str) -> Artifact:
    url = f"https://github.com/containerd/containerd/releases/download/v{version}/containerd-{version}-linux-{{arch}}.tar.gz"
    return Artifact(
        name=name,
        version=version,
        releases=(Release(url=url, member=f"bin/{name}", checksum_url=f"{url}.sha256sum"),),
        build=GoBuild(
            module="runtime",
            package=f"github.com/containerd/containerd/v2/cmd/{name}",
            ldflags=runtime_ldflags(version, nerdctl),
        ),
        report=_CONTAINERD_COMMANDS[name],
        # The official binaries of containerd and ctr are linked dynamically against glibc, built ones are static.
        libraries=("libc", "libpthread", "libdl", "libresolv"),
        dynamic=True,
        field="versions.containerd",
    )


def _runc(version: str) -> Artifact:
    base = f"https://github.com/opencontainers/runc/releases/download/v{version}"
    return Artifact(
        name="runc",
        version=version,
        releases=(Release(url=f"{base}/runc.{{arch}}", checksum_url=f"{base}/runc.sha256sum"),),
        build=GoBuild(
            module="runc", package="github.com/opencontainers/runc", ldflags=RUNC_LDFLAGS, tags="seccomp", cgo=True
        ),
        field="versions.runc",
    )


def _nerdctl(version: str, containerd: str) -> Artifact:
    base = f"https://github.com/containerd/nerdctl/releases/download/v{version}"
    return Artifact(
        name="nerdctl",
        version=version,
        releases=(
            Release(
                url=f"{base}/nerdctl-{version}-linux-{{arch}}.tar.gz",
                member="nerdctl",
                checksum_url=f"{base}/SHA256SUMS",
            ),
        ),
        build=GoBuild(
            module="runtime",
            package="github.com/containerd/nerdctl/v2/cmd/nerdctl",
            ldflags=runtime_ldflags(containerd, version),
        ),
        field="versions.nerdctl",
    )


def _crictl(version: str) -> Artifact:
    url = f"https://github.com/kubernetes-sigs/cri-tools/releases/download/v{version}/crictl-v{version}-linux-{{arch}}.tar.gz"
    return Artifact(
        name="crictl",
        version=version,
        releases=(Release(url=url, member="crictl", checksum_url=f"{url}.sha256"),),
        build=GoBuild(module="cri-tools", package="sigs.k8s.io/cri-tools/cmd/crictl", ldflags=crictl_ldflags(version)),
        field="versions.crictl",
    )


def _stage(context: Context[Config]) -> Stage:
    cluster, config = context.cluster, context.config
    bin_dir = cluster.paths.bin_dir
    binaries = tuple(binary(artifact, bin_dir, context.blobs) for artifact in _artifacts(cluster, config))
    return Stage(
        component="containerd",
        requirements=(RequireCgroupDriver(of="containerd", driver=_cgroup_driver(context)),),
        directories=_directories(context),
        binaries=binaries,
        files=(
            File(path=_CONFIG, content=toml.dump(_config_file(context)).encode()),
            File(path="/etc/crictl.yaml", content=yaml.dump(_CRICTL).encode()),
            File(path="/etc/nerdctl/nerdctl.toml", content=_nerdctl_file(cluster).encode()),
            *_hosts_files(context),
        ),
        absent=_unmirrored(context),
        marked=(Marked(pattern=f"{CERTS_D}/*/*", line=MARK, reason="cluster.yaml does not name it any more"),),
        config_checks=(
            ConfigCheck(
                name="containerd config dump",
                command=(f"{{{bin_dir}/containerd}}", "--config", f"{{{_CONFIG}}}", "config", "dump"),
                # containerd warns of a key that it does not know, and ignores it: a typo would go unseen.
                reject=("Ignoring unknown key",),
                inputs=(f"{bin_dir}/containerd", _CONFIG),
                hint="components.containerd.config is merged over this file",
            ),
            ConfigCheck(
                name="check of running containers",
                command=("sh", "-c", _MOVED, "containerd-moved", _CONFIG, f"{{{_CONFIG}}}"),
                inputs=(_CONFIG,),
                hint="drain the node, stop kubelet and remove what is left (crictl rmp -fa); "
                "or keep the old directories: components.containerd.config: {state: ..., root: ...}",
            ),
        ),
        units=(
            Unit(
                name=_UNIT,
                content=_unit_file(context),
                # Not the shim or runc: each container start runs them anew, and running shims stay as they are.
                restart_on=(f"{bin_dir}/containerd", _CONFIG),
                # Not `ctr version`: containerd goes on without its CRI plugin where that fails, and kubelet can't.
                gate=Gate(command=(f"{bin_dir}/crictl", f"--runtime-endpoint={_SOCKET}", "version"), timeout=60),
            ),
        ),
        images=tuple(
            Image(reference=reference, archive=archive.blob, ctr=f"{bin_dir}/ctr", root=cluster.paths.containerd_dir)
            for archive in (context.archives[path] for path in config.preload_images)
            for reference in archive.references
        ),
    )


# containerd knows nothing of the containers in another state or root directory: they would run on beside the copies
# that kubelet starts of them (seen on a real node).
_MOVED = r"""
setting() {
  found=$(sed -n "/^ *\[/q; s/^ *$1 *= *[\"']\(.*\)[\"'].*/\1/p" "$2") || exit 1
  echo "${found:-$3}"
}
live=$1 new=$2
[ -e "$live" ] || exit 0
was_state=$(setting state "$live" /run/containerd) was_root=$(setting root "$live" /var/lib/containerd)
state=$(setting state "$new" /run/containerd) root=$(setting root "$new" /var/lib/containerd)
[ "$was_state $was_root" != "$state $root" ] || exit 0
set -- "$was_state"/io.containerd.runtime.v2.task/*/*
[ -e "$1" ] || exit 0
echo "containerd would lose sight of the node's $# containers:" \
  "state $was_state, root $was_root -> state $state, root $root"
exit 1
"""


def _cgroup_driver(context: Context[Config]) -> str:
    """What the default runtime's options say, the operator's own `config` merged in."""
    found: Any = _config_file(context)
    for key in ("plugins", _RUNTIME, "containerd", "runtimes", "runc", "options", "SystemdCgroup"):
        found = found.get(key) if isinstance(found, dict) else None
    return "systemd" if found else "cgroupfs"


def _directories(context: Context[Config]) -> tuple[Directory, ...]:
    paths = context.cluster.paths
    state = _state(context.cluster)
    return (
        Directory(path=paths.bin_dir),
        # 0711 as containerd itself makes them (cmd/containerd/server, CreateTopLevelDirectories).
        Directory(path=f"{paths.containerd_dir}/root", mode=0o711),
        *((Directory(path=state, mode=0o711),) if not state.startswith("/run/") else ()),
        Directory(path="/etc/containerd"),
        Directory(path=CERTS_D),
        Directory(path="/etc/nerdctl"),
        *_hosts_folders(context),
    )


def _state(cluster: ClusterFile) -> str:
    """Where containerd keeps what must not outlive a boot (docs/ops.md): a tmpfs, unlike the guide's data disk."""
    return f"{cluster.paths.containerd_dir}/state" if cluster.profile == "guide" else "/run/containerd"


def _config_file(context: Context[Config]) -> dict[str, Any]:
    cluster, config = context.cluster, context.config
    images: dict[str, Any] = {"registry": {"config_path": CERTS_D}}
    if cluster.profile != "guide" or config.sandbox_image != Config.model_fields["sandbox_image"].default:
        # v3's name for what was sandbox_image.
        images = {"pinned_images": {"sandbox": config.sandbox_image}, **images}
    runc = {
        "runtime_type": "io.containerd.runc.v2",
        # The driver must be the kubelet's cgroupDriver, systemd in both.
        "options": {"BinaryName": f"{cluster.paths.bin_dir}/runc", "SystemdCgroup": True},
    }
    cni: dict[str, Any] = {"conf_dir": "/etc/cni/net.d"}
    # containerd moves bin_dir to bin_dirs in memory for as long as it reads it at all (internal/cri/config).
    last_word = CNI_BIN_DIR.removed if cluster.profile == "guide" else CNI_BIN_DIR.deprecated
    if at_least(cluster.versions.containerd, last_word):
        cni = {"bin_dirs": ["/opt/cni/bin"], **cni}
    else:
        cni = {"bin_dir": "/opt/cni/bin", **cni}
    document = {
        "version": 3,
        "root": f"{cluster.paths.containerd_dir}/root",
        "state": _state(cluster),
        "oom_score": -999,
        "grpc": {"max_recv_message_size": 16777216, "max_send_message_size": 16777216},
        "debug": {"level": "info"},
        "metrics": {"address": "", "grpc_histogram": False},
        "plugins": {
            _RUNTIME: {"containerd": {"default_runtime_name": "runc", "runtimes": {"runc": runc}}, "cni": cni},
            _IMAGES: images,
        },
    }
    return merge(document, config.config)


_CRICTL = {"runtime-endpoint": _SOCKET, "image-endpoint": _SOCKET, "timeout": 10, "debug": False}


def _nerdctl_file(cluster: ClusterFile) -> str:
    """The guide leaves this file empty: nerdctl then looks into the namespace `default`, where no pod's image is."""
    if cluster.profile == "guide":
        return ""
    return toml.dump({"namespace": "k8s.io", "hosts_dir": [CERTS_D]})


def _mirrors(cluster: ClusterFile, config: Config) -> Mapping[str, Registry]:
    if config.mirrors is not None:
        return config.mirrors
    guide = {"docker.io": Registry(hosts=(Mirror(url="https://mirror.gcr.io"),))}
    return guide if cluster.profile == "guide" else {}


def _written(cluster: ClusterFile, config: Config) -> Mapping[str, Registry]:
    """The registries that have files. One without mirrors of its own needs one where `_default` would give it some."""
    mirrors = _mirrors(cluster, config)
    return {
        name: registry
        for name, registry in mirrors.items()
        if not registry.says_nothing or (DEFAULT in mirrors and name != DEFAULT)
    }


def _hosts_folders(context: Context[Config]) -> tuple[Directory, ...]:
    written = _written(context.cluster, context.config)
    return tuple(
        Directory(path=path)
        for name in written
        for path in registry_hosts.folders(name, beside_default=DEFAULT in written)
    )


def _hosts_files(context: Context[Config]) -> tuple[File, ...]:
    written = _written(context.cluster, context.config)
    return tuple(
        file
        for name, registry in written.items()
        for file in registry_hosts.files(name, registry, context.local_files, beside_default=DEFAULT in written)
    )


def _unmirrored(context: Context[Config]) -> tuple[Absent, ...]:
    written = _written(context.cluster, context.config)
    return tuple(
        Absent(path=hosts_path(name), reason=f"{name} has no mirrors in cluster.yaml")
        for name in _mirrors(context.cluster, context.config)
        if name not in written
    )


def _local_files(cluster: ClusterFile, config: Config) -> tuple[str, ...]:
    return tuple(
        path for registry in _written(cluster, config).values() for path in registry_hosts.local_files(registry)
    )


def _warnings(cluster: ClusterFile, config: Config) -> tuple[str, ...]:
    deprecated = cluster.profile == "guide" and at_least(cluster.versions.containerd, CNI_BIN_DIR.deprecated)
    cni = (warning(CNI_BIN_DIR, cluster.versions.containerd),) if deprecated else ()
    outdated = {"configs", "auths"} & _registry_settings(config).keys()
    credentials = (warning(REGISTRY_CREDENTIALS, cluster.versions.containerd),) if outdated else ()
    return (*_pair(cluster), *cni, *credentials, *_unproven_hosts(cluster, config))


def _pair(cluster: ClusterFile) -> tuple[str, ...]:
    kubernetes, mine = cluster.versions.kubernetes, cluster.versions.containerd
    if outlook.fits(kubernetes, mine):
        return ()
    better = f"{outlook.recommended(kubernetes)} ({PAIRS_SOURCE})"
    return (f"versions.containerd: {mine} is not what containerd recommends for kubernetes {kubernetes}: {better}",)


def _registry_settings(config: Config) -> Mapping[str, Any]:
    """What the operator's own `config` says of registries in config.toml."""
    found: Any = config.config
    for key in ("plugins", _IMAGES, "registry"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _unproven_hosts(cluster: ClusterFile, config: Config) -> tuple[str, ...]:
    """Hosts whose word is taken for a tag's digest without proof of who they are."""
    endpoints = [
        (name, url, endpoint.skip_verify)
        for name, registry in _mirrors(cluster, config).items()
        for url, endpoint in (
            (server_url(name, registry), registry),
            *((mirror.url, mirror) for mirror in registry.hosts),
        )
    ]
    return tuple(
        f"components.containerd.mirrors.{name}: {url or 'the server'} "
        + (
            "is not verified (skip_verify): whoever answers at its address decides what images hold"
            if skipped
            else "is plain http: whoever is on the way decides what images hold"
        )
        for name, url, skipped in endpoints
        if skipped or (url.startswith("http://") and not re.match(r"http://(localhost|127\.|\[::1\])", url))
    )


def _unit_file(context: Context[Config]) -> str:
    return unit.dump(
        {
            "Unit": {
                "Description": "containerd container runtime",
                "Documentation": "https://containerd.io",
                "After": "network.target local-fs.target dbus.service",
            },
            "Service": {
                "ExecStartPre": unit.Command(arguments=("/sbin/modprobe", "overlay"), prefix="-"),
                "ExecStart": unit.Command(
                    arguments=(f"{context.cluster.paths.bin_dir}/containerd", "--config", _CONFIG)
                ),
                "Type": "notify",
                "Delegate": "yes",
                "KillMode": "process",
                "Restart": "always",
                "RestartSec": "5",
                "LimitNPROC": "infinity",
                "LimitCORE": "infinity",
                "TasksMax": "infinity",
                "OOMScoreAdjust": "-999",
            },
            "Install": {"WantedBy": "multi-user.target"},
        }
    )


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    bin_dir, versions = context.cluster.paths.bin_dir, context.cluster.versions
    images = tuple(
        reference for path in context.config.preload_images for reference in context.archives[path].references
    )
    return (
        UnitActive(id="containerd.unit", unit=_UNIT),
        NodeCommand(id="containerd.ctr", command=(f"{bin_dir}/ctr", "version"), contains=versions.containerd),
        NodeCommand(id="containerd.cri", command=(f"{bin_dir}/crictl", "version"), contains=versions.containerd),
        NodeCommand(id="containerd.runc", command=(f"{bin_dir}/runc", "--version"), contains=versions.runc),
        NodeCommand(id="containerd.nerdctl", command=(f"{bin_dir}/nerdctl", "images", "--quiet"), contains=""),
        *(
            NodeCommand(
                id=f"containerd.image.{reference}",
                command=(f"{bin_dir}/ctr", "--namespace", "k8s.io", "images", "list", "--quiet", f"name=={reference}"),
                contains=reference,
            )
            for reference in images
        ),
        *_mirror_checks(context),
    )


def _mirror_checks(context: Context[Config]) -> Iterator[Check]:
    bin_dir, written = context.cluster.paths.bin_dir, _written(context.cluster, context.config)
    if written:
        yield NodeCommand(
            id="containerd.mirrors.config_path",
            # With what `config` merged over it: without this line containerd knows no mirror, and says nothing.
            command=(f"{bin_dir}/containerd", "--config", _CONFIG, "config", "dump"),
            contains=f"config_path = '{CERTS_D}'",
        )
    for file in _hosts_files(context):
        if file.secret:
            yield FileMode(id=f"containerd.mirrors.mode.{file.path}", path=file.path, mode=file.mode)
    for name, registry in written.items():
        yield from registry_hosts.pulls(name, registry, f"{bin_dir}/ctr", context.config.sandbox_image)


def _validate(cluster: ClusterFile, config: Config) -> None:
    if _registry_settings(config).get("mirrors"):
        raise SpecError(
            "registry.mirrors can't stand beside config_path: containerd would not load its image service",
            subject="components.containerd.config",
            hint="name them in components.containerd.mirrors",
        )
    if not at_least(cluster.versions.containerd, "2.0.0"):
        raise SpecError(
            f"containerd {cluster.versions.containerd} does not read config version 3",
            subject="versions.containerd",
            hint="use 2.0.0 or later",
        )


COMPONENT = Component(
    name="containerd",
    config=Config,
    stage=_stage,
    artifacts=_artifacts,
    archives=lambda _cluster, config: config.preload_images,
    local_files=_local_files,
    checks=_checks,
    validate=_validate,
    warnings=_warnings,
    after=("host", "kube_nginx"),
)
