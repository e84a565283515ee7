"""kube-nginx: a TCP proxy on each node's loopback that balances over every kube-apiserver."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kubeworker.core.artifact import Artifact, ConfigureBuild
from kubeworker.core.component import Component, ComponentConfig, Context, binary
from kubeworker.core.formats import nginx, unit
from kubeworker.core.formats.nginx import Block
from kubeworker.core.model import (
    Check,
    ConfigCheck,
    Directory,
    File,
    Gate,
    Http,
    Listening,
    ProxyReaches,
    RequirePort,
    Stage,
    TlsEndpoint,
    Unit,
    UnitActive,
)
from kubeworker.core.spec import API_PROXY, ClusterFile, Endpoint

Balance = Literal["least_conn", "hash"]


def _loopback(value: str) -> str:
    host = value.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(f"{value!r}: kube-nginx listens on an IP address") from error
    if not address.is_loopback:
        raise ValueError(f"{value!r} is not a loopback address: the proxy would offer the API to the whole network")
    return value


class Config(ComponentConfig):
    """`components.kube_nginx`: the local way to the API servers."""

    listen: Annotated[Endpoint, AfterValidator(_loopback)] = API_PROXY
    """Loopback address:port. The API servers' certificate must be valid for this address."""
    balance: Balance | None = None
    """least_conn, with the server order shuffled per node, spreads a fleet over all API servers. hash is the guide's:
    every client is 127.0.0.1 there, so that all nodes choose the same API server. Default: least_conn; with
    `profile: guide` hash."""
    max_fails: int = Field(default=3, ge=0)
    """Failed connections within fail_timeout after which an API server is left alone for fail_timeout."""
    fail_timeout: int = Field(default=30, gt=0)
    """Seconds."""
    connect_timeout: int = Field(default=1, gt=0)
    """Seconds until the next API server is tried."""
    idle_timeout: int = Field(default=60, gt=0)
    """Seconds without a byte in either direction after which a session is cut (nginx: 10 min). A live HTTP/2 client is
    never silent that long: kubelet and kube-proxy ping every 10 s, others every 30 s. Not in `profile: guide`."""


_LIBRARIES = ("libc", "libcrypt")
"""What the guide's `ldd` shows."""


def _artifacts(cluster: ClusterFile, _config: Config) -> tuple[Artifact, ...]:
    version = cluster.versions.nginx
    build = ConfigureBuild(
        source_url=f"https://nginx.org/download/nginx-{version}.tar.gz",
        debian_source="nginx",
        configure=(
            "--with-stream",
            "--without-http",
            "--without-http_uwsgi_module",
            "--without-http_scgi_module",
            "--without-http_fastcgi_module",
        ),
        binary="objs/nginx",
    )
    # nginx.org publishes no binary tarball, so there is nothing to download.
    return (
        Artifact(
            name="kube-nginx",
            version=version,
            build=build,
            report=("-v",),
            libraries=_LIBRARIES,
            dynamic=True,
            field="versions.nginx",
        ),
    )


def _root(cluster: ClusterFile) -> str:
    """The guide's /opt/k8s/kube-nginx, beside bin_dir."""
    return f"{cluster.paths.bin_dir.rpartition('/')[0]}/kube-nginx"


def _stage(context: Context[Config]) -> Stage:
    root, listen = _root(context.cluster), context.config.listen
    (artifact,) = _artifacts(context.cluster, context.config)
    program = binary(artifact, f"{root}/sbin", context.blobs)
    conf = f"{root}/conf/kube-nginx.conf"
    return Stage(
        component="kube_nginx",
        requirements=(RequirePort(port=int(listen.rpartition(":")[2]), unit="kube-nginx.service"),),
        directories=tuple(Directory(path=path) for path in (root, f"{root}/conf", f"{root}/logs", f"{root}/sbin")),
        binaries=(program,),
        files=(File(path=conf, content=_config_file(context).encode()),),
        config_checks=_config_checks(root, program.path, conf),
        units=(
            Unit(
                name="kube-nginx.service",
                content=_unit_file(context, root),
                restart_on=(program.path,),
                reload_on=(conf,),
                forks_workers=True,
                gate=Gate(listen=(listen,), timeout=30),
            ),
        ),
        tls_endpoints=(
            TlsEndpoint(
                address=listen,
                hint=f"nodes reach the API through {listen}: add {listen.rpartition(':')[0]} to the subject "
                "alternative names of every kube-apiserver's serving certificate (`hosts` in its CSR)",
            ),
        ),
    )


def _config_checks(root: str, program: str, conf: str) -> tuple[ConfigCheck, ...]:
    return (
        ConfigCheck(
            name="kube-nginx -v",
            command=(f"{{{program}}}", "-v"),
            inputs=(program,),
            hint="the binary does not run on this node: its libraries (libc, libcrypt) are older or missing here",
        ),
        ConfigCheck(
            name="kube-nginx -t",
            command=(f"{{{program}}}", "-c", f"{{{conf}}}", "-p", root, "-t"),
            inputs=(program, conf),
        ),
    )


def _config_file(context: Context[Config]) -> str:
    config, guide = context.config, context.cluster.profile == "guide"
    balance = config.balance or ("hash" if guide else "least_conn")
    limits = (f"max_fails={config.max_fails}", f"fail_timeout={config.fail_timeout}s")
    servers = context.cluster.cluster.apiservers if guide else _shuffled(context)
    method = ("hash", "$remote_addr", "consistent") if balance == "hash" else ("least_conn",)
    # nginx -p moves logs/, and its own default name is logs/nginx.pid, which the unit would wait for in vain.
    head: tuple[nginx.Directive, ...] = (
        # Without it the group is the build host's (nobody or nogroup), which may not exist here.
        ("user", "daemon", "daemon"),
        ("worker_processes", "1"),
        ("pid", "logs/kube-nginx.pid"),
        # To the journal: nothing rotates logs/error.log.
        *(() if guide else (("error_log", "stderr", "warn"),)),
    )
    timeouts = (
        ("proxy_timeout", f"{config.idle_timeout}s"),
        ("proxy_socket_keepalive", "on"),
    )
    server = Block(
        name="server",
        body=(
            ("listen", config.listen),
            ("proxy_connect_timeout", f"{config.connect_timeout}s"),
            *(() if guide else timeouts),
            ("proxy_pass", "backend"),
        ),
    )
    upstream = Block(
        name="upstream", arguments=("backend",), body=(method, *(("server", name, *limits) for name in servers))
    )
    return nginx.dump(
        (
            *head,
            Block(name="events", body=(("worker_connections", "1024"),)),
            Block(name="stream", body=(upstream, server)),
        )
    )


def _shuffled(context: Context[Config]) -> tuple[str, ...]:
    """The API servers in an order of this node's own, the same at each run; so ties go elsewhere on each node."""

    def rank(server: str) -> bytes:
        return hashlib.sha256(f"{context.node.name} {server}".encode()).digest()

    return tuple(sorted(context.cluster.cluster.apiservers, key=rank))


def _unit_file(context: Context[Config], root: str) -> str:
    start = (f"{root}/sbin/kube-nginx", "-c", f"{root}/conf/kube-nginx.conf", "-p", root)
    service: dict[str, unit.Value] = {
        "Type": "forking",
        "PIDFile": f"{root}/logs/kube-nginx.pid",
        "ExecStartPre": unit.Command(arguments=(*start, "-t")),
        "ExecStart": unit.Command(arguments=start),
        "ExecReload": unit.Command(arguments=(*start, "-s", "reload")),
        "PrivateTmp": "true",
        "Restart": "always",
        "RestartSec": "5",
        "LimitNOFILE": "65536",
    }
    limit = {"StartLimitIntervalSec": "0"}
    if context.cluster.profile == "guide":
        service["StartLimitInterval"] = "0"
        limit = {}
    return unit.dump(
        {
            "Unit": {
                "Description": "kube-apiserver nginx proxy",
                "After": ("network.target", "network-online.target"),
                "Wants": "network-online.target",
                **limit,
            },
            "Service": service,
            "Install": {"WantedBy": "multi-user.target"},
        }
    )


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    host, _, port = context.config.listen.rpartition(":")
    return (
        UnitActive(id="kube_nginx.unit", unit="kube-nginx.service"),
        Listening(id="kube_nginx.listen", port=int(port), addresses=(host.strip("[]"),)),
        *(
            ProxyReaches(id=f"kube_nginx.apiserver.{server}", apiserver=server)
            for server in context.cluster.cluster.apiservers
        ),
        Http(id="kube_nginx.proxy", url=f"https://{context.config.listen}/readyz", caller="admin", contains="ok"),
    )


COMPONENT = Component(
    name="kube_nginx", config=Config, stage=_stage, artifacts=_artifacts, checks=_checks, after=("host",)
)
