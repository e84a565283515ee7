from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from kubeworker.io import oci_archive
from kubeworker.lab import images

PROGRAM = images.Program(
    reference="docker.io/library/tool:lab", path="bin/tool", links=("bin/other",), entrypoint=("/bin/tool",)
)


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: reader.read() for name, reader in found.items() if reader}


def document(files: dict[str, bytes], digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files[f"blobs/{digest.replace(':', '/')}"])
    return found


def test_every_descriptor_names_a_blob_of_its_size_and_hash() -> None:
    files = members(images.archive(PROGRAM, b"program", "arm64"))
    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = document(files, entry["digest"])
    for descriptor in (entry, manifest["config"], *manifest["layers"]):
        blob = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(blob) == descriptor["size"]
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == descriptor["digest"]


def test_the_layer_holds_the_program_and_its_links() -> None:
    files = members(images.archive(PROGRAM, b"program", "arm64"))
    manifest = document(files, json.loads(files["index.json"])["manifests"][0]["digest"])
    config = document(files, manifest["config"]["digest"])
    assert (config["architecture"], config["config"]["Entrypoint"]) == ("arm64", ["/bin/tool"])
    (layer,) = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    with tarfile.open(fileobj=io.BytesIO(files[f"blobs/{layer['digest'].replace(':', '/')}"])) as tar:
        assert [(entry.name, entry.mode, entry.linkname) for entry in tar] == [
            ("bin/tool", 0o755, ""),
            ("bin/other", 0o777, "/bin/tool"),
        ]


def test_the_same_program_gives_the_same_bytes() -> None:
    assert images.archive(PROGRAM, b"program", "amd64") == images.archive(PROGRAM, b"program", "amd64")


def test_the_tool_reads_the_images_name(tmp_path: Path) -> None:
    path = tmp_path / "tool.tar"
    path.write_bytes(images.archive(PROGRAM, b"program", "amd64"))
    assert oci_archive.references(path) == (PROGRAM.reference,)
