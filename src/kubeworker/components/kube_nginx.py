"""kube-nginx: a TCP proxy on each node's loopback that balances over every kube-apiserver.

Beside it a probe takes those that are not ready out of its list (core/api_proxy/apiserver_probe.py).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kubeworker.core.api_proxy import apiserver_probe
from kubeworker.core.artifacts.artifact import Artifact, ConfigureBuild
from kubeworker.core.component import Component, ComponentConfig, Context, binary
from kubeworker.core.formats import nginx, unit
from kubeworker.core.formats.nginx import Block
from kubeworker.core.model import (
    AbsentUnit,
    Check,
    ConfigCheck,
    Directory,
    File,
    Gate,
    Http,
    Listening,
    NodeCommand,
    ProxyReaches,
    RequireCommand,
    RequirePort,
    Stage,
    TlsEndpoint,
    Unit,
    UnitActive,
)
from kubeworker.core.node.probe import KUBELET_CLIENT_CERT
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
    """least_conn, with one preferred server for each node, spreads a fleet over all API servers. hash is the guide's:
    every client is 127.0.0.1 there, so that all nodes choose the same API server. Default: least_conn; with
    `profile: guide` hash."""
    probe: bool | None = None
    """Ask every API server's /readyz from each node, and leave out those that are not ready. Where one is lost or comes
    back, the node's sessions are cut so that clients dial anew. off: nginx notices refused connections only, as with
    the guide's configuration. Default: on; with `profile: guide` off. With one API server there is no probe."""
    probe_seconds: int = Field(default=1, ge=1, le=10)
    """How often, in seconds. Each question is a TLS handshake at each API server: of 1000 nodes, 1000 a second."""
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


_UNIT = "kube-nginx.service"
_PROBE_UNIT = "kube-nginx-probe.service"
_RUN = "/run/kube-nginx"
"""State that the probe keeps while the machine is up (core/api_proxy/apiserver_probe.py): no managed file."""


def _probed(cluster: ClusterFile, config: Config) -> bool:
    wanted = cluster.profile != "guide" if config.probe is None else config.probe
    return wanted and len(cluster.cluster.apiservers) > 1


def _stage(context: Context[Config]) -> Stage:
    root, listen = _root(context.cluster), context.config.listen
    (artifact,) = _artifacts(context.cluster, context.config)
    program = binary(artifact, f"{root}/sbin", context.blobs)
    conf = f"{root}/conf/kube-nginx.conf"
    probed = _probed(context.cluster, context.config)
    probe_files = _probe_files(context, root)
    lists = (_apiservers(root),) if probed else ()
    proxy = Unit(
        name=_UNIT,
        content=_unit_file(context, root),
        restart_on=(program.path,),
        reload_on=(conf, *lists),
        forks_workers=True,
        gate=Gate(listen=(listen,), timeout=30),
    )
    probe = Unit(
        name=_PROBE_UNIT,
        content=_probe_unit_file(root),
        restart_on=tuple(file.path for file in probe_files),
        # It asks once before it says anything.
        gate=Gate(command=("test", "-s", f"{_RUN}/status"), otherwise="the probe has not asked the API servers"),
    )
    away = AbsentUnit(
        name=_PROBE_UNIT,
        reason="there is one API server only" if len(context.cluster.cluster.apiservers) == 1 else "probe is off",
        paths=tuple(file.path for file in probe_files),
    )
    return Stage(
        component="kube_nginx",
        requirements=(
            RequirePort(port=int(listen.rpartition(":")[2]), unit=_UNIT),
            *((RequireCommand(name="curl", package="curl"),) if probed else ()),
        ),
        directories=tuple(Directory(path=path) for path in (root, f"{root}/conf", f"{root}/logs", f"{root}/sbin")),
        binaries=(program,),
        files=(File(path=conf, content=_config_file(context).encode()), *(probe_files if probed else ())),
        config_checks=_config_checks(root, program.path, conf, *lists),
        units=(proxy, probe) if probed else (proxy,),
        absent_units=() if probed else (away,),
        tls_endpoints=(
            TlsEndpoint(
                address=listen,
                hint=f"nodes reach the API through {listen}: add {listen.rpartition(':')[0]} to the subject "
                "alternative names of every kube-apiserver's serving certificate (`hosts` in its CSR)",
            ),
        ),
    )


def _apiservers(root: str) -> str:
    """The file with every API server; the probe writes those that are ready to another one."""
    return f"{root}/conf/apiservers.conf"


def _probe_files(context: Context[Config], root: str) -> tuple[File, ...]:
    ca = f"{root}/conf/ca.pem"
    program = apiserver_probe.script(
        apiservers=_apiservers(root),
        folder=_RUN,
        ca=ca,
        client_cert=KUBELET_CLIENT_CERT,
        # By systemd, which knows the main process; a pid file may be an earlier one's.
        reload=("systemctl", "kill", "--kill-who=main", "--signal=HUP", _UNIT),
        slot=apiserver_probe.slot(context.node.address),
        seconds=context.config.probe_seconds,
    )
    return (
        File(path=_apiservers(root), content=nginx.dump(_servers(context)).encode()),
        File(path=ca, content=context.credentials.ca_cert),
        File(path=f"{root}/sbin/kube-nginx-probe", content=program.encode(), mode=0o755),
    )


def _config_checks(root: str, program: str, conf: str, apiservers: str = "") -> tuple[ConfigCheck, ...]:
    test: tuple[str, ...] = (f"{{{program}}}", "-c", f"{{{conf}}}", "-p", root, "-t")
    if apiservers:
        # The included list as it is about to be, instead of the one that is in use.
        instead = 'sed "s|include .*;|include $2;|" "$1" > "$3/test.conf" && exec "$4" -c "$3/test.conf" -p "$5" -t'
        test = ("sh", "-c", instead, "sh", f"{{{conf}}}", f"{{{apiservers}}}", "{tmp}", f"{{{program}}}", root)
    return (
        ConfigCheck(
            name="kube-nginx -v",
            command=(f"{{{program}}}", "-v"),
            inputs=(program,),
            hint="the binary does not run on this node: its libraries (libc, libcrypt) are older or missing here",
        ),
        ConfigCheck(
            name="kube-nginx -t",
            command=test,
            inputs=tuple(filter(None, (program, conf, apiservers))),
        ),
    )


def _config_file(context: Context[Config]) -> str:
    config, guide = context.config, context.cluster.profile == "guide"
    probed = _probed(context.cluster, config)
    servers = (("include", f"{_RUN}/upstream.conf"),) if probed else _servers(context)
    method = ("hash", "$remote_addr", "consistent") if _balance(context) == "hash" else ("least_conn",)
    # nginx -p moves logs/, and its own default name is logs/nginx.pid, which the unit would wait for in vain.
    head: tuple[nginx.Directive, ...] = (
        # Without it the group is the build host's (nobody or nogroup), which may not exist here.
        ("user", "daemon", "daemon"),
        ("worker_processes", "1"),
        ("pid", "logs/kube-nginx.pid"),
        # To the journal: nothing rotates logs/error.log.
        *(() if guide else (("error_log", "stderr", "warn"),)),
        # What the probe's changes are for: the former list's sessions end, and clients dial anew.
        *((("worker_shutdown_timeout", "500ms"),) if probed else ()),
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
    upstream = Block(name="upstream", arguments=("backend",), body=(method, *servers))
    return nginx.dump(
        (
            *head,
            Block(name="events", body=(("worker_connections", "1024"),)),
            Block(name="stream", body=(upstream, server)),
        )
    )


_PREFERENCE = "weight=100"
"""As many sessions has a server before least_conn takes another: all of a node's. With fewer sessions than that, which
is each node's case, a node stays with one server, so that the fleet's spread is no matter of chance."""


def _servers(context: Context[Config]) -> tuple[nginx.Directive, ...]:
    config = context.config
    limits = (f"max_fails={config.max_fails}", f"fail_timeout={config.fail_timeout}s")
    if _balance(context) == "hash":
        names = context.cluster.cluster.apiservers if context.cluster.profile == "guide" else _shuffled(context)
        return tuple(("server", name, *limits) for name in names)
    first, *others = _preferred_first(context)
    return (("server", first, _PREFERENCE, *limits), *(("server", name, *limits) for name in others))


def _balance(context: Context[Config]) -> Balance:
    return context.config.balance or ("hash" if context.cluster.profile == "guide" else "least_conn")


def _preferred_first(context: Context[Config]) -> tuple[str, ...]:
    """The node's own API server, then the others in an order of its own: they share a lost one's nodes."""
    servers = context.cluster.cluster.apiservers
    first = servers[apiserver_probe.preferred(context.node.address, len(servers))]
    return (first, *(name for name in _shuffled(context) if name != first))


def _shuffled(context: Context[Config]) -> tuple[str, ...]:
    """The API servers in an order of this node's own, the same at each run."""

    def rank(server: str) -> bytes:
        return hashlib.sha256(f"{context.node.name} {server}".encode()).digest()

    return tuple(sorted(context.cluster.cluster.apiservers, key=rank))


def _unit_file(context: Context[Config], root: str) -> str:
    start = (f"{root}/sbin/kube-nginx", "-c", f"{root}/conf/kube-nginx.conf", "-p", root)
    probed = _probed(context.cluster, context.config)
    # Every API server: what it finds, the probe takes out of it again. The second file says what nginx has read.
    whole = tuple(
        unit.Command(arguments=("/bin/cp", "-f", "--remove-destination", _apiservers(root), f"{_RUN}/{name}"))
        for name in (("upstream.conf", "loaded.conf") if probed else ())
    )
    service: dict[str, unit.Value | Sequence[unit.Value]] = {
        "Type": "forking",
        "PIDFile": f"{root}/logs/kube-nginx.pid",
        **(_RUN_FOLDER if probed else {}),
        "ExecStartPre": (*whole, unit.Command(arguments=(*start, "-t"))),
        "ExecStart": unit.Command(arguments=start),
        "ExecReload": (*whole, unit.Command(arguments=(*start, "-s", "reload"))),
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


_RUN_FOLDER = {"RuntimeDirectory": "kube-nginx", "RuntimeDirectoryPreserve": "yes"}
"""Of both units, and there until the machine goes down: one of them may be restarted while the other works."""


def _probe_unit_file(root: str) -> str:
    return unit.dump(
        {
            "Unit": {
                "Description": "readiness probe of kube-apiservers for kube-nginx",
                "After": ("network-online.target", _UNIT),
                "Wants": "network-online.target",
                "StartLimitIntervalSec": "0",
            },
            "Service": {
                "ExecStart": unit.Command(arguments=(f"{root}/sbin/kube-nginx-probe",)),
                **_RUN_FOLDER,
                "Restart": "always",
                "RestartSec": "1",
                # It reads kubelet's key, which is root's, and signals nginx; it needs nothing else.
                "NoNewPrivileges": "true",
                "ProtectSystem": "strict",
                "ProtectHome": "true",
                "PrivateTmp": "true",
            },
            "Install": {"WantedBy": "multi-user.target"},
        }
    )


def _checks(context: Context[Config]) -> tuple[Check, ...]:
    host, _, port = context.config.listen.rpartition(":")
    return (
        UnitActive(id="kube_nginx.unit", unit=_UNIT),
        Listening(id="kube_nginx.listen", port=int(port), addresses=(host.strip("[]"),)),
        *(
            ProxyReaches(id=f"kube_nginx.apiserver.{server}", apiserver=server)
            for server in context.cluster.cluster.apiservers
        ),
        *(_probe_checks(context.config) if _probed(context.cluster, context.config) else ()),
        Http(id="kube_nginx.proxy", url=f"https://{context.config.listen}/readyz", caller="admin", contains="ok"),
    )


def _probe_checks(config: Config) -> tuple[Check, ...]:
    # The unit may be active and hang all the same.
    recent = f"-{3 * config.probe_seconds + 5} seconds"
    return (
        UnitActive(id="kube_nginx.probe", unit=_PROBE_UNIT),
        NodeCommand(
            id="kube_nginx.probe_asks",
            command=("find", _RUN, "-name", ".answer.1", "-newermt", recent),
            contains=".answer.1",
        ),
    )


COMPONENT = Component(
    name="kube_nginx", config=Config, stage=_stage, artifacts=_artifacts, checks=_checks, after=("host",)
)
