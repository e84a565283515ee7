"""How Go commands are built from the go.mod and go.sum files that come with kubeworker, as values."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from kubeworker.core.artifacts.artifact import Architecture, Artifact, ConfigureBuild, GoBuild, ModuleFolder, SourceEdit

_REQUIRE = re.compile(r"^\s*(?:require\s+)?(\S+)\s+(v\d\S*)", re.MULTILINE)
_GO = re.compile(r"^go (\d+\.\d+(?:\.\d+)?)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The files of one folder under recipes/go."""

    module: str
    files: Mapping[str, bytes]
    """By path below the folder: go.mod, go.sum, and stubs that go.mod's `replace` lines name."""

    @property
    def mod(self) -> str:
        """The text of go.mod."""
        return self.files["go.mod"].decode()

    @property
    def go(self) -> str:
        """The least Go version that go.mod accepts."""
        found = _GO.search(self.mod)
        return found.group(1) if found else "1.21"

    def version(self, package: str) -> str:
        """The version, without v, of the module that holds the package; empty when go.mod does not require it."""
        return self._required.get(self.holder(package), "").removeprefix("v").removesuffix("+incompatible")

    def holder(self, package: str) -> str:
        """The path of the module that holds the package; empty when go.mod does not require it."""
        holding = [path for path in self._required if package == path or package.startswith(f"{path}/")]
        return max(holding, key=len, default="")

    @property
    def _required(self) -> dict[str, str]:
        return {path: version for path, version in _REQUIRE.findall(self.mod) if path != "go"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Artifacts that one `go build` makes: same module, flags and tags."""

    artifacts: tuple[Artifact, ...]
    builds: tuple[GoBuild, ...]

    @property
    def build(self) -> GoBuild:
        """Any of them: all but the package is the same."""
        return self.builds[0]


def groups(artifacts: Iterable[Artifact]) -> tuple[Group, ...]:
    """The Go builds among the artifacts, put together so that each module is compiled and linked in one command."""
    found: dict[tuple[str, str, str, bool, tuple[SourceEdit, ...]], list[tuple[Artifact, GoBuild]]] = {}
    for artifact in artifacts:
        if isinstance(artifact.build, GoBuild):
            build = artifact.build
            key = (build.module, build.ldflags, build.tags, build.cgo, build.edits)
            found.setdefault(key, []).append((artifact, build))
    return tuple(
        Group(artifacts=tuple(artifact for artifact, _ in members), builds=tuple(build for _, build in members))
        for members in found.values()
    )


def command(group: Group, output: str) -> tuple[str, ...]:
    """The one `go build` of the group; `output` is an existing directory."""
    build = group.build
    tags = ("-tags", build.tags) if build.tags else ()
    packages = tuple(each.package for each in group.builds)
    return ("go", "build", "-trimpath", *tags, "-ldflags", build.ldflags, "-o", f"{output}/", *packages)


MODULE_ENVIRONMENT = {"GOFLAGS": "-mod=readonly", "GOWORK": "off"}
"""What every `go` sees over the caller's environment.

GOFLAGS is set to what is the default anyway, since an empty one would let `go env -w` settings through.
GOTOOLCHAIN and GOPROXY stay the operator's: sites set them to reach their own proxy.
"""


def environment(build: GoBuild, architecture: Architecture) -> dict[str, str]:
    """What a build sets over the caller's environment."""
    return {
        "CGO_ENABLED": "1" if build.cgo else "0",
        "GOOS": "linux",
        "GOARCH": architecture,
        **MODULE_ENVIRONMENT,
    }


def executable(package: str) -> str:
    """The file name that `go build` gives a command: the last element that is no major version."""
    *rest, last = package.split("/")
    return rest[-1] if rest and re.fullmatch(r"v\d+", last) else last


def go_inputs(recipe: Recipe, build: GoBuild) -> str:
    """Hash of what is built and how; the toolchain is told apart from it."""
    inputs: dict[str, object] = {
        "files": _file_hashes(recipe),
        "package": build.package,
        "ldflags": build.ldflags,
        "tags": build.tags,
        "cgo": build.cgo,
    }
    if build.edits:
        inputs["edits"] = [asdict(edit) for edit in build.edits]
    return _digest(inputs)


def folder_inputs(recipe: Recipe, build: ModuleFolder) -> str:
    """The same for a module's folder."""
    return _digest({"files": _file_hashes(recipe), "folder": build.package})


def configure_inputs(artifact: Artifact, build: ConfigureBuild) -> str:
    """The same for a configure-and-make build; its tarball is pinned by hash beside it."""
    return _digest({"version": artifact.version, "configure": list(build.configure), "binary": build.binary})


def older(version: str, least: str) -> bool:
    """Whether a Go version (1.24, 1.26.8, 1.27rc1) is below another."""
    return _numbers(version) < _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    parts = tuple(int(each) for each in re.findall(r"\d+", version)[:3])
    return parts + (0,) * (3 - len(parts))


def _file_hashes(recipe: Recipe) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in recipe.files.items()}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
