"""The binaries that the lab's control plane runs, as data; `flow/artifacts` gets them."""

from __future__ import annotations

from kubeworker.core.artifact import Artifact, GoBuild, Release
from kubeworker.core.spec import Versions

KUBERNETES_COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")

ETCD = "etcd"


def control_plane(versions: Versions) -> tuple[Artifact, ...]:
    """etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and kubectl for people."""
    return (*(_kubernetes(name, versions.kubernetes) for name in KUBERNETES_COMMANDS), _etcd(versions.etcd))


def _kubernetes(name: str, version: str) -> Artifact:
    url = f"https://dl.k8s.io/release/v{version}/bin/linux/{{arch}}/{name}"
    report = ("version", "--client") if name == "kubectl" else ("--version",)
    return Artifact(
        name=name,
        version=version,
        releases=(Release(url=url, checksum_url=f"{url}.sha256"),),
        build=GoBuild(module="k8s", package=f"k8s.io/kubernetes/cmd/{name}", ldflags=_kubernetes_ldflags(version)),
        report=report,
    )


def _kubernetes_ldflags(version: str) -> str:
    major, minor, _ = version.split(".", 2)
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = [f"-X {package}.{name}={value}" for package in packages for name, value in stamps.items()]
    return " ".join(["-s -w", *flags])


def _etcd(version: str) -> Artifact:
    base = f"https://github.com/etcd-io/etcd/releases/download/v{version}"
    archive = f"etcd-v{version}-linux-{{arch}}"
    return Artifact(
        name=ETCD,
        version=version,
        releases=(
            Release(url=f"{base}/{archive}.tar.gz", member=f"{archive}/etcd", checksum_url=f"{base}/SHA256SUMS"),
        ),
        build=GoBuild(module="etcd", package="go.etcd.io/etcd/server/v3"),
    )
