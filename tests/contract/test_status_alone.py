"""`status` from a host that has nothing but cluster.yaml and the ways in: it gets nothing and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tests.contract.sshd import openssh
from tests.contract.test_hung_node import cluster_yaml

from kubeworker.errors import NodeUnreachable
from kubeworker.flow.events import ArtifactReady, Event, Note, Transfer
from kubeworker.flow.session import Request
from kubeworker.flow.status import status
from kubeworker.lab import images

pytestmark = pytest.mark.timeout(60)


def everything(folder: Path) -> Mapping[Path, tuple[int, int]]:
    """What is below it: sizes, and when each was changed."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (seen.st_size, seen.st_ctime_ns) for path, seen in found.items()}


def changed(file: Path, **fields: object) -> None:
    """cluster.yaml with these fields too."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **fields}))


async def test_status_without_lock_file_and_cache_gets_and_writes_nothing_and_says_what_it_did_not_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, cache, events = tmp_path / "site", tmp_path / "cache", list[Event]()
    site.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with openssh(tmp_path / "node") as server:
        file = cluster_yaml(site, good=server)
        program = images.Program(reference="example.org/pause:1", path="bin/x")
        (site / "pause.tar").write_bytes(images.archive(program, b"a program", "amd64"))
        changed(
            file,
            cni="cilium",
            artifacts={"sources": ["cache", "download", "build"], "mirror": "http://127.0.0.1:1"},
            components={"containerd": {"preload_images": ["pause.tar"]}},
        )
        before = everything(site)
        found = await status(Request(cluster_file=file), events.append)
        assert everything(site) == before, "no lock file, no certificate"
        assert not cache.exists()
    assert not [event for event in events if isinstance(event, ArtifactReady | Note | Transfer)]
    (node,) = found.nodes
    assert node.error is None
    assert found.exit_code == 4, "of the API, which does not answer here"
    assert found.drifted
    (unpinned,) = (note for note in found.notes if "kubeworker.lock" in note)
    assert "kubelet 1.33.3" in unpinned
    assert "(kubeworker artifacts fetch, or import, pins them; so does apply)" in unpinned
    assert any(each.kind == "requirement" for each in node.drifts), "what can be compared is"


async def test_a_node_that_hangs_is_given_up_after_the_seconds_of_cluster_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with openssh(tmp_path / "hung", options="ForceCommand sleep 60") as hung:
        file = cluster_yaml(tmp_path, hung=hung)
        began = time.monotonic()
        found = await status(Request(cluster_file=file), lambda _: None)
    assert time.monotonic() - began < 20
    (node,) = found.nodes
    assert node.error is not None
    assert not isinstance(node.error, NodeUnreachable)
    assert node.error.message == "looking at it did not end within 8 s"
