"""The guide's environment.sh (and kube-nginx.conf) as the values of a cluster.yaml with `profile: guide`.

Nothing is guessed: what the tool needs and can't be told from the file is an error that names the line and a way out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kubeworker.core.formats.nginx import Block, Statement
from kubeworker.core.guide.environment_sh import Environment
from kubeworker.core.spec import API_PROXY, ClusterFile
from kubeworker.errors import GuideFileError

API_PORT = 6443
"""Where the guide's kube-apiservers listen; environment.sh does not say."""

_NEEDED = ("NODE_IPS", "NODE_NAMES", "CLUSTER_CIDR", "SERVICE_CIDR", "CLUSTER_DNS_SVC_IP")
_FIELDS = {
    "CLUSTER_CIDR": "cluster.cluster_cidr",
    "SERVICE_CIDR": "cluster.service_cidr",
    "CLUSTER_DNS_DOMAIN": "cluster.dns_domain",
    "CLUSTER_DNS_SVC_IP": "cluster.dns_service_ip",
    "K8S_DIR": "paths.k8s_dir",
    "CONTAINERD_DIR": "paths.containerd_dir",
}
"""Names whose value is a field's value."""
USED = (*_NEEDED, "CLUSTER_DNS_DOMAIN", "K8S_DIR", "CONTAINERD_DIR", "KUBE_APISERVER", "ETCD_ENDPOINTS")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideInputs:
    """What the guide's files say, as fields of cluster.yaml."""

    values: Mapping[str, Any]
    """By field: cluster.cluster_cidr, components.kube_nginx.listen."""
    nodes: tuple[tuple[str, str], ...]
    """Name and address of each."""
    notes: Mapping[str, str]
    """By field: where its value comes from, where that does not go without saying."""
    remarks: tuple[str, ...]
    """What was kept out, a line each; never a value that was not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    subject: str
    message: str
    hint: str = ""


def from_environment(
    environment: Environment, *, subject: str, servers: tuple[str, tuple[str, ...]] | None
) -> GuideInputs:
    """The fields of a cluster.yaml. `servers` are kube-nginx.conf's name and its API servers, if it was given.

    InputError: a name that the tool needs is missing, can't be told, or has a value that is none; all at once.
    """
    reading = _Reading(environment=environment, subject=subject, servers=servers)
    inputs = reading.inputs()
    if not reading.problems:
        reading.problems += reading.judged(inputs)
    if reading.problems:
        first, *others = dict.fromkeys(reading.problems)
        if not others:
            raise GuideFileError(first.message, subject=first.subject, hint=first.hint)
        said, *lines = (f"{each.message} ({each.hint})" if each.hint else each.message for each in (first, *others))
        more = (f"  {each.subject}: {line}" for each, line in zip(others, lines, strict=True))
        message = "\n".join((said, f"and {len(others)} more:", *more))
        raise GuideFileError(message, subject=first.subject, hint="correct them all: nothing was written")
    return inputs


@dataclass(slots=True)
class _Reading:
    environment: Environment
    subject: str
    servers: tuple[str, tuple[str, ...]] | None
    problems: list[_Problem] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def inputs(self) -> GuideInputs:
        nodes = self._nodes()
        values: dict[str, Any] = {"cluster.apiservers": self._apiservers(nodes)}
        for name, path in _FIELDS.items():
            value = self._value(name)
            if value is not None:
                values[path] = self._domain(value) if name == "CLUSTER_DNS_DOMAIN" else value
        if (listen := self._listen()) != API_PROXY:
            values["components.kube_nginx.listen"] = listen
        values["profile"] = "guide"
        self._kept_out()
        return GuideInputs(values=values, nodes=nodes, notes=self.notes, remarks=tuple(self.remarks))

    # -- single names ---------------------------------------------------------------------------------------------

    def _found(self, name: str, *, instead: str = "") -> str | tuple[str, ...] | None:
        """The name's value; None where the file has none: a problem if it is needed, or may be set unread."""
        variable, doubt = self.environment.variables.get(name), self.environment.doubt(name)
        if variable is not None:
            return variable.value
        plainly = (
            f"write {name}=(...)" if name in {"NODE_IPS", "NODE_NAMES"} else f"write {name}=... with the value itself"
        )
        if doubt is not None and doubt.what == name:
            hint = f"{plainly}{instead}"
            self.problems.append(
                _Problem(
                    subject=f"{self.subject}:{doubt.line}: {name}", message=f"can't be told: {doubt.why}", hint=hint
                )
            )
        elif doubt is not None:
            message = f"can't be told: line {doubt.line} ({doubt.what}) may set it, and is not run"
            hint = f"{plainly} below that line, in a copy of the file if need be{instead}"
            self.problems.append(_Problem(subject=f"{self.subject}: {name}", message=message, hint=hint))
        elif name in _NEEDED:
            self.problems.append(_Problem(subject=f"{self.subject}: {name}", message="is not set", hint=plainly))
        return None

    def _value(self, name: str, *, instead: str = "") -> str | None:
        value = self._found(name, instead=instead)
        if isinstance(value, tuple):
            self._wrong(name, "is an array; one value is meant", f"write {name}=... without parentheses")
            return None
        if value == "":
            self._wrong(name, "is empty", "give it a value, or take the line out")
            return None
        return value

    def _array(self, name: str) -> tuple[str, ...]:
        value = self._found(name)
        if isinstance(value, str):
            self._wrong(name, "is one value; an array is meant", f"write {name}=(first second)")
            return ()
        if value == ():
            self._wrong(name, "is empty", f"write {name}=(first second)")
        return value or ()

    def _wrong(self, name: str, message: str, hint: str = "") -> None:
        self.problems.append(_Problem(subject=self._where(name), message=message, hint=hint))

    def _where(self, name: str) -> str:
        variable = self.environment.variables.get(name)
        return f"{self.subject}:{variable.line}: {name}" if variable else f"{self.subject}: {name}"

    # -- fields ---------------------------------------------------------------------------------------------------

    def _nodes(self) -> tuple[tuple[str, str], ...]:
        addresses, names = self._array("NODE_IPS"), self._array("NODE_NAMES")
        for name, values in (("NODE_IPS", addresses), ("NODE_NAMES", names)):
            for value in dict.fromkeys(each for each in values if values.count(each) > 1):
                places = " and ".join(str(index + 1) for index, each in enumerate(values) if each == value)
                self._wrong(
                    name, f"{value} is both of elements {places}", "each node has a name and an address of its own"
                )
        if addresses and names and len(addresses) != len(names):
            line = self.environment.variables["NODE_IPS"].line
            message = f"has {len(names)} elements, and NODE_IPS (line {line}) has {len(addresses)}"
            self._wrong("NODE_NAMES", message, "the guide takes them together by position: name every node in both")
            return ()
        return tuple(zip(names, addresses, strict=False))

    def _apiservers(self, nodes: Sequence[tuple[str, str]]) -> list[str]:
        path = "cluster.apiservers"
        if self.servers is not None:
            file, servers = self.servers
            self.notes[path] = f"From {file}."
            return list(servers)
        otherwise = (
            f"{self.subject} does not list the API servers; --kube-nginx-conf FILE reads them from a kube-nginx.conf."
        )
        endpoints = self._value("ETCD_ENDPOINTS", instead=", or name the API servers with --kube-nginx-conf")
        if endpoints is not None:
            hosts = self._etcd_hosts(endpoints)
            if hosts and not any(_loopback(host) for host in hosts):
                self.notes[path] = f"The hosts of ETCD_ENDPOINTS, at port {API_PORT}: {otherwise}"
                return [f"{host}:{API_PORT}" for host in hosts]
        self.notes[path] = f"NODE_IPS, at port {API_PORT}: {otherwise}"
        return [f"{_bracketed(address)}:{API_PORT}" for _, address in nodes]

    def _etcd_hosts(self, endpoints: str) -> list[str]:
        hosts = []
        for endpoint in endpoints.split(","):
            found = re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(:[0-9]+)?/?", endpoint.strip())
            if found is None:
                hint = "write https://HOST:2379,https://HOST:2379, or name the API servers with --kube-nginx-conf"
                self._wrong("ETCD_ENDPOINTS", f"{endpoint!r} is not the URL of an etcd", hint)
            else:
                hosts.append(found[1])
        return list(dict.fromkeys(hosts))

    def _domain(self, value: str) -> str:
        if value.endswith("."):
            self.notes["cluster.dns_domain"] = (
                f"{value} in {self.subject}; kubelet's clusterDomain has no dot at its end."
            )
        return value.rstrip(".")

    def _listen(self) -> str:
        """Where kube-nginx listens: what KUBE_APISERVER says where that is a loopback address."""
        value = self._value("KUBE_APISERVER")
        found = re.fullmatch(r"https://(\[[0-9A-Fa-f:]+\]|[0-9.]+):([0-9]{1,5})/?", value or "")
        if found and _loopback(found[1]) and 0 < int(found[2]) < 65536:
            return f"{found[1]}:{int(found[2])}"
        if value is not None:
            self.remarks.append(
                f"{self._where('KUBE_APISERVER')}: {value} is not used: kubelet and kube-proxy reach the API through "
                f"each node's own kube-nginx, https://{API_PROXY} (components.kube_nginx.listen)"
            )
        return API_PROXY

    def _kept_out(self) -> None:
        used = {*USED} - ({"ETCD_ENDPOINTS"} if self.servers is not None else set())
        for doubt in self.environment.doubts:
            if doubt.what not in used:
                self.remarks.append(f"{self.subject}:{doubt.line}: {doubt.what}: not read: {doubt.why}")
        if idle := [name for name in self.environment.variables if name not in used]:
            self.remarks.append(f"{self.subject}: of no use here: {', '.join(idle)}")

    # -- the models' own rules ------------------------------------------------------------------------------------

    def judged(self, inputs: GuideInputs) -> Iterator[_Problem]:
        """What cluster.yaml's models say of the values, under the names of environment.sh."""
        try:
            ClusterFile.model_validate(document(inputs))
        except ValidationError as error:
            for details in error.errors():
                path = ".".join(map(str, details["loc"]))
                message = details["msg"].removeprefix("Value error, ")
                for line in message.splitlines():
                    named = re.fullmatch(r"([a-z]+(?:\.[a-z0-9_]+)+): (.+)", line)
                    where, said = (named[1], named[2]) if named else (path, line)
                    yield _Problem(subject=self._origin(where), message=said)

    def _origin(self, path: str) -> str:
        names = {field_path: name for name, field_path in _FIELDS.items()}
        if path in names:
            return self._where(names[path])
        if path.startswith("nodes."):
            return self._where("NODE_NAMES" if path.endswith("name") else "NODE_IPS")
        if path.startswith("cluster.apiservers"):
            if self.servers is not None:
                return self.servers[0]
            return self._where("ETCD_ENDPOINTS" if "ETCD_ENDPOINTS" in self.notes["cluster.apiservers"] else "NODE_IPS")
        return f"{self.subject}: {path}"


def document(inputs: GuideInputs) -> dict[str, Any]:
    """The same as cluster.yaml's data."""
    whole: dict[str, Any] = {}
    for path, value in inputs.values.items():
        *groups, name = path.split(".")
        here = whole
        for group in groups:
            here = here.setdefault(group, {})
        here[name] = value
    return {**whole, "nodes": [{"name": name, "address": address} for name, address in inputs.nodes]}


def api_servers(statements: Sequence[Statement], *, subject: str) -> tuple[str, ...]:
    """The servers that a kube-nginx.conf balances over: those of the upstream that its `proxy_pass` names.

    InputError: there is no such upstream, more than one, or a server that is not HOST:PORT.
    """
    hint = "name the guide's kube-nginx.conf: a `stream` with one `server` that proxies to an `upstream`"
    blocks = [each for each in statements if isinstance(each, Block) and each.name == "stream"]
    inner = [each for block in blocks for each in block.body if isinstance(each, Block)]
    targets = {
        directive[1]
        for block in inner
        if block.name == "server"
        for directive in block.body
        if not isinstance(directive, Block) and directive[0] == "proxy_pass" and len(directive) > 1
    }
    upstreams = [each for each in inner if each.name == "upstream" and each.arguments and each.arguments[0] in targets]
    if len(upstreams) != 1:
        found = ", ".join(each.arguments[0] for each in upstreams) or "none"
        raise GuideFileError(f"one upstream of API servers is meant; there is {found}", subject=subject, hint=hint)
    servers = []
    for directive in upstreams[0].body:
        if isinstance(directive, Block) or directive[0] != "server" or "down" in directive[2:]:
            continue
        address = directive[1] if len(directive) > 1 else ""
        if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", address):
            raise GuideFileError(f"server {address!r} is not HOST:PORT", subject=subject, hint=hint)
        servers.append(address)
    if not servers:
        raise GuideFileError("its upstream names no server", subject=subject, hint=hint)
    return tuple(dict.fromkeys(servers))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
