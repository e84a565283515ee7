"""`kubeworker artifacts`: get, check and pack the binaries that nodes run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import App, Parameter

from kubeworker.cli.options import DEFAULT_FILE, PROGRESS, File, Flag, Json, ProgressOptions
from kubeworker.core.artifacts.artifact import Architecture, Artifact
from kubeworker.errors import UsageError

if TYPE_CHECKING:
    from kubeworker.core.spec import ClusterFile
    from kubeworker.flow.artifacts import Listed
    from kubeworker.io.blob_store import BlobStore

app = App(name="artifacts", help="Get, check and pack the binaries.")

Only: TypeAlias = Annotated[tuple[str, ...], Parameter(name="--only", negative="", consume_multiple=True)]
Arch: TypeAlias = Annotated[Architecture | None, Parameter(name="--arch")]


@app.command
async def fetch(
    *,
    file: File = DEFAULT_FILE,
    only: Only = (),
    arch: Arch = None,
    update_lock: Flag = False,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Get every artifact from the first source that has it, check it, and pin it in kubeworker.lock.

    Args:
        file: The cluster file; paths in it are relative to it.
        only: Only these artifacts, by name.
        arch: The nodes' architecture; default: this machine's.
        update_lock: Accept results that differ from kubeworker.lock, and pin those.
        json: Print what there is as one JSON document.
    """
    from kubeworker.cli.report import reporting
    from kubeworker.flow.artifacts import listed, resolve

    cluster, artifacts = _artifacts(file, only)
    with reporting(progress.form) as report:
        await resolve(file, cluster, artifacts, architecture=arch, update_lock=update_lock, report=report)
    if json or not progress.quiet:
        _print(listed(file, artifacts, architecture=arch), json=json)


@app.command(name="list")
def list_(*, file: File = DEFAULT_FILE, only: Only = (), arch: Arch = None, json: Json = False) -> None:
    """Show what kubeworker.lock pins and whether the cache has it. Fetches nothing.

    Args:
        file: The cluster file; paths in it are relative to it.
        only: Only these artifacts, by name.
        arch: The nodes' architecture; default: this machine's.
        json: Print it as one JSON document.
    """
    from kubeworker.flow.artifacts import listed

    _, artifacts = _artifacts(file, only)
    _print(listed(file, artifacts, architecture=arch), json=json)


@app.command
async def bundle(
    out: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    file: File = DEFAULT_FILE,
    only: Only = (),
    arch: Arch = None,
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Pack artifacts, their pins and the image archives of cluster.yaml into one .tar.gz for a site without internet.

    No key, token or kubeconfig is in it.

    Args:
        out: The bundle to write.
        file: The cluster file; paths in it are relative to it.
        only: Only these artifacts, by name, and no images.
        arch: The nodes' architecture; default: this machine's.
    """
    from kubeworker.cli.output import check_writable
    from kubeworker.cli.progress import size
    from kubeworker.cli.report import reporting
    from kubeworker.components import discover
    from kubeworker.core.desired import archives
    from kubeworker.flow.artifact_bundle import bundle as pack
    from kubeworker.flow.artifacts import resolve
    from kubeworker.io.blob_store import BlobStore

    cluster, artifacts = _artifacts(file, only)
    check_writable(out)
    store = BlobStore.default()
    with reporting(progress.form) as report:
        blobs = await resolve(file, cluster, artifacts, architecture=arch, report=report, store=store)
        images = () if only else archives(cluster, discover())
        written = await pack(file, artifacts, blobs, images, out, store=store)
    packed = f"{len(blobs)} artifacts, {len(images)} image archives, {size(written.size)}"
    if not progress.quiet:
        sys.stdout.write(f"{out}: {packed}\nsha256 {written.sha256}\n")


@app.command
async def publish(
    out: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    file: File = DEFAULT_FILE,
    only: Only = (),
    arch: Arch = None,
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Write what nodes fetch from a mirror (`artifacts: {delivery: pull, mirror: URL}`) into the folder that it serves.

    Files are named by the artifacts' hashes, so that several clusters and versions can share one folder; any web server
    or CDN will do. Nodes check the hashes: the mirror needs no trust.

    Args:
        out: The folder that is served as `artifacts.mirror`; the files lie in `kubeworker/` below it.
        file: The cluster file; paths in it are relative to it.
        only: Only these artifacts, by name, and no images.
        arch: The nodes' architecture; default: this machine's.
    """
    from kubeworker.cli.output import check_folder
    from kubeworker.cli.progress import size
    from kubeworker.cli.report import reporting
    from kubeworker.components import discover
    from kubeworker.core.desired import archives
    from kubeworker.core.node.pull_script import FOLDER
    from kubeworker.flow.artifact_publish import publish as write
    from kubeworker.flow.artifacts import resolve
    from kubeworker.io.blob_store import BlobStore

    cluster, artifacts = _artifacts(file, only)
    check_folder(out / FOLDER)
    store, wanted = BlobStore.default(), tuple(each for each in artifacts if not each.control_host)
    with reporting(progress.form) as report:
        blobs = await resolve(file, cluster, wanted, architecture=arch, report=report, store=store)
        images = () if only else archives(cluster, discover())
        done = await write(blobs.values(), images, out, store=store)
    if not progress.quiet:
        sys.stdout.write(f"{done.folder}: {done.written} files written, {done.kept} there already, {size(done.size)}\n")


@app.command(name="import")
async def import_(
    source: Annotated[Path, Parameter(name="BUNDLE")],
    /,
    *,
    file: File = DEFAULT_FILE,
    sha256: Annotated[str, Parameter(name="--sha256", negative="", show_default=False)] = "",
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Put a bundle's artifacts into the cache, its pins into kubeworker.lock, its images where cluster.yaml names them.

    A bundle with a single changed bit is refused before anything is changed. With `artifacts: {sources: [cache]}` no
    command looks anywhere else afterwards.

    Args:
        source: What `artifacts bundle` wrote.
        file: This site's cluster file; kubeworker.lock lies beside it.
        sha256: Refuse the bundle unless the file has this hash, which `artifacts bundle` printed.
    """
    from kubeworker.cli.report import reporting
    from kubeworker.cli.spec import load_cluster
    from kubeworker.components import discover
    from kubeworker.core.desired import archives
    from kubeworker.flow.artifact_bundle import unbundle
    from kubeworker.io.blob_store import BlobStore

    cluster, store = load_cluster(file), BlobStore.default()
    with reporting(progress.form) as report:
        brought = await unbundle(file, archives(cluster, discover()), source, sha256=sha256, store=store, report=report)
    missing = [f"still missing for {file}: {name}" for name in _missing(file, cluster, store)]
    if progress.quiet:
        sys.stdout.writelines(f"{line}\n" for line in missing)
        return
    lines = [
        f"{source}: {len(brought.artifacts)} artifacts in the cache: {', '.join(brought.artifacts)}",
        *(f"{path}: images of the bundle" for path in brought.images),
        *(f"{path}: left out, {file} does not name it" for path in brought.unnamed),
        *missing,
    ]
    if others := [each for each in cluster.artifacts.sources if each != "cache"]:
        lines.append(f"artifacts.sources in {file} names {', '.join(others)} too: sources: [cache] looks nowhere else")
    sys.stdout.write("\n".join(lines) + "\n")


def _missing(file: Path, cluster: ClusterFile, store: BlobStore) -> tuple[str, ...]:
    """What the cluster needs and this host has not: artifacts by name, image archives by path."""
    from kubeworker.components import discover
    from kubeworker.core.desired import archives
    from kubeworker.flow.artifacts import listed

    _, artifacts = _artifacts(file, ())
    found = listed(file, artifacts, store=store)
    had = {each.artifact.name for each in found if each.state == "in the cache"}
    names = dict.fromkeys(each.artifact.name for each in found if each.artifact.name not in had)
    paths = (path for path in archives(cluster, discover()) if not Path(path).is_file())
    return (*names, *paths)


def _artifacts(file: Path, only: Sequence[str]) -> tuple[ClusterFile, tuple[Artifact, ...]]:
    """The cluster, and those of its artifacts that are asked for."""
    from kubeworker.cli.spec import load_cluster
    from kubeworker.components import discover
    from kubeworker.core.desired import artifacts, tools
    from kubeworker.core.nearest import meant

    cluster, registry = load_cluster(file), discover()
    every = (*artifacts(cluster, registry), *tools(cluster, registry))
    names = [artifact.name for artifact in every]
    for name in only:
        if name not in names:
            raise UsageError(f"there is no artifact {name!r}", subject="--only", hint=meant(name, names))
    return cluster, tuple(artifact for artifact in every if not only or artifact.name in only)


def _print(found: Sequence[Listed], *, json: bool) -> None:
    from rich.table import Table

    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.progress import size

    if json:
        print_document({"artifacts": [_document(each) for each in found]})
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("ARTIFACT", "VERSION", "ARCH", "SOURCE", "SIZE", "SHA256", "STATE"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "SIZE" else "left")
    for each in found:
        pinned = (each.kind or "-", size(each.entry.size), each.entry.sha256[:16]) if each.entry else ("-", "-", "-")
        table.add_row(each.artifact.name, each.artifact.version, each.architecture, *pinned, each.state)
    console().print(table)


def _document(each: Listed) -> dict[str, Any]:
    return {
        "name": each.artifact.name,
        "version": each.artifact.version,
        "architecture": each.architecture,
        "source": each.kind,
        "sha256": each.entry.sha256 if each.entry else None,
        "size": each.entry.size if each.entry else None,
        "state": each.state,
    }
