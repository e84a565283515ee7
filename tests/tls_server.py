"""A server on one port that answers every request over TLS, for what a kube-apiserver may be like from afar."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kubeworker.lab import pki


@dataclass(kw_only=True)
class TlsServer:
    address: str
    port: int
    asked: list[str] = field(default_factory=list)
    """The Authorization headers that came."""

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"


@contextmanager
def tls_server(
    folder: Path,
    authority: pki.Pair,
    *,
    address: str = "127.0.0.1",
    names: tuple[str, ...] = (),
    status: int = 200,
    issued: datetime | None = None,
    knows: str = "",
) -> Iterator[TlsServer]:
    """One that shows a certificate of this authority for these names (default: its address).

    `issued`: when, of a certificate that lasts a day. `knows`: the one token that it does not answer 401, and that only
    from the third request on.
    """
    subject = pki.Subject(common_name="server", names=names or (address,), server=True)
    pair = pki.issue(authority, subject, issued or datetime.now(UTC), lasts=timedelta(days=1))
    name = folder / f"server-{threading.get_ident()}-{len(list(folder.iterdir()))}.pem"
    name.write_bytes(pair.cert + pair.key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.headers.get("Authorization", ""))
            refused = knows and not (found.asked[-1] == f"Bearer {knows}" and len(found.asked) > 2)
            self.send_response(401 if refused else status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name)
    # Handshakes belong to the connections' own threads: a client that breaks one off must not hold the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    found = TlsServer(address=address, port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
