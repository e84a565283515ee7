from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kubeworker.io import oci_archive
from kubeworker.lab import oci_image

IMAGE = oci_image.Image(reference="quay.io/x/y:v1", architecture="amd64", command=("/bin/y",))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for folder in ("bin", "dev", "var/log"):
        (root / folder).mkdir(parents=True)
    (root / "bin/y").write_bytes(b"program" * 1000)
    (root / "bin/y").chmod(0o755)
    os.link(root / "bin/y", root / "bin/z")
    (root / "sbin").symlink_to("bin")
    (root / "dev/null").write_text("not this")
    return root


def archive(tree: Path, *, level: int = 6) -> bytes:
    out = io.BytesIO()
    oci_image.write(out, IMAGE, lambda layer: oci_image.add_tree(layer, tree, empty=("dev",)), level=level)
    return out.getvalue()


def blobs(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def layer_of(files: dict[str, bytes]) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The layer's descriptor, the config, and the layer's blob."""
    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files[f"blobs/{entry['digest'].replace(':', '/')}"])
    config = json.loads(files[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    (layer,) = manifest["layers"]
    return layer, config, files[f"blobs/{layer['digest'].replace(':', '/')}"]


@pytest.mark.parametrize(("level", "media"), [(0, "tar"), (6, "tar+gzip")])
def test_blobs_are_named_by_their_digest_and_the_config_by_the_plain_layers(tree: Path, level: int, media: str) -> None:
    files = blobs(archive(tree, level=level))
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    layer, config, content = layer_of(files)
    assert (layer["mediaType"].rpartition(".")[2], layer["size"]) == (media, len(content))
    plain = gzip.decompress(content) if level else content
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert config["config"]["Cmd"] == ["/bin/y"]


def test_a_tree_is_in_the_layer_with_its_modes_and_links_and_without_times(tree: Path) -> None:
    _, _, content = layer_of(blobs(archive(tree)))
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        entries = {entry.name: entry for entry in tar}
        assert tar.extractfile("bin/z").read() == b"program" * 1000  # type: ignore[union-attr]
    assert list(entries) == ["bin", "dev", "sbin", "var", "bin/y", "bin/z", "var/log"]
    assert entries["bin/y"].mode == 0o755
    assert entries["bin/z"].islnk()
    assert (entries["sbin"].issym(), entries["sbin"].linkname) == (True, "bin")
    assert {entry.mtime for entry in entries.values()} == {0}


def test_the_same_tree_gives_the_same_bytes_at_another_time(tree: Path) -> None:
    first = archive(tree)
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert archive(tree) == first


def test_the_tool_reads_the_images_name(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive(tree))
    assert oci_archive.references(path) == ("quay.io/x/y:v1",)
