"""The API proxy's probe with the real kube-nginx and the real curl, between servers that fail in every way.

The servers here only stand for kube-apiservers that refuse, hang or are not ready on command; the drill in
tests/lab/test_drill.py does that to real ones.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from tests.contract.control_plane import Authority, free_port
from tests.unit import samples

from kubeworker.core.api_proxy import apiserver_probe

UNIT_GAP = apiserver_probe.REST + 0.5
AUTHORITY = Authority()


@dataclass
class Server:
    """A TLS server on loopback that answers /readyz with `status`, or takes connections and stays silent."""

    name: str
    folder: Path
    port: int = field(default_factory=free_port)
    status: int = 200
    silent: bool = False
    clients: list[str] = field(default_factory=list)
    """Common name of each caller's certificate; empty for one without."""
    _listener: socket.socket | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        cert, key = AUTHORITY.server(self.name, (x509.IPAddress(ipaddress.ip_address("127.0.0.1")),))
        pem = self.folder / f"{self.name}.pem"
        pem.write_bytes(cert + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.load_verify_locations(cadata=AUTHORITY.cert_pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        threading.Thread(target=self._accept, args=(self._listener, context), daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            # A thread in accept() would keep the port open.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection, context), daemon=True).start()

    def _serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        if self.silent:
            time.sleep(60)
            return
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            peer = tls.getpeercert(binary_form=True)
            names = x509.load_der_x509_certificate(peer).subject if peer else x509.Name([])
            self.clients.append("".join(str(name.value) for name in names.get_attributes_for_oid(NameOID.COMMON_NAME)))
            while tls.recv(65536):
                if self.silent:
                    time.sleep(60)
                    return
                tls.sendall(
                    b"HTTP/1.1 %d x\r\nServer: %s\r\nContent-Length: 0\r\n\r\n" % (self.status, self.name.encode())
                )


@dataclass
class Site:
    """kube-nginx and its probe on loopback."""

    folder: Path
    nginx: Path
    servers: tuple[Server, ...]
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def root(self) -> Path:
        return self.folder / "kube-nginx"

    def prepare(self) -> None:
        """The files as they are rendered for a node, with the folders of this test."""
        networks = {"cluster_cidr": "172.30.0.0/16", "service_cidr": "10.254.0.0/16", "dns_service_ip": "10.254.0.2"}
        spec = samples.cluster(
            cluster={"apiservers": [server.address for server in self.servers], **networks},
            components={"kube_nginx": {"listen": f"127.0.0.1:{self.port}"}},
            paths={"bin_dir": f"{self.folder}/bin"},
        )
        files = samples.files(samples.state(spec))
        for name in ("kube-nginx.conf", "apiservers.conf"):
            text = files[f"{self.root}/conf/{name}"].content.decode().replace("/run/kube-nginx", str(self.run))
            (self.root / "conf").mkdir(parents=True, exist_ok=True)
            # Without the preference each of them has its share of a few sessions, which is what the tests look at.
            (self.root / "conf" / name).write_text(text.replace(" weight=100", ""))
        (self.root / "conf/ca.pem").write_bytes(AUTHORITY.cert_pem)
        (self.root / "logs").mkdir()
        self.run.mkdir()
        for name in ("upstream.conf", "loaded.conf"):
            (self.run / name).write_text(self.full)

    @property
    def full(self) -> str:
        return (self.root / "conf/apiservers.conf").read_text()

    def start_nginx(self) -> None:
        options = ("-p", str(self.root), "-c", f"{self.root}/conf/kube-nginx.conf", "-g", "daemon off;")
        with (self.folder / "nginx.log").open("ab") as log:
            self.processes.append(subprocess.Popen([self.nginx, *options], stdout=log, stderr=log))
        until((self.root / "logs/kube-nginx.pid").exists, "nginx runs")

    def probe(self, *, slot: int = 0, reload: str = "") -> subprocess.Popen[bytes]:
        """Start the probe. `reload` is shell that takes the place of a SIGHUP to nginx."""
        script = apiserver_probe.script(
            apiservers=f"{self.root}/conf/apiservers.conf",
            folder=str(self.run),
            ca=f"{self.root}/conf/ca.pem",
            client_cert=f"{self.folder}/kubelet-client.pem",
            reload=("sh", "-c", f"{reload}kill -HUP $(cat {self.root}/logs/kube-nginx.pid)"),
            slot=slot,
            seconds=1,
        )
        program = self.folder / "probe"
        program.write_text(script)
        with (self.folder / "probe.log").open("ab") as log:
            # A process group of its own, as a unit's control group: killed together with its curls.
            process = subprocess.Popen(["sh", program], stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.folder / "probe.log").read_text()

    def listed(self) -> set[str]:
        """Names of the servers that nginx is told of."""
        text = (self.run / "upstream.conf").read_text()
        return {server.name for server in self.servers if f" {server.address} " in text}

    def status(self) -> dict[str, tuple[str, str]]:
        """State and last answer by server, once there is a status."""
        path = self.run / "status"
        lines = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
        names = {server.address: server.name for server in self.servers}
        return {names[address]: (state, answer) for address, state, answer, _ in lines}

    def ask(self, timeout: float = 3) -> str:
        """Through the proxy, on a new connection: who answers; empty: nobody."""
        try:
            with self.session(timeout) as tls:
                return who(tls)
        except OSError:
            return ""

    def session(self, timeout: float = 3) -> ssl.SSLSocket:
        """A connection through the proxy to one of the servers."""
        context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.decode())
        return context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), timeout=timeout), server_hostname="127.0.0.1"
        )

    def stop(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                if os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.terminate()
            process.wait(10)
        for server in self.servers:
            server.stop()


def who(tls: ssl.SSLSocket) -> str:
    tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = http.client.HTTPResponse(tls)
    answer.begin()
    return answer.headers["Server"]


def until(holds: Callable[[], bool], what: str, *, seconds: float = 10) -> float:
    """Wait for something to become true; how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture
def site(tmp_path: Path, binaries: Path) -> Iterator[Site]:
    servers = tuple(Server(name, tmp_path) for name in ("alpha", "beta", "gamma"))
    here = Site(tmp_path, binaries / "kube-nginx", servers)
    # nginx's workers run as daemon and read nothing, but its master opens the folders first.
    here.prepare()
    for server in servers:
        server.start()
    here.start_nginx()
    try:
        yield here
    finally:
        here.stop()


def soon(seconds: int) -> int:
    """The slot of a node whose second is that far from now."""
    return (int(time.time()) + seconds) % apiserver_probe.SPREAD


def test_each_kind_of_failure_takes_a_server_out_and_cuts_the_sessions(site: Site) -> None:
    alpha, beta, gamma = site.servers
    site.probe()
    until(lambda: site.status() == dict.fromkeys(("alpha", "beta", "gamma"), ("ready", "200")), "all are ready")
    assert site.listed() == {"alpha", "beta", "gamma"}
    kept = [site.session() for _ in site.servers]
    assert {who(tls) for tls in kept} == {"alpha", "beta", "gamma"}

    # Silent: it takes connections and never answers, as a stopped process or a machine behind a packet filter.
    alpha.silent = True
    took = until(lambda: site.listed() == {"beta", "gamma"}, "alpha is out")
    assert took < 3 * (1 + apiserver_probe.LIMIT), "two late answers"
    assert site.status()["alpha"] == ("lost", "timeout")
    for tls in kept:
        tls.settimeout(3)
        assert tls.recv(1) == b"", "nginx ended the session"
        tls.close()
    assert {site.ask() for _ in range(10)} == {"beta", "gamma"}

    # Not ready: /readyz says so. The next change may come only some seconds after the first one.
    beta.status = 500
    until(lambda: site.listed() == {"gamma"}, "beta is out", seconds=UNIT_GAP + 4)
    assert site.status()["beta"] == ("lost", "500")
    until(lambda: {site.ask() for _ in range(5)} == {"gamma"}, "nginx knows it too")

    # The last one stays, whatever it says: without any list nothing would work.
    gamma.status = 503
    until(lambda: "no kube-apiserver answers" in site.log, "the probe says that nobody answers")
    assert site.listed() == {"gamma"}
    assert site.ask() == "gamma"


def test_a_refusal_takes_a_server_out_at_once_and_it_comes_back_in_the_nodes_own_second(site: Site) -> None:
    alpha = site.servers[0]
    slot = soon(14)
    site.probe(slot=slot)
    until(lambda: site.status().get("alpha") == ("ready", "200"), "all are ready")
    alpha.stop()
    assert until(lambda: site.listed() == {"beta", "gamma"}, "alpha is out") < 2.5
    assert site.status()["alpha"] == ("lost", "refused")
    alpha.start()
    until(lambda: site.status()["alpha"] == ("ready", "200"), "alpha is ready again")
    assert site.listed() == {"beta", "gamma"}, "it waits for its second"
    until(lambda: site.listed() == {"alpha", "beta", "gamma"}, "alpha is in use", seconds=20)
    changed = (site.run / "upstream.conf").stat().st_mtime
    assert int(changed) % apiserver_probe.SPREAD == slot
    until(lambda: {site.ask() for _ in range(6)} == {"alpha", "beta", "gamma"}, "all are used")


def test_when_all_are_down_the_list_stays_and_the_first_that_returns_is_used_at_once(site: Site) -> None:
    alpha, beta, gamma = site.servers
    site.probe(slot=soon(25))
    until(lambda: site.status().get("alpha") == ("ready", "200"), "all are ready")
    alpha.stop()
    until(lambda: site.listed() == {"beta", "gamma"}, "alpha is out")
    beta.stop()
    gamma.stop()
    until(lambda: "no kube-apiserver answers" in site.log, "the probe says so")
    time.sleep(2)
    assert site.listed() == {"beta", "gamma"}
    assert site.ask() == ""
    # Not one of the list: it is taken at once, not after three answers and a wait.
    alpha.start()
    took = until(lambda: site.ask(0.5) == "alpha", "traffic goes on")
    assert took < 3.5
    assert site.listed() == {"alpha"}


def test_where_one_of_the_list_returns_from_a_time_without_any_nobody_is_cut(site: Site) -> None:
    site.probe()
    until(lambda: site.status().get("alpha") == ("ready", "200"), "all are ready")
    inode = (site.run / "upstream.conf").stat().st_ino
    for server in site.servers:
        server.status = 500
    until(lambda: "no kube-apiserver answers" in site.log, "the probe says so")
    time.sleep(2)
    for server in site.servers:
        server.status = 200
    until(lambda: "kube-apiservers answer again" in site.log, "the probe says so")
    time.sleep(2)
    assert site.listed() == {"alpha", "beta", "gamma"}
    assert (site.run / "upstream.conf").stat().st_ino == inode, "nginx was told nothing new"


def test_a_change_that_was_cut_off_before_nginx_was_told_is_finished_by_the_next_start(site: Site) -> None:
    alpha = site.servers[0]
    first = site.probe(reload="kill -KILL $PPID; exit 1; ")
    until(lambda: site.status().get("alpha") == ("ready", "200"), "all are ready")
    alpha.status = 500
    assert first.wait(15) == -signal.SIGKILL
    assert site.listed() == {"beta", "gamma"}
    assert {site.ask() for _ in range(9)} == {"alpha", "beta", "gamma"}, "nginx has the former list"
    site.probe()
    until(lambda: {site.ask() for _ in range(9)} == {"beta", "gamma"}, "nginx has the new one")


def test_killed_at_any_moment_it_leaves_a_whole_list(site: Site) -> None:
    alpha = site.servers[0]
    rest = "".join(line for line in site.full.splitlines(keepends=True) if alpha.address not in line)
    chance = random.Random(6)
    for number in range(8):
        alpha.status = 500 if number % 2 else 200
        process = site.probe(slot=soon(chance.randint(1, 4)))
        deadline = time.monotonic() + chance.uniform(0.02, 3.5)
        while time.monotonic() < deadline:
            assert (site.run / "upstream.conf").read_text() in {site.full, rest}
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (site.run / "upstream.conf").read_text() in {site.full, rest}
    alpha.status = 200
    site.probe(slot=soon(6))
    until(lambda: (site.run / "loaded.conf").read_text() == site.full, "all are in use again", seconds=20)
    assert site.listed() == {"alpha", "beta", "gamma"}


def test_what_was_lost_before_a_restart_of_the_probe_is_lost_after_it(site: Site) -> None:
    alpha = site.servers[0]
    first = site.probe()
    until(lambda: site.status().get("alpha") == ("ready", "200"), "all are ready")
    alpha.silent = True
    until(lambda: site.listed() == {"beta", "gamma"}, "alpha is out")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    site.probe()
    until(lambda: site.status().get("alpha") == ("lost", "timeout"), "it is lost")
    assert site.listed() == {"beta", "gamma"}


def test_it_asks_with_kubelets_certificate_once_there_is_one_and_takes_401_for_an_answer(site: Site) -> None:
    alpha = site.servers[0]
    alpha.status = 401
    site.probe()
    until(lambda: site.status().get("alpha") == ("ready", "401"), "it is alive, and the answer is told")
    assert set(alpha.clients) == {""}
    cert, key = AUTHORITY.client("system:node:k8s-01", ("system:nodes",))
    pem = site.folder / "kubelet-client.pem"
    pem.write_bytes(cert + key)
    until(lambda: "system:node:k8s-01" in alpha.clients, "it asks as the node")
    # One that is being written: it asks without, rather than not at all.
    pem.write_bytes(cert[:100])
    asked = len(alpha.clients)
    until(lambda: "" in alpha.clients[asked:], "it asks as nobody")
    assert site.status()["alpha"] == ("ready", "401")


def test_a_proxy_that_is_not_there_is_told_again_when_it_is(site: Site) -> None:
    alpha = site.servers[0]
    site.probe(reload="false || exit 1; ")
    until(lambda: site.status().get("alpha") == ("ready", "200"), "all are ready")
    alpha.stop()
    until(lambda: site.log.count("kube-nginx was not reloaded") == 2, "it tries again", seconds=2 * UNIT_GAP + 4)
    assert (site.run / "loaded.conf").read_text() == site.full
