from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from kubeworker.core.artifacts import tar_stream
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError, ArtifactMissing, BlobDamaged
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.whole_file import write_atomically


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "cache")


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / hashlib.sha256(content).hexdigest()[:8]
    path.write_bytes(content)
    return path


def add(store: BlobStore, tmp_path: Path, content: bytes) -> Blob:
    return store.add_file(file_of(tmp_path, content))


def test_a_file_is_kept_by_content_read_only_and_runnable(store: BlobStore, tmp_path: Path) -> None:
    blob = add(store, tmp_path, b"#!/bin/sh\n")
    path = store.path(blob)
    assert blob == Blob(sha256=hashlib.sha256(b"#!/bin/sh\n").hexdigest(), size=10)
    assert path.read_bytes() == b"#!/bin/sh\n"
    assert path.stat().st_mode & 0o777 == 0o555


def test_a_changed_byte_of_the_same_size_is_found_and_both_hashes_named(store: BlobStore, tmp_path: Path) -> None:
    blob = add(store, tmp_path, b"right")
    path = store.path(blob)
    path.chmod(0o755)
    with path.open("r+b") as file:
        file.write(b"l")
    with pytest.raises(BlobDamaged) as caught:
        store.path(blob)
    assert blob.sha256 in str(caught.value)
    assert hashlib.sha256(b"light").hexdigest() in str(caught.value)


def test_a_touched_file_is_hashed_again_and_then_known(store: BlobStore, tmp_path: Path) -> None:
    blob = add(store, tmp_path, b"content")
    os.utime(store.path(blob), ns=(1, 1))
    assert store.path(blob).exists()
    assert store.path(blob).exists()


def test_what_is_not_there_is_missing_and_not_damaged(store: BlobStore) -> None:
    with pytest.raises(ArtifactMissing):
        store.path(Blob(sha256="0" * 64, size=1))


def test_what_is_remembered_is_recalled_while_its_content_is_there(store: BlobStore, tmp_path: Path) -> None:
    blob = add(store, tmp_path, b"kubelet")
    store.remember(("artifact", "kubelet", "1.33.3"), blob)
    assert store.recall(("artifact", "kubelet", "1.33.3")) == blob
    assert store.recall(("artifact", "kubelet", "1.34.0")) is None
    store.drop(blob)
    assert store.recall(("artifact", "kubelet", "1.33.3")) is None


def test_members_of_several_blobs_and_small_files_are_one_archive_for_gnu_tar(store: BlobStore, tmp_path: Path) -> None:
    contents = [random.Random(size).randbytes(size) for size in (0, 1, 511, 512, 513, 3_000_000)]
    blobs = [add(store, tmp_path, content) for content in contents]
    archive = tmp_path / "stream.tar.gz"
    parts = [store.tar_member(blob).read_bytes() for blob in blobs]
    small = tar_stream.member("etc/kubernetes/kubelet.yaml", b"kind: x\n", mode=0o600)
    archive.write_bytes(b"".join((*parts[:3], small, *parts[3:], tar_stream.END)))
    target = tmp_path / "unpacked"
    target.mkdir()
    done = subprocess.run(["tar", "-xzf", archive, "-C", target], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in target.glob("sha256-*")} == {
        f"sha256-{blob.sha256}": content for blob, content in zip(blobs, contents, strict=True)
    }
    assert (target / "etc/kubernetes/kubelet.yaml").read_bytes() == b"kind: x\n"
    subprocess.run(["gzip", "-t", archive], check=True)


def test_a_member_is_compressed_once_and_always_the_same(store: BlobStore, tmp_path: Path) -> None:
    blob = add(store, tmp_path, b"content" * 1000)
    first = store.tar_member(blob)
    before = first.stat()
    assert store.tar_member(blob).stat().st_mtime_ns == before.st_mtime_ns
    other = BlobStore(tmp_path / "other")
    other.add_file(file_of(tmp_path, b"content" * 1000))
    assert other.tar_member(blob).read_bytes() == first.read_bytes()


def test_what_a_killed_build_left_is_removed_a_day_later(store: BlobStore) -> None:
    old, recent = store.root / "work/old", store.root / "work/recent"
    for left in (old, recent):
        (left / "bin").mkdir(parents=True)
    os.utime(old, (0, 0))
    with store.work() as work:
        assert work.is_dir()
    assert [path.name for path in (store.root / "work").iterdir()] == ["recent"]


async def test_a_lock_keeps_a_second_holder_out(store: BlobStore) -> None:
    order: list[str] = []

    async def hold(name: str) -> None:
        async with store.locked("build k8s"):
            order.append(f"{name} in")
            await asyncio.sleep(0.05)
            order.append(f"{name} out")

    async with asyncio.TaskGroup() as group:
        group.create_task(hold("a"))
        group.create_task(hold("b"))
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


def test_a_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert BlobStore.default().root == tmp_path / ".cache/kubeworker"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert BlobStore.default().root == tmp_path / "xdg/kubeworker"


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError) as caught:
        BlobStore(tmp_path / "file")
    assert caught.value.subject == str(tmp_path / "file")


def test_an_atomic_write_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "kubeworker.lock"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
