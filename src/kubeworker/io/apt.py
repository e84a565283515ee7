"""Debian's packages on the control host: tools that a build lacks, and source tarballs. Hides apt-get."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kubeworker.core.artifacts import apt_sources
from kubeworker.errors import ArtifactMissing
from kubeworker.io import command

_QUIET = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def can_install() -> bool:
    """Whether packages can be installed here: root, on a machine with apt."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


async def install(packages: tuple[str, ...]) -> None:
    """Install Debian packages; ArtifactMissing when that fails."""
    install_command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    env = os.environ | _QUIET
    done = await command.run(install_command, env=env)
    if done.status != 0:
        # The machine's package lists may be empty or stale.
        await command.run(["apt-get", "update"], env=env)
        done = await command.run(install_command, env=env)
    if done.status != 0:
        raise ArtifactMissing(
            f"apt-get could not install {' '.join(packages)}:\n{done.tail()}",
            hint=f"install them by hand: apt-get install {' '.join(packages)}",
        )


async def source_tarball(package: str, version: str, work: Path) -> Path:
    """Fetch `<package>_<version>.orig.tar.*` from the distribution that this host runs.

    apt checks it against the distribution's signed index. Lists and caches lie in `work`, a fresh directory: nothing
    of the host's own apt set-up is touched, and no root is needed.
    """
    if shutil.which("apt-get") is None:
        raise ArtifactMissing(
            "there is no apt-get here", subject=f"Debian's source of {package}", hint="artifacts.nginx_source: official"
        )
    options = _private_state(work, _host_source_lines())
    env = os.environ | _QUIET
    updated = await command.run(["apt-get", *options, "update"], env=env, cwd=work)
    fetch = ["apt-get", *options, "source", "--download-only", "--tar-only", package]
    fetched = await command.run(fetch, env=env, cwd=work)
    tarballs = sorted(work.glob(f"{package}_*.orig.tar.*"))
    tarballs = [path for path in tarballs if path.suffix != ".asc"]
    if not tarballs:
        raise ArtifactMissing(
            f"apt-get fetched nothing:\n{updated.tail(8)}\n{fetched.tail(8)}",
            subject=f"Debian's source of {package}",
            hint="artifacts.nginx_source: official",
        )
    offered = tarballs[0].name.removeprefix(f"{package}_").partition(".orig.")[0]
    if offered != version:
        raise ArtifactMissing(
            f"is version {offered}; versions.{package} asks for {version}",
            subject=f"Debian's source of {package}",
            hint=f"set versions.{package}: {offered}, or artifacts.{package}_source: official",
        )
    return tarballs[0]


def _host_source_lines() -> tuple[str, ...]:
    codename = next(
        (
            line.partition("=")[2].strip('"')
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        ),
        "",
    )
    directory = Path("/etc/apt/sources.list.d")
    files = [Path("/etc/apt/sources.list"), *sorted(directory.glob("*.list")), *sorted(directory.glob("*.sources"))]
    lines = apt_sources.source_lines((path.read_text() for path in files if path.exists()), codename)
    if not lines:
        raise ArtifactMissing(
            f"/etc/apt names no package source for {codename or 'this distribution'}",
            hint="artifacts.nginx_source: official",
        )
    return lines


def _private_state(work: Path, lines: tuple[str, ...]) -> list[str]:
    for name in ("lists/partial", "archives/partial", "empty"):
        (work / "apt" / name).mkdir(parents=True)
    (work / "apt" / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    settings = {
        "Dir::State::Lists": work / "apt/lists",
        "Dir::Cache": work / "apt",
        "Dir::Etc::SourceList": work / "apt/sources.list",
        "Dir::Etc::SourceParts": work / "apt/empty",
        # apt's own user may not enter a directory that only the caller can read.
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::http::Timeout": 20,
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
