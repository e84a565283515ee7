from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.artifact_site import SHELL, Site, damage, shell_artifact, shell_version

from kubeworker.core.artifacts.lockfile import Key
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError, InputError
from kubeworker.flow import artifacts as flow
from kubeworker.flow.events import ArtifactReady, Warning_
from kubeworker.io.binary import host_architecture


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path / "site")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    directory = tmp_path / "local"
    directory.mkdir()
    shutil.copy(SHELL, directory / "bash")
    return directory


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(path: Path) -> tuple[int, int, int]:
    """What a write changes, and a read does not: a stat's atime moves with the reads."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


async def refusal(site: Site, **changes: object) -> ArtifactError:
    artifact = changes.pop("artifact", shell_artifact())
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([artifact], **changes)  # type: ignore[arg-type, list-item]
    return caught.value


async def test_a_first_result_is_stored_and_pinned(site: Site, local: Path) -> None:
    blobs = await site.resolve([shell_artifact()], sources=["local"], local=str(local))
    assert blobs == {"bash": Blob(sha256=sha256(SHELL), size=SHELL.stat().st_size)}
    assert site.store.path(blobs["bash"]).read_bytes() == SHELL.read_bytes()
    (entry,) = site.pins.values()
    assert (entry.version, entry.sha256, entry.size) == (shell_version(), sha256(SHELL), SHELL.stat().st_size)
    assert [type(event) for event in site.events] == [ArtifactReady]


async def test_a_second_run_uses_the_cache_and_writes_nothing(site: Site, local: Path) -> None:
    settings = {"sources": ["cache", "local"], "local": str(local)}
    first = await site.resolve([shell_artifact()], **settings)  # type: ignore[arg-type]
    before = written(site.lock_path)
    shutil.rmtree(local)
    assert await site.resolve([shell_artifact()], **settings) == first  # type: ignore[arg-type]
    assert written(site.lock_path) == before


async def test_a_changed_byte_is_refused_with_the_files_name_and_both_hashes(site: Site, local: Path) -> None:
    await site.resolve([shell_artifact()], sources=["local"], local=str(local))
    with (local / "bash").open("ab") as file:
        file.write(b"\0")
    error = await refusal(site, sources=["local"], local=str(local))
    for part in (str(local / "bash"), sha256(SHELL), sha256(local / "bash"), "--update-lock --only bash"):
        assert part in str(error)
    blobs = await site.resolve([shell_artifact()], sources=["local"], local=str(local), update_lock=True)
    assert blobs["bash"].sha256 == sha256(local / "bash")
    assert [entry.sha256 for entry in site.pins.values()] == [sha256(local / "bash")]


async def test_a_damaged_cache_file_is_named_dropped_and_got_again(site: Site, local: Path) -> None:
    settings = {"sources": ["cache", "local"], "local": str(local)}
    blobs = await site.resolve([shell_artifact()], **settings)  # type: ignore[arg-type]
    path = site.store.path(blobs["bash"])
    damage(path)
    damaged = sha256(path)
    site.events.clear()
    assert await site.resolve([shell_artifact()], **settings) == blobs  # type: ignore[arg-type]
    warning = next(event for event in site.events if isinstance(event, Warning_))
    assert warning.subject == "bash"
    for part in (str(path), damaged, sha256(SHELL)):
        assert part in warning.text
    assert sha256(path) == sha256(SHELL)


async def test_what_replaces_a_damaged_cache_file_must_match_the_lock(site: Site, local: Path) -> None:
    settings = {"sources": ["cache", "local"], "local": str(local)}
    blobs = await site.resolve([shell_artifact()], **settings)  # type: ignore[arg-type]
    damage(site.store.path(blobs["bash"]))
    with (local / "bash").open("ab") as file:
        file.write(b"\0")
    error = await refusal(site, **settings)
    assert sha256(SHELL) in str(error)
    assert sha256(local / "bash") in str(error)


async def test_a_version_that_the_binary_does_not_report_is_refused_naming_the_field(site: Site, local: Path) -> None:
    error = await refusal(site, artifact=shell_artifact(version="1.2.3"), sources=["local"], local=str(local))
    assert f"reports {shell_version()}; 1.2.3 is asked for" in error.message
    assert f"versions.bash: {shell_version()}" in error.hint
    assert not site.lock_path.exists()


async def test_a_binary_for_another_architecture_is_refused(site: Site, local: Path) -> None:
    other = "arm64" if host_architecture() == "amd64" else "amd64"
    error = await refusal(site, architecture=other, sources=["local"], local=str(local))
    assert error.subject == str(local / "bash")
    assert error.message == f"bash is for {host_architecture()}, {other} is needed"


async def test_a_binary_that_claims_another_machine_is_refused(site: Site, local: Path) -> None:
    other, number = ("arm64", 0xB7) if host_architecture() == "amd64" else ("amd64", 0x3E)
    content = bytearray(SHELL.read_bytes())
    content[18] = number
    (local / "bash").write_bytes(content)
    error = await refusal(site, sources=["local"], local=str(local))
    assert error.message == f"bash is for {other}, {host_architecture()} is needed"


async def test_an_error_page_in_place_of_a_binary_is_refused(site: Site, local: Path) -> None:
    (local / "bash").write_text("<html>502 Bad Gateway</html>")
    assert "must be a Linux program" in (await refusal(site, sources=["local"], local=str(local))).message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dynamic": False}, "it must be static"),
        ({"libraries": ("libc", "libcrypt")}, "allowed: libc, libcrypt"),
    ],
)
async def test_libraries_that_nodes_may_lack_are_refused(
    site: Site, local: Path, changes: dict[str, Any], says: str
) -> None:
    error = await refusal(site, artifact=shell_artifact(**changes), sources=["local"], local=str(local))
    assert "libtinfo" in error.message
    assert says in error.message


async def test_an_artifact_that_no_source_has_names_each_that_was_tried(site: Site, local: Path) -> None:
    missing = shell_artifact("zsh")
    error = await refusal(site, artifact=missing, sources=["cache", "download", "build", "local"], local=str(local))
    for part in ("zsh", "not in the cache", "offers no binary", "no build recipe", str(local / "zsh")):
        assert part in str(error)


async def test_one_failure_does_not_keep_the_others_from_being_had(site: Site, local: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([shell_artifact("zsh"), shell_artifact()], sources=["local"], local=str(local))
    assert caught.value.subject == "zsh"
    assert [key.artifact for key in site.pins] == ["bash"]


async def test_an_unset_local_directory_is_said(site: Site) -> None:
    assert "artifacts.local is not set" in (await refusal(site, sources=["local"])).message


async def test_a_damaged_lock_file_is_wrong_input(site: Site, local: Path) -> None:
    site.lock_path.write_text("format = ")
    with pytest.raises(InputError) as caught:
        await site.resolve([shell_artifact()], sources=["local"], local=str(local))
    assert caught.value.subject == str(site.lock_path)


async def test_a_plan_believes_the_lock_file_without_the_bytes(site: Site, local: Path) -> None:
    blobs = await site.resolve([shell_artifact()], sources=["local"], local=str(local))
    shutil.rmtree(local)
    elsewhere = site.with_empty_cache()
    from tests.artifact_site import cluster

    spec = cluster(sources=["cache", "local"], local=str(local))
    path = elsewhere.directory / "cluster.yaml"
    assert await flow.locked(path, spec, [shell_artifact()], store=elsewhere.store) == blobs
    assert [each.state for each in flow.listed(path, [shell_artifact()], store=elsewhere.store)] == ["not in the cache"]


async def test_another_checkout_pins_its_own_choice(site: Site, local: Path, tmp_path: Path) -> None:
    await site.resolve([shell_artifact()], sources=["cache", "local"], local=str(local))
    other_local = tmp_path / "other-local"
    other_local.mkdir()
    (other_local / "bash").write_bytes(SHELL.read_bytes() + b"\0")
    checkout = Site.at(tmp_path / "checkout", store=site.store)
    blobs = await checkout.resolve([shell_artifact()], sources=["cache", "local"], local=str(other_local))
    assert blobs["bash"].sha256 == sha256(other_local / "bash")


async def test_listing_tells_pinned_from_damaged_from_unpinned(site: Site, local: Path) -> None:
    blobs = await site.resolve([shell_artifact()], sources=["local"], local=str(local))
    path = site.directory / "cluster.yaml"
    wanted = [shell_artifact(), shell_artifact("zsh")]
    assert [each.state for each in flow.listed(path, wanted, store=site.store)] == ["in the cache", "not pinned"]
    damage(site.store.path(blobs["bash"]))
    assert flow.listed(path, wanted, store=site.store)[0].state == "damaged"


async def test_pins_are_per_kind_of_source(site: Site, local: Path) -> None:
    await site.resolve([shell_artifact()], sources=["local"], local=str(local))
    assert list(site.pins) == [Key(artifact="bash", architecture=host_architecture(), kind="local")]
