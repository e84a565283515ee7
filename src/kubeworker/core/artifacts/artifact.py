"""What an artifact is and where it can come from, as data; io/fetch and io/build do the getting."""

from __future__ import annotations

import re
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
class SourceEdit:
    """Text to replace in a copy of a Go package's source before a build; the text must be there exactly once."""

    package: str
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBuild:
    """A Go command built with the go.mod and go.sum in recipes/go/<module>."""

    module: str
    package: str
    ldflags: str = "-s -w"
    tags: str = ""
    cgo: bool = False
    edits: tuple[SourceEdit, ...] = ()
    """Not empty: the command is not what its project's source makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFolder:
    """A folder of a Go module as a .tgz: a Helm chart that lies in its project's source.

    The module's version and checksum are those of recipes/go/<module>.
    """

    module: str
    package: str
    """Module path and folder: github.com/cilium/cilium/install/kubernetes/cilium. The last name is the archive's one
    top directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigureBuild:
    """nginx from its source tarball: configure with these flags, make, take `binary`."""

    source_url: str
    """The publisher's tarball; `artifacts.nginx_source` may name another place with the same version."""
    debian_source: str
    """Debian's source package that has the same tarball (apt-get source), for sites with only a Debian mirror."""
    configure: tuple[str, ...]
    binary: str


Build: TypeAlias = GoBuild | ModuleFolder | ConfigureBuild

Form: TypeAlias = Literal["program", "chart"]
"""A Linux program, or a Helm chart as a .tgz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One binary that nodes (or the lab's control plane) run, or a file that the control host works with."""

    name: str
    """File name on the node, and the key in the lock file: kubelet, kube-nginx, bridge, ..."""
    version: str
    """Without a leading v."""
    releases: tuple[Release, ...] = ()
    build: Build | None = None
    form: Form = "program"
    """How it is checked. Of a chart: that it is one, with this version in its Chart.yaml."""
    report: tuple[str, ...] = ("--version",)
    """Arguments that make the binary print its version. The output must hold `version` as a whole word (a leading
    v is allowed): a binary is never given a version that it does not report. Empty: it has no such option."""
    libraries: tuple[str, ...] = ()
    """Shared libraries it may need (ldd names without version: libc, libcrypt). Empty: it must be static or is not
    checked where `dynamic` is true."""
    dynamic: bool = False
    """Whether shared libraries are allowed at all."""
    field: str = ""
    """The field of cluster.yaml that sets the version, for error messages: versions.kubernetes."""
    control_host: bool = False
    """Used on the control host only, and of its architecture; never sent to a node."""


# ---------------------------------------------------------------------------------------------------------------
# Linker flags that give each project's commands the version they report; without them kubelet says v0.0.0.


def kubernetes_ldflags(version: str) -> str:
    """For every command of k8s.io/kubernetes (hack/lib/version.sh sets the same variables)."""
    major, minor, _ = version.split(".", 2)
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ("-s -w", *(f"-X {package}.{name}={value}" for package in packages for name, value in values.items()))
    )


def runtime_ldflags(containerd: str, nerdctl: str) -> str:
    """For containerd, its shim, ctr and nerdctl: one module and one set of flags, so that one `go build` makes all."""
    return (
        f"-s -w -X github.com/containerd/containerd/v2/version.Version=v{containerd}"
        f" -X github.com/containerd/nerdctl/v2/pkg/version.Version=v{nerdctl}"
    )


def cni_ldflags(version: str) -> str:
    """For the containernetworking plugins."""
    return f"-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=v{version}"


def crictl_ldflags(version: str) -> str:
    """For crictl."""
    return f"-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=v{version}"


def helm_ldflags(version: str, kubernetes_minor: int) -> str:
    """For helm (its Makefile sets the same): the minor version of its client-go is the cluster's that `helm template`
    assumes where it is told none.
    """
    values = {
        "internal/version.version": f"v{version}",
        "pkg/lint/rules.k8sVersionMajor": "1",
        "pkg/lint/rules.k8sVersionMinor": str(kubernetes_minor),
        "pkg/chartutil.k8sVersionMajor": "1",
        "pkg/chartutil.k8sVersionMinor": str(kubernetes_minor),
    }
    return " ".join(("-s -w", *(f"-X helm.sh/helm/v3/{name}={value}" for name, value in values.items())))


RUNC_LDFLAGS = '-s -w -extldflags "-static"'
"""runc is linked statically with libseccomp (tags: seccomp); it takes its version from a file of its source."""


# ---------------------------------------------------------------------------------------------------------------
# What a release's URL and a binary's own words say.

_VERSION = re.compile(r"(?<![\w.+-])v?((?>\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]*[0-9A-Za-z])?))(?!\w)")


def reported_version(output: str) -> str:
    """The version that a binary prints of itself: the first whole-word x.y.z; runc prints its spec's and Go's after it.

    Empty when there is none.
    """
    found = _VERSION.search(output)
    return found.group(1) if found else ""


def release_url(url: str, architecture: Architecture, mirror: str | None) -> str:
    """The address to fetch: the official one, or MIRROR/<host>/<path> of it."""
    official = url.replace("{arch}", architecture)
    if not mirror:
        return official
    _, _, rest = official.partition("://")
    return f"{mirror.rstrip('/')}/{rest}"
