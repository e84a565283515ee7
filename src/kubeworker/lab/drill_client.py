"""The two clients of a drill: a Go program (recipes/go/drill) in one node's network name space, that goes through the
node's API proxy with a certificate that may read one ConfigMap.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from kubeworker.core.artifacts.artifact import Artifact, GoBuild
from kubeworker.core.spec import Versions
from kubeworker.errors import LabError
from kubeworker.flow.events import Reporter
from kubeworker.io.whole_file import write_atomically
from kubeworker.lab import artifacts as lab_artifacts
from kubeworker.lab import pki
from kubeworker.lab.admin_api import AdminApi
from kubeworker.lab.drill_fault import undisturbed
from kubeworker.lab.pki import Pair, Subject
from kubeworker.lab.state import LabState

COMMAND = "apiclient"
USER = "kubeworker:drill"
_NAME, _NAMESPACE = "kubeworker-drill", "kube-system"
_LASTS = dt.timedelta(hours=2)

LIMIT_SECONDS = 2.0
"""What a request may take; then the client gives it up, and asks again."""
PAUSE_SECONDS = 0.1
"""Between two requests of a client."""
Ping: TypeAlias = tuple[int, int]
"""Seconds of silence after which the kept connection is pinged, and seconds that the answer has."""


def artifacts(_versions: Versions) -> tuple[Artifact, ...]:
    """The clients' program; a lab alone needs it."""
    build = GoBuild(module="drill", package=f"kubeworker.invalid/{COMMAND}")
    return (Artifact(name=COMMAND, version="1.0.0", build=build, report=()),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the clients run with."""

    program: Path
    cert: Path
    key: Path


@contextlib.contextmanager
def credentials(lab: LabState, report: Reporter) -> Iterator[Credentials]:
    """The program, a certificate, and the right to read one ConfigMap; all but the program is gone afterwards."""
    program = lab.folder / "bin" / COMMAND
    found = asyncio.run(lab_artifacts.fetch(lab.cluster_yaml, report, artifacts))
    lab_artifacts.place(found[COMMAND], program)
    folder = lab.folder / "drill"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        authority = Pair(cert=lab.ca.read_bytes(), key=lab.ca_key.read_bytes())
        pair = pki.issue(authority, Subject(common_name=USER, client=True), dt.datetime.now(dt.UTC), lasts=_LASTS)
        for name, content in (("client.pem", pair.cert), ("client-key.pem", pair.key)):
            write_atomically(folder / name, content, mode=0o600)
        _grant(AdminApi(lab, lab.control_plane[0]))
        yield Credentials(program=program, cert=folder / "client.pem", key=folder / "client-key.pem")
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)
            _revoke(lab)


def objects() -> tuple[tuple[str, dict[str, Any]], ...]:
    """What the clients ask for and what allows it: path of the collection, and document."""
    metadata = {"name": _NAME, "namespace": _NAMESPACE}
    group = "rbac.authorization.k8s.io"
    rbac = f"/apis/{group}/v1/namespaces/{_NAMESPACE}"
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [_NAME], "verbs": ["get", "watch"]}
    binding = {
        "roleRef": {"apiGroup": group, "kind": "Role", "name": _NAME},
        "subjects": [{"apiGroup": group, "kind": "User", "name": USER}],
    }
    return (
        (
            f"/api/v1/namespaces/{_NAMESPACE}/configmaps",
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata},
        ),
        (f"{rbac}/roles", {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]}),
        (
            f"{rbac}/rolebindings",
            {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": metadata, **binding},
        ),
    )


def _grant(api: AdminApi) -> None:
    for path, document in objects():
        status, answer = api.ask("POST", path, document)
        if status not in {201, 409}:  # 409: a drill that was killed left it
            raise LabError(f"{path}: {answer.get('message', status)}", subject=api.machine.name)


def _revoke(lab: LabState) -> None:
    """With any kube-apiserver that answers: one that a drill was interrupted with does not, for some seconds."""
    for machine in lab.control_plane:
        api = AdminApi(lab, machine)
        with contextlib.suppress(LabError):
            answers = [api.ask("DELETE", f"{path}/{_NAME}")[0] for path, _ in reversed(objects())]
            if all(status in {200, 404} for status in answers):
                return
    raise LabError(f"{_NAMESPACE}/{_NAME} (ConfigMap, Role, RoleBinding) could not be removed", subject=lab.name)


@dataclass(slots=True, kw_only=True)
class Told:
    """What the clients have told so far; times are of time.monotonic()'s clock."""

    answers: dict[str, list[float]] = field(default_factory=lambda: {"kept": [], "dial": []})
    """By client, when good answers came."""
    failures: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: {"kept": [], "dial": []})
    servers: list[tuple[float, str]] = field(default_factory=list)
    """When the kept connection was seen to lead to which HOST:PORT."""
    watches: list[tuple[float, str]] = field(default_factory=list)
    """When a watch was opened, with an empty text; or ended, and why."""

    def add(self, line: Mapping[str, Any]) -> None:
        """One line of the program's output."""
        match line:
            case {"what": "server", "at": at, "server": server}:
                self.servers.append((at, server))
            case {"what": "watch", "at": at}:
                self.watches.append((at, line.get("error", "")))
            case {"what": "get", "client": client, "at": at, "error": error}:
                self.failures[client].append((at, error))
            case {"what": "get", "client": client, "at": at}:
                self.answers[client].append(at)

    def errors(self, client: str, since: float) -> dict[str, int]:
        """Failed requests by reason: the last part of Go's chain, such as `context deadline exceeded`."""
        return dict(Counter(error.rpartition(": ")[2] for at, error in self.failures[client] if at >= since))

    def steady(self, since: float, *, answers: int = 5) -> bool:
        """Whether both clients were answered so often from then on, without a failure."""
        return all(
            sum(at > since for at in self.answers[client]) >= answers
            and not any(at > since for at, _ in self.failures[client])
            for client in self.answers
        )


class Clients:
    """Both clients while they run; `told` grows with each `read`."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """Not called directly: see `running`."""
        self._process = process
        self._output = output.open("rb")
        self._rest = b""
        self.told = Told()

    def read(self) -> None:
        """Take in what was said meanwhile; LabError where the program has ended."""
        *lines, self._rest = (self._rest + self._output.read()).split(b"\n")
        for line in lines:
            self.told.add(json.loads(line))
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            said = self._process.stderr.read().decode(errors="replace").strip()
            raise LabError(f"the clients ended: {said or self._process.returncode}", subject=COMMAND)

    def close(self) -> None:
        """End them: by the end of their standard input."""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()
        self._output.close()


def ping(environment: Mapping[str, str]) -> Ping:
    """How client-go pings in a process with this environment (apimachinery, util/net/http.go)."""
    idle = environment.get("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "30")
    answer = environment.get("HTTP2_PING_TIMEOUT_SECONDS", "15")
    return int(idle), int(answer)


@contextlib.contextmanager
def running(lab: LabState, given: Credentials, *, pid: int, server: str, pings: Ping) -> Iterator[Clients]:
    """The clients, in the network name space of `pid`, of `server` (HOST:PORT) there."""
    collection = objects()[0][0]
    options = {
        "server": f"https://{server}",
        "ca": lab.ca,
        "cert": given.cert,
        "key": given.key,
        "object": f"{collection}/{_NAME}",
        "watch": f"{collection}?watch=1&fieldSelector=metadata.name%3D{_NAME}",
        "limit": f"{LIMIT_SECONDS}s",
        "pause": f"{PAUSE_SECONDS}s",
        "read-idle": f"{pings[0]}s",
        "ping": f"{pings[1]}s",
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    output = given.cert.with_name("said.jsonl")
    with output.open("wb") as file:
        # In a session of its own: Ctrl-C in a terminal reaches every process of its group.
        process = subprocess.Popen(
            ["nsenter", f"--target={pid}", "--net", str(given.program), *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    clients = Clients(process, output)
    try:
        yield clients
    finally:
        with undisturbed():
            clients.close()
