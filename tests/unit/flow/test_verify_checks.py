"""verify's checks over the network and of the API's view, judged without machines."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trustme

from kubeworker.core.certificates.csr import CsrView
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.model import ClusterCheck, Http, ProxyReaches
from kubeworker.core.spec import ClusterFile
from kubeworker.flow.checks_cluster import ClusterView, Shared, judge_node
from kubeworker.flow.checks_http import Identity, http, proxy_reaches
from kubeworker.io.https import tls_context

CLUSTER = ClusterFile.model_validate(
    {
        "cluster": {
            "apiservers": ["192.0.2.10:6443"],
            "cluster_cidr": "172.30.0.0/16",
            "service_cidr": "10.254.0.0/16",
            "dns_service_ip": "10.254.0.2",
        },
        "nodes": [{"name": "w1", "address": "192.0.2.1"}],
    }
)
W1 = CLUSTER.nodes[0]


class Remote:
    """A node whose every address leads to one port on loopback."""

    name = "w1"

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked: list[tuple[str, int]] = []

    def forward(self, host: str, port: int) -> AbstractAsyncContextManager[int]:
        self.asked.append((host, port))

        @asynccontextmanager
        async def lead() -> AsyncIterator[int]:
            yield self._port

        return lead()

    async def run(self, *_: object, **__: object) -> object:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def served(
    answers: Sequence[tuple[int, str]], context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Remote, list[str]]]:
    """A real server that gives these answers one after the other, the last one again and again."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        status, body = answers[min(len(heads), len(answers)) - 1]
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield Remote(listener.sockets[0].getsockname()[1]), heads


METRICS = Http(id="kube_proxy.metrics", url="http://192.0.2.1:10249/metrics", contains="kubeproxy_")
PLAIN = Identity(context=ssl.create_default_context())


async def test_the_right_answer_passes_and_is_asked_for_once() -> None:
    async with served([(200, "kubeproxy_sync 1")]) as (node, heads):
        verdict = await http(METRICS, node, (PLAIN,))  # type: ignore[arg-type]
    assert verdict.status == "passed"
    assert node.asked == [("192.0.2.1", 10249)]
    assert len(heads) == 1


async def test_a_wrong_answer_is_asked_again_and_may_become_right() -> None:
    async with served([(503, "starting"), (200, "kubeproxy_sync 1")]) as (node, _):
        assert (await http(METRICS, node, (PLAIN,))).status == "passed"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ((403, "no\n rights"), "answered 403, expected 200: no rights"),
        ((200, "nothing"), "the answer does not hold 'kubeproxy_'"),
    ],
)
async def test_an_answer_that_stays_wrong_fails_and_says_what_it_was(answer: tuple[int, str], detail: str) -> None:
    async with served([answer]) as (node, _):
        verdict = await http(METRICS, node, (PLAIN,), settle=0)  # type: ignore[arg-type]
    assert (verdict.status, verdict.detail) == ("failed", f"{METRICS.url}: {detail}")


async def test_a_spare_identity_is_used_for_the_second_try() -> None:
    identities = tuple(Identity(context=PLAIN.context, authorization=f"Bearer {each}") for each in "ab")
    async with served([(403, ""), (200, "kubeproxy_")]) as (node, heads):
        assert (await http(METRICS, node, identities)).status == "passed"  # type: ignore[arg-type]
    assert ["Bearer a" in heads[0], "Bearer b" in heads[1]] == [True, True]


@pytest.mark.parametrize(("status", "verdict"), [(200, "passed"), (401, "passed"), (403, "passed"), (500, "failed")])
async def test_an_apiserver_that_asks_who_is_there_is_alive(status: int, verdict: str) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("192.0.2.10").configure_cert(context)
    trust = Identity(context=tls_context(ca.cert_pem.bytes()))
    check = ProxyReaches(id="kube_nginx.apiserver", apiserver="192.0.2.10:6443")
    async with served([(status, "")], context) as (node, _):
        assert (await proxy_reaches(check, node, trust, settle=0)).status == verdict  # type: ignore[arg-type]
    assert node.asked[0] == ("192.0.2.10", 6443)


# ---------------------------------------------------------------------------------------------------------------
# What the API says of a node


def node_seen(**changes: object) -> NodeStatus:
    usual = {"ready": True, "version": "1.33.3", "addresses": (("InternalIP", "192.0.2.1"),)}
    return NodeStatus(name="w1", **(usual | changes))  # type: ignore[arg-type]


def request(name: str, created: str, *, conditions: tuple[str, ...] = (), certificate: bytes = b"") -> CsrView:
    return CsrView(
        name=name,
        signer="kubernetes.io/kubelet-serving",
        username="system:node:w1",
        request=b"",
        conditions=conditions,
        certificate=certificate,
        created=created,
    )


def judged(check: str, *nodes: NodeStatus, csrs: tuple[CsrView, ...] = ()) -> tuple[str, str]:
    now = datetime(2026, 11, 24, 14, tzinfo=UTC)
    seen = ClusterView(nodes={node.name: node for node in nodes}, csrs=csrs, now=now)
    verdict = judge_node(ClusterCheck(id=check), CLUSTER, W1, seen)
    return verdict.status, verdict.detail


def test_a_node_as_described_passes() -> None:
    for check in ("node.registered", "node.version", "node.ready", "node.csr"):
        assert judged(check, node_seen())[0] == "passed"


def test_what_is_wrong_with_a_node_is_said() -> None:
    assert judged("node.registered") == ("failed", "there is no Node w1")
    assert judged("node.ready") == ("failed", "not tried: there is no Node w1")
    assert judged("node.version") == ("failed", "not tried: there is no Node w1")
    assert judged("node.registered", node_seen(addresses=())) == (
        "failed",
        "registered with the address (none), expected 192.0.2.1",
    )
    assert judged("node.version", node_seen(version="1.32.0")) == ("failed", "kubelet 1.32.0, expected 1.33.3")
    assert judged("node.ready", node_seen(ready=False, reason="no network plugin")) == (
        "failed",
        "NotReady: no network plugin",
    )


def test_only_the_newest_serving_request_counts() -> None:
    old = request("csr-a", "2026-11-24T10:00:00Z")
    issued = request("csr-b", "2026-11-24T11:00:00Z", conditions=("Approved",), certificate=b"PEM")
    waiting = request("csr-c", "2026-11-24T12:00:00Z")
    denied = request("csr-d", "2026-11-24T13:00:00Z", conditions=("Denied",))
    assert judged("node.csr", csrs=(old, issued)) == ("passed", "csr-b Approved,Issued")
    assert judged("node.csr", csrs=(issued, waiting))[1].startswith("csr-c waits for approval")
    assert judged("node.csr", csrs=(issued, denied))[1].startswith("csr-d: denied: somebody denied it")


def test_a_renewal_of_the_client_certificate_counts_as_well_and_a_missing_signer_is_told() -> None:
    serving = request("csr-a", "2026-11-24T10:00:00Z", conditions=("Approved",), certificate=b"PEM")
    asked = request("csr-b", "2026-11-24T13:00:00Z", conditions=("Approved",))
    renewal = replace(asked, signer="kubernetes.io/kube-apiserver-client-kubelet", decided="2026-11-24T13:00:00Z")
    status, detail = judged("node.csr", csrs=(serving, renewal))
    assert status == "failed"
    assert detail.startswith("csr-b: signer.unissued: approved 60 min ago and never issued")
    assert "--cluster-signing-cert-file" in detail
    other = replace(renewal, signer="example.com/signer")
    assert judged("node.csr", csrs=(serving, other)) == ("passed", "csr-a Approved,Issued")


def test_a_check_that_nobody_wrote_is_a_bug_not_a_pass() -> None:
    with pytest.raises(ValueError, match=r"node\.colour"):
        judged("node.colour", node_seen())


async def test_the_api_is_asked_once_a_second_for_the_whole_fleet() -> None:
    calls: list[int] = []

    async def read() -> int:
        calls.append(1)
        return len(calls)

    shared = Shared(read)
    assert await asyncio.gather(*(shared.get() for _ in range(50))) == [1] * 50
    assert len(calls) == 1
