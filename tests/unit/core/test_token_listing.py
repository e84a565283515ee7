"""Bootstrap tokens as they are shown, and what a `token revoke` means."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kubeworker.core.cluster import bootstrap_token, token_listing
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.cluster.token_listing import Chosen, TokenView
from kubeworker.errors import InputError

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SECRET = "0123456789abcdef"


def ours(node: str = "w1", id_: str = "abc234", minutes: float = 20) -> dict[str, Any]:
    token = BootstrapToken(id=id_, secret=SECRET, node=node, expires=NOW + timedelta(minutes=minutes))
    return bootstrap_token.document(token)


def foreign(id_: str = "kub3ad", **data: str | None) -> dict[str, Any]:
    """As `kubeadm token create` makes it."""
    values = {
        "token-id": id_,
        "token-secret": SECRET,
        "expiration": "2026-11-26T12:00:00+01:00",
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        "description": "by hand",
    }
    changed = {key.replace("_", "-"): value for key, value in data.items()}
    return {
        "metadata": {
            "name": f"bootstrap-token-{id_}",
            "managedFields": [
                {"manager": "somebody", "time": "2026-11-25T11:00:00Z"},
                {"manager": "kubeadm", "time": "2026-11-25T10:00:00Z"},
            ],
        },
        "type": bootstrap_token.TYPE,
        "data": {
            key: base64.b64encode(value.encode()).decode()
            for key, value in (values | changed).items()
            if value is not None
        },
    }


def test_a_token_of_this_tool_is_shown_with_its_node_and_without_its_secret() -> None:
    view = token_listing.view(ours())
    assert (view.id, view.node, view.ours, view.maker) == ("abc234", "w1", True, "kubeworker")
    assert view.seconds_left(NOW) == 20 * 60
    assert SECRET not in repr(view)


def test_a_token_of_others_is_shown_with_whoever_wrote_it_first() -> None:
    view = token_listing.view(foreign())
    assert (view.id, view.node, view.ours, view.maker) == ("kub3ad", "", False, "kubeadm")
    assert view.groups == ("system:bootstrappers:kubeadm:default-node-token",)
    assert view.seconds_left(NOW) == 23 * 3600


def test_a_node_named_by_somebody_elses_annotation_is_not_believed() -> None:
    document = foreign()
    document["metadata"]["annotations"] = {bootstrap_token.NODE_ANNOTATION: "w1"}
    assert token_listing.view(document).node == ""


@pytest.mark.parametrize(
    ("document", "joined", "state"),
    [
        (ours(), (), "valid"),
        (ours(), ("w1",), "joined"),
        (ours(minutes=0), ("w1",), "expired"),
        (foreign(expiration=None), (), "valid"),
        (foreign(expiration="soon"), (), "unusable"),
        (foreign(token_id="other1"), (), "unusable"),
        (foreign(usage_bootstrap_authentication=None), (), "unusable"),
        (foreign(id_="not-an-id"), (), "unusable"),
    ],
)
def test_a_tokens_state_is_what_the_apiserver_makes_of_it(
    document: dict[str, Any], joined: tuple[str, ...], state: str
) -> None:
    assert token_listing.view(document).state(NOW, joined) == state


def test_a_token_without_an_end_is_told_apart() -> None:
    assert token_listing.view(foreign(expiration=None)).seconds_left(NOW) is None


MINE = token_listing.view(ours())
SECOND = token_listing.view(ours(id_="xyz567"))
OTHERS = token_listing.view(ours(node="w2.example.com", id_="jkl234"))
FOREIGN = token_listing.view(foreign())
NODES = ("w1", "w2.example.com", "w3.example.com")


def chosen(*words: str, tokens: Sequence[TokenView] = (MINE, SECOND, OTHERS, FOREIGN), every: bool = False) -> Chosen:
    return token_listing.choose(words, tokens, NODES, every=every)


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (("abc234",), (MINE,)),
        (("w1",), (MINE, SECOND)),
        (("w1", "abc234", "jkl234"), (MINE, SECOND, OTHERS)),
        (("kub3ad",), (FOREIGN,)),
    ],
)
def test_ids_and_nodes_mean_their_tokens_each_once(words: tuple[str, ...], tokens: tuple[TokenView, ...]) -> None:
    assert chosen(*words) == Chosen(tokens=tokens)


def test_all_means_all_of_this_tool() -> None:
    everything = chosen(every=True)
    assert everything.tokens == (MINE, SECOND, OTHERS)
    assert everything.foreign == ()
    assert chosen("kub3ad").foreign == (FOREIGN,)


def test_what_is_gone_already_is_no_error() -> None:
    assert chosen("w3.example.com", "qqqq77") == Chosen(tokens=(), gone=("w3.example.com", "qqqq77"))
    assert chosen(every=True, tokens=()) == Chosen(tokens=())


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("abc243", "did you mean abc234?"),
        ("w2.example.org", "did you mean w2.example.com?"),
        ("Q", "kubeworker token list"),
        ("system:nodes", "kubeworker token list"),
    ],
)
def test_a_word_that_was_meant_otherwise_is_refused_with_the_nearest(word: str, near: str) -> None:
    with pytest.raises(InputError, match="no token and no node") as caught:
        chosen(word)
    assert near in caught.value.hint


def test_a_whole_token_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        chosen(f"abc234.{SECRET}")
    assert SECRET not in str(caught.value)
    assert "abc234" in caught.value.hint


@pytest.mark.parametrize(("words", "every"), [((), False), (("w1",), True)])
def test_nothing_and_both_are_refused(words: tuple[str, ...], *, every: bool) -> None:
    with pytest.raises(InputError):
        chosen(*words, every=every)
