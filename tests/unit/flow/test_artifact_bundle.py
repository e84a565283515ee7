"""Bundles: what one host packs is what another, without any network, has afterwards; or nothing at all."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.artifact_site import SHELL, Site, shell_artifact

from kubeworker.core.artifacts import bundle as form
from kubeworker.core.artifacts.bundle import ImageFile
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError, InputError
from kubeworker.flow.artifact_bundle import Imported, bundle, portable, unbundle
from kubeworker.flow.events import Transfer
from kubeworker.io import bundle_file
from kubeworker.io.blob_store import BlobStore
from kubeworker.lab import images


@dataclass
class Place:
    """A control host's folder with a cluster.yaml that names these image archives, and a cache of its own."""

    site: Site
    archives: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.site.directory / "cluster.yaml"

    async def take(self, source: Path, sha256: str = "") -> Imported:
        report = self.site.events.append
        return await unbundle(self.file, self.archives, source, sha256=sha256, store=self.site.store, report=report)

    def state(self) -> dict[str, str]:
        """Everything that an import can change, by path: hashes of files."""
        return {
            str(path.relative_to(self.site.directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.site.directory.rglob("*"))
            if path.is_file() and "stat" not in path.parts and "locks" not in path.parts
        }


def archive(reference: str, content: bytes = b"a program") -> bytes:
    return images.archive(images.Program(reference=reference, path="bin/x"), content, "amd64")


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache and lock file hold the artifact, which has been compressed once: that takes a while."""
    folder = tmp_path_factory.mktemp("resolved")
    (folder / "bin").mkdir()
    shutil.copy(SHELL, folder / "bin/bash")
    site = Site.at(folder / "home")
    found = asyncio.run(site.resolve([shell_artifact()], sources=["local"], local=str(folder / "bin")))
    for blob in found.values():
        site.store.tar_member(blob)
    return site.directory


@pytest.fixture
def home(resolved: Path, tmp_path: Path) -> Place:
    """Where there is a network: one artifact, an archive beside cluster.yaml, and one elsewhere."""
    shutil.copytree(resolved, tmp_path / "home")
    site = Site.at(tmp_path / "home")
    paths = (site.directory / "images/pause.tar", tmp_path / "elsewhere/busybox.tar")
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(archive(f"example.org/{path.stem}:1"))
    return Place(site, [str(path) for path in paths])


async def pack(place: Place, out: Path) -> bundle_file.Written:
    blobs = await place.site.resolve([shell_artifact()], sources=["cache", "local"])
    return await bundle(place.file, [shell_artifact()], blobs, place.archives, out, store=place.site.store)


@pytest.fixture
async def packed(home: Place, tmp_path: Path) -> Path:
    await pack(home, tmp_path / "bundle.tar.gz")
    return tmp_path / "bundle.tar.gz"


@pytest.fixture
def away(tmp_path: Path) -> Place:
    """Where there is none: the same cluster.yaml in another folder."""
    site = Site.at(tmp_path / "away")
    return Place(site, [str(site.directory / "images/pause.tar"), str(tmp_path / "elsewhere/busybox.tar")])


async def test_a_bundle_is_all_that_an_air_gapped_site_needs(home: Place, packed: Path, away: Place) -> None:
    originals = {path: Path(path).read_bytes() for path in home.archives}
    Path(away.archives[1]).unlink()
    brought = await away.take(packed)
    assert (brought.artifacts, brought.unnamed) == (("bash",), ())
    assert {str(path) for path in brought.images} == set(away.archives)
    assert away.site.pins == home.site.pins
    blobs = await away.site.resolve([shell_artifact()], sources=["cache"])
    assert away.site.store.path(blobs["bash"]).read_bytes() == SHELL.read_bytes()
    assert [Path(path).read_bytes() for path in away.archives] == list(originals.values())


async def test_an_import_tells_how_far_it_is_with_checking_and_unpacking(packed: Path, away: Place) -> None:
    await away.take(packed)
    told = [event for event in away.site.events if isinstance(event, Transfer)]
    steps = [event.what for event in told]
    assert steps == sorted(steps), "first the one, then the other"
    ends = {event.what: event for event in told}
    assert list(ends) == ["check", "unpack"]
    assert ends["check"].total == packed.stat().st_size - form.END_LENGTH
    assert ends["unpack"].total > ends["check"].total, "as large as it is unpacked"
    assert all(event.done == event.total and event.subject == packed.name for event in ends.values())


async def test_an_import_that_was_done_changes_nothing(packed: Path, away: Place) -> None:
    await away.take(packed)
    before, stat = away.state(), Path(away.archives[0]).stat()
    await away.take(packed)
    assert away.state() == before
    assert Path(away.archives[0]).stat() == stat


async def test_the_same_contents_give_the_same_bundle(home: Place, packed: Path, tmp_path: Path) -> None:
    again = await pack(home, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == packed.read_bytes()
    shutil.rmtree(home.site.directory / "cache/members")
    (home.site.directory / "cache/members").mkdir()
    home.archives.reverse()
    fresh = await pack(home, tmp_path / "fresh.tar.gz")
    assert fresh == again
    assert again.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


async def test_a_bundle_is_a_tar_file_that_shows_what_is_in_it(packed: Path) -> None:
    with tarfile.open(packed) as archive_:
        names = archive_.getnames()
    assert names[:2] == ["bundle.json", "kubeworker.lock"]
    assert all(name.startswith("sha256-") for name in names[2:-1])
    assert (len(names), names[-1]) == (6, "SHA256")
    content = packed.read_bytes()
    assert form.end(hashlib.sha256(content[: -form.END_LENGTH]).hexdigest()) == content[-form.END_LENGTH :]


def _positions(content: bytes) -> dict[str, int]:
    """A byte of every kind: gzip's headers and trailers, deflated data, tar headers, the hash, the last byte."""
    members = [at for at in range(len(content)) if content.startswith(b"\x1f\x8b\x08", at)]
    found = {f"byte {at}": at for at in range(12)}
    found |= {f"member at {at}, its {name}": at + by for at in members for name, by in (("time", 5), ("system", 9))}
    found |= {f"checksum before {at}": at - 6 for at in members[1:]}
    found |= {f"{share}/97 of the file": len(content) * share // 97 for share in range(1, 97)}
    end = len(content) - form.END_LENGTH
    found |= {f"the end's byte {by}": end + by for by in (0, 4, 9, 15, 20, 140, 250, 530, 560, 600, 1100, 2000)}
    found |= {f"{back} from the end": len(content) - back for back in range(1, 12)}
    return found


async def test_one_flipped_bit_anywhere_is_refused_and_nothing_is_imported(packed: Path, away: Place) -> None:
    content = packed.read_bytes()
    Path(away.archives[1]).unlink()
    before = away.state()
    damaged = packed.with_name("damaged.tar.gz")
    for number, (where, at) in enumerate(_positions(content).items()):
        flipped = bytearray(content)
        flipped[at] ^= 1 << number % 8
        damaged.write_bytes(flipped)
        with pytest.raises(ArtifactError) as caught:
            await away.take(damaged)
        assert caught.value.subject == str(damaged), where
        assert "damaged" in caught.value.message, where
    assert away.state() == before
    assert not Path(away.archives[1]).exists()
    await away.take(packed)


async def test_a_cut_or_lengthened_bundle_is_refused(packed: Path, away: Place) -> None:
    content = packed.read_bytes()
    before = away.state()
    damaged = packed.with_name("damaged.tar.gz")
    for wrong in (b"", content[:1], content[:-1], content[:-5000], content[1:], content + b"\0", content + content):
        damaged.write_bytes(wrong)
        with pytest.raises(ArtifactError, match="damaged"):
            await away.take(damaged)
    assert away.state() == before


def _remade(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A bundle with other contents and a right hash at its end: made wrong, not damaged on the way."""

    def remake(path: Path) -> None:
        content = change(path.read_bytes()[: -form.END_LENGTH])
        path.write_bytes(content + form.end(hashlib.sha256(content).hexdigest()))

    return remake


def _retold(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """The uncompressed stream with something in it replaced by something as long."""
    assert len(old) == len(new)
    return lambda content: gzip.compress(gzip.decompress(content).replace(old, new, 1), compresslevel=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_retold(b'"format": 1', b'"format": 2'), "has format 2; this kubeworker reads format 1"),
        (_retold(b'"format": 1', b'"format"= 1'), "its bundle.json can't be read"),
        (_retold(b"a program", b"a problem"), "has sha256"),
        (_retold(b'"size": ', b'"sise": '), "its bundle.json can't be read"),
        (lambda content: content[: len(content) // 2], "can't be read"),
        (lambda _content: gzip.compress(b""), "holds 'SHA256' of 65 bytes where bundle.json should be"),
        (lambda _content: b"nothing", "can't be read"),
    ],
)
async def test_a_bundle_that_was_made_wrong_is_refused(
    packed: Path, away: Place, change: Callable[[bytes], bytes], says: str
) -> None:
    _remade(change)(packed)
    before = away.state()
    with pytest.raises(ArtifactError, match=says):
        await away.take(packed)
    assert away.state() == before


async def test_a_link_or_a_path_in_a_bundle_goes_nowhere(packed: Path, away: Place) -> None:
    def with_link(content: bytes) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as made:
            link = tarfile.TarInfo("bundle.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            made.addfile(link)
        return stream.getvalue()

    _remade(with_link)(packed)
    with pytest.raises(ArtifactError, match="of 0 bytes where bundle"):
        await away.take(packed)


async def test_only_the_places_that_this_hosts_cluster_yaml_names_are_written(packed: Path, away: Place) -> None:
    Path(away.archives[1]).unlink()
    outside, away.archives = away.archives[1], away.archives[:1]
    brought = await away.take(packed)
    assert brought.unnamed == (outside,)
    assert not Path(outside).exists()


async def test_another_file_in_an_archives_place_is_kept_and_nothing_is_imported(packed: Path, away: Place) -> None:
    place = Path(away.archives[0])
    place.parent.mkdir()
    place.write_text("mine")
    before = away.state()
    with pytest.raises(InputError, match="is there already, with other bytes") as caught:
        await away.take(packed)
    assert caught.value.subject == str(place)
    assert away.state() == before


async def test_a_bundle_against_the_lock_file_is_refused(home: Place, packed: Path, away: Place) -> None:
    pinned = next(iter(home.site.pins.values())).sha256
    away.site.lock_path.write_text(home.site.lock_path.read_text().replace(pinned, "f" * 64))
    before = away.state()
    with pytest.raises(ArtifactError) as caught:
        await away.take(packed)
    assert "f" * 64 in str(caught.value)
    assert pinned in str(caught.value)
    assert away.state() == before


async def test_another_bundle_than_the_one_that_was_meant_is_refused(packed: Path, away: Place) -> None:
    right = hashlib.sha256(packed.read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match=f"has sha256 {right}, not {'0' * 64}"):
        await away.take(packed, "0" * 64)
    await away.take(packed, right.upper())


async def test_a_damaged_blob_in_the_cache_is_replaced_by_the_bundles(packed: Path, away: Place) -> None:
    await away.take(packed)
    (entry,) = away.site.pins.values()
    path = away.site.store.path(Blob(sha256=entry.sha256, size=entry.size))
    path.chmod(0o755)
    with path.open("r+b") as file:
        file.write(b"damaged")
    await away.take(packed)
    assert path.read_bytes() == SHELL.read_bytes()


async def test_a_damaged_copy_in_the_cache_never_gets_into_a_bundle(home: Place, packed: Path, tmp_path: Path) -> None:
    for member in (home.site.directory / "cache/members").iterdir():
        content = bytearray(member.read_bytes())
        content[len(content) // 2] ^= 1
        member.write_bytes(content)
    with pytest.raises(ArtifactError, match="did not turn out right"):
        await pack(home, tmp_path / "again.tar.gz")
    assert not (tmp_path / "again.tar.gz").exists()
    assert [path.name for path in tmp_path.glob(".again*")] == []


async def test_a_missing_archive_is_named_and_no_bundle_is_written(home: Place, tmp_path: Path) -> None:
    Path(home.archives[1]).unlink()
    with pytest.raises(InputError, match="no such file") as caught:
        await pack(home, tmp_path / "out.tar.gz")
    assert caught.value.subject == home.archives[1]
    assert not (tmp_path / "out.tar.gz").exists()


def test_paths_below_cluster_yaml_are_relative_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "site/cluster.yaml"
    assert portable(str(tmp_path / "site/images/a.tar"), file) == "images/a.tar"
    assert portable(str(tmp_path / "images/a.tar"), file) == str(tmp_path / "images/a.tar")


def test_the_index_reads_back_as_it_was() -> None:
    blobs = (Blob(sha256="b" * 64, size=2), Blob(sha256="a" * 64, size=1))
    index = form.index(blobs, (ImageFile(path="z", blob=blobs[0]), ImageFile(path="y", blob=blobs[0])))
    assert [blob.sha256[0] for blob in index.blobs] == ["a", "b"]
    assert form.parse(form.render(index), subject="x") == index


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path) -> None:
    """24 MiB of contents; what Python holds at once stays far below (measured at the peak)."""
    store = BlobStore(tmp_path / "cache")
    big = tmp_path / "big"
    with big.open("wb") as file:
        for number in range(24):
            file.write(hashlib.sha256(str(number).encode()).digest() * (1 << 15))
    blob = store.add_file(big)
    tracemalloc.start()
    try:
        out = tmp_path / "bundle.tar.gz"
        bundle_file.write(out, form.index((blob,), ()), b"", store.tar_member)
        bundle_file.unpack(bundle_file.open_(out), BlobStore(tmp_path / "away"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert BlobStore(tmp_path / "away").path(blob).stat().st_size == 24 << 20
