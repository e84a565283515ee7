"""Container registries on a lab's machines: the CNCF Distribution registry as systemd units, each with TLS.

What one serves lies in a folder that several may share: an upstream and its mirrors then hold the same images, and who
was asked is in each one's journal.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, SourceEdit
from kubeworker.core.spec import Versions
from kubeworker.errors import LabError
from kubeworker.flow.events import Reporter, silent
from kubeworker.lab import artifacts as lab_artifacts
from kubeworker.lab import machine as machines
from kubeworker.lab import pki
from kubeworker.lab.control_plane import BIN
from kubeworker.lab.pki import Pair, Subject
from kubeworker.lab.state import LabState, Machine

VERSION = "3.1.2"
COMMAND = "registry"
MODULE = "github.com/distribution/distribution/v3"
FOLDER = "/etc/lab-registry"
DATA = "/data/lab-registry"
_UNITS = "lab-registry-"

# The clients of three clouds: a lab's images lie on disk, and these are most of the command's size and build time.
_CLOUDS = ("azure", "gcs", "middleware/cloudfront", "s3-aws")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One registry on one machine."""

    name: str
    """Of its unit lab-registry-NAME.service."""
    port: int
    names: tuple[str, ...] = ()
    """DNS names in its certificate, beside the machine's name and address."""
    store: str = "store"
    """Name of the folder with its images: registries with the same one serve the same."""
    client_ca: bytes = b""
    """PEM: only clients with a certificate of this CA are spoken to."""
    htpasswd: str = ""
    """Lines of htpasswd(1) with bcrypt: only these users are spoken to (HTTP basic authentication)."""
    remote: str = ""
    """URL of another registry that it fetches from what it has not got (pull-through); it takes no pushes then."""
    remote_ca: bytes = b""
    """PEM: the CA of that one's certificate."""

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"{_UNITS}{self.name}.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request that a registry answered."""

    method: str
    host: str
    """The Host header: whom the client wanted to speak to."""
    path: str
    """With the query: `?ns=` names the registry that is mirrored."""
    status: int
    agent: str


def artifacts(_versions: Versions) -> tuple[Artifact, ...]:
    """The registry's command; a lab alone needs it."""
    drivers = f"{MODULE}/registry/storage/driver"
    return (
        Artifact(
            name=COMMAND,
            version=VERSION,
            build=GoBuild(
                module="distribution",
                package=f"{MODULE}/cmd/registry",
                ldflags=f"-s -w -X {MODULE}/version.version=v{VERSION}",
                edits=tuple(
                    SourceEdit(
                        package=f"{MODULE}/cmd/registry", file="main.go", old=f'\t_ "{drivers}/{cloud}"\n', new=""
                    )
                    for cloud in _CLOUDS
                ),
            ),
        ),
    )


def install(lab: LabState, report: Reporter = silent) -> None:
    """Put the command where the control plane's machines find it."""
    target = lab.folder / "bin" / COMMAND
    if target.exists():
        return
    found = asyncio.run(lab_artifacts.fetch(lab.cluster_yaml, report, artifacts))
    lab_artifacts.place(found[COMMAND], target)


def start(lab: LabState, machine: Machine, servers: Mapping[Server, Pair]) -> None:
    """Run these registries, each with a certificate of its authority, until they answer; LabError if one does not."""
    install(lab)
    now = dt.datetime.now(dt.UTC)
    wanted = {
        path: content
        for server, authority in servers.items()
        for path, content in files(server, _certificate(machine, server, authority, now)).items()
    }
    units = shlex.join(server.unit for server in servers)
    lines = [
        "set -e; umask 077",
        *(
            f"mkdir -p {shlex.quote(path.rpartition('/')[0])}; "
            f"echo {base64.b64encode(content).decode()} | base64 -d > {shlex.quote(path)}"
            for path, content in wanted.items()
        ),
        "systemctl daemon-reload",
        f"systemctl restart -- {units}",
        *(
            f"{listening(server)} || {{ journalctl --no-pager -n 5 -o cat -u {shlex.quote(server.unit)}; exit 1; }}"
            for server in servers
        ),
    ]
    done = machines.run(lab, machine, "\n".join(lines))
    if done.returncode != 0:
        raise LabError(f"a registry does not start: {done.stdout}{done.stderr}".strip(), subject=machine.name)


def listening(server: Server, *, seconds: int = 20) -> str:
    """POSIX sh that waits until the registry takes connections; it fails after so many seconds."""
    return f"timeout {seconds} sh -c 'until ss -Hltn sport = :{server.port} | grep -q .; do sleep 0.1; done'"


def remove(lab: LabState, machine: Machine) -> None:
    """Stop every registry of the machine and remove what they had; does nothing where there is none."""
    machines.run(
        lab,
        machine,
        f"systemctl stop '{_UNITS}*.service'; rm -rf {FOLDER} {DATA} /etc/systemd/system/{_UNITS}*.service;"
        f"systemctl daemon-reload; systemctl reset-failed '{_UNITS}*.service'",
    )


def requests(lab: LabState, machine: Machine) -> dict[str, tuple[Request, ...]]:
    """All that the machine's registries have answered since their first start, by name."""
    fields = "--output=json --output-fields=MESSAGE,_SYSTEMD_UNIT"
    done = machines.run(lab, machine, f"journalctl --no-pager --quiet {fields} -u '{_UNITS}*'")
    return journal(done.stdout)


def journal(text: str) -> dict[str, tuple[Request, ...]]:
    """The requests in what `journalctl --output=json` prints of the registries' units, by registry."""
    found: dict[str, list[Request]] = {}
    for line in text.splitlines():
        entry = json.loads(line)
        said = str(entry["MESSAGE"])
        name = entry.get("_SYSTEMD_UNIT", "").removeprefix(_UNITS).removesuffix(".service")
        if said.startswith("{") and (request := _request(json.loads(said))):
            found.setdefault(name, []).append(request)
    return {name: tuple(requests) for name, requests in found.items()}


def files(server: Server, certificate: Pair) -> dict[str, bytes]:
    """The registry's files by path: its unit too."""
    base = f"{FOLDER}/{server.name}"
    found = {
        f"{base}/config.yml": yaml.safe_dump(_config(server), sort_keys=False).encode(),
        f"{base}/cert.pem": certificate.cert,
        f"{base}/key.pem": certificate.key,
        f"/etc/systemd/system/{server.unit}": _unit(server).encode(),
    }
    for name, content in (
        ("client-ca.pem", server.client_ca),
        ("htpasswd", server.htpasswd.encode()),
        ("remote-ca.pem", server.remote_ca),
    ):
        if content:
            found[f"{base}/{name}"] = content
    return found


def _certificate(machine: Machine, server: Server, authority: Pair, now: dt.datetime) -> Pair:
    names = (machine.address, machine.name, *server.names)
    return pki.issue(authority, Subject(common_name=f"registry-{server.name}", names=names, server=True), now)


def _config(server: Server) -> dict[str, object]:
    base = f"{FOLDER}/{server.name}"
    tls: dict[str, object] = {"certificate": f"{base}/cert.pem", "key": f"{base}/key.pem"}
    if server.client_ca:
        tls["clientcas"] = [f"{base}/client-ca.pem"]
    document: dict[str, object] = {
        "version": 0.1,
        # JSON with a line for each answer; the access log of the same would lack the Host header.
        "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": f"{DATA}/{server.store}"}},
        "http": {"addr": f":{server.port}", "tls": tls},
    }
    if server.htpasswd:
        document["auth"] = {"htpasswd": {"realm": "lab", "path": f"{base}/htpasswd"}}
    if server.remote:
        document["proxy"] = {"remoteurl": server.remote}
    return document


def _unit(server: Server) -> str:
    trust = f"\nEnvironment=SSL_CERT_FILE={FOLDER}/{server.name}/remote-ca.pem" if server.remote_ca else ""
    return f"""\
[Unit]
Description=Container registry {server.name}
After=network-online.target
Wants=network-online.target

[Service]
Environment=OTEL_TRACES_EXPORTER=none{trust}
ExecStart={BIN}/{COMMAND} serve {FOLDER}/{server.name}/config.yml
Restart=on-failure
TimeoutStopSec=2
"""


def _request(said: Mapping[str, Any]) -> Request | None:
    if said.get("msg") != "response completed":
        return None
    return Request(
        method=said["http.request.method"],
        host=said["http.request.host"],
        path=said["http.request.uri"],
        status=said["http.response.status"],
        agent=said.get("http.request.useragent", ""),
    )
