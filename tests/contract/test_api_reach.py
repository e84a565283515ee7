"""The script by which a node asks each kube-apiserver, run by the real curl against real servers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import admin
from tests.tls_server import tls_server
from tests.unit.shells import SHELLS

from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.preflight.row import Row
from kubeworker.core.reachability import api_reach
from kubeworker.core.reachability.api_reach import Answer, Caller
from kubeworker.flow.api_reach import short_tokens
from kubeworker.flow.events import Event
from kubeworker.lab import pki

pytestmark = pytest.mark.timeout(60)
NOW = datetime.now(UTC)
OURS, THEIRS = pki.make_authority("kubernetes-ca", NOW), pki.make_authority("other", NOW)
TOKEN = "abcdef.0123456789abcdef"


def ask(
    *apiservers: str,
    ca: bytes = OURS.cert,
    caller: Caller = "token",
    token: str = TOKEN,
    certificate: str = "/nowhere.pem",
    shell: str = "sh",
    path: str = "",
) -> tuple[Answer, ...]:
    done = subprocess.run(
        [shell, "-c", api_reach.script(apiservers, ca=ca, caller=caller, certificate=certificate)],
        input=f"{token}\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "HOME": "/nowhere", **({"PATH": path} if path else {})},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return api_reach.parse(done.stdout)


def rows(answers: Sequence[Answer], caller: Caller = "token") -> dict[str, Row]:
    asked = [answer.apiserver for answer in answers] or ["192.0.2.1:6443"]
    found = tuple(api_reach.rows("w", answers, caller, asked=asked, no_token="--no-api-token"))
    assert len({row.id for row in found}) == len(found), found
    return {row.id: row for row in found}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_token_is_shown_until_it_is_known(tmp_path: Path, shell: str) -> None:
    with tls_server(tmp_path, OURS, knows=TOKEN) as server:
        found = rows(ask(server.endpoint, shell=shell))
        assert server.asked == [f"Bearer {TOKEN}"] * 3
    assert {row.id: row.status for row in found.values()} == {"api": "ok", "api-token": "ok"}


def test_a_token_that_is_not_accepted(tmp_path: Path) -> None:
    with tls_server(tmp_path, OURS, status=401) as server:
        found = rows(ask(server.endpoint))
        assert len(server.asked) == api_reach.TRIES
    assert (found["api"].status, found["api-token"].status) == ("ok", "failed")
    assert found["api-token"].message == f"w -> {server.endpoint}: its bootstrap token is not accepted (401)"
    assert found["api-token"].fix == "kube-apiserver needs --enable-bootstrap-token-auth=true"


def test_without_credentials_nothing_is_shown_and_the_token_is_unknown(tmp_path: Path) -> None:
    with tls_server(tmp_path, OURS, status=403) as server:
        found = rows(ask(server.endpoint, caller="nobody"), "nobody")
        assert server.asked == [""]
    assert (found["api"].status, found["api-token"].status) == ("ok", "unknown")
    assert found["api-token"].message == "not asked with a token: --no-api-token"


def test_a_certificate_of_another_ca(tmp_path: Path) -> None:
    with tls_server(tmp_path, THEIRS) as server:
        found = rows(ask(server.endpoint))
        assert server.asked == [], "the token must not go to a server that is not trusted"
    assert found["api"].status == "failed"
    assert "its certificate is not of the cluster's CA: unable to get local issuer" in found["api"].message
    assert "api-token" not in found


def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    with tls_server(tmp_path, OURS, names=("127.0.0.9", "kubernetes")) as server:
        found = rows(ask(server.endpoint))
        assert server.asked == []
    assert found["api"].status == "failed"
    assert found["api"].message == f"w -> {server.endpoint}: its certificate is not for 127.0.0.1 (no such SAN)"


@pytest.mark.parametrize("issued", [NOW - timedelta(days=3), NOW + timedelta(days=3)])
def test_a_certificate_that_is_not_valid_now(tmp_path: Path, issued: datetime) -> None:
    with tls_server(tmp_path, OURS, issued=issued) as server:
        found = rows(ask(server.endpoint))
    assert "is not valid yet, or has expired, by the node's clock" in found["api"].message


def test_refused_is_a_warning_while_another_answers(tmp_path: Path) -> None:
    with tls_server(tmp_path, OURS) as server:
        found = rows(ask(server.endpoint, "127.0.0.1:1"))
    assert (found["api"].status, found["api"].message) == ("warning", "w -> 127.0.0.1:1: refused")
    assert found["api-token"].status == "ok"
    assert rows(ask("127.0.0.1:1"))["api"].status == "failed"


def test_one_that_is_not_ready(tmp_path: Path) -> None:
    with tls_server(tmp_path, OURS) as good, tls_server(tmp_path, OURS, status=500) as bad:
        found = rows(ask(good.endpoint, bad.endpoint))
    assert (found["api"].status, found["api"].message) == ("warning", f"w -> {bad.endpoint}: it is not ready (500)")


def test_a_name_that_is_not_known_and_one_that_speaks_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = Thread(target=answer)
        thread.start()
        endpoint = f"127.0.0.1:{plain.getsockname()[1]}"
        answers = ask(endpoint, "no-such-host.invalid:6443")
        thread.join()
    found = [
        row.message for row in api_reach.rows("w", answers, "token", asked=[a.apiserver for a in answers], no_token="")
    ]
    assert any(f"w -> {endpoint}: no TLS is spoken there" in message for message in found), found
    assert any("no-such-host.invalid:6443: its name is not known on the node" in message for message in found), found


def test_one_that_takes_the_connection_and_goes_silent_and_who_sees_the_token_meanwhile() -> None:
    places: set[str] = set()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, f"127.0.0.1:{silent.getsockname()[1]}", token="0sampl.ed0123456789abcd")
        while not asking.done():
            places.update(found_in_processes(b"ed0123456789abcd"))
        found = rows(asking.result())
    assert found["api"].status == "failed"
    assert "it takes the connection, and then nothing comes" in found["api"].message
    assert places == set()


def found_in_processes(secret: bytes) -> list[str]:
    """Arguments and environments, of all processes of this host, that hold it."""
    found = []
    for file in (file for kind in ("cmdline", "environ") for file in Path("/proc").glob(f"[0-9]*/{kind}")):
        with suppress(OSError):
            if secret in file.read_bytes():
                found.append(str(file))
    return found


def test_secrets_are_found_in_processes() -> None:
    """The net that the test above casts."""
    secret = "in-plain-sight-0123"
    with subprocess.Popen(["sleep", "30"], env={**os.environ, "TOKEN": secret}) as process:
        try:
            assert f"/proc/{process.pid}/environ" in found_in_processes(secret.encode())
        finally:
            process.kill()


def test_a_node_without_curl_says_so(tmp_path: Path) -> None:
    found = rows(ask("192.0.2.1:6443", path=str(tmp_path), shell="/bin/sh"))
    assert (found["api"].status, found["api"].fix) == ("unknown", "apt-get install curl")


async def test_a_real_kube_apiserver_tells_tokens_and_certificates_apart(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    ca, endpoint = control_plane.ca_cert.read_bytes(), control_plane.endpoint
    token = bootstrap_token.make(
        os.urandom(bootstrap_token.RANDOM_BYTES), node="w", expires=NOW + timedelta(minutes=10)
    )
    async with admin(control_plane) as kube:
        await kube.create(bootstrap_token.document(token))
        try:
            known = rows(ask(endpoint, ca=ca, token=token.value))
        finally:
            assert await kube.delete_token(token)
    assert {row.id: row.status for row in known.values()} == {"api": "ok", "api-token": "ok"}
    assert rows(ask(endpoint, ca=ca))["api-token"].status == "failed"

    pem = tmp_path / "client.pem"
    pem.write_bytes(b"".join(control_plane.authority.client("system:node:w", ("system:nodes",))))
    joined = rows(ask(endpoint, ca=ca, caller="certificate", token="", certificate=str(pem)), "certificate")
    assert joined["api-token"].status == "ok"
    pair = pki.issue(THEIRS, pki.Subject(common_name="system:node:w", client=True), NOW)
    pem.write_bytes(pair.cert + pair.key)
    strange = rows(ask(endpoint, ca=ca, caller="certificate", token="", certificate=str(pem)), "certificate")
    assert strange["api-token"].message == f"w -> {endpoint}: kubelet's client certificate is not accepted (401)"


@pytest.mark.parametrize("seconds", [0, 0.001, 0.005, 0.02, 0.05, 0.2])
async def test_tokens_are_gone_whenever_the_check_is_cancelled(control_plane: ControlPlane, seconds: float) -> None:
    events: list[Event] = []
    async with admin(control_plane) as kube:
        await kube.nodes()  # a connection is there, as in a run

        async def check() -> None:
            async with short_tokens(kube, [f"w-{number}" for number in range(20)], events.append):
                await asyncio.sleep(60)

        task = asyncio.create_task(check())
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)
        assert [token for token in await kube.tokens() if token.node.startswith("w-")] == []
        assert events == []
