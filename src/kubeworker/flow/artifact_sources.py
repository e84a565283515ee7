"""The sources of artifacts, one function each: cache, download, build, local.

Each is given the artifacts that earlier sources did not have, and files what became of them in `Results`:
ArtifactMissing leaves an artifact to the next source, any other ArtifactError settles it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from kubeworker.core.artifacts import checksums, lockfile, recipe
from kubeworker.core.artifacts.artifact import Artifact, ConfigureBuild, GoBuild, ModuleFolder, Release, release_url
from kubeworker.core.artifacts.lockfile import KINDS, Entry, Kind
from kubeworker.core.artifacts.recipe import Group
from kubeworker.core.model import Blob
from kubeworker.errors import ArtifactError, ArtifactMissing, reason
from kubeworker.flow.artifact_run import Origin, Results, Run, accept, elapsed, kinds, pin, progress, trusted
from kubeworker.io import apt, build, go_modules
from kubeworker.io.binary import extract
from kubeworker.io.fetch import Fetcher

PARALLEL_DOWNLOADS = 4


async def _settle(results: Results, artifacts: tuple[Artifact, ...], work: Callable[[], Awaitable[None]]) -> None:
    """Do work for these artifacts; its error is theirs."""
    try:
        await work()
    except ArtifactMissing as error:
        for artifact in results.open(artifacts):
            results.missing.setdefault(artifact.name, []).append(error)
    except ArtifactError as error:
        for artifact in results.open(artifacts):
            results.refused[artifact.name] = error


# ---------------------------------------------------------------------------------------------------------------
# cache


async def from_cache(run: Run, artifacts: tuple[Artifact, ...], results: Results) -> None:
    """What an earlier run left, here or in another checkout: pinned bytes, else a result of exactly these inputs."""
    for artifact in artifacts:

        async def one(artifact: Artifact = artifact) -> None:
            results.blobs[artifact.name] = await _cached(run, artifact)

        await _settle(results, (artifact,), one)


async def _cached(run: Run, artifact: Artifact) -> Blob:
    lock = run.lock()
    for kind in kinds(run) or KINDS:
        locked = None if run.update_lock else lock.get(run.key(artifact, kind), artifact.version)
        if locked is not None:
            blob = Blob(sha256=locked.sha256, size=locked.size)
            if _same_recipe(artifact, kind, locked) and await trusted(run, artifact, blob):
                return blob
            continue
        found = await _indexed(run, artifact, kind)
        if found is not None and await trusted(run, artifact, found[1]):
            origin, blob = found
            await pin(run, artifact, kind, origin.entry(artifact, blob))
            return blob
    raise ArtifactMissing("it is not in the cache", subject=artifact.name)


def _same_recipe(artifact: Artifact, kind: Kind, locked: Entry) -> bool:
    """Whether the pinned build is of today's recipe and flags; by which compiler does not matter for kept bytes."""
    return kind != "build" or locked.inputs == _build_inputs(artifact)


def _build_inputs(artifact: Artifact) -> str:
    match artifact.build:
        case GoBuild() as go:
            return recipe.go_inputs(build.load_recipe(go.module), go)
        case ModuleFolder() as folder:
            return recipe.folder_inputs(build.load_recipe(folder.module), folder)
        case ConfigureBuild() as configure:
            return recipe.configure_inputs(artifact, configure)
        case None:
            return ""


async def _indexed(run: Run, artifact: Artifact, kind: Kind) -> tuple[Origin, Blob] | None:
    origins: list[Origin] = []
    # With --update-lock a download is asked for anew: the publisher may have changed it.
    if kind == "download" and not run.update_lock:
        origins = [_download_origin(run, release) for release in artifact.releases]
    elif kind == "build" and artifact.build is not None:
        try:
            with run.store.work() as work:
                origins = [await _known_build_origin(run, artifact, work)]
        except ArtifactMissing:
            return None
    for origin in origins:
        blob = run.store.recall(origin.index_key(artifact, run.architecture))
        if blob is not None:
            return origin, blob
    return None


# ---------------------------------------------------------------------------------------------------------------
# download


async def from_download(run: Run, artifacts: tuple[Artifact, ...], results: Results) -> None:
    """The publishers' files, or a mirror's; one download for all artifacts of one tarball, several at once."""
    wanted: dict[str, list[tuple[Artifact, Release]]] = {}
    for artifact in artifacts:
        if not artifact.releases:
            error = ArtifactMissing("its publisher offers no binary", subject=artifact.name)
            results.missing.setdefault(artifact.name, []).append(error)
        for release in artifact.releases[:1]:
            wanted.setdefault(_url(run, release), []).append((artifact, release))
    limit = asyncio.Semaphore(PARALLEL_DOWNLOADS)
    async with Fetcher() as fetcher, asyncio.TaskGroup() as group:
        for url, members in wanted.items():

            async def one(url: str = url, members: list[tuple[Artifact, Release]] = members) -> None:
                async with limit:
                    names = tuple(artifact for artifact, _ in members)
                    await _settle(results, names, lambda: _download(run, fetcher, url, members, results))

            group.create_task(one())


async def _download(
    run: Run, fetcher: Fetcher, url: str, members: list[tuple[Artifact, Release]], results: Results
) -> None:
    release = members[0][1]
    subject = ", ".join(artifact.name for artifact, _ in members) if len(members) < 4 else url.rpartition("/")[2]
    published = await _published(run, fetcher, url, release)
    async with run.store.locked(url):
        partial = run.store.partial(url)
        await fetcher.file(url, partial, sha256=published, progress=progress(run.report, subject))
        with run.store.work() as work:
            whole = partial.rename(work / "download")
            for artifact, release in members:

                async def one(artifact: Artifact = artifact, release: Release = release) -> None:
                    file = whole
                    if release.member:
                        file = work / artifact.name
                        member = release.member.replace("{arch}", run.architecture)
                        await asyncio.to_thread(extract, whole, member, file, subject=url)
                    results.blobs[artifact.name] = await accept(run, artifact, file, _download_origin(run, release))

                await _settle(results, (artifact,), one)


async def _published(run: Run, fetcher: Fetcher, url: str, release: Release) -> str:
    if not release.checksum_url:
        return ""
    checksum_url = release_url(release.checksum_url, run.architecture, run.settings.mirror)
    name = url.rpartition("/")[2]
    digest = checksums.find(await fetcher.text(checksum_url), name)
    if not digest:
        raise ArtifactError(f"names no sha256 of {name}", subject=checksum_url, hint="a proxy's error page, perhaps")
    return digest


def _url(run: Run, release: Release) -> str:
    return release_url(release.url, run.architecture, run.settings.mirror)


def _download_origin(run: Run, release: Release) -> Origin:
    member = f" ({release.member.replace('{arch}', run.architecture)})" if release.member else ""
    return Origin(kind="download", place=f"{_url(run, release)}{member}")


# ---------------------------------------------------------------------------------------------------------------
# build


async def from_build(run: Run, artifacts: tuple[Artifact, ...], results: Results) -> None:
    """From source. One after the other: each build uses all processors."""
    for artifact in artifacts:
        if artifact.build is None:
            error = ArtifactMissing("there is no build recipe for it", subject=artifact.name)
            results.missing.setdefault(artifact.name, []).append(error)
    buildable = await _buildable(artifacts, results)
    for group in recipe.groups(buildable):
        await _settle(results, group.artifacts, lambda group=group: _build_go(run, group, results))  # type: ignore[misc]
    for artifact in buildable:
        if isinstance(artifact.build, ModuleFolder):
            await _settle(
                results,
                (artifact,),
                lambda artifact=artifact, plan=artifact.build: _pack_folder(run, artifact, plan, results),  # type: ignore[misc]
            )
    for artifact in artifacts:
        if isinstance(artifact.build, ConfigureBuild):
            await _settle(
                results,
                (artifact,),
                lambda artifact=artifact, plan=artifact.build: _build_configure(run, artifact, plan, results),  # type: ignore[misc]
            )


async def _buildable(artifacts: tuple[Artifact, ...], results: Results) -> tuple[Artifact, ...]:
    """Those built of Go modules whose recipe has the version that is asked for."""
    fitting: list[Artifact] = []
    for artifact in artifacts:
        if isinstance(artifact.build, GoBuild | ModuleFolder):

            async def one(artifact: Artifact = artifact, go: GoBuild | ModuleFolder = artifact.build) -> None:
                build.check_version(artifact, go, build.load_recipe(go.module))
                fitting.append(artifact)

            await _settle(results, (artifact,), one)
    return tuple(fitting)


async def _build_go(run: Run, group: Group, results: Results) -> None:
    go, names = group.build, ", ".join(artifact.name for artifact in group.artifacts)
    files = build.load_recipe(go.module)
    if go.cgo:
        await build.provide(await build.missing(build.CGO_NEEDS), names)
    async with run.store.locked(f"build {go.module}"):
        with run.store.work() as work:
            toolchain = await build.go_toolchain(files, go, run.architecture, work)
            origins = {
                artifact.name: Origin(
                    kind="build",
                    place=f"go build of {each.package}",
                    inputs=recipe.go_inputs(files, each),
                    toolchain=toolchain,
                )
                for artifact, each in zip(group.artifacts, group.builds, strict=True)
            }
            left = await _not_built_meanwhile(run, group.artifacts, origins, results)
            if not left:
                return
            (rest,) = recipe.groups(left)
            names = ", ".join(artifact.name for artifact in left)
            async with elapsed(run, names, "building from source (takes minutes the first time)"):
                built = await build.go_build(rest, files, run.architecture, work)
            for artifact in left:

                async def one(artifact: Artifact = artifact) -> None:
                    blob = await accept(run, artifact, built[artifact.name], origins[artifact.name])
                    results.blobs[artifact.name] = blob

                await _settle(results, (artifact,), one)


async def _pack_folder(run: Run, artifact: Artifact, plan: ModuleFolder, results: Results) -> None:
    files = build.load_recipe(plan.module)
    async with run.store.locked(f"build {artifact.name}"):
        with run.store.work() as work:
            origin = _folder_origin(plan)
            if await _not_built_meanwhile(run, (artifact,), {artifact.name: origin}, results):
                packed = await build.module_folder(artifact, plan, files, work)
                results.blobs[artifact.name] = await accept(run, artifact, packed, origin)


def _folder_origin(plan: ModuleFolder) -> Origin:
    return Origin(
        kind="build",
        place=f"folder {plan.package}",
        inputs=recipe.folder_inputs(build.load_recipe(plan.module), plan),
        toolchain=go_modules.PACKER,
    )


async def _not_built_meanwhile(
    run: Run, artifacts: tuple[Artifact, ...], origins: dict[str, Origin], results: Results
) -> tuple[Artifact, ...]:
    """Those to build: not refused for other inputs than pinned, not built by another process while this one waited."""
    for artifact in artifacts:

        async def one(artifact: Artifact = artifact) -> None:
            origin = origins[artifact.name]
            wanted = origin.entry(artifact, Blob(sha256="", size=0))
            lockfile.check_inputs(run.lock(), run.key(artifact, "build"), wanted, update=run.update_lock)
            blob = run.store.recall(origin.index_key(artifact, run.architecture))
            if "cache" in run.settings.sources and blob is not None and await trusted(run, artifact, blob):
                await pin(run, artifact, "build", origin.entry(artifact, blob))
                results.blobs[artifact.name] = blob

        await _settle(results, (artifact,), one)
    return results.open(artifacts)


async def _build_configure(run: Run, artifact: Artifact, plan: ConfigureBuild, results: Results) -> None:
    await build.provide(await build.missing(build.CONFIGURE_NEEDS), artifact.name)
    async with run.store.locked(f"build {artifact.name}"):
        with run.store.work() as work:
            tarball = await _source(run, artifact, plan, work)
            origin = await _configure_origin(run, artifact, plan, tarball)
            if not await _not_built_meanwhile(run, (artifact,), {artifact.name: origin}, results):
                return
            path = await asyncio.to_thread(run.store.path, tarball)
            async with elapsed(run, artifact.name, f"building {artifact.name}"):
                built = await build.configure_build(artifact, plan, path, work)
            results.blobs[artifact.name] = await accept(run, artifact, built, origin)


async def _known_build_origin(run: Run, artifact: Artifact, work: Path) -> Origin:
    """What a build would be made of, told without building or fetching; ArtifactMissing when that can't be."""
    match artifact.build:
        case GoBuild() as go:
            files = build.load_recipe(go.module)
            build.check_version(artifact, go, files)
            return Origin(
                kind="build",
                place=f"go build of {go.package}",
                inputs=recipe.go_inputs(files, go),
                toolchain=await build.go_toolchain(files, go, run.architecture, work),
            )
        case ModuleFolder() as folder:
            build.check_version(artifact, folder, build.load_recipe(folder.module))
            return _folder_origin(folder)
        case ConfigureBuild() as plan:
            tarball = run.store.recall(_source_key(run, artifact, plan))
            if tarball is not None:
                return await _configure_origin(run, artifact, plan, tarball)
    raise ArtifactMissing("its source was never fetched", subject=artifact.name)


async def _configure_origin(run: Run, artifact: Artifact, plan: ConfigureBuild, tarball: Blob) -> Origin:
    return Origin(
        kind="build",
        place=f"build of {artifact.name} from {plan.source_url.rpartition('/')[2]}",
        inputs=recipe.configure_inputs(artifact, plan),
        toolchain=await build.configure_toolchain(run.architecture, artifact.name),
        tarball=tarball.sha256,
    )


def _source_key(run: Run, artifact: Artifact, plan: ConfigureBuild) -> tuple[str, ...]:
    place = plan.debian_source if run.settings.nginx_source == "debian" else _source_url(run, plan)
    return ("source", artifact.version, run.settings.nginx_source, place)


def _source_url(run: Run, plan: ConfigureBuild) -> str:
    return release_url(plan.source_url, run.architecture, run.settings.mirror)


async def _source(run: Run, artifact: Artifact, plan: ConfigureBuild, work: Path) -> Blob:
    """The source tarball, from the cache or from where the operator said."""
    key = _source_key(run, artifact, plan)
    known = run.store.recall(key)
    if known is not None:
        try:
            await asyncio.to_thread(run.store.path, known)
            return known
        except ArtifactError:
            run.store.drop(known)
    if run.settings.nginx_source == "debian":
        async with elapsed(run, artifact.name, f"fetching Debian's source of {plan.debian_source}"):
            fetched = await apt.source_tarball(plan.debian_source, artifact.version, work)
    else:
        url = _source_url(run, plan)
        fetched = run.store.partial(url)
        async with Fetcher() as fetcher:
            await fetcher.file(url, fetched, sha256="", progress=progress(run.report, f"{artifact.name} source"))
    blob = await asyncio.to_thread(run.store.adopt, fetched)
    run.store.remember(key, blob)
    return blob


# ---------------------------------------------------------------------------------------------------------------
# local


async def from_local(run: Run, artifacts: tuple[Artifact, ...], results: Results) -> None:
    """Finished binaries in the operator's directory, by artifact name."""
    for artifact in artifacts:

        async def one(artifact: Artifact = artifact) -> None:
            results.blobs[artifact.name] = await _local(run, artifact)

        await _settle(results, (artifact,), one)


async def _local(run: Run, artifact: Artifact) -> Blob:
    if not run.settings.local:
        raise ArtifactMissing("artifacts.local is not set", subject=artifact.name)
    path = Path(run.settings.local) / artifact.name
    with ExitStack() as stack:
        work = stack.enter_context(run.store.work())
        try:
            await asyncio.to_thread(shutil.copyfile, path, work / "copy")
        except FileNotFoundError:
            raise ArtifactMissing("there is no such file", subject=str(path)) from None
        except OSError as error:
            raise ArtifactError(f"can't be read: {reason(error)}", subject=str(path)) from error
        return await accept(run, artifact, work / "copy", Origin(kind="local", place=str(path)))
