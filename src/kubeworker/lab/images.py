"""OCI image archives for sites without a registry: `pause` from a few lines of C, and Debian's static busybox.

The format is the OCI image layout in a tar file, with containerd's own annotation for the full name
(`io.containerd.image.name`), which `ctr images import` reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kubeworker.core.artifact import Architecture
from kubeworker.lab import host

PAUSE = "registry.k8s.io/pause:3.10"
"""containerd 2.1's default sandbox image."""
BUSYBOX = "docker.io/library/busybox:lab"

_PAUSE_SOURCE = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { _exit(0); }
static void reap(int number) { while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, leave);
  signal(SIGTERM, leave);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""
_APPLETS = (
    "sh", "ash", "cat", "cp", "date", "dd", "df", "echo", "env", "false", "grep", "head", "hostname", "httpd", "id",
    "ip", "kill", "ls", "mkdir", "mount", "mv", "nc", "netstat", "nslookup", "ping", "printf", "ps", "rm", "sed", "seq",
    "sleep", "sort", "tail", "tee", "test", "timeout", "touch", "tr", "true", "uname", "vi", "wc", "wget", "yes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A one-layer image around one static program."""

    reference: str
    path: str
    """Where the program lies in the image, without a leading slash."""
    links: tuple[str, ...] = ()
    """Symbolic links to it."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def archive(program: Program, content: bytes, architecture: Architecture) -> bytes:
    """The OCI archive, the same bytes for the same input."""
    layer = _tar({program.path: content}, links=dict.fromkeys(program.links, "/" + program.path), mode=0o755)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": program.entrypoint, "Cmd": program.command, "Env": ["PATH=/bin:/sbin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "kubeworker lab"}],
    }
    config_blob = json.dumps(config, sort_keys=True).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config_blob),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    manifest_blob = json.dumps(manifest, sort_keys=True).encode()
    annotations = {
        "io.containerd.image.name": program.reference,
        "org.opencontainers.image.ref.name": program.reference.rsplit(":", 1)[-1],
    }
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest_blob) | {"annotations": annotations}
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}, sort_keys=True).encode(),
    }
    files |= {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in (layer, config_blob, manifest_blob)}
    return _tar(files, links={}, mode=0o644)


def write(folder: Path) -> tuple[Path, ...]:
    """Make both archives in the folder; returns their paths, pause first."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = host.architecture()
    busybox = Path(host.run(["sh", "-c", "command -v busybox"]).strip()).read_bytes()
    images = (
        ("pause.tar", Program(reference=PAUSE, path="pause", entrypoint=("/pause",)), _compile_pause()),
        (
            "busybox.tar",
            Program(
                reference=BUSYBOX,
                path="bin/busybox",
                links=tuple(f"bin/{applet}" for applet in _APPLETS),
                command=("/bin/sh",),
            ),
            busybox,
        ),
    )
    for name, program, content in images:
        temporary = folder / f".{name}"
        temporary.write_bytes(archive(program, content, architecture))
        temporary.rename(folder / name)
    return tuple(folder / name for name, _, _ in images)


def _compile_pause() -> bytes:
    with tempfile.TemporaryDirectory(prefix="kubeworker-pause-") as folder:
        program = Path(folder) / "pause"
        host.run(["gcc", "-Os", "-static", "-s", "-x", "c", "-o", program, "-"], stdin=_PAUSE_SOURCE)
        return program.read_bytes()


def _tar(files: Mapping[str, bytes], *, links: Mapping[str, str], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
