import io
import json
import tarfile
from pathlib import Path

import pytest

from kubeworker.errors import ArtifactError, InputError
from kubeworker.io import oci_archive
from kubeworker.io.blob_store import BlobStore


def archive(path: Path, index: object) -> Path:
    with tarfile.open(path, "w") as tar:
        data = json.dumps(index).encode()
        entry = tarfile.TarInfo("index.json")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return path


def test_every_named_image_is_found(tmp_path: Path) -> None:
    names = ("registry.k8s.io/pause:3.10", "docker.io/library/busybox:lab")
    manifests = [{"annotations": {"io.containerd.image.name": name}} for name in names]
    path = archive(tmp_path / "both.tar", {"manifests": [*manifests, {"digest": "sha256:1"}]})
    assert oci_archive.references(path) == names


def test_an_archive_is_copied_to_the_store_once_and_again_when_it_changes(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "cache")
    path = archive(tmp_path / "a.tar", {"manifests": [{"annotations": {"io.containerd.image.name": "a:1"}}]})
    first = oci_archive.read(path, store)
    assert oci_archive.read(path, store) == first
    archive(path, {"manifests": [{"annotations": {"io.containerd.image.name": "a:2"}}]})
    assert oci_archive.read(path, store).blob != first.blob


def test_an_archive_is_described_without_a_copy_and_one_that_is_not_there_as_unknown(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", {"manifests": [{"annotations": {"io.containerd.image.name": "a:1"}}]})
    known = oci_archive.described(path)
    assert (known.references, known.blob.size) == (("a:1",), path.stat().st_size)
    missing = oci_archive.described(tmp_path / "b.tar")
    assert (missing.references, missing.blob.size) == ((), 0)


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tar")
    with pytest.raises(ArtifactError, match="OCI"):
        oci_archive.references(tmp_path / "text")
    with pytest.raises(ArtifactError, match="names no image"):
        oci_archive.references(archive(tmp_path / "empty.tar", {"manifests": []}))
    with pytest.raises(InputError, match="no such file"):
        oci_archive.references(tmp_path / "absent")
