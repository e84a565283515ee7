from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.artifacts.lockfile import KINDS, Entry, Key, Kind, Lock, check_inputs, parse, pin, render
from kubeworker.errors import ArtifactError, InputError

OLD, NEW = "a" * 64, "b" * 64
BUILD = Key(artifact="kubelet", architecture="amd64", kind="build")


def entry(sha256: str = OLD, version: str = "1.33.3", **more: str) -> Entry:
    return Entry(version=version, sha256=sha256, size=7, **more)


entries = st.builds(
    Entry,
    version=st.from_regex(r"\A[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}\Z"),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    size=st.integers(min_value=0, max_value=2**40),
    inputs=st.sampled_from(("", NEW)),
    toolchain=st.text(max_size=30),
)
keys = st.builds(
    Key,
    artifact=st.from_regex(r"\A[a-z][a-z0-9.-]{0,12}\Z"),
    architecture=st.sampled_from(("amd64", "arm64")),
    kind=st.sampled_from(KINDS),
)


@given(st.dictionaries(keys, entries, max_size=6))
def test_what_is_written_is_read_back_and_order_does_not_matter(pins: dict[Key, Entry]) -> None:
    text = render(Lock(entries=pins))
    assert parse(text, subject="kubeworker.lock").entries == pins
    assert render(Lock(entries=dict(reversed(pins.items())))) == text


def test_first_result_is_pinned() -> None:
    assert pin(Lock(entries={}), BUILD, entry(), update=False).entries == {BUILD: entry()}


def test_other_bytes_of_the_pinned_version_are_refused_with_both_hashes() -> None:
    lock = Lock(entries={BUILD: entry(OLD)})
    with pytest.raises(ArtifactError) as caught:
        pin(lock, BUILD, entry(NEW), update=False, place="https://example.org/kubelet")
    assert OLD in str(caught.value)
    assert NEW in str(caught.value)
    assert "https://example.org/kubelet" in str(caught.value)
    assert "artifacts fetch --update-lock --only kubelet" in caught.value.hint


def test_other_bytes_are_pinned_when_the_lock_is_to_be_updated() -> None:
    assert pin(Lock(entries={BUILD: entry(OLD)}), BUILD, entry(NEW), update=True).entries == {BUILD: entry(NEW)}


def test_another_version_in_cluster_yaml_replaces_the_pin() -> None:
    asked = entry(NEW, version="1.34.0")
    assert pin(Lock(entries={BUILD: entry(OLD)}), BUILD, asked, update=False).entries == {BUILD: asked}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "build"])
def test_kinds_of_source_are_pinned_apart(kind: Kind) -> None:
    other = Key(artifact="kubelet", architecture="amd64", kind=kind)
    assert pin(Lock(entries={BUILD: entry(OLD)}), other, entry(NEW), update=False).entries == {
        BUILD: entry(OLD),
        other: entry(NEW),
    }


def test_a_build_of_the_pinned_inputs_may_start() -> None:
    pinned = entry(inputs=NEW, toolchain="go1.26.8")
    check_inputs(Lock(entries={BUILD: pinned}), BUILD, pinned, update=False)


@pytest.mark.parametrize("what", ["inputs", "toolchain", "tarball"])
def test_a_build_of_other_inputs_needs_update_lock(what: str) -> None:
    before = {"inputs": "one", "toolchain": "one", "tarball": "one"}
    lock = Lock(entries={BUILD: entry(**before)})
    wanted = entry("", **(before | {what: "two"}))
    with pytest.raises(ArtifactError) as caught:
        check_inputs(lock, BUILD, wanted, update=False)
    assert f"{what} is two, kubeworker.lock has one" in caught.value.message
    assert "--update-lock" in caught.value.hint
    check_inputs(lock, BUILD, wanted, update=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format = [", "no valid TOML"),
        ("format = 2", "format 2"),
        ("format = 1\n[artifacts]\nkubelet = 1", "malformed"),
        ('format = 1\n[artifacts.kubelet.amd64.build]\nversion = "1.33.3"\nsha256 = "ab"\nsize = 1', "malformed"),
    ],
)
def test_a_damaged_file_is_named(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, subject="/site/kubeworker.lock")
    assert caught.value.subject == "/site/kubeworker.lock"
    assert says in caught.value.message
