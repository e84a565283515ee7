"""Builds from source on the control host: Go commands and folders by the recipes, nginx by configure and make."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from kubeworker.core.artifacts import recipe as recipes
from kubeworker.core.artifacts.artifact import Architecture, Artifact, ConfigureBuild, GoBuild, ModuleFolder
from kubeworker.core.artifacts.recipe import Group, Recipe
from kubeworker.errors import ArtifactError, ArtifactMissing
from kubeworker.io import apt, command, go_modules
from kubeworker.io.binary import extract_source, host_architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A tool or library that a build can't do without."""

    package: str
    """Debian's package of it."""
    probe: str
    """A shell command that succeeds where it is there."""


_GCC = Need(package="gcc", probe="command -v gcc")
_LIBC = Need(package="libc6-dev", probe='test -e "$(gcc -print-file-name=libc.a)"')
CGO_NEEDS = (
    _GCC,
    _LIBC,
    Need(package="pkg-config", probe="command -v pkg-config"),
    Need(package="libseccomp-dev", probe="pkg-config --exists libseccomp"),
)
"""What runc is built with."""
CONFIGURE_NEEDS = (
    _GCC,
    _LIBC,
    Need(package="make", probe="command -v make"),
    Need(package="libcrypt-dev", probe='test -e "$(gcc -print-file-name=libcrypt.so)"'),
)
"""What nginx is built with."""


async def missing(needs: tuple[Need, ...]) -> tuple[str, ...]:
    """The Debian packages that the machine lacks for a build."""
    probes = [(need.package, await command.run(["sh", "-c", need.probe])) for need in needs]
    return tuple(package for package, probe in probes if probe.status != 0)


async def provide(packages: tuple[str, ...], subject: str) -> None:
    """Install them where that is possible, else say which are needed."""
    if not packages:
        return
    if not apt.can_install():
        raise ArtifactMissing(
            f"can't be built here: missing {', '.join(packages)} (Debian's package names)",
            subject=subject,
            hint=f"as root: apt-get install {' '.join(packages)}",
        )
    await apt.install(packages)


# ---------------------------------------------------------------------------------------------------------------
# Go


def load_recipe(module: str) -> Recipe:
    """The files of recipes/go/<module>, which come with the package."""
    folder = resources.files("kubeworker").joinpath("recipes", "go", module)
    if not folder.joinpath("go.mod").is_file():
        raise ArtifactMissing("there is no build recipe of this name", subject=f"recipes/go/{module}")
    return Recipe(module=module, files=dict(_files(folder, "")))


def _files(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _files(entry, f"{prefix}{entry.name}/")
        else:
            found.append((f"{prefix}{entry.name}", entry.read_bytes()))
    return found


def check_version(artifact: Artifact, build: GoBuild | ModuleFolder, recipe: Recipe) -> None:
    """ArtifactMissing when the recipe has another version than is asked for."""
    has = recipe.version(build.package)
    if has != artifact.version:
        raise ArtifactMissing(
            f"the build recipes have {has or 'no version'}; "
            f"{artifact.field or artifact.name} asks for {artifact.version}",
            subject=artifact.name,
            hint=f"set {artifact.field or 'its version'}: {has}, or use the source download or local",
        )


async def go_toolchain(recipe: Recipe, build: GoBuild, architecture: Architecture, work: Path) -> str:
    """What compiles: Go's version and settings that change its output; with cgo also the C compiler and libseccomp.

    ArtifactMissing when it isn't there, too old, or can't build for this architecture.
    """
    if build.cgo and architecture != host_architecture():
        raise ArtifactMissing(
            f"uses C code and can't be built for {architecture} on {host_architecture()}",
            subject=build.package,
            hint=f"run on an {architecture} machine, or use the source download or local",
        )
    env = os.environ | recipes.environment(build, architecture)
    setting = "GOAMD64" if architecture == "amd64" else "GOARM64"
    cgo = ("CGO_CFLAGS", "CGO_LDFLAGS") if build.cgo else ()
    # Run where go.mod lies: with GOTOOLCHAIN=auto, go itself switches to the version that go.mod asks for.
    asked = await command.run(
        ["go", "env", "GOVERSION", setting, "GOEXPERIMENT", *cgo], env=env, cwd=_write(recipe, work)
    )
    wanted = f"install Go {recipe.go} or newer (https://go.dev/dl), or use the source download or local"
    if asked.status == 127:
        raise ArtifactMissing("there is no go command", subject="go", hint=wanted)
    if asked.status != 0:
        raise ArtifactMissing(f"does not work here: {asked.tail(3)}", subject="go", hint=wanted)
    version, *settings = asked.output.splitlines()
    if recipes.older(version, recipe.go):
        raise ArtifactMissing(f"is {version}; {recipe.module} needs go{recipe.go}", subject="go", hint=wanted)
    told = [version, *(value for value in settings if value)]
    if build.cgo:
        told += [await _compiler(), f"libseccomp {await _first_line('pkg-config', '--modversion', 'libseccomp')}"]
    return ", ".join(told)


async def go_build(group: Group, recipe: Recipe, architecture: Architecture, work: Path) -> dict[str, Path]:
    """Build the group's commands in one go; the binaries by artifact name, below `work`."""
    output = work / "bin"
    output.mkdir()
    build = group.build
    names = ", ".join(artifact.name for artifact in group.artifacts)
    folder = _write(recipe, work)
    if build.edits:
        await go_modules.edit(build.edits, recipe, folder, subject=names)
    done = await command.run(
        recipes.command(group, str(output)), env=os.environ | recipes.environment(build, architecture), cwd=folder
    )
    if done.status != 0:
        raise ArtifactError(
            f"go build failed:\n{done.tail()}", subject=names, hint="GOPROXY must reach a Go module proxy"
        )
    return {
        artifact.name: output / recipes.executable(each.package)
        for artifact, each in zip(group.artifacts, group.builds, strict=True)
    }


async def module_source(module: str, recipe: Recipe, work: Path) -> Path:
    """A module's read-only source, of the version in the recipe."""
    return await go_modules.source(module, _write(recipe, work), subject=module)


async def module_folder(artifact: Artifact, build: ModuleFolder, recipe: Recipe, work: Path) -> Path:
    """The folder as a .tgz, below `work`: the same bytes for the same module version and zlib."""
    module = recipe.holder(build.package)
    source = await go_modules.source(module, _write(recipe, work), subject=artifact.name)
    folder = source / build.package.removeprefix(module).lstrip("/")
    if not folder.is_dir():
        raise ArtifactError(f"{module} has no folder {folder.name}", subject=artifact.name)
    return await asyncio.to_thread(go_modules.pack, folder, work / artifact.name)


def _write(recipe: Recipe, work: Path) -> Path:
    folder = work / recipe.module
    for path, content in recipe.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


# ---------------------------------------------------------------------------------------------------------------
# configure and make


async def configure_toolchain(architecture: Architecture, subject: str) -> str:
    """The C compiler that builds nginx."""
    if architecture != host_architecture():
        raise ArtifactMissing(
            f"can't be built for {architecture} on {host_architecture()}",
            subject=subject,
            hint=f"run on an {architecture} machine, or use the source local",
        )
    return await _compiler()


async def configure_build(artifact: Artifact, build: ConfigureBuild, tarball: Path, work: Path) -> Path:
    """Unpack, configure, make; the finished and stripped binary, below `work`."""
    source = await asyncio.to_thread(extract_source, tarball, _fresh(work / "source"), subject=tarball.name)
    env = {
        "PATH": f"{_compiler_without_paths(source, artifact.name, work)}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(work),
        "LC_ALL": "C",
    }
    steps = (
        ["./configure", *build.configure],
        ["make", f"-j{len(os.sched_getaffinity(0))}"],
        ["strip", "--strip-all", build.binary],
    )
    for step in steps:
        done = await command.run(step, env=env, cwd=source)
        if done.status != 0:
            raise ArtifactError(f"`{' '.join(step)}` failed:\n{done.tail()}", subject=artifact.name)
    return source / build.binary


def _compiler_without_paths(source: Path, name: str, work: Path) -> Path:
    """A directory with a `cc` that keeps the build's random directory out of what it compiles.

    So the same inputs give the same bytes anywhere. CC can't say it: configure takes that apart at spaces.
    """
    directory = _fresh(work / "cc")
    mapped = shlex.quote(f"-ffile-prefix-map={source}=/usr/src/{name}")
    (directory / "cc").write_text(f'#!/bin/sh\nexec gcc {mapped} "$@"\n')
    (directory / "cc").chmod(0o755)
    return directory


async def _compiler() -> str:
    return await _first_line("gcc", "--version")


async def _first_line(*words: str) -> str:
    asked = await command.run(words, env=os.environ | {"LC_ALL": "C"})
    if asked.status != 0 or not asked.output.strip():
        raise ArtifactMissing(f"does not work here: {asked.tail(3)}", subject=words[0])
    return re.sub(r"\s+", " ", asked.output.splitlines()[0])


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
