"""A mirror of artifacts at a lab's bridge, which its machines reach."""

from __future__ import annotations

import gzip
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubeworker.io.blob_store import BlobStore
from kubeworker.lab import LabState


class _Folder(SimpleHTTPRequestHandler):
    def log_message(self, *_what: object) -> None: ...


class _Store(BaseHTTPRequestHandler):
    def log_message(self, *_what: object) -> None: ...

    def do_GET(self) -> None:
        found = re.fullmatch(r"/kubeworker/(sha256-[0-9a-f]{64})\.gz", self.path)
        path = BlobStore.default().root / "store" / found[1] if found else None
        if path is None or not path.exists():
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        with path.open("rb") as file, gzip.GzipFile(fileobj=self.wfile, mode="wb", compresslevel=0) as out:
            shutil.copyfileobj(file, out, 1 << 20)


@contextmanager
def serving(lab: LabState, folder: Path) -> Iterator[str]:
    """The URL under which it serves this folder."""
    with _served(lab, partial(_Folder, directory=str(folder))) as url:
        yield url


@contextmanager
def serving_all(lab: LabState) -> Iterator[str]:
    """The URL of a mirror that has whatever this host has, as `artifacts publish` would write it, but not compressed:
    that takes half a minute of processor time."""
    with _served(lab, _Store) as url:
        yield url


@contextmanager
def _served(lab: LabState, handler: Callable[..., Any]) -> Iterator[str]:
    server = ThreadingHTTPServer((lab.gateway, 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{lab.gateway}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
