"""The binaries that the lab's machines run, as data; `flow/artifacts` gets them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, Release, kubernetes_ldflags
from kubeworker.core.spec import Versions
from kubeworker.flow.events import Reporter

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
        build=GoBuild(module="k8s", package=f"k8s.io/kubernetes/cmd/{name}", ldflags=kubernetes_ldflags(version)),
        report=report,
        field="versions.kubernetes",
    )


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
        field="versions.etcd",
    )


async def fetch(
    cluster_file: Path,
    report: Reporter,
    wanted: Callable[[Versions], tuple[Artifact, ...]] = control_plane,
    *,
    workers_too: bool = False,
) -> Mapping[str, Path]:
    """The wanted binaries by name, from the sources in the cluster file; ArtifactError if none has them.

    `workers_too` gets what the nodes' components need into the cache as well.
    """
    from kubeworker.components import discover
    from kubeworker.core import desired
    from kubeworker.flow import artifacts
    from kubeworker.io.blob_store import BlobStore
    from kubeworker.io.cluster_file import load

    cluster = load(cluster_file)
    asked = wanted(cluster.versions)
    others = desired.artifacts(cluster, discover()) if workers_too else ()
    blobs = await artifacts.resolve(cluster_file, cluster, (*asked, *others), report=report)
    store = BlobStore.default()
    return {artifact.name: store.path(blobs[artifact.name]) for artifact in asked}


def place(binary: Path, target: Path) -> None:
    """A copy of the binary, executable, by rename: a killed run leaves the whole file or none."""
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(binary, temporary)
    temporary.chmod(0o755)
    temporary.rename(target)
