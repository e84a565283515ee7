"""Downloads against a real HTTP server that serves really built binaries under the official paths."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.artifact_site import Site, cluster, node_artifacts
from tests.contract.release_server import ReleaseServer, mirrored_path, publish_all, tarball

from kubeworker.core.artifacts.artifact import Architecture, Artifact, Release, release_url
from kubeworker.errors import ArtifactError, ArtifactMissing
from kubeworker.flow.events import Transfer
from kubeworker.io.binary import host_architecture
from kubeworker.io.fetch import Fetcher, Retry
from kubeworker.lab.artifacts import control_plane

ARCHITECTURE = host_architecture()
PLUGINS = node_artifacts("bridge", "host-local", "loopback", "portmap")
BRIDGE, LOOPBACK = PLUGINS[0], PLUGINS[2]
IMPATIENT = Retry(attempts=3, first_wait=0.01)


@pytest.fixture(scope="session")
def plugins(binaries: Path) -> dict[str, bytes]:
    """The CNI plugins, by artifact name: small, and of one tarball."""
    return {artifact.name: (binaries / artifact.name).read_bytes() for artifact in PLUGINS}


@pytest.fixture
def server() -> Iterator[ReleaseServer]:
    with ReleaseServer.running() as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path / "site")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def alone(artifact: Artifact, *, checksum: bool = True) -> tuple[Artifact, str]:
    """The artifact as a file of its own, not in a tarball, and its official address."""
    url = f"https://example.org/releases/v{artifact.version}/{artifact.name}-{{arch}}"
    release = Release(url=url, checksum_url=f"{url}.sha256" if checksum else "")
    return replace(artifact, releases=(release,)), release_url(url, ARCHITECTURE, None)


def publish(server: ReleaseServer, artifact: Artifact, url: str, content: bytes) -> str:
    (release,) = artifact.releases
    return server.publish(url, content, checksum_url=release_url(release.checksum_url, ARCHITECTURE, None))


async def error_of(site: Site, artifact: Artifact, **settings: Any) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([artifact], **settings)
    return caught.value


# -- what is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "artifact", [*node_artifacts(), *control_plane(cluster().versions)], ids=lambda artifact: artifact.name
)
async def test_every_official_address_has_its_place_on_a_mirror(
    artifact: Artifact, server: ReleaseServer, tmp_path: Path
) -> None:
    for release in artifact.releases:
        for url in (release.url, release.checksum_url):
            server.files[mirrored_path(release_url(url, "amd64", None))] = b"content of it\n"
            async with Fetcher(retry=IMPATIENT) as fetcher:
                assert await fetcher.text(release_url(url, "amd64", f"{server.url}/")) == "content of it\n"
    assert artifact.releases or artifact.name == "kube-nginx"


async def test_one_tarball_is_downloaded_once_for_all_its_artifacts(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes]
) -> None:
    publish_all(server, PLUGINS, plugins, ARCHITECTURE)
    blobs = await site.resolve(PLUGINS, sources=["download"], mirror=server.url)
    assert {name: blob.sha256 for name, blob in blobs.items()} == {n: sha256(c) for n, c in plugins.items()}
    assert [each.status for each in server.requests(".tgz")] == [200]
    assert {key.kind for key in site.pins} == {"download"}
    assert not list((site.store.root / "partial").iterdir())
    last = [event for event in site.events if isinstance(event, Transfer)][-1]
    assert last.done == last.total == server.requests(".tgz")[0].sent


async def test_a_second_checkout_downloads_nothing(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes], tmp_path: Path
) -> None:
    publish_all(server, PLUGINS, plugins, ARCHITECTURE)
    first = await site.resolve(PLUGINS, sources=["cache", "download"], mirror=server.url)
    server.served.clear()
    checkout = Site.at(tmp_path / "checkout", store=site.store)
    assert await checkout.resolve(PLUGINS, sources=["cache", "download"], mirror=server.url) == first
    assert server.served == []
    assert checkout.pins == site.pins


# -- what goes wrong on the way -----------------------------------------------------------------------------------


async def test_a_cut_download_goes_on_where_it_was_cut(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes]
) -> None:
    artifact, url = alone(BRIDGE)
    content = plugins["bridge"]
    path = publish(server, artifact, url, content)
    server.cuts[path] = [1_000_000]
    blobs = await site.resolve([artifact], sources=["download"], mirror=server.url)
    assert blobs["bridge"].sha256 == sha256(content)
    first, second = server.requests(path)
    assert (first.range, first.sent) == ("", 1_000_000)
    assert (second.range, second.status, second.sent) == ("bytes=1000000-", 206, len(content) - 1_000_000)
    assert second.if_range


async def test_the_next_run_goes_on_where_a_dead_one_was_cut(
    server: ReleaseServer, tmp_path: Path, plugins: dict[str, bytes]
) -> None:
    content = plugins["bridge"]
    server.files["/bridge"], server.cuts["/bridge"] = content, [300_000, 200_000]
    partial = tmp_path / "partial"
    for _ in range(2):
        async with Fetcher(retry=Retry(attempts=1)) as fetcher:
            with pytest.raises(ArtifactMissing):
                await fetcher.file(f"{server.url}/bridge", partial, sha256=sha256(content), progress=ignore)
    assert partial.stat().st_size == 500_000
    async with Fetcher(retry=Retry(attempts=1)) as fetcher:
        assert await fetcher.file(f"{server.url}/bridge", partial, sha256="", progress=ignore) == sha256(content)
    assert [each.range for each in server.served] == ["", "bytes=300000-", "bytes=500000-"]
    assert sum(each.sent for each in server.served) == len(content)
    assert partial.read_bytes() == content


async def test_a_file_that_changed_between_two_runs_is_downloaded_whole(
    server: ReleaseServer, tmp_path: Path, plugins: dict[str, bytes]
) -> None:
    server.files["/bridge"], server.cuts["/bridge"] = plugins["bridge"], [300_000]
    partial = tmp_path / "partial"
    async with Fetcher(retry=Retry(attempts=1)) as fetcher:
        with pytest.raises(ArtifactMissing):
            await fetcher.file(f"{server.url}/bridge", partial, sha256="", progress=ignore)
        server.files["/bridge"] = plugins["loopback"]
        digest = await fetcher.file(f"{server.url}/bridge", partial, sha256="", progress=ignore)
    assert digest == sha256(plugins["loopback"])
    assert server.served[-1].status == 200
    assert partial.read_bytes() == plugins["loopback"]


async def test_a_busy_server_is_asked_again(server: ReleaseServer, tmp_path: Path) -> None:
    server.files["/file"], server.failures["/file"] = b"content", [503, 502]
    async with Fetcher(retry=IMPATIENT) as fetcher:
        assert await fetcher.text(f"{server.url}/file") == "content"
    assert [each.status for each in server.served] == [503, 502, 200]


def test_a_retry_prints_nothing_of_its_own() -> None:
    program = """
import asyncio
from kubeworker.errors import ArtifactError
from kubeworker.io.fetch import Fetcher, Retry

async def main():
    async with Fetcher(retry=Retry(attempts=2, first_wait=0.01)) as fetcher:
        await fetcher.text("http://127.0.0.1:9/file")

try:
    asyncio.run(main())
except ArtifactError:
    print("given up")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("given up\n", "")


async def test_a_server_that_stays_busy_is_given_up_with_its_answer(server: ReleaseServer) -> None:
    server.failures["/file"] = [503] * 3
    async with Fetcher(retry=IMPATIENT) as fetcher:
        with pytest.raises(ArtifactMissing) as caught:
            await fetcher.text(f"{server.url}/file")
    assert str(caught.value) == f"{server.url}/file: 503 Service Unavailable"


async def test_nobody_listening_is_said_with_the_address() -> None:
    with ReleaseServer.running() as gone:
        url = gone.url
    async with Fetcher(retry=IMPATIENT) as fetcher:
        with pytest.raises(ArtifactMissing) as caught:
            await fetcher.text(f"{url}/file")
    assert caught.value.subject == f"{url}/file"
    assert "ConnectError" in caught.value.message


# -- what is refused ----------------------------------------------------------------------------------------------


async def test_a_wrong_published_hash_is_refused_and_nothing_kept_nor_another_source_asked(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes], tmp_path: Path
) -> None:
    artifact, url = alone(BRIDGE)
    path = publish(server, artifact, url, plugins["bridge"])
    published, changed = sha256(plugins["bridge"]), plugins["bridge"] + b"\0"
    server.files[path] = changed
    (tmp_path / "bridge").write_bytes(plugins["bridge"])
    error = await error_of(site, artifact, sources=["download", "local"], mirror=server.url, local=str(tmp_path))
    assert error.subject == f"{server.url}{path}"
    assert published in error.message
    assert sha256(changed) in error.message
    assert not list((site.store.root / "partial").iterdir())
    assert not list((site.store.root / "store").iterdir())
    assert site.pins == {}


async def test_a_changed_byte_without_a_published_hash_is_refused_by_the_lock_file(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes]
) -> None:
    artifact, url = alone(BRIDGE, checksum=False)
    path = publish(server, artifact, url, plugins["bridge"])
    await site.resolve([artifact], sources=["cache", "download"], mirror=server.url)
    changed = server.files[path] = plugins["bridge"] + b"\0"
    other = site.with_empty_cache()
    error = await error_of(other, artifact, sources=["cache", "download"], mirror=server.url)
    for part in ("bridge", path, sha256(plugins["bridge"]), sha256(changed), "--update-lock"):
        assert part in str(error)
    blobs = await other.resolve([artifact], sources=["cache", "download"], mirror=server.url, update_lock=True)
    assert blobs["bridge"].sha256 == sha256(changed)


async def test_404_leaves_the_artifact_to_the_next_source(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes], tmp_path: Path
) -> None:
    artifact, _ = alone(BRIDGE)
    (tmp_path / "bridge").write_bytes(plugins["bridge"])
    await site.resolve([artifact], sources=["download", "local"], mirror=server.url, local=str(tmp_path))
    assert [key.kind for key in site.pins] == ["local"]


async def test_404_everywhere_names_the_address_and_what_else_was_tried(server: ReleaseServer, site: Site) -> None:
    artifact, url = alone(BRIDGE, checksum=False)
    artifact = replace(artifact, build=None)
    error = await error_of(site, artifact, sources=["cache", "download", "build", "local"], mirror=server.url)
    for part in (f"{server.url}{mirrored_path(url)}: 404", "not in the cache", "no build recipe", "artifacts.local"):
        assert part in str(error)


async def test_a_tarball_without_the_member_is_said(server: ReleaseServer, site: Site) -> None:
    (release,) = BRIDGE.releases
    url = release_url(release.url, ARCHITECTURE, None)
    server.publish(url, tarball({"./README": b"x"}), checksum_url=release_url(release.checksum_url, ARCHITECTURE, None))
    error = await error_of(site, BRIDGE, sources=["download"], mirror=server.url)
    assert "holds no file ./bridge" in str(error)


async def test_an_error_page_with_status_200_is_refused(server: ReleaseServer, site: Site) -> None:
    artifact, url = alone(BRIDGE, checksum=False)
    publish(server, artifact, url, b"<html>please log in</html>")
    assert "must be a Linux program" in str(await error_of(site, artifact, sources=["download"], mirror=server.url))


async def test_an_error_page_in_place_of_the_published_hash_is_refused(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes]
) -> None:
    artifact, url = alone(BRIDGE)
    path = publish(server, artifact, url, plugins["bridge"])
    server.files[f"{path}.sha256"] = b"<html>please log in</html>"
    error = await error_of(site, artifact, sources=["download"], mirror=server.url)
    assert error.subject == f"{server.url}{path}.sha256"


async def test_another_architectures_file_is_refused(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes]
) -> None:
    other: Architecture = "arm64" if ARCHITECTURE == "amd64" else "amd64"
    artifact, _ = alone(BRIDGE, checksum=False)
    (release,) = artifact.releases
    server.publish(release_url(release.url, other, None), plugins["bridge"])
    error = await error_of(site, artifact, architecture=other, sources=["download"], mirror=server.url)
    assert f"bridge is for {ARCHITECTURE}, {other} is needed" in error.message


async def test_a_version_that_the_file_does_not_report_is_refused(
    server: ReleaseServer, site: Site, plugins: dict[str, bytes]
) -> None:
    artifact, url = alone(replace(LOOPBACK, version="1.7.2"))
    publish(server, artifact, url, plugins["loopback"])
    error = await error_of(site, artifact, sources=["download"], mirror=server.url)
    assert "loopback reports 1.7.1; 1.7.2 is asked for" in error.message


async def test_a_full_disk_is_named(server: ReleaseServer, tmp_path: Path) -> None:
    server.files["/file"] = os.urandom(1 << 16)
    # The device answers every write as a full disk does.
    (tmp_path / "partial").symlink_to("/dev/full")
    async with Fetcher(retry=IMPATIENT) as fetcher:
        with pytest.raises(ArtifactError) as caught:
            await fetcher.file(f"{server.url}/file", tmp_path / "partial", sha256="", progress=ignore)
    assert "no space left on device" in caught.value.message


def ignore(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""
