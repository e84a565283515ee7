"""Builds with the real Go toolchain by the recipes that come with the package."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.artifact_site import Site, damage, node_artifacts

from kubeworker.core.artifacts.artifact import Architecture, Artifact, GoBuild
from kubeworker.errors import ArtifactError
from kubeworker.flow.events import Note
from kubeworker.io.binary import host_architecture

PLUGINS = node_artifacts("bridge", "host-local", "loopback", "portmap")
LOOPBACK = PLUGINS[2]
SOURCES = ["cache", "build"]
OTHER: Architecture = "arm64" if host_architecture() == "amd64" else "amd64"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path / "site")


def builds(site: Site) -> list[str]:
    """What was built, one entry for each run of the compiler."""
    return [event.subject for event in site.events if isinstance(event, Note) and event.text.endswith("first time)")]


def with_build(artifact: Artifact, **changes: str) -> Artifact:
    assert isinstance(artifact.build, GoBuild)
    return replace(artifact, build=replace(artifact.build, **changes))  # type: ignore[arg-type]


async def error_of(site: Site, artifact: Artifact, **settings: object) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        await site.resolve([artifact], **({"sources": SOURCES} | settings))  # type: ignore[arg-type]
    return caught.value


async def test_one_module_is_built_by_one_command_and_runs(site: Site) -> None:
    blobs = await site.resolve(PLUGINS, sources=SOURCES)
    assert builds(site) == ["bridge, host-local, loopback, portmap"]
    for name, blob in blobs.items():
        ran = subprocess.run([site.store.path(blob), "--version"], capture_output=True, text=True, check=False)
        assert f"CNI {name} plugin v1.7.1" in ran.stdout + ran.stderr
    for entry in site.pins.values():
        assert entry.inputs
        assert entry.toolchain.startswith("go1.")


async def test_another_checkout_with_the_same_cache_builds_nothing(site: Site, tmp_path: Path) -> None:
    first = await site.resolve([LOOPBACK], sources=SOURCES)
    checkout = Site.at(tmp_path / "checkout", store=site.store)
    assert await checkout.resolve([LOOPBACK], sources=SOURCES) == first
    assert builds(checkout) == []
    assert checkout.pins == site.pins


async def test_the_same_inputs_give_the_same_bytes_on_another_machine(site: Site) -> None:
    first = await site.resolve([LOOPBACK], sources=SOURCES)
    other = site.with_empty_cache()
    assert await other.resolve([LOOPBACK], sources=SOURCES) == first
    assert builds(other) == ["loopback"]


async def test_two_runs_at_once_build_once(site: Site, tmp_path: Path) -> None:
    other = Site.at(tmp_path / "other", store=site.store)
    first, second = await asyncio.gather(
        site.resolve([LOOPBACK], sources=SOURCES), other.resolve([LOOPBACK], sources=SOURCES)
    )
    assert first == second
    assert len(builds(site) + builds(other)) == 1


async def test_a_damaged_build_is_built_again_to_the_same_bytes(site: Site) -> None:
    blobs = await site.resolve([LOOPBACK], sources=SOURCES)
    damage(site.store.path(blobs["loopback"]))
    assert await site.resolve([LOOPBACK], sources=SOURCES) == blobs
    assert builds(site) == ["loopback", "loopback"]


async def test_a_build_with_other_flags_than_pinned_needs_update_lock(site: Site) -> None:
    await site.resolve([LOOPBACK], sources=SOURCES)
    (before,) = site.pins.values()
    assert isinstance(LOOPBACK.build, GoBuild)
    changed = with_build(LOOPBACK, ldflags=LOOPBACK.build.ldflags.removeprefix("-s -w "))
    error = await error_of(site, changed)
    assert f"kubeworker.lock has {before.inputs}" in error.message
    assert "--update-lock --only loopback" in error.hint
    assert builds(site) == ["loopback"]
    blobs = await site.resolve([changed], sources=SOURCES, update_lock=True)
    (after,) = site.pins.values()
    assert after.sha256 == blobs["loopback"].sha256 != before.sha256


async def test_pinned_bytes_that_are_kept_do_not_care_for_todays_compiler_but_a_rebuild_does(site: Site) -> None:
    blobs = await site.resolve([LOOPBACK], sources=SOURCES)
    toolchain = next(iter(site.pins.values())).toolchain
    site.lock_path.write_text(site.lock_path.read_text().replace(toolchain, "go1.1"))
    assert await site.resolve([LOOPBACK], sources=SOURCES) == blobs
    error = await error_of(site.with_empty_cache(), LOOPBACK)
    assert f"toolchain is {toolchain}, kubeworker.lock has go1.1" in error.message


async def test_the_same_inputs_with_another_result_are_refused(site: Site) -> None:
    blobs = await site.resolve([LOOPBACK], sources=SOURCES)
    built = blobs["loopback"].sha256
    other = site.with_empty_cache()
    other.lock_path.write_text(other.lock_path.read_text().replace(built, "f" * 64))
    error = await error_of(other, LOOPBACK)
    assert built in error.message
    assert "f" * 64 in error.message


async def test_pure_go_is_built_for_another_architecture(site: Site) -> None:
    blobs = await site.resolve([LOOPBACK], architecture=OTHER, sources=["build"])
    assert site.store.path(blobs["loopback"]).read_bytes()[18] == {"arm64": 0xB7, "amd64": 0x3E}[OTHER]


async def test_c_code_is_not_built_for_another_architecture(site: Site) -> None:
    (runc,) = node_artifacts("runc")
    error = await error_of(site, runc, architecture=OTHER)
    assert f"can't be built for {OTHER} on {host_architecture()}" in error.message


async def test_a_version_that_the_recipes_lack_is_said_with_the_way_out(site: Site) -> None:
    asked = replace(LOOPBACK, version="1.8.0", field="versions.cni_plugins")
    error = await error_of(site, asked)
    assert "the build recipes have 1.7.1; versions.cni_plugins asks for 1.8.0" in error.message
    assert "use the source download or local" in error.hint


async def test_a_failing_build_shows_what_the_compiler_said(site: Site) -> None:
    error = await error_of(site, with_build(LOOPBACK, package="github.com/containernetworking/plugins/plugins/none"))
    assert "go build failed" in error.message
    assert "plugins/none" in error.message


async def test_a_machine_without_go_is_told_which_go_it_needs(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await error_of(site, LOOPBACK)
    assert "there is no go command" in error.message
    assert "install Go 1.26.8 or newer" in error.hint


async def test_missing_compilers_and_libraries_are_named_as_packages(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await error_of(site, *node_artifacts("runc"))
    assert "missing gcc, libc6-dev, pkg-config, libseccomp-dev" in error.message
    assert "apt-get install gcc libc6-dev pkg-config libseccomp-dev" in error.hint


async def test_a_go_that_is_too_old_is_told_apart(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an old go answers to `go env` where it may not fetch a newer one (GOTOOLCHAIN=local).
    (tmp_path / "go").write_text("#!/bin/sh\nprintf '%s\\n' go1.19.8 v1 ''\n")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    error = await error_of(site, LOOPBACK)
    assert "is go1.19.8; cni needs go1.26.8" in error.message


async def test_a_cancelled_build_leaves_no_compiler_behind(site: Site) -> None:
    task = asyncio.create_task(site.resolve(PLUGINS, sources=["build"]))
    while not builds(site):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((site.store.root / "work").iterdir())
    ours = f"{site.store.root}/work"
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if ours in _read(path)]
    assert running == []


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
