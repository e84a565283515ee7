"""Images for sites without a registry: `pause` from a few lines of C, and Debian's static busybox."""

from __future__ import annotations

import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kubeworker.core.artifacts.artifact import Architecture
from kubeworker.lab import host, oci_image

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
    image = oci_image.Image(
        reference=program.reference,
        architecture=architecture,
        entrypoint=program.entrypoint,
        command=program.command,
        path="/bin:/sbin:/usr/bin",
    )

    def fill(layer: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(program.path)
        entry.size, entry.mode = len(content), 0o755
        layer.addfile(entry, io.BytesIO(content))
        for name in program.links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, f"/{program.path}", 0o777
            layer.addfile(entry)

    buffer = io.BytesIO()
    oci_image.write(buffer, image, fill)
    return buffer.getvalue()


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
