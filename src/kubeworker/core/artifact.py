"""What an artifact is and where it can come from, as data; io/fetch and io/build do the getting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Architecture: TypeAlias = Literal["amd64", "arm64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A file that the publisher offers. `{arch}` stands for the architecture in Go's spelling."""

    url: str
    member: str = ""
    """Path inside the tarball; empty when the file is the binary itself."""
    checksum_url: str = ""
    """The publisher's sha256: a bare digest or a `sha256sum` list that names the file. Empty: none is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBuild:
    """A Go command built with the go.mod and go.sum in recipes/go/<module>."""

    module: str
    package: str
    ldflags: str = "-s -w"
    tags: str = ""
    cgo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigureBuild:
    """nginx from its source tarball: configure with these flags, make, take `binary`."""

    source_url: str
    """The publisher's tarball; `artifacts.nginx_source` may name another place with the same version."""
    debian_source: str
    """Debian's source package that has the same tarball (apt-get source), for sites with only a Debian mirror."""
    configure: tuple[str, ...]
    binary: str


Build: TypeAlias = GoBuild | ConfigureBuild


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One binary that nodes (or the lab's control plane) run."""

    name: str
    """File name on the node, and the key in the lock file: kubelet, kube-nginx, bridge, ..."""
    version: str
    """Without a leading v."""
    releases: tuple[Release, ...] = ()
    build: Build | None = None
    report: tuple[str, ...] = ("--version",)
    """Arguments that make the binary print its version. The output must hold `version` as a whole word (a leading
    v is allowed): a binary is never given a version that it does not report. Empty: it has no such option."""
    libraries: tuple[str, ...] = ()
    """Shared libraries it may need (ldd names without version: libc, libcrypt). Empty: it must be static or is not
    checked where `dynamic` is true."""
    dynamic: bool = False
    """Whether shared libraries are allowed at all."""
