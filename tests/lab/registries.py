"""A registry and mirrors of it on a lab's machine, what they serve, and who was asked."""

from __future__ import annotations

import hashlib
import io
import json
import ssl
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from tests.lab.operate import sh

from kubeworker.lab import LabState, Machine, images, pki, registry
from kubeworker.lab.host import architecture
from kubeworker.lab.pki import Pair, Subject
from kubeworker.lab.registry import Request, Server

# bcrypt of "sesame": perl -e 'print crypt("sesame", q($2y$05$abcdefghijklmnopqrstuu))'
HTPASSWD = "lab:$2y$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n"
BASIC = "Basic bGFiOnNlc2FtZQ=="
"""lab:sesame"""

DOCKER = "registry-1.docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """An upstream that calls itself docker.io's registry, and mirrors with the same images."""

    lab: LabState
    machine: Machine
    servers: Mapping[str, Server]
    authority: Pair
    folder: Path
    """Beside cluster.yaml: ca.pem, client.pem, client-key.pem and basic (an Authorization header)."""

    def url(self, name: str) -> str:
        """Where the node finds it."""
        return f"https://{self.machine.name}:{self.servers[name].port}"

    def push(self, name: str, *, repository: str = "") -> str:
        """A new image of that name, upstream and on every mirror but the cache; REPOSITORY:TAG.

        Its one layer is new too, so that each pull has to fetch it.
        """
        repository = repository or f"library/{name}"
        program = images.Program(
            reference=f"docker.io/{repository}:1",
            path="bin/busybox",
            links=("bin/sleep", "bin/sh"),
            command=("/bin/sleep", "1000"),
        )
        # What follows an ELF file's sections is of no account to the kernel.
        content = Path("/bin/busybox").read_bytes() + f"{name} {datetime.now(UTC)}".encode()
        context = ssl.create_default_context(cadata=self.authority.cert.decode())
        with httpx2.Client(base_url=f"https://{self.machine.address}", verify=context, trust_env=False) as client:
            _push(client, repository, images.archive(program, content, architecture()))
        return f"{repository}:1"

    @contextmanager
    def counted(self) -> Iterator[dict[str, list[Request]]]:
        """The requests that each registry gets while the context lasts, filled in at its end; those without any not."""
        before = registry.requests(self.lab, self.machine)
        asked: dict[str, list[Request]] = {}
        yield asked
        for name, requests in registry.requests(self.lab, self.machine).items():
            if new := list(requests[len(before.get(name, ())) :]):
                asked[name] = new

    @contextmanager
    def down(self, *names: str) -> Iterator[None]:
        """These registries are stopped."""
        units = " ".join(self.servers[name].unit for name in names)
        sh(self.lab, self.machine.name, f"systemctl stop {units}")
        try:
            yield
        finally:
            ports = "\n".join(registry.listening(self.servers[name], seconds=10) for name in names)
            sh(self.lab, self.machine.name, f"systemctl start {units}\n{ports}")


@contextmanager
def site(lab: LabState, machine: Machine, *, hosts_of: str) -> Iterator[Site]:
    """The registries run, and the machine `hosts_of` takes docker.io's registry for the upstream."""
    now = datetime.now(UTC)
    authority, stranger = pki.make_authority("site-ca", now), pki.make_authority("stranger-ca", now)
    upstream = Server(name="upstream", port=443, names=(DOCKER,))
    servers = (
        upstream,
        Server(name="first", port=5001),
        Server(name="second", port=5002),
        Server(name="mutual", port=5003, client_ca=authority.cert),
        Server(name="basic", port=5004, htpasswd=HTPASSWD),
        Server(name="stranger", port=5005),
        Server(name="cache", port=5006, store="cache", remote=f"https://{machine.name}", remote_ca=authority.cert),
    )
    folder = lab.folder / "site"
    folder.mkdir(exist_ok=True)
    client = pki.issue(authority, Subject(common_name="node", client=True), now)
    for name, content in {
        "ca.pem": authority.cert,
        "client.pem": client.cert,
        "client-key.pem": client.key,
        "basic": f"{BASIC}\n".encode(),
    }.items():
        (folder / name).write_bytes(content)
    try:
        issuers = {each: stranger if each.name == "stranger" else authority for each in servers}
        registry.start(lab, machine, issuers)
        sh(lab, hosts_of, f"echo '{machine.address} {DOCKER}' >> /etc/hosts")
        yield Site(
            lab=lab, machine=machine, servers={each.name: each for each in servers}, authority=authority, folder=folder
        )
    finally:
        sh(lab, hosts_of, f"sed '/{DOCKER}/d' /etc/hosts > /tmp/hosts && cat /tmp/hosts > /etc/hosts && rm /tmp/hosts")
        registry.remove(lab, machine)


def _push(client: httpx2.Client, repository: str, archive: bytes) -> None:
    """An OCI archive's one image, by the distribution API (opencontainers/distribution-spec)."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: reader.read() for member in tar if (reader := tar.extractfile(member))}
    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = files[f"blobs/{entry['digest'].replace(':', '/')}"]
    parts = json.loads(manifest)
    for each in (parts["config"], *parts["layers"]):
        blob = files[f"blobs/{each['digest'].replace(':', '/')}"]
        assert each["digest"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
        place = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status().headers["Location"]
        client.put(httpx2.URL(place).copy_merge_params({"digest": each["digest"]}), content=blob).raise_for_status()
    types = {"Content-Type": entry["mediaType"]}
    client.put(f"/v2/{repository}/manifests/1", content=manifest, headers=types).raise_for_status()
