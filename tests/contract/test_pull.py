"""Nodes fetch artifacts from a mirror: the real script, curl and wget, and a real HTTP server that misbehaves."""

from __future__ import annotations

import atexit
import gzip
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.unit.core.engine_states import blob, stream
from tests.unit.shells import SHELLS

from kubeworker.core.model import Blob
from kubeworker.core.node import node_script
from kubeworker.core.node.pull_script import Pulled, file_name, progress, pull_script, pulled

pytestmark = pytest.mark.timeout(120)

ONE, TWO, THREE = (os.urandom(200_000) + b"\0" * 200_000 for _ in range(3))
FETCHERS = ("curl", "wget")


@dataclass
class Mirror:
    """What it answers by path: bytes, or a status, or a way to behave."""

    port: int
    answers: dict[str, bytes | int | str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/site"

    def serve(self, *contents: bytes) -> None:
        for content in contents:
            self.answers[f"/site/kubeworker/{file_name(blob(content))}"] = gzip.compress(content)

    def answer(self, content: bytes, what: bytes | int | str) -> None:
        self.answers[f"/site/kubeworker/{file_name(blob(content))}"] = what


@contextmanager
def mirror() -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            match found.answers.get(self.path, 404):
                case int() as status:
                    self.send_error(status)
                case "stalled":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000000")
                    self.end_headers()
                    self.wfile.write(b"\x1f\x8b")
                    found.stop.wait(60)
                case bytes() as content:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

        def log_message(self, *_what: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Mirror(port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        found.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site() -> Iterator[Mirror]:
    with mirror() as found:
        yield found


@cache
def path(*fetchers: str) -> str:
    """A folder with all programs of the usual PATH, but of curl and wget only these."""
    place = Path(tempfile.mkdtemp(prefix="kubeworker-path-"))
    atexit.register(shutil.rmtree, place)
    usual = [Path(each) for each in ("/sbin", "/bin", "/usr/sbin", "/usr/bin", "/usr/local/bin")]
    programs = {each.name: each for folder in usual if folder.is_dir() for each in folder.iterdir()}
    for name, program in programs.items():
        if name not in FETCHERS or name in fetchers:
            (place / name).symlink_to(program)
    return str(place)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A root of its own."""

    root: Path
    shell: str = "sh"

    @property
    def store(self) -> Path:
        return self.root / "bin/.store"

    def pull(
        self, mirror: str, *contents: bytes, fetchers: tuple[str, ...] = FETCHERS, stalled: int = 15, slow: float = 1e6
    ) -> Pulled:
        blobs = [blob(content) for content in contents]
        text = pull_script(str(self.root / "bin"), blobs, mirror, home=str(self.root / "home"), slow=slow)
        # The script sets its own PATH; and nobody waits for 15 s here.
        text = text.replace("PATH=/usr/local/sbin:", f"PATH={path(*fetchers)} OLD=/usr/local/sbin:", 1)
        text = text.replace('sleep "$number"', "sleep 0.3")
        for option in ("--speed-time", "-T"):
            text = text.replace(f"{option} 15", f"{option} {stalled}")
        done = subprocess.run([self.shell, "-c", text], capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (self.store / "incoming").exists()
        return pulled(done.stdout, blobs)

    def has(self, *contents: bytes) -> bool:
        names = {each.name for each in self.store.iterdir()}
        assert names <= {f"sha256-{blob(content).sha256}" for content in contents}, "nothing else may be visible"
        return all((self.store / f"sha256-{blob(content).sha256}").read_bytes() == content for content in contents)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(root=tmp_path)


def keys(*contents: bytes) -> frozenset[str]:
    return frozenset(blob(content).sha256 for content in contents)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("fetcher", FETCHERS)
def test_what_the_mirror_has_comes_with_whichever_of_the_two_is_there(
    fetcher: str, shell: str, site: Mirror, tmp_path: Path
) -> None:
    assert shutil.which(fetcher)
    machine = Machine(root=tmp_path, shell=shell)
    site.serve(ONE, TWO)
    found = machine.pull(site.url, ONE, TWO, fetchers=(fetcher,))
    assert (found.got, found.missed) == (keys(ONE, TWO), {})
    assert machine.has(ONE, TWO)
    assert machine.store.stat().st_mode & 0o777 == 0o700


def test_a_node_with_neither_says_so_at_once(site: Mirror, machine: Machine) -> None:
    site.serve(ONE, TWO)
    found = machine.pull(site.url, ONE, TWO, fetchers=())
    assert set(found.missed.values()) == {"neither curl nor wget is there"}
    assert found.missed.keys() == keys(ONE, TWO)
    assert site.asked == []


@pytest.mark.parametrize("fetcher", FETCHERS)
def test_other_bytes_never_become_visible(fetcher: str, site: Mirror, machine: Machine) -> None:
    site.serve(TWO)
    site.answer(ONE, gzip.compress(ONE[:-1] + b"x"))
    found = machine.pull(site.url, ONE, TWO, fetchers=(fetcher,))
    assert "other bytes" in found.missed[blob(ONE).sha256]
    assert machine.has(TWO)
    assert not (machine.store / f"sha256-{blob(ONE).sha256}").exists()


def test_something_that_is_no_gzip_or_has_far_too_many_bytes_is_refused(site: Mirror, machine: Machine) -> None:
    site.serve(TWO)
    site.answer(ONE, ONE)
    site.answer(THREE, gzip.compress(bytes(200_000_000), 1))
    found = machine.pull(site.url, ONE, TWO, THREE)
    assert found.got == keys(TWO)
    assert "other bytes" in found.missed[blob(ONE).sha256]
    assert "other bytes" in found.missed[blob(THREE).sha256]
    assert machine.has(TWO)


@pytest.mark.parametrize("fetcher", FETCHERS)
def test_one_that_is_not_there_is_tried_again_and_the_others_come(fetcher: str, site: Mirror, machine: Machine) -> None:
    site.serve(ONE, THREE)
    found = machine.pull(site.url, ONE, TWO, THREE, fetchers=(fetcher,))
    assert found.got == keys(ONE, THREE)
    assert "404" in found.missed[blob(TWO).sha256]
    assert len([path for path in site.asked if file_name(blob(TWO)) in path]) == 3


def test_a_mirror_that_comes_to_itself_is_good_enough(site: Mirror, machine: Machine) -> None:
    site.answer(ONE, 503)
    timer = threading.Timer(0.2, site.serve, [ONE])
    timer.start()
    assert machine.pull(site.url, ONE).got == keys(ONE)
    timer.join()


def test_a_mirror_that_is_down_is_given_up_after_two_artifacts(machine: Machine) -> None:
    with mirror() as gone:
        pass
    began = time.monotonic()
    found = machine.pull(gone.url, ONE, TWO, THREE)
    assert found.missed.keys() == keys(ONE, TWO, THREE)
    assert any(word in found.missed[blob(ONE).sha256].lower() for word in ("connect", "refused"))
    assert time.monotonic() - began < 12


@pytest.mark.parametrize("fetcher", FETCHERS)
def test_a_stalled_mirror_is_left_in_time(fetcher: str, site: Mirror, machine: Machine) -> None:
    for content in (ONE, TWO, THREE):
        site.answer(content, "stalled")
    found = machine.pull(site.url, ONE, TWO, THREE, fetchers=(fetcher,), stalled=1)
    assert found.missed.keys() == keys(ONE, TWO, THREE)
    assert all(found.missed.values())
    assert len(site.asked) == 4, "three tries for the first, one for the second, none for the third"


def test_the_rest_of_a_run_that_was_cut_counts_as_missed() -> None:
    blobs = [blob(ONE), blob(TWO)]
    said = f"kw pulled {blobs[0].sha256}\n"
    assert pulled(said, blobs).missed == {blobs[1].sha256: "it was cut off"}
    assert progress(said.strip()) == blobs[0].sha256
    assert progress("kw missed x y") == ""


def test_what_is_pulled_needs_no_push_and_both_end_alike(site: Mirror, machine: Machine) -> None:
    site.serve(ONE)
    machine.pull(site.url, ONE)
    mode = (machine.store / f"sha256-{blob(ONE).sha256}").stat().st_mode
    script = node_script.receive_script(str(machine.root / "bin"), [blob(ONE)], home=str(machine.root / "home"))
    subprocess.run(["sh", "-c", script], input=stream(ONE), check=True)
    assert (machine.store / f"sha256-{blob(ONE).sha256}").stat().st_mode == mode


def test_shellcheck_finds_nothing() -> None:
    text = pull_script("/opt/k8s/bin", [Blob(sha256="0" * 64, size=1)], "http://mirror.example.com")
    done = subprocess.run(
        ["shellcheck", "--shell=sh", "--severity=style", "--exclude=SC2317,SC2329,SC2034,SC2015", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
