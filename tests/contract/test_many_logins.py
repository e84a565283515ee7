"""Many logins at once at a real sshd that takes few: it drops the others before it has said a word."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.contract.sshd import Server, openssh

from kubeworker.core.spec import ClusterFile
from kubeworker.errors import NodeUnreachable
from kubeworker.flow.events import silent
from kubeworker.flow.session import connect_nodes
from kubeworker.io import node
from kubeworker.io.fleet import Begun, Failed, Ok
from kubeworker.io.node import Node

pytestmark = pytest.mark.timeout(120)

NODES = 24


def cluster(server: Server, *, number: int = NODES) -> ClusterFile:
    """As many nodes, which are all this one sshd."""
    way = {"host": "127.0.0.1", "port": server.port}
    nodes: list[dict[str, Any]] = [
        {"name": f"n{each}", "address": f"10.1.0.{each + 1}", "ssh": way} for each in range(number)
    ]
    return ClusterFile.model_validate(
        {
            "cluster": {
                "apiservers": ["10.1.1.1:6443"],
                "cluster_cidr": "172.30.0.0/16",
                "service_cidr": "10.254.0.0/16",
                "dns_service_ip": "10.254.0.2",
            },
            "ssh": server.ssh().model_dump(exclude_unset=True),
            "nodes": nodes,
        }
    )


def logging_in(cluster: ClusterFile) -> AbstractAsyncContextManager[Begun[str, Node]]:
    return connect_nodes(cluster, cluster.nodes, silent, accept_new_host_keys=False)


async def test_logins_that_sshd_drops_are_tried_again_until_every_node_is_in(tmp_path: Path) -> None:
    with openssh(tmp_path, options="MaxStartups 2:100:2") as server:
        pool = min(32, (os.cpu_count() or 1) + 4)  # asyncio's own, for name look-ups
        threads = threading.active_count()
        async with logging_in(cluster(server)) as begun:
            connections = [await begun.outcome(f"n{each}") for each in range(NODES)]
            assert threading.active_count() - threads <= pool, "no thread per node"
            assert not [outcome.error for outcome in connections if isinstance(outcome, Failed)]
            nodes = [outcome.value for outcome in connections if isinstance(outcome, Ok)]
            answers = await asyncio.gather(*(each.run("echo here") for each in nodes))
        assert [each.stdout for each in answers] == ["here\n"] * NODES
        assert "MaxStartups" in server.log(), "it dropped none: the test has proved nothing"


async def test_a_node_that_drops_every_login_is_said_so_and_costs_the_others_next_to_nothing(tmp_path: Path) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with openssh(tmp_path) as server:
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as nobody, AsyncExitStack() as stack:
            port = nobody.sockets[0].getsockname()[1]
            spec, logins = cluster(server, number=6), node.login_slots(server.ssh())
            bad = spec.nodes[0].model_copy(update={"ssh": spec.nodes[0].ssh.model_copy(update={"port": port})})
            loop = asyncio.get_running_loop()
            began = loop.time()
            refused = asyncio.create_task(node.connect(bad, spec.ssh, logins=logins))
            for each in spec.nodes[1:]:
                stack.push_async_callback((await node.connect(each, spec.ssh, logins=logins)).close)
            others = loop.time() - began
            with pytest.raises(NodeUnreachable, match="closed the connection during the login, each time"):
                await refused
            assert others < loop.time() - began
            assert logins.limit.allowed >= node.FIRST_LOGINS / 2, "its tries lowered the limit once at most"
