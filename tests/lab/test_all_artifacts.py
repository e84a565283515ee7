"""All that nodes and the lab run: really built, then served under the official paths and downloaded."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.artifact_site import Site, node_artifacts
from tests.contract.release_server import ReleaseServer, publish_all

from kubeworker.core.artifacts import elf
from kubeworker.core.spec import Versions
from kubeworker.errors import ArtifactError
from kubeworker.io.binary import host_architecture
from kubeworker.io.blob_store import BlobStore
from kubeworker.lab.artifacts import control_plane

NGINX = node_artifacts("kube-nginx")
EVERYTHING = (*node_artifacts(), *control_plane(Versions()))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """From the user's cache, or built now."""
    site = Site.at(tmp_path_factory.mktemp("built"), store=BlobStore.default())
    blobs = asyncio.run(site.resolve(EVERYTHING, sources=["cache", "build"], nginx_source="debian"))
    return {name: site.store.path(blob).read_bytes() for name, blob in blobs.items()}


async def test_everything_is_downloaded_from_a_mirror_of_the_official_paths(
    built: dict[str, bytes], tmp_path: Path
) -> None:
    published = tuple(artifact for artifact in EVERYTHING if artifact.releases)
    site = Site.at(tmp_path / "site")
    with ReleaseServer.running() as server:
        publish_all(server, published, built, host_architecture())
        blobs = await site.resolve(published, sources=["cache", "download"], mirror=server.url)
        downloads = [each.path for each in server.served if each.sent > 1_000_000]
    for name, blob in blobs.items():
        assert site.store.path(blob).read_bytes() == built[name], name
    assert len(downloads) == len(set(downloads))
    assert {key.artifact for key in site.pins} == {artifact.name for artifact in published}


async def test_nginx_is_built_as_the_guide_does_and_needs_no_other_library(tmp_path: Path) -> None:
    site = Site.at(tmp_path / "site")
    blobs = await site.resolve(NGINX, sources=["build"], nginx_source="debian")
    content = site.store.path(blobs["kube-nginx"]).read_bytes()
    headers = elf.parse(lambda offset, length: content[offset : offset + length])
    assert headers is not None
    assert {elf.library(name) for name in headers.needed} <= {"libc", "libcrypt"}
    (entry,) = site.pins.values()
    assert entry.tarball

    elsewhere = Site.at(tmp_path / "a longer path than the first" / "site")
    shutil.copyfile(site.lock_path, elsewhere.lock_path)
    assert await elsewhere.resolve(NGINX, sources=["build"], nginx_source="debian") == blobs


async def test_a_version_that_debian_lacks_is_said_with_the_one_it_has(tmp_path: Path) -> None:
    asked = replace(NGINX[0], version="1.29.0")
    site = Site.at(tmp_path / "site")
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([asked], sources=["build"], nginx_source="debian")
    assert "is version 1.22.1; versions.nginx asks for 1.29.0" in caught.value.message
    assert "set versions.nginx: 1.22.1" in caught.value.hint
