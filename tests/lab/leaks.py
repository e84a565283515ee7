"""Looks for secrets wherever they could have been left: what a secret looks like there, and where it may be.

A secret is searched for by its own bytes, not by the file that holds it: slices of a key's private numbers, as base64
at each of the three alignments and as hex, and that base64 in base64 once more, as in a kubeconfig. So neither a wrap
nor another encoding nor a cut-off text hides it, and no certificate is taken for its key.
"""

from __future__ import annotations

import base64
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SLICE = 12
"""Bytes of a secret that give it away: 96 bits meet by no chance."""
JWT = "a ServiceAccount's token"
JWT_PATTERN = r"eyJhbGciOi[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"
"""What every token of a ServiceAccount looks like (RFC 7519): the test need not know it."""


@dataclass(frozen=True, kw_only=True)
class Secret:
    """One secret, by what it looks like in text."""

    name: str
    needles: frozenset[bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True, order=True)
class Leak:
    """A secret where none should be, or where others may read it."""

    secret: str
    place: str
    why: str


# ---------------------------------------------------------------------------------------------------------------
# What a secret looks like


def key(name: str, pem: bytes) -> Secret:
    """A private key (PEM, OpenSSH's own too), also where it is written in another encoding."""
    private = (
        serialization.load_ssh_private_key(pem, password=None)
        if b"OPENSSH" in pem
        else serialization.load_pem_private_key(pem, password=None)
    )
    numbers = tuple(_numbers(private))
    plain = {needle for number in numbers for needle in _base64(number)}
    twice = {needle for once in plain for needle in _base64(once)}
    hexadecimal = {part.hex().encode() for number in numbers for part in _slices(number)}
    return Secret(name=name, needles=frozenset(plain | twice | hexadecimal))


def text(name: str, value: str) -> Secret:
    """A token, a password: as it is, and in base64."""
    raw = value.encode()
    return Secret(name=name, needles=frozenset({raw, *_base64(raw)}))


def _numbers(private: object) -> Iterator[bytes]:
    """What of a key is not in its public key or certificate."""
    match private:
        case rsa.RSAPrivateKey():
            values = private.private_numbers()
            for number in (values.d, values.p, values.q):
                yield number.to_bytes((number.bit_length() + 7) // 8, "big")
        case ec.EllipticCurvePrivateKey():
            yield private.private_numbers().private_value.to_bytes((private.key_size + 7) // 8, "big")
        case ed25519.Ed25519PrivateKey():
            yield private.private_bytes_raw()
        case _:
            raise TypeError(f"no kind of key that is used here: {private}")


def _slices(raw: bytes) -> Iterator[bytes]:
    for at in range(0, max(len(raw) - SLICE, 0) + 1, SLICE):
        yield raw[at : at + SLICE]


def _base64(raw: bytes) -> Iterator[bytes]:
    """How slices of it look within a longer base64 text, wherever they begin in it."""
    for part in _slices(raw):
        for before in range(3):
            whole = base64.b64encode(bytes(before) + part)
            # The first group holds bits of what stands before, the last one of what follows.
            yield whole[4 if before else 0 :][: -4 if (before + len(part)) % 3 else None]


# ---------------------------------------------------------------------------------------------------------------
# Where it is searched for


def search(
    secrets: Iterable[Secret],
    places: Iterable[Path],
    folder: Path,
    *,
    without: Iterable[Path] = (),
    newer: Path | None = None,
    tokens: bool = False,
) -> dict[Path, set[str]]:
    """Names of the secrets that are in these files (folders with all that is in them), by file.

    `folder` is for the list of needles, which is gone afterwards. `without` is not gone into; `newer`: only files that
    changed since this one did. `tokens`: those of ServiceAccounts count too.
    """
    files = _files(places, without, newer)
    owner = {needle.decode(): secret.name for secret in secrets for needle in secret.needles}
    found: dict[Path, set[str]] = {}
    patterns = folder / "needles"
    patterns.touch(mode=0o600)
    try:
        patterns.write_text("\n".join(owner) + "\n")
        for file, needle in _grep(["-F", "-f", str(patterns)], files):
            # grep shows the longest of those that match at one place.
            found.setdefault(file, set()).update(name for each, name in owner.items() if each in needle)
    finally:
        patterns.unlink()
    if tokens:
        for file, _ in _grep(["-P", JWT_PATTERN], files):
            found.setdefault(file, set()).add(JWT)
    return found


def _files(places: Iterable[Path], without: Iterable[Path], newer: Path | None) -> bytes:
    here = [str(each) for each in places if each.exists()]
    prune = [word for each in without for word in ("-path", str(each), "-prune", "-o")]
    since = ["-newercm", str(newer)] if newer else []
    find = ["find", *here, *prune, "-type", "f", "-size", f"-{LARGEST >> 20}M", *since, "-print0"]
    return subprocess.run(find, capture_output=True, check=False).stdout if here else b""


def _grep(how: list[str], listed: bytes) -> Iterator[tuple[Path, str]]:
    grep = ["xargs", "-0", "-r", "grep", "-aoHsZ", "-D", "skip", *how, "--"]
    done = subprocess.run(grep, input=listed, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    assert done.returncode in {0, 123}, done.stderr  # 123: some grep found nothing
    for line in done.stdout.splitlines():
        file, _, match = line.partition(b"\0")
        yield Path(os.fsdecode(file)), match.decode(errors="replace")


LARGEST = 64 << 20
"""Bytes of a file that is looked into: larger ones are binaries and images."""


def open_to_others(path: Path) -> str:
    """Why somebody else than root may read the file; empty where nobody can."""
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != 0:
        return f"it is user {found.st_uid}'s"
    return f"mode {mode:04o}" if mode & 0o077 else ""


# ---------------------------------------------------------------------------------------------------------------
# What is gone afterwards: processes and files of a moment


class Sampler(threading.Thread):
    """Keeps arguments and environment of every process of this host (machines' are among them), and what others could
    read in some folders, as long as it runs."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        super().__init__(daemon=True)
        self._folders = tuple(folders)
        self._ended = threading.Event()
        self._seen: dict[int, bytes] = {}
        self._texts: dict[bytes, str] = {}
        self._mine = os.getpid()

    def run(self) -> None:
        while not self._ended.is_set():
            self._look_at_processes()
            for folder in self._folders:
                self._look_at_files(folder)
            time.sleep(0.03)

    @contextmanager
    def running(self, evidence: Path) -> Iterator[None]:
        """Sample while the block runs; what was seen lies in the file `evidence` then."""
        self.start()
        try:
            yield
        finally:
            self._ended.set()
            self.join()
            evidence.touch(mode=0o600)
            evidence.write_bytes(b"\n".join(where.encode() + b": " + each for each, where in self._texts.items()))

    def _look_at_processes(self) -> None:
        for process in Path("/proc").iterdir():
            name = process.name
            if not name.isdigit() or int(name) == self._mine:
                continue
            with suppress(OSError):
                arguments = (process / "cmdline").read_bytes()
                if self._seen.get(int(name)) == arguments:
                    continue
                self._seen[int(name)] = arguments
                environment = (process / "environ").read_bytes()
                for what, content in (("argv", arguments), ("environ", environment)):
                    self._texts.setdefault(content.replace(b"\0", b" "), f"{what} of {name}")

    def _look_at_files(self, folder: Path) -> None:
        with suppress(OSError):
            for path in folder.iterdir():
                with suppress(OSError):
                    found = path.lstat()
                    if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077 and found.st_size < LARGEST >> 6:
                        self._texts.setdefault(path.read_bytes(), f"file {path}, mode {found.st_mode & 0o777:04o}")


@contextmanager
def traced(pid: int, log: Path) -> Iterator[None]:
    """Arguments and environment of each program that this process and its children start, in the file `log`."""
    tracer = subprocess.Popen(
        [*_STRACE, "-o", str(log), "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        until_traced(pid)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(timeout=30)


def strace(log: Path) -> list[str]:
    """The command before the one to trace: every execve, with all of its arguments and environment."""
    return [*_STRACE, "--seccomp-bpf", "-o", str(log)]


_STRACE = ("strace", "-f", "-qq", "-e", "trace=execve", "-v", "-s", "65536")


def until_traced(pid: int) -> None:
    end = time.monotonic() + 20
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end, f"strace did not attach to {pid}"
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------


def leaks(
    found: Mapping[Path, set[str]], *, shown: Callable[[Path], str], allowed: Callable[[str, str], bool]
) -> list[Leak]:
    """Those that are not where they belong, and those that others than root can read. `shown` names a file as its own
    machine does; `allowed` takes a secret's name and such a path."""
    result = []
    for file, names in found.items():
        for name in names:
            if not allowed(name, shown(file)):
                result.append(Leak(secret=name, place=shown(file), why="it does not belong there"))
            elif why := open_to_others(file):
                result.append(Leak(secret=name, place=shown(file), why=why))
    return sorted(result)
