"""A real HTTP server on loopback that serves files as publishers do, and fails on request."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from kubeworker.core.artifacts.artifact import Architecture, Artifact, release_url


@dataclass(frozen=True, kw_only=True)
class Served:
    """One request as the server saw it."""

    path: str
    range: str
    if_range: str
    status: int
    sent: int
    """Bytes of the body that were written."""


@dataclass
class ReleaseServer:
    files: dict[str, bytes] = field(default_factory=dict)
    served: list[Served] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Path -> after how many bytes of the body each of its next answers is cut."""
    failures: dict[str, list[int]] = field(default_factory=dict)
    """Path -> statuses of its next answers."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, ending: str) -> list[Served]:
        return [each for each in self.served if each.path.endswith(ending)]

    def publish(self, url: str, content: bytes, *, checksum_url: str = "") -> str:
        """Put a file at its official path below the mirror; with a checksum file where there is one. The path."""
        path = mirrored_path(url)
        self.files[path] = content
        if checksum_url:
            line = f"{hashlib.sha256(content).hexdigest()}  {path.rpartition('/')[2]}\n"
            # SHA256SUMS of one release lists several files.
            listed = self.files.get(mirrored_path(checksum_url), b"").decode()
            self.files[mirrored_path(checksum_url)] = f"{listed}{line}".encode()
        return path

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        site = cls()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
        site.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def mirrored_path(url: str) -> str:
    """https://dl.k8s.io/release/x -> /dl.k8s.io/release/x"""
    parts = urlsplit(url)
    return f"/{parts.netloc}{parts.path}"


def publish_all(
    server: ReleaseServer, artifacts: tuple[Artifact, ...], binaries: Mapping[str, bytes], architecture: Architecture
) -> None:
    """Every artifact under its official path, tarballs with all members that are wanted of them."""
    tarballs: dict[tuple[str, str], dict[str, bytes]] = {}
    for artifact in artifacts:
        for release in artifact.releases:
            url = release_url(release.url, architecture, None)
            checksum_url = release_url(release.checksum_url, architecture, None)
            if release.member:
                member = release.member.replace("{arch}", architecture)
                tarballs.setdefault((url, checksum_url), {})[member] = binaries[artifact.name]
            else:
                server.publish(url, binaries[artifact.name], checksum_url=checksum_url)
    for (url, checksum_url), members in tarballs.items():
        server.publish(url, tarball(members), checksum_url=checksum_url)


def tarball(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _handler(site: ReleaseServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            content = site.files.get(self.path)
            if failing := site.failures.get(self.path):
                self._answer(failing.pop(0), b"", {})
            elif content is None:
                self._answer(404, b"<html>not here</html>", {})
            else:
                etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
                headers = {"ETag": etag, "Accept-Ranges": "bytes"}
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if asked and self.headers.get("If-Range") == etag:
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                    self._answer(206, content[start:], headers)
                else:
                    self._answer(200, content, headers)

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            cut = next(iter(site.cuts.get(self.path, ())), None)
            sent = body if cut is None or status >= 400 else body[:cut]
            site.served.append(
                Served(
                    path=self.path,
                    range=self.headers.get("Range", ""),
                    if_range=self.headers.get("If-Range", ""),
                    status=status,
                    sent=len(sent),
                )
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(sent)
            if sent is not body and cut is not None:
                site.cuts[self.path].pop(0)
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    return Handler
