"""A node that takes the login, and then hangs when it is looked at: a real sshd whose every command sleeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.contract.sshd import Server, openssh
from tests.unit import authority

from kubeworker.errors import NodeUnreachable
from kubeworker.flow.events import Event, NodeSeen
from kubeworker.flow.plan import observe
from kubeworker.flow.session import Request, open_look
from kubeworker.io.fleet import Failed, Ok

pytestmark = pytest.mark.timeout(60)


KUBECONFIG = {
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "ca.pem"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "c",
}
"""Of an API that does not answer."""


def cluster_yaml(folder: Path, **nodes: Server) -> Path:
    (folder / "ca.pem").write_bytes(authority.authority()[0])
    (folder / "known_hosts").write_text("".join(server.known_hosts.read_text() for server in nodes.values()))
    (folder / "kubeconfig").write_text(yaml.safe_dump(KUBECONFIG))
    document = {
        "cluster": {
            "apiservers": ["127.0.0.1:1"],
            "cluster_cidr": "172.30.0.0/16",
            "service_cidr": "10.254.0.0/16",
            "dns_service_ip": "10.254.0.2",
            "ca": {"cert": "ca.pem", "key": "not-here.pem"},
            "kubeconfig": "kubeconfig",
        },
        "ssh": {"config": "no-config", "known_hosts": "known_hosts", "probe_timeout": 8},
        "nodes": [
            {
                "name": name,
                "address": f"10.1.0.{number}",
                "ssh": {"host": "127.0.0.1", "port": server.port, "identity": str(server.identity)},
            }
            for number, (name, server) in enumerate(nodes.items(), start=1)
        ],
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def test_a_node_on_which_the_probe_hangs_is_given_up_and_named_and_the_others_are_seen(tmp_path: Path) -> None:
    events: list[Event] = []
    with openssh(tmp_path / "good") as good, openssh(tmp_path / "hung", options="ForceCommand sleep 60") as hung:
        request = Request(cluster_file=cluster_yaml(tmp_path, hung=hung, good=good))
        async with open_look(request, events.append) as session:
            looked = await observe(session, surveyed=True)
    assert isinstance(looked["good"], Ok)
    assert [event.node for event in events if isinstance(event, NodeSeen)] == ["good"]
    assert isinstance(looked["hung"], Failed)
    error = looked["hung"].error
    assert not isinstance(error, NodeUnreachable), "it can be logged in to"
    assert (error.subject, error.message) == ("hung", "looking at it did not end within 8 s")
    assert "ssh.probe_timeout" in error.hint


async def test_a_node_that_says_it_hashes_is_given_the_time_for_it(tmp_path: Path) -> None:
    slow = "ForceCommand sleep 5; echo hashing; sleep 5; echo no-probe"
    with openssh(tmp_path / "slow", options=slow) as server:
        request = Request(cluster_file=cluster_yaml(tmp_path, slow=server))
        async with open_look(request, lambda _: None) as session:
            looked = await observe(session, surveyed=True)
    assert isinstance(looked["slow"], Failed)
    assert "did not end" not in looked["slow"].error.message, "ten seconds, of which eight were allowed for all else"
    assert "no-probe" in str(looked["slow"].error)


async def test_a_node_that_hangs_while_it_hashes_is_named_with_the_seconds_that_it_was_given(tmp_path: Path) -> None:
    with openssh(tmp_path / "slow", options="ForceCommand sleep 4; echo hashing; sleep 60") as server:
        request = Request(cluster_file=cluster_yaml(tmp_path, slow=server))
        async with open_look(request, lambda _: None) as session:
            looked = await observe(session, surveyed=True)
    assert isinstance(looked["slow"], Failed)
    error = looked["slow"].error
    said = re.fullmatch(r"looking at it did not end within ([0-9.]+) s", error.message)
    assert said, error.message
    assert 12 <= float(said[1]) < 20, "four until it said so, and from then on eight"
    assert "ssh.probe_timeout (8 s;" in error.hint
