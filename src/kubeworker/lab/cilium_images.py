"""Cilium's two images as OCI archives, made once for all labs and kept in the cache.

The agent's is a Debian (debootstrap, as the machines' root file system) with Cilium's commands, its BPF sources and
its scripts; the operator's is one static program. The same commands and Debian packages give the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kubeworker.core.artifacts.artifact import ModuleFolder
from kubeworker.core.artifacts.recipe import Recipe, folder_inputs
from kubeworker.flow.events import Note, Reporter
from kubeworker.io import build
from kubeworker.lab import cache, cilium, host, oci_image, rootfs
from kubeworker.lab.oci_image import Image

NAMES = AGENT, OPERATOR = "cilium.tar", "cilium-operator.tar"
"""The archives' names in a lab's `images` folder."""

_LEVEL = 3
"""Of gzip. On the agent, cilium-dbg, libLLVM and libclang-cpp (442,152,960 bytes; zlib.compress(data, LEVEL), processor
time): level 1: 141,624,370 bytes, 4.0 s; level 3: 134,350,190 bytes, 5.7 s; level 6: 125,535,965 bytes, 13.4 s."""
_LAYOUT = 1
"""Counts changes of what is put into the images beside the commands and the packages."""

_SCRIPTS = (
    "images/cilium/init-container.sh",
    "plugins/cilium-cni/install-plugin.sh",
    "plugins/cilium-cni/cni-uninstall.sh",
)
_LINKS = {"usr/bin/cilium": "cilium-dbg", "usr/bin/clang": "clang-19"}
_DROPPED = (
    # Of no use in a container,
    "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "var/lib/apt/lists",
    # or of this host, or of the moment of building.
    "etc/hostname", "etc/resolv.conf", "etc/machine-id",
)  # fmt: skip
_EMPTY = ("dev", "proc", "run", "sys", "tmp", "var/cache", "var/log")


def ensure(folder: Path, binaries: Mapping[str, Path], report: Reporter) -> dict[str, Path]:
    """Both archives by the names above, in a folder of the cache; made now if they are not there (1 to 3 minutes).

    `binaries` are the files of `cilium.artifacts`, named by their content as in the artifacts' cache.
    """
    suite, mirror = rootfs.debian()
    recipe = build.load_recipe(cilium.RECIPE)
    agent, operator = cilium.references(recipe.version(cilium.MODULE))
    image = Image(reference=agent, architecture=host.architecture(), command=("/usr/bin/cilium-dbg",))

    def make_agent(target: Path) -> None:
        report(Note(text=f"making the image {agent} ({suite}, clang, Cilium's commands)"))
        with tempfile.TemporaryDirectory(suffix=".tmp", dir=folder) as work:
            tree = Path(work) / "tree"
            rootfs.debootstrap(suite, mirror, cilium.PACKAGES, tree)
            _fill(tree, binaries, asyncio.run(build.module_source(cilium.MODULE, recipe, Path(work))))
            with target.open("wb") as out:
                oci_image.write(out, image, lambda layer: oci_image.add_tree(layer, tree, empty=_EMPTY), level=_LEVEL)

    def make_operator(target: Path) -> None:
        report(Note(text=f"making the image {operator}"))
        of_operator = Image(
            reference=operator, architecture=host.architecture(), command=(f"/usr/bin/{cilium.OPERATOR}",)
        )
        with tempfile.TemporaryDirectory(suffix=".tmp", dir=folder) as work:
            tree = Path(work)
            _place(tree, f"usr/bin/{cilium.OPERATOR}", binaries[cilium.OPERATOR], mode=0o755)
            with target.open("wb") as out:
                oci_image.write(out, of_operator, lambda layer: oci_image.add_tree(layer, tree), level=_LEVEL)

    key = _key(suite, recipe, binaries)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        AGENT: cache.once(folder / f"cilium-{key}.tar", make_agent),
        OPERATOR: cache.once(folder / f"cilium-operator-{key}.tar", make_operator),
    }


def _key(suite: str, recipe: Recipe, binaries: Mapping[str, Path]) -> str:
    sources = folder_inputs(recipe, ModuleFolder(module=cilium.RECIPE, package=cilium.MODULE))
    content = [f"{name} {path.name}" for name, path in sorted(binaries.items())]
    settled = (*_SCRIPTS, *_LINKS.items(), *_DROPPED, *_EMPTY, *cilium.PACKAGES)
    text = "\n".join(map(str, (_LAYOUT, _LEVEL, suite, host.architecture(), sources, *settled, *content)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fill(tree: Path, binaries: Mapping[str, Path], source: Path) -> None:
    """Upstream's layout (images/cilium/Dockerfile) over Debian's."""
    for name in _DROPPED:
        path = tree / name
        if path.exists() or path.is_symlink():
            cache.remove(path)
    _forget_the_day(tree / "etc")
    places = {cilium.LOOPBACK: "cni/loopback", "cilium-cni": "opt/cni/bin/cilium-cni"}
    for name, binary in binaries.items():
        if name != cilium.OPERATOR:
            _place(tree, places.get(name, f"usr/bin/{name}"), binary, mode=0o755)
    for script in _SCRIPTS:
        _place(tree, Path(script).name, source / script, mode=0o755)
    for file in sorted((source / "bpf").rglob("*")):
        inside = file.relative_to(source)
        if file.is_file() and inside.parts[1] != "tests":
            _place(tree, f"var/lib/cilium/{inside}", file, mode=0o644)
    for name, target in _LINKS.items():
        (tree / name).symlink_to(target)


def _forget_the_day(etc: Path) -> None:
    """The days of the last password changes, in shadow(5): no one has a password here."""
    for path in (etc / "shadow", etc / "shadow-"):
        if path.exists():
            path.write_text(re.sub(r"^([^:]*:[^:]*:)\d+:", r"\g<1>0:", path.read_text(), flags=re.MULTILINE))


def _place(tree: Path, name: str, source: Path, *, mode: int) -> None:
    target = tree / name
    for folder in reversed(target.relative_to(tree).parents[:-1]):
        if not (tree / folder).is_dir():
            (tree / folder).mkdir()
            (tree / folder).chmod(0o755)
    shutil.copyfile(source, target)
    target.chmod(mode)
