"""An image with kubeworker in it, for the approver's Deployment: as packaging/Containerfile, without a registry.

Debian's Python with what it is linked to, and nothing else: no shell, no package manager. The libraries are those of
the environment that runs this, which scripts/setup installed by the hashes in requirements/; each file is checked
against what pip wrote down of it. The same packages and files give the same bytes.
"""

from __future__ import annotations

import base64
import compileall
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from py_compile import PycInvalidationMode
from tarfile import TarFile

from kubeworker.errors import LabError
from kubeworker.flow.events import Note, Reporter
from kubeworker.lab import cache, host, oci_image, state
from kubeworker.lab.oci_image import Image

REFERENCE = "registry.example.com/kubeworker:lab"
USER = "65532"
"""As in distroless images: `nonroot`."""

_WANTED = ("python3-minimal", "libpython3-stdlib")
_ONLY_FOR_INSTALLING = ("dpkg", "tar", "readline-common")
"""What packages depend on for their maintainer scripts, which don't run here."""
_DROPPED = (
    "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/lintian", "usr/share/bug",
    "usr/bin/py3clean", "usr/bin/py3compile", "usr/bin/py3versions",
)  # fmt: skip
_MERGED = ("bin", "lib", "lib64", "sbin")
"""Links into /usr, as on every Debian since 12; packages may name files by either."""
_LIBRARIES = "usr/lib/python3/dist-packages"
_LAUNCHER = """\
#!/usr/bin/python3 -I
from kubeworker.cli.app import main
main()
"""
_PASSWD = f"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n"
_LAYOUT = 1
"""Counts changes of what is put into the image beside the packages and the libraries."""


def write(out: Path, report: Reporter) -> None:
    """Write the OCI archive (about 100 MB). Python and the libraries come from the cache once it has them."""
    base = ensure_base(state.cache_folder() / "images", report)
    image = Image(reference=REFERENCE, architecture=host.architecture(), entrypoint=("/usr/bin/kubeworker",), user=USER)
    temporary = out.with_name(f".{out.name}.tmp")
    with tempfile.TemporaryDirectory(prefix="kubeworker-image-") as folder:
        own = Path(folder)
        place_own(own)
        with temporary.open("wb") as file:
            oci_image.write(file, image, lambda layer: _add(layer, base, own))
    temporary.rename(out)


def _add(layer: TarFile, *trees: Path) -> None:
    for each in trees:
        oci_image.add_tree(layer, each)


def ensure_base(folder: Path, report: Reporter) -> Path:
    """The tree without kubeworker itself, in a folder of the cache; made now if it is not there (half a minute)."""
    packages = _packages()
    wanted = libraries()
    _check_python(packages)
    named = (*map(str, packages), *(f"{each.name} {each.version}" for each in wanted))
    settled = (_LAYOUT, host.architecture(), *_ONLY_FOR_INSTALLING, *_DROPPED)
    key = hashlib.sha256("\n".join(map(str, (*settled, *named))).encode()).hexdigest()[:16]

    def make(tree: Path) -> None:
        report(Note(text=f"making the base of the image {REFERENCE} ({len(packages)} packages of Debian's)"))
        tree.mkdir()
        _unpack(packages, tree)
        for each in wanted:
            copy(each, tree / _LIBRARIES)
        (tree / "etc").mkdir(exist_ok=True)
        (tree / "etc/passwd").write_text(_PASSWD)
        # Without times: an image's files have none. It also shows that this Python runs with what is there.
        compile_all = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        host.run(["chroot", tree, *compile_all, "/usr/lib"], timeout=600)
        _set_modes(tree)

    return cache.once(folder / f"approver-base-{key}", make)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Package:
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}={self.version}"


def _packages() -> tuple[_Package, ...]:
    """Python's packages and what they are linked to, for a system that has nothing yet."""
    listed = _with_lists(
        ["apt-get", "-qq", "--simulate", "-o", "Dir::State::status=/dev/null", "--no-install-recommends", "install"],
        _WANTED,
    )
    found = re.findall(r"^Inst (\S+) \((\S+) ", listed, flags=re.MULTILINE)
    return tuple(_Package(name=name, version=version) for name, version in found if name not in _ONLY_FOR_INSTALLING)


def _with_lists(command: list[str], words: Iterable[str]) -> str:
    if shutil.which("apt-get") is None:
        raise LabError(
            "apt-get is not installed",
            subject="this host",
            hint="elsewhere than on Debian build packaging/Containerfile",
        )
    try:
        return host.run([*command, *words])
    except LabError:
        # Package lists may be absent, as in fresh images.
        host.run(["apt-get", "update"], timeout=600)
        return host.run([*command, *words])


def _check_python(packages: Iterable[_Package]) -> None:
    """LabError unless Debian's Python is of this one's version: compiled libraries are made for one."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    there = {match[1] for each in packages if (match := re.fullmatch(r"python(3\.\d+)-minimal", each.name))}
    if here not in there:
        raise LabError(
            f"this is Python {here}, and Debian's here is {', '.join(sorted(there)) or 'none'}",
            subject="the approver's image",
            hint="make .venv with Debian's own Python (PYTHON=/usr/bin/python3 scripts/setup), or build "
            "packaging/Containerfile",
        )


def _unpack(packages: Iterable[_Package], tree: Path) -> None:
    for name in _MERGED:
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    with tempfile.TemporaryDirectory(prefix="kubeworker-debs-") as folder:
        Path(folder).chmod(0o755)  # apt downloads as a user of its own
        script = 'cd "$1"; shift; apt-get -q download "$@"'
        host.run(["sh", "-c", script, "sh", folder, *map(str, packages)], timeout=600)
        for deb in sorted(Path(folder).glob("*.deb")):
            host.run(["dpkg-deb", "--extract", deb, tree])
    for name in _DROPPED:
        if (tree / name).exists():
            cache.remove(tree / name)


def libraries() -> tuple[Distribution, ...]:
    """The installed distributions that kubeworker needs, without itself, in a stable order."""
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    _collect("kubeworker", frozenset(), found)
    named = {name: each for (name, _), each in found.items()}
    return tuple(named[name] for name in sorted(named))


_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?[^;]*(?:;(.*))?")
"""Name, extras and marker (PEP 508)."""


def _collect(name: str, extras: frozenset[str], found: dict[tuple[str, frozenset[str]], Distribution]) -> None:
    """What this one needs, with these of its extras; by name and extras."""
    for requirement in distribution(name).requires or ():
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise LabError("is no requirement", subject=f"{name}: {requirement}")
        asked = re.search(r"extra == [\"']([^\"']+)[\"']", match[3] or "")
        if asked and asked[1] not in extras:
            continue
        normal = re.sub(r"[-_.]+", "-", match[1]).lower()
        try:
            this = distribution(normal)
        except PackageNotFoundError:
            continue  # its marker is for another Python or system
        more = frozenset(re.findall(r"[A-Za-z0-9._-]+", match[2] or ""))
        if (normal, more) not in found:
            found[normal, more] = this
            _collect(normal, more, found)


def copy(library: Distribution, target: Path) -> None:
    """Its files, each as pip wrote down its hash (PEP 376, RECORD); commands and compiled files are left out."""
    for file in library.files or ():
        if file.parts[0] == ".." or "__pycache__" in file.parts:
            continue
        content = Path(str(file.locate())).read_bytes()
        if file.hash is not None:
            digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode()
            if digest != file.hash.value:
                raise LabError(
                    "is not what pip installed", subject=str(file.locate()), hint="remove .venv and run scripts/setup"
                )
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def place_own(tree: Path) -> None:
    """The product itself: the source that runs this, and its command."""
    source = Path(__file__).parents[1]
    target = tree / _LIBRARIES / "kubeworker"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "lab"))
    compileall.compile_dir(
        target, quiet=1, stripdir=str(tree), prependdir="/", invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
    )
    # As pip leaves it: a node's record says which version has applied.
    version = distribution("kubeworker").version
    record = tree / _LIBRARIES / f"kubeworker-{version}.dist-info/METADATA"
    record.parent.mkdir()
    record.write_text(f"Metadata-Version: 2.1\nName: kubeworker\nVersion: {version}\n")
    launcher = tree / "usr/bin/kubeworker"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    _set_modes(tree)


def _set_modes(tree: Path) -> None:
    """As Debian has them, whatever this process' umask and the checkout's modes are; no set-uid programs."""
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
