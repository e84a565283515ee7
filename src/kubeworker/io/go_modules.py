"""The source of Go modules on the control host: had through `go`, which checks it against go.sum, copied, packed."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from kubeworker.core.artifacts.artifact import SourceEdit
from kubeworker.core.artifacts.recipe import MODULE_ENVIRONMENT, Recipe
from kubeworker.errors import ArtifactError, ArtifactMissing
from kubeworker.io import command

PACKER = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
"""What the bytes of `pack` depend on beside the files."""


async def source(module: str, folder: Path, *, subject: str) -> Path:
    """The module's read-only directory in Go's module cache, fetched if it is not there.

    `folder` holds the go.mod that requires it and the go.sum that its bytes must fit.
    """
    told = ""
    for words in (["go", "mod", "download", module], ["go", "list", "-m", "-f", "{{.Dir}}", module]):
        done = await command.run(words, env=os.environ | MODULE_ENVIRONMENT, cwd=folder)
        if done.status == 127:
            raise ArtifactMissing("there is no go command", subject="go", hint="install Go (https://go.dev/dl)")
        if done.status != 0:
            raise ArtifactError(
                f"`{' '.join(words[:3])}` failed: {done.tail(5)}",
                subject=subject,
                hint="GOPROXY must reach a Go module proxy",
            )
        told = done.tail(1)
    return Path(told)


async def edit(edits: Sequence[SourceEdit], recipe: Recipe, folder: Path, *, subject: str) -> None:
    """Copy the modules that the edits name below `folder`, edit the copies, and have its go.mod use them.

    ArtifactError when a text to replace is not there exactly once: the edit was made for another version.
    """
    copies: dict[str, Path] = {}
    for each in edits:
        module = recipe.holder(each.package)
        if module not in copies:
            copies[module] = folder / "edited" / module
            shutil.copytree(await source(module, folder, subject=subject), copies[module])
        file = copies[module] / each.package.removeprefix(module).lstrip("/") / each.file
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if text.count(each.old) != 1:
            raise ArtifactError(
                f"{each.package}/{each.file} of {recipe.version(each.package)} does not hold the text to replace once",
                subject=subject,
                hint="the edit fits another version of the module",
            )
        # The module cache is read-only, and so are copies of its files.
        file.chmod(0o644)
        file.write_text(text.replace(each.old, each.new), encoding="utf-8")
    for copy in copies.values():
        for path in copy.rglob("*"):
            path.chmod(path.stat().st_mode | 0o200)
    # Relative paths: they end up in the binaries, which must not tell where they were built.
    lines = "".join(f"\nreplace {module} => ./edited/{module}\n" for module in copies)
    (folder / "go.mod").write_bytes(recipe.files["go.mod"] + lines.encode())


def pack(folder: Path, target: Path) -> Path:
    """The folder as a .tgz with one top directory of its name; the same bytes for the same files."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder)}")
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    archive.addfile(entry, file)
    return target
