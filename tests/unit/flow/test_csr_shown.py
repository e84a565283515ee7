"""Comparing what kubelets show with what was issued: when there is something to say, and what is forgotten."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace

import pytest

from kubeworker.core.certificates import csr
from kubeworker.core.certificates.csr import CsrView
from kubeworker.core.spec import Cluster, ClusterFile, NodeSpec
from kubeworker.flow.csr_shown import Comparison, Look, place
from kubeworker.io.https import NoAnswer

NODE = NodeSpec(name="worker-01", address="10.1.0.1")
PORTED = NodeSpec(name="worker-02", address="10.1.0.2", components={"kubelet": {"config": {"port": 10350}}})
CLUSTER = ClusterFile(
    cluster=Cluster(
        apiservers=("10.1.0.9:6443",),
        cluster_cidr="172.30.0.0/16",
        service_cidr="10.254.0.0/16",
        dns_service_ip="10.254.0.2",
    ),
    nodes=(NODE, PORTED),
)
DER = b"not looked into"
PEM = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(DER) + b"-----END CERTIFICATE-----\n"
ASKED = CsrView(name="csr-1", signer=csr.SERVING_SIGNER, username=f"system:node:{NODE.name}", request=b"")
ISSUED = replace(ASKED, conditions=("Approved",), certificate=PEM)


def comparison(answer: Callable[[], bytes | NoAnswer], *, patience: float = 60) -> Comparison:
    async def look(_: str) -> bytes | NoAnswer:
        return answer()

    return Comparison(cluster=CLUSTER, look=look, patience=patience)


def test_a_node_may_have_a_port_of_its_own() -> None:
    assert [place(CLUSTER, node.name) for node in (NODE, PORTED)] == [("10.1.0.1", 10250), ("10.1.0.2", 10350)]


def test_the_certificate_that_was_issued_is_known_by_its_bytes() -> None:
    assert csr.is_certificate_of(ISSUED, DER)
    assert not csr.is_certificate_of(ISSUED, b"another")
    assert not csr.is_certificate_of(ASKED, b"")


async def test_the_same_certificate_is_said_once() -> None:
    desk = comparison(lambda: DER)
    desk.expect(ISSUED)
    assert await desk.round([ASKED]) == (), "it is not issued yet"
    (seen,) = await desk.round([ISSUED])
    assert (seen.status, seen.detail) == ("shown", "10.1.0.1:10250 shows it")
    assert not desk.waiting
    assert await desk.round([ISSUED]) == ()


@pytest.mark.parametrize(
    ("answer", "status"), [(b"another", "another"), (NoAnswer(reason="connection refused"), "unseen")]
)
async def test_another_certificate_is_news_only_after_a_while(answer: bytes | NoAnswer, status: str) -> None:
    desk = comparison(lambda: answer, patience=0.05)
    desk.expect(ISSUED)
    assert await desk.round([ISSUED]) == ()
    await asyncio.sleep(0.06)
    (seen,) = await desk.round([ISSUED])
    assert seen.status == status
    assert not desk.waiting


async def test_what_is_gone_or_never_issued_or_no_kubelets_serving_request_is_forgotten() -> None:
    desk = comparison(lambda: b"another", patience=0.05)
    desk.expect(replace(ISSUED, signer=csr.CLIENT_SIGNER))
    assert not desk.waiting
    desk.expect(ISSUED)
    assert await desk.round([]) == (), "the request was deleted"
    assert not desk.waiting
    desk.expect(ASKED)
    await asyncio.sleep(0.06)
    assert await desk.round([ASKED]) == (), "nobody signs: that is told elsewhere"
    assert not desk.waiting
    desk.expect(ISSUED)
    desk.cluster = CLUSTER.model_copy(update={"nodes": (PORTED,)})
    assert await desk.round([ISSUED]) == (), "cluster.yaml has lost the node"
    assert not desk.waiting


async def test_of_a_node_that_asks_anew_the_former_request_counts_no_more() -> None:
    desk = comparison(lambda: b"what the next one is given", patience=0.05)
    desk.expect(ISSUED)
    assert await desk.round([ISSUED]) == ()
    encoded = base64.encodebytes(b"what the next one is given")
    pem = b"-----BEGIN CERTIFICATE-----\n" + encoded + b"-----END CERTIFICATE-----\n"
    anew = replace(ISSUED, name="csr-2", certificate=pem)
    await asyncio.sleep(0.06)
    desk.expect_instead([anew])
    assert [(each.request.name, each.status) for each in await desk.round([ISSUED, anew])] == [("csr-2", "shown")]
    assert not desk.waiting


async def test_one_that_is_expected_still_has_waited_as_long_as_before() -> None:
    desk = comparison(lambda: b"another", patience=0.05)
    desk.expect(ISSUED)
    await asyncio.sleep(0.06)
    desk.expect_instead([ISSUED])
    (seen,) = await desk.round([ISSUED])
    assert seen.status == "another"


async def test_a_node_that_can_not_be_looked_at_does_not_stop_the_others() -> None:
    async def look(name: str) -> bytes | NoAnswer:
        if name == NODE.name:
            raise OSError("no way to it")
        return DER

    answer: Look = look
    desk = Comparison(cluster=CLUSTER, look=answer, patience=60)
    other = replace(ISSUED, name="csr-2", username=f"system:node:{PORTED.name}")
    for each in (ISSUED, other):
        desk.expect(each)
    assert [each.request for each in await desk.round([ISSUED, other])] == [other]
    assert desk.waiting
