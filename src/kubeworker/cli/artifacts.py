"""`kubeworker artifacts`: get, check and pack the binaries that nodes run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import App, Parameter

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Json, JsonEvents
from kubeworker.core.artifact import Architecture, Artifact
from kubeworker.errors import InputError

if TYPE_CHECKING:
    from kubeworker.core.spec import ClusterFile
    from kubeworker.flow.artifacts import Listed

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
    json_events: JsonEvents = False,
) -> None:
    """Get every artifact from the first source that has it, check it, and pin it in kubeworker.lock.

    Args:
        file: The cluster file; paths in it are relative to it.
        only: Only these artifacts, by name.
        arch: The nodes' architecture; default: this machine's.
        update_lock: Accept results that differ from kubeworker.lock, and pin those.
        json: Print what there is as one JSON document.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.report import reporting
    from kubeworker.flow.artifacts import listed, resolve

    cluster, artifacts = _artifacts(file, only)
    with reporting(json_events=json_events) as report:
        await resolve(file, cluster, artifacts, architecture=arch, update_lock=update_lock, report=report)
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
    json_events: JsonEvents = False,
) -> None:
    """Pack the artifacts and their pins into one .tar.gz for a site without internet.

    Args:
        out: The bundle to write.
        file: The cluster file; paths in it are relative to it.
        only: Only these artifacts, by name.
        arch: The nodes' architecture; default: this machine's.
        json_events: Print progress as JSON lines on standard error.
    """
    from kubeworker.cli.progress import size
    from kubeworker.cli.report import reporting
    from kubeworker.flow.artifact_bundle import bundle as pack
    from kubeworker.flow.artifacts import resolve
    from kubeworker.io.blob_store import BlobStore

    cluster, artifacts = _artifacts(file, only)
    store = BlobStore.default()
    with reporting(json_events=json_events) as report:
        blobs = await resolve(file, cluster, artifacts, architecture=arch, report=report, store=store)
        written = await pack(file, artifacts, blobs, out, store=store)
    sys.stdout.write(f"{out}: {len(blobs)} artifacts, {size(written)}\n")


@app.command(name="import")
async def import_(source: Annotated[Path, Parameter(name="BUNDLE")], /, *, file: File = DEFAULT_FILE) -> None:
    """Put a bundle's artifacts into the cache and its pins into kubeworker.lock, for `sources: [cache]`.

    Args:
        source: What `artifacts bundle` wrote.
        file: The cluster file that kubeworker.lock belongs to.
    """
    from kubeworker.flow.artifact_bundle import unbundle
    from kubeworker.io.blob_store import BlobStore

    names = await unbundle(file, source, store=BlobStore.default())
    sys.stdout.write(f"{source}: {len(names)} artifacts in the cache: {', '.join(names)}\n")


def _artifacts(file: Path, only: Sequence[str]) -> tuple[ClusterFile, tuple[Artifact, ...]]:
    """The cluster, and those of its artifacts that are asked for."""
    from kubeworker.cli.spec import load_cluster
    from kubeworker.components import discover
    from kubeworker.core.desired import artifacts, tools

    cluster, registry = load_cluster(file), discover()
    every = (*artifacts(cluster, registry), *tools(cluster, registry))
    names = [artifact.name for artifact in every]
    for name in only:
        if name not in names:
            raise InputError(f"there is no artifact {name!r}", subject="--only", hint=f"there are: {', '.join(names)}")
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
