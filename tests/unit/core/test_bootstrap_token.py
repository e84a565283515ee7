from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import MINIMUM, RANDOM_BYTES, BootstrapToken
from kubeworker.core.spec import NodeSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GROUP = re.compile(r"\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\Z")
"""kube-apiserver refuses any other (k8s.io/cluster-bootstrap/token/api: BootstrapGroupPattern)."""
TOKEN = re.compile(r"\A[a-z0-9]{6}\.[a-z0-9]{16}\Z")

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=22).map(
    lambda text: text.strip("-") or "x"
)
NAMES = st.lists(LABEL, min_size=1, max_size=8).map(".".join)


def token(node: str, minutes: float, id_: str = "abcdef") -> BootstrapToken:
    return BootstrapToken(id=id_, secret="0123456789abcdef", node=node, expires=NOW + timedelta(minutes=minutes))


@given(NAMES)
def test_every_node_name_gives_a_group_that_the_api_accepts(name: str) -> None:
    assert NodeSpec(name=name, address="10.1.0.1").name == name
    assert GROUP.match(bootstrap_token.extra_group(name))


@given(NAMES, NAMES)
def test_two_nodes_never_share_a_group(one: str, other: str) -> None:
    assert (bootstrap_token.extra_group(one) == bootstrap_token.extra_group(other)) == (one == other)


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_any_randomness_gives_a_well_formed_token(randomness: bytes) -> None:
    assert TOKEN.match(bootstrap_token.make(randomness, node="w1", expires=NOW).value)


@pytest.mark.parametrize("count", [0, RANDOM_BYTES - 1, RANDOM_BYTES + 1])
def test_too_little_randomness_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="22 random bytes"):
        bootstrap_token.make(bytes(count), node="w1", expires=NOW)


@given(NAMES, st.integers(0, 10**9))
def test_what_was_written_is_found_again(node: str, seconds: int) -> None:
    expires = NOW + timedelta(seconds=seconds)
    made = bootstrap_token.make(bytes(range(RANDOM_BYTES)), node=node, expires=expires)
    assert bootstrap_token.found(bootstrap_token.document(made)) == made


def test_its_secret_is_not_in_its_repr() -> None:
    assert "0123456789abcdef" not in repr(token("w1", 20))


@pytest.mark.parametrize(("profile", "signing"), [("default", False), ("guide", True)])
def test_only_the_guide_lets_a_token_sign(profile: Literal["default", "guide"], *, signing: bool) -> None:
    document = bootstrap_token.document(token("w1", 20), profile=profile)
    assert ("usage-bootstrap-signing" in document["data"]) is signing


def test_secrets_of_others_are_not_ours() -> None:
    document = bootstrap_token.document(token("w1", 20))
    metadata = document["metadata"]
    assert bootstrap_token.found({**document, "type": "Opaque"}) is None
    assert bootstrap_token.found({**document, "metadata": {**metadata, "labels": None}}) is None
    assert bootstrap_token.found({**document, "metadata": {**metadata, "annotations": None}}) is None
    assert bootstrap_token.found({**document, "data": None}) is None
    later = base64.b64encode(b"soon").decode()
    assert bootstrap_token.found({**document, "data": {**document["data"], "expiration": later}}) is None


def test_a_token_that_nears_its_end_is_given_more_time_and_is_still_the_same() -> None:
    old = token("w1", 11)
    longer = bootstrap_token.renewed(old, NOW)
    assert longer is not None
    assert (longer.value, longer.node, longer.expires) == (old.value, "w1", NOW + bootstrap_token.RENEWED)
    assert bootstrap_token.renewed(longer, NOW) is None
    document = bootstrap_token.document(old)
    patched = {**document, "data": {**document["data"], **bootstrap_token.expiration_patch(longer)["data"]}}
    assert bootstrap_token.found(patched) == longer


def test_no_renewal_makes_a_token_that_a_plan_would_replace() -> None:
    for minutes in range(-5, 30):
        mine = token("w1", minutes)
        kept = bootstrap_token.renewed(mine, NOW) or mine
        assert bootstrap_token.plan(["w1"], [kept], NOW).reuse == (kept,)


MINUTES = MINIMUM.total_seconds() / 60


@pytest.mark.parametrize(
    ("joining", "found", "reused", "created", "deleted"),
    [
        pytest.param(("w1",), (), (), ("w1",), (), id="none yet"),
        pytest.param(("w1",), (token("w1", MINUTES),), ("w1",), (), (), id="enough time left"),
        pytest.param(("w1",), (token("w1", MINUTES - 0.1),), (), ("w1",), ("w1",), id="nearly expired"),
        pytest.param(("w1",), (token("w1", -5),), (), ("w1",), ("w1",), id="expired"),
        pytest.param((), (token("w1", 20),), (), (), ("w1",), id="joined meanwhile"),
        pytest.param(("w1",), (token("gone", 20),), (), ("w1",), ("gone",), id="a node no longer named"),
        pytest.param(("w1", "w1"), (), (), ("w1",), (), id="named twice"),
    ],
)
def test_what_becomes_of_tokens(
    joining: tuple[str, ...],
    found: tuple[BootstrapToken, ...],
    reused: tuple[str, ...],
    created: tuple[str, ...],
    deleted: tuple[str, ...],
) -> None:
    plan = bootstrap_token.plan(joining, found, NOW)
    assert tuple(each.node for each in plan.reuse) == reused
    assert plan.create == created
    assert tuple(each.node for each in plan.delete) == deleted


def test_of_two_tokens_of_a_node_the_one_that_lives_longer_stays() -> None:
    short, long = token("w1", 15, "aaaaaa"), token("w1", 20, "bbbbbb")
    plan = bootstrap_token.plan(["w1"], [short, long], NOW)
    assert (plan.reuse, plan.create, plan.delete) == ((long,), (), (short,))


NODES = st.sampled_from(["w1", "w2", "w3", "w4"])
FOUND = st.lists(st.tuples(NODES, st.integers(-60, 60)), max_size=8).map(
    lambda found: tuple(token(node, minutes, f"{index:06}") for index, (node, minutes) in enumerate(found))
)


@given(st.lists(NODES, max_size=6), FOUND)
def test_each_joining_node_ends_with_one_good_token_and_nothing_else_stays(
    joining: list[str], found: tuple[BootstrapToken, ...]
) -> None:
    plan = bootstrap_token.plan(joining, found, NOW)
    assert sorted([*(each.node for each in plan.reuse), *plan.create]) == sorted(set(joining))
    assert all(each.expires - NOW >= MINIMUM for each in plan.reuse)
    assert sorted(each.id for each in (*plan.reuse, *plan.delete)) == [each.id for each in found]
