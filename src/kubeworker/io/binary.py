"""Looks at a finished artifact: for which machine it is, what it needs, and which version it reports of itself."""

from __future__ import annotations

import asyncio
import os
import platform
import tarfile
import tempfile
from pathlib import Path

from kubeworker.core.artifacts import elf
from kubeworker.core.artifacts.artifact import Architecture, Artifact, reported_version
from kubeworker.errors import ArtifactError, ArtifactMissing
from kubeworker.io import chart, command


def host_architecture() -> Architecture:
    """This machine's architecture; ArtifactError where it is neither of the two that kubeworker knows."""
    match platform.machine():
        case "x86_64":
            return "amd64"
        case "aarch64" | "arm64":
            return "arm64"
        case other:
            raise ArtifactError(f"this machine is {other}", hint="name the nodes' architecture: --arch amd64 or arm64")


async def check(path: Path, artifact: Artifact, architecture: Architecture, *, subject: str) -> None:
    """ArtifactError, naming `subject`, unless the file is what the artifact says: machine, libraries, version.

    The file must be executable. A binary for another machine than this one can't be run: its version goes unproven.
    """
    if artifact.form == "chart":
        await asyncio.to_thread(chart.check, path, artifact, subject=subject)
        return
    _check_headers(path, artifact, architecture, subject)
    if artifact.report and architecture == host_architecture():
        await _check_version(path, artifact, subject)


def _check_headers(path: Path, artifact: Artifact, architecture: Architecture, subject: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        headers = elf.parse(lambda offset, length: os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)
    if headers is None:
        raise ArtifactError(
            f"{artifact.name} must be a Linux program (64-bit ELF); this file is not",
            subject=subject,
            hint="an archive or an error page was saved in its place, perhaps",
        )
    if headers.architecture != architecture:
        raise ArtifactError(
            f"{artifact.name} is for {headers.architecture}, {architecture} is needed",
            subject=subject,
            hint=f"put a linux/{architecture} binary there, or choose another source (artifacts.sources)",
        )
    needed = [elf.library(name) for name in headers.needed]
    foreign = [name for name in needed if name not in artifact.libraries and not name.startswith("ld-linux")]
    if foreign and (artifact.libraries or not artifact.dynamic):
        allowed = ", ".join(artifact.libraries) or "none (it must be static)"
        raise ArtifactError(
            f"{artifact.name} needs the shared libraries {', '.join(foreign)}; allowed: {allowed}",
            subject=subject,
            hint="nodes would lack them",
        )


async def _check_version(path: Path, artifact: Artifact, subject: str) -> None:
    # Out of the caller's environment: no KUBECONFIG, no NERDCTL_TOML may change what it says.
    with tempfile.TemporaryDirectory() as directory:
        env = {"PATH": "/usr/bin:/bin", "HOME": directory, "LC_ALL": "C"}
        try:
            asked = await command.run([str(path), *artifact.report], env=env, cwd=Path(directory), timeout=30)
        except TimeoutError:
            raise ArtifactError(
                f"`{artifact.name} {' '.join(artifact.report)}` did not end within 30 s", subject=subject
            ) from None
    found = reported_version(asked.output)
    if found != artifact.version:
        field = artifact.field or "its version in cluster.yaml"
        says = f"reports {found}" if found else f"reports no version: {asked.tail(3)}"
        raise ArtifactError(
            f"{artifact.name} {says}; {artifact.version} is asked for",
            subject=subject,
            hint=f"set {field}: {found or '...'} or get the right file",
        )


def extract(tarball: Path, member: str, target: Path, *, subject: str) -> None:
    """Copy one regular file out of a tarball to `target`; nothing else of it is written."""
    wanted = member.removeprefix("./")
    try:
        with tarfile.open(tarball) as archive:
            for entry in archive:
                if entry.name.removeprefix("./") == wanted and entry.isreg():
                    source = archive.extractfile(entry)
                    assert source is not None
                    with target.open("wb") as out:
                        while chunk := source.read(1 << 20):
                            out.write(chunk)
                    return
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArtifactError(f"is no readable tarball: {error}", subject=subject) from error
    raise ArtifactMissing(f"holds no file {member}", subject=subject)


def extract_source(tarball: Path, directory: Path, *, subject: str) -> Path:
    """Unpack a source tarball, which has one top directory, and return that directory.

    The `data` filter keeps members from leaving `directory` (absolute paths, .., links, devices).
    """
    try:
        with tarfile.open(tarball) as archive:
            archive.extractall(directory, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArtifactError(f"can't be unpacked: {error}", subject=subject) from error
    match list(directory.iterdir()):
        case [only] if only.is_dir():
            return only
        case _:
            raise ArtifactError("is no source tarball: it has not one top directory", subject=subject)
