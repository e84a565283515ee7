"""A stage is computed again exactly when something differs that its component looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit import samples

from kubeworker.core import desired
from kubeworker.core.component import Component, ComponentConfig, Context, Credentials, Facts, Peer
from kubeworker.core.desired import Inputs
from kubeworker.core.model import Blob, File, Stage
from kubeworker.core.spec import NodeSpec
from kubeworker.core.stage_memo import StageMemo


class Config(ComponentConfig):
    """None."""


def context(**changes: Any) -> Context[Config]:
    spec = samples.cluster()
    known = Context(
        cluster=spec,
        node=spec.nodes[0],
        config=Config(),
        blobs={},
        archives={},
        local_files={},
        credentials=Credentials(ca_cert=b"ca"),
        facts=Facts(),
    )
    return replace(known, **changes)


def counting(look: Any) -> tuple[list[Any], Component[Config]]:
    """A component whose stage says what it looked at."""
    calls: list[Any] = []

    def stage(given: Context[Config]) -> Stage:
        seen = look(given)
        calls.append(seen)
        return Stage(component="c", files=(File(path="/c", content=repr(seen).encode()),))

    return calls, Component(name="c", config=Config, stage=stage)


def test_what_was_not_looked_at_does_not_count() -> None:
    calls, component = counting(lambda given: given.facts.pod_cidr)
    memo = StageMemo()
    first = memo.stage(component, context(facts=Facts(pod_cidr="172.30.1.0/24")))
    other_node = NodeSpec(name="other", address="10.0.0.9", labels={"a": "b"})
    again = memo.stage(component, context(node=other_node, facts=Facts(pod_cidr="172.30.1.0/24", joined=True)))
    assert again is first
    assert calls == ["172.30.1.0/24"]


@pytest.mark.parametrize(
    ("look", "change"),
    [
        (lambda given: given.facts.joined, {"facts": Facts(joined=True)}),
        (lambda given: given.facts.peers, {"facts": Facts(peers=(Peer(name="a", address="b", pod_cidr="c"),))}),
        (lambda given: given.node.address, {"node": NodeSpec(name="k8s-01", address="10.0.0.9")}),
        (
            lambda given: given.credentials.bootstrap_token,
            {"credentials": Credentials(ca_cert=b"ca", bootstrap_token="t")},
        ),
        (lambda given: given.needs, {"needs": ("something",)}),
    ],
)
def test_what_was_looked_at_counts(look: Any, change: dict[str, Any]) -> None:
    calls, component = counting(look)
    memo = StageMemo()
    stages = [memo.stage(component, context(**each)) for each in ({}, change, {}, change)]
    assert stages[0] is stages[2] != stages[1]
    assert stages[1] is stages[3]
    assert len(calls) == 2


def test_what_is_looked_at_may_depend_on_what_was_seen_before() -> None:
    _, component = counting(lambda given: given.facts.joined and given.facts.pod_cidr)
    memo = StageMemo()
    for joined in (False, True, False):
        for cidr in ("a", "b"):
            stage = memo.stage(component, context(facts=Facts(joined=joined, pod_cidr=cidr)))
            assert stage.files[0].content == repr(cidr if joined else False).encode()


def test_what_can_be_no_key_is_computed_each_time() -> None:
    calls, component = counting(lambda given: given.node.labels)
    memo = StageMemo()
    memo.stage(component, context())
    memo.stage(component, context())
    assert len(calls) == 2


@pytest.mark.parametrize("cni", ["none", "bridge", "cilium"])
@pytest.mark.parametrize("profile", ["default", "guide"])
def test_states_are_those_that_are_computed_without_it(cni: str, profile: str) -> None:
    spec = samples.cluster(
        cni=cni,
        profile=profile,
        nodes=[
            {"name": "a", "address": "10.0.0.1"},
            {"name": "b", "address": "10.0.0.2", "taints": ["x=y:NoSchedule"], "labels": {"example.org/a": "b"}},
            {"name": "c", "address": "10.0.0.3", "components": {"kubelet": {"max_pods": 30}}},
        ],
    )
    peers = (Peer(name="z", address="10.0.0.9", pod_cidr="172.30.9.0/24"),)
    inputs = Inputs(
        cluster=spec,
        registry=samples.REGISTRY,
        blobs={each.name: Blob(sha256="a" * 64, size=1) for each in desired.artifacts(spec, samples.REGISTRY)},
        archives=samples.archives(spec),
        local_files={},
        credentials=samples.CREDENTIALS,
    )
    for facts in (Facts(), Facts(joined=True, pod_cidr="172.30.1.0/24", peers=peers), Facts(container="lxc"), Facts()):
        for node in spec.nodes:
            assert inputs.state(node, facts) == replace(inputs, memo=StageMemo()).state(node, facts)
