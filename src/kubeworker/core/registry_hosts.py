"""containerd's hosts directory as values: what cluster.yaml says of registries and mirrors, and the files it makes.

containerd reads `<directory>/<registry>/hosts.toml` at each pull (docs/hosts.md, core/remotes/docker/config/hosts.go).
A file that it can't decode is a line in its log and otherwise as if it were not there, and one CA file that it can't
read fails every pull from the registry: so everything is checked here, before a node sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kubeworker.core.component import ComponentConfig
from kubeworker.core.formats import toml
from kubeworker.core.model import File, MirrorPull
from kubeworker.core.spec import AbsolutePath, LocalPath
from kubeworker.errors import SpecError

CERTS_D = "/etc/containerd/certs.d"
"""The hosts directory on nodes."""

MARK = "# Written by kubeworker from components.containerd.mirrors; changes here are undone."
"""The first line of each file that the tool puts there: what bears it and is not wanted any more goes away."""

DEFAULT = "_default"
"""The directory for every registry that has none of its own."""

Capability: TypeAlias = Literal["pull", "resolve", "push"]


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        ok = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        ok = False
    if not ok or parts.query or parts.fragment or re.search(r"[\s\"'\\<>]", value):
        raise ValueError("must be a URL like https://HOST[:PORT][/PATH]")
    if "@" in parts.netloc:
        # Not shown: it may hold a password. containerd would ignore it.
        raise ValueError("must not hold a user, which containerd would ignore")
    return value.rstrip("/")


def _server(value: str) -> str:
    return _url(value) if value else value


def _one_or_more(value: Any) -> Any:
    """A single value where a list may stand."""
    return value if isinstance(value, list | tuple) else (value,)


def _mirror(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


def _registry(value: Any) -> Any:
    """The short forms: a mirror's URL, or a list of mirrors."""
    match value:
        case str():
            return {"hosts": [value]}
        case list() | tuple():
            return {"hosts": value}
        case _:
            return value


_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
_PRINTABLE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")

HeaderName = Annotated[str, Field(pattern=_HEADER)]


class ClientCertificate(ComponentConfig):
    """What the node shows to a server that asks for a client certificate."""

    cert: LocalPath
    """PEM certificate on the control host, copied to nodes."""
    key: LocalPath = ""
    """Its PEM key on the control host, without a passphrase, copied to nodes (0600). Default: it is in `cert` too."""


class Endpoint(ComponentConfig):
    """How a host is spoken to."""

    ca: Annotated[tuple[LocalPath, ...], BeforeValidator(_one_or_more)] = ()
    """PEM CA files on the control host, one or a list, copied to nodes; they count beside the system's."""
    ca_on_node: Annotated[tuple[AbsolutePath, ...], BeforeValidator(_one_or_more)] = ()
    """CA files that are on the nodes already, one or a list."""
    client: Annotated[tuple[ClientCertificate, ...], BeforeValidator(_one_or_more)] = ()
    """Client certificates, one or a list: {cert: FILE, key: FILE}."""
    skip_verify: bool = False
    """Do not check the host's certificate; each plan warns of it."""
    header: dict[HeaderName, Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]] = Field(
        default_factory=dict, repr=False
    )
    """HTTP headers, name: value (or a list of values). With any, hosts.toml has mode 0600 and plans show its hash."""
    header_files: dict[HeaderName, LocalPath] = Field(default_factory=dict)
    """Headers whose value is the content of a file on the control host, for what should not stand in cluster.yaml:
    {Authorization: mirror-auth}, with `Basic ...` in the file."""
    override_path: bool = False
    """The URL's path is the API's root already: containerd adds no /v2."""

    @model_validator(mode="after")
    def _headers(self) -> Self:
        names = [name.lower() for name in (*self.header, *self.header_files)]
        if len(names) != len(set(names)):
            raise ValueError("header: one header is named twice")
        if not all(_PRINTABLE.fullmatch(value) for values in self.header.values() for value in values):
            raise ValueError("header: a value must be one line of text")
        return self


class Mirror(Endpoint):
    """A mirror of a registry; its URL alone will do."""

    url: Annotated[str, AfterValidator(_url)]
    """https://HOST[:PORT], with the path if it serves under one."""
    capabilities: Annotated[tuple[Capability, ...], Field(min_length=1)] = ("pull", "resolve")
    """What it is asked for: pull (content by digest), resolve (the digest of a tag), push."""


class Registry(Endpoint):
    """One registry: its mirrors, and how its own server is spoken to when none of them has the image."""

    hosts: tuple[Annotated[Mirror, BeforeValidator(_mirror)], ...] = ()
    """Mirrors, URLs or fields, in the order in which they are tried."""
    server: Annotated[str, AfterValidator(_server)] = ""
    """URL of the registry's own server, tried last; `ca`, `client`, `header` and so on beside it are for it. Default:
    https:// and the registry's name; https://registry-1.docker.io for docker.io."""
    capabilities: tuple[Capability, ...] = ()
    """What the server is asked for; default: everything."""
    probe: str = ""
    """Image that `verify --deep` pulls, such as library/busybox:latest; of `_default`, with the registry before it.
    Default: library/busybox:latest of docker.io, the sandbox image of its registry."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        urls = [mirror.url for mirror in self.hosts]
        if len(urls) != len(set(urls)):
            raise ValueError("hosts: one URL stands there twice")
        return self

    @property
    def says_nothing(self) -> bool:
        """No mirror and nothing of the server: `docker.io: []`."""
        return self.model_copy(update={"probe": ""}) == Registry()


_REGISTRY = re.compile(r"([A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:]+\])(:[0-9]+)?")


def _registry_name(value: str) -> str:
    if not _REGISTRY.fullmatch(value):
        raise ValueError(f"{value!r} is not a registry: HOST, HOST:PORT or _default")
    return value


RegistryName = Annotated[str, AfterValidator(_registry_name)]
"""As image names have it before the first slash: docker.io, registry.example:5000; or `_default`."""

Registries: TypeAlias = dict[RegistryName, Annotated[Registry, BeforeValidator(_registry)]]


# ---------------------------------------------------------------------------------------------------------------
# Files


def folder(registry: str) -> str:
    """The registry's directory: `host_port_` for host:port (hostDirectory in hosts.go), which needs no colon."""
    host, colon, port = registry.rpartition(":")
    return f"{CERTS_D}/{host}_{port}_" if colon and not registry.endswith("]") else f"{CERTS_D}/{registry}"


def folders(registry: str, *, beside_default: bool) -> tuple[str, ...]:
    """The registry's directory, and where `_default` is there a second one for nerdctl.

    nerdctl 2.1 asks for HOST:443 before it asks for HOST, and is given `_default` for that (hostsstore.go). containerd
    itself never asks so. docker.io is spared it there.
    """
    second = beside_default and ":" not in registry and registry not in {DEFAULT, "docker.io"}
    return (folder(registry), *((folder(f"{registry}:443"),) if second else ()))


def hosts_path(registry: str) -> str:
    """Where the registry's hosts.toml lies."""
    return f"{folder(registry)}/hosts.toml"


def local_files(settings: Registry) -> tuple[str, ...]:
    """The files on the control host that the registry's files are made of."""
    return tuple(
        path
        for endpoint in (settings, *settings.hosts)
        for path in (
            *endpoint.ca,
            *(path for pair in endpoint.client for path in (pair.cert, pair.key) if path),
            *endpoint.header_files.values(),
        )
    )


def files(
    registry: str, settings: Registry, local: Mapping[str, bytes], *, beside_default: bool = False
) -> tuple[File, ...]:
    """The registry's files, hosts.toml last: what it names is there before it. `beside_default`: see `folders`.

    `local` holds what `local_files` names; what is missing there is left empty. SpecError for a file that containerd
    could not use.
    """
    found: dict[str, File] = {}
    for name, endpoint in _endpoints(settings):
        for file in _certificates(f"{folder(registry)}/{name}", endpoint, local):
            found[file.path] = file
    secret = any(endpoint.header or endpoint.header_files for _, endpoint in _endpoints(settings))
    text = f"{MARK}\n{toml.dump(_document(registry, settings, local))}"
    return (
        *found.values(),
        *(
            File(path=f"{each}/hosts.toml", content=text.encode(), mode=0o600 if secret else 0o644, secret=secret)
            for each in folders(registry, beside_default=beside_default)
        ),
    )


def server_url(registry: str, settings: Registry) -> str:
    """Where containerd goes when no mirror has the image; empty where it finds that out itself.

    `server` is used as it stands, and docker.io's registry has another name (hosts.go puts it in only where there is
    no `server`). `_default` is no host: with a server, everything would be asked of that one. On a loopback address
    containerd tries https and http.
    """
    if settings.server or registry == DEFAULT or re.match(r"(localhost|127\.[0-9.]+|\[::1\])(:|$)", registry):
        return settings.server
    return "https://registry-1.docker.io" if registry == "docker.io" else f"https://{registry}"


def host(url: str) -> str:
    """HOST[:PORT] of a URL, as containerd's log names it."""
    return urlsplit(url).netloc


def pulls(registry: str, settings: Registry, ctr: str, sandbox_image: str) -> Iterator[MirrorPull]:
    """What `verify --deep` asks: the registry as pulls see it, then each of its mirrors by itself."""
    if settings.says_nothing:
        return
    image = _probe(registry, settings, sandbox_image)
    where = folder(registry).removeprefix(f"{CERTS_D}/")
    mirrors = tuple(mirror for mirror in settings.hosts if "pull" in mirror.capabilities)
    own = server_url(registry, settings) or f"https://{image.partition('/')[0] if registry == DEFAULT else registry}"
    yield MirrorPull(
        id=f"containerd.registry.{registry}",
        image=image,
        ctr=ctr,
        folder=where,
        served_by=tuple(host(mirror.url) for mirror in mirrors) or (host(own),),
    )
    for mirror in mirrors:
        yield MirrorPull(
            id=f"containerd.mirror.{registry}.{mirror.url}",
            image=image,
            ctr=ctr,
            folder=where,
            mirror=mirror.url,
            served_by=(host(mirror.url),),
            resolves="resolve" in mirror.capabilities,
        )


def _probe(registry: str, settings: Registry, sandbox_image: str) -> str:
    if registry == DEFAULT:
        return settings.probe
    probe = settings.probe or {"docker.io": "library/busybox:latest"}.get(registry, "")
    if probe:
        return f"{registry}/{probe.removeprefix(f'{registry}/')}"
    return sandbox_image if sandbox_image.startswith(f"{registry}/") else ""


def _document(registry: str, settings: Registry, local: Mapping[str, bytes]) -> dict[str, Any]:
    where = folder(registry)
    document: dict[str, Any] = {}
    if server := server_url(registry, settings):
        document["server"] = server
    if settings.capabilities:
        document["capabilities"] = list(settings.capabilities)
    document |= _entry(f"{where}/server", settings, local)
    if settings.hosts:
        document["host"] = {
            mirror.url: {
                "capabilities": list(mirror.capabilities),
                **_entry(f"{where}/{_name(mirror)}", mirror, local),
            }
            for mirror in settings.hosts
        }
    return document


def _entry(base: str, endpoint: Endpoint, local: Mapping[str, bytes]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    authorities = [*(_ca_path(base, number) for number in range(len(endpoint.ca))), *endpoint.ca_on_node]
    if authorities:
        entry["ca"] = authorities[0] if len(authorities) == 1 else authorities
    if endpoint.client:
        # A certificate that holds its key too stands alone, not in a pair.
        entry["client"] = [
            list(_client_paths(base, number)) if pair.key else _client_paths(base, number)[0]
            for number, pair in enumerate(endpoint.client)
        ]
    if endpoint.skip_verify:
        entry["skip_verify"] = True
    if endpoint.override_path:
        entry["override_path"] = True
    if header := dict(_header(endpoint, local)):
        entry["header"] = header
    return entry


def _header(endpoint: Endpoint, local: Mapping[str, bytes]) -> Iterator[tuple[str, str | list[str]]]:
    for name, values in endpoint.header.items():
        yield _canonical(name), values[0] if len(values) == 1 else list(values)
    for name, path in endpoint.header_files.items():
        value = local.get(path, b"").decode(errors="replace").strip()
        if not _PRINTABLE.fullmatch(value):
            raise SpecError(
                "must hold one line of text", subject=path, hint=f"it is the value of the header {name}, no more"
            )
        yield _canonical(name), value


def _canonical(name: str) -> str:
    """In HTTP's own spelling: containerd takes the name as it stands, and looks for `Authorization`."""
    return "-".join(part.capitalize() for part in name.split("-"))


def _endpoints(settings: Registry) -> Iterator[tuple[str, Endpoint]]:
    """The server and the mirrors, with the beginning of their files' names."""
    yield "server", settings
    for mirror in settings.hosts:
        yield _name(mirror), mirror


def _name(mirror: Mirror) -> str:
    parts = urlsplit(mirror.url)
    return re.sub(r"[^A-Za-z0-9.-]", "_", f"{parts.netloc}{parts.path}")


# Not .crt, .cert and .key: files of these names count by themselves where a hosts.toml is missing.
def _ca_path(base: str, number: int) -> str:
    return f"{base}-ca-{number + 1}.pem"


def _client_paths(base: str, number: int) -> tuple[str, str]:
    return f"{base}-client-{number + 1}.pem", f"{base}-client-{number + 1}-key.pem"


def _certificates(base: str, endpoint: Endpoint, local: Mapping[str, bytes]) -> Iterator[File]:
    for number, path in enumerate(endpoint.ca):
        content = local.get(path, b"")
        _check_ca(path, content)
        yield File(path=_ca_path(base, number), content=_marked(content))
    for number, pair in enumerate(endpoint.client):
        cert, key = local.get(pair.cert, b""), local.get(pair.key or pair.cert, b"")
        _check_pair(pair, cert, key)
        cert_path, key_path = _client_paths(base, number)
        whole = not pair.key
        yield File(path=cert_path, content=_marked(cert), mode=0o600 if whole else 0o644, secret=whole)
        if pair.key:
            yield File(path=key_path, content=_marked(key), mode=0o600, secret=True)


def _marked(pem: bytes) -> bytes:
    """What stands before the first -----BEGIN of a PEM file is not read (RFC 7468)."""
    return f"{MARK}\n".encode() + pem.removesuffix(b"\n") + b"\n"


def _check_ca(path: str, content: bytes) -> None:
    if not content:
        return
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise SpecError("holds no PEM certificate", subject=path, hint="`ca` names CA certificates in PEM") from error


def _check_pair(pair: ClientCertificate, cert: bytes, key: bytes) -> None:
    if not cert or not key:
        return
    try:
        certificate = x509.load_pem_x509_certificates(cert)[0]
    except ValueError as error:
        hint = "`client` is {cert: FILE, key: FILE}"
        raise SpecError("holds no PEM certificate", subject=pair.cert, hint=hint) from error
    where = pair.key or pair.cert
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without its cause, which might quote the file.
        raise SpecError(
            "holds no PEM key without a passphrase",
            subject=where,
            hint="containerd can't ask for one: openssl pkey -in FILE -out FILE.plain",
        ) from None
    if private.public_key() != certificate.public_key():
        raise SpecError(f"is not the key of {pair.cert}", subject=where, hint="give certificate and key of one pair")
