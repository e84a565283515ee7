"""Keys are found as OpenSSH writes them down, in a file that is read in once and again when it has changed."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import asyncssh
import pytest

from kubeworker.errors import CredentialsError
from kubeworker.io import known_hosts

OLD, NEW, AUTHORITY = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))


def public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode().split()[:2])


def hashed(name: str) -> str:
    """As `ssh-keygen -H` writes it."""
    salt = b"0" * 20
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def trusted(file: Path, host: str = "node", addr: str = "10.0.0.1", port: int | None = None) -> tuple[list[str], ...]:
    """Public keys, authorities and revoked keys."""
    keys, authorities, revoked, *_ = known_hosts.match((file,), host, addr, port)
    return tuple([public(key) for key in several] for several in (keys, authorities, revoked))


@pytest.mark.parametrize("names", ["node", "other,node", "10.0.0.1", hashed("node"), "nod?", "10.0.0.0/24", "*,!other"])
def test_a_key_is_found_however_its_host_is_named(names: str, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"# a comment\n\nelsewhere {public(NEW)}\n{names} {public(OLD)} of old\n")
    assert trusted(file) == ([public(OLD)], [], [])


@pytest.mark.parametrize("more", ["", f"{hashed('unrelated')} {public(NEW)}\n"])
def test_a_ports_own_key_comes_before_the_hosts(more: str, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"node {public(OLD)}\n[node]:2222 {public(NEW)}\n{more}")
    assert trusted(file) == ([public(OLD)], [], [])
    assert trusted(file, port=2222) == ([public(NEW)], [], [])
    assert trusted(file, port=2223) == ([public(OLD)], [], [])


@pytest.mark.parametrize("more", ["", f"{hashed('unrelated')} {public(OLD)}\n"], ids=["alone", "beside"])
def test_authorities_and_revoked_keys_count(more: str, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"@cert-authority node {public(AUTHORITY)}\n@revoked node {public(OLD)}\n{more}")
    assert trusted(file) == ([], [public(AUTHORITY)], [public(OLD)])


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    assert trusted(file) == ([], [], [])
    file.write_text(f"node {public(OLD)}\n")
    assert trusted(file) == ([public(OLD)], [], [])
    file.write_text("")
    assert trusted(file) == ([], [], [])


@pytest.mark.parametrize(
    "before", ["", f"node {public(OLD)}", f"{hashed('node')} {public(OLD)}\n"], ids=["empty", "unended", "hashed"]
)
def test_a_key_that_was_added_is_in_the_file_once_and_known_at_once(before: str, tmp_path: Path) -> None:
    file = tmp_path / "ssh" / "known_hosts"
    if before:
        file.parent.mkdir()
        file.write_text(before)
    for _ in range(2):
        known_hosts.add((file,), "[other]:2222", NEW)
        assert trusted(file, "other", "", 2222) == ([public(NEW)], [], [])
    assert file.read_text() == f"{before.rstrip()}\n".lstrip() + f"[other]:2222 {public(NEW)}\n"
    assert asyncssh.read_known_hosts(str(file)).match("other", "", 2222)[0]
    assert bool(trusted(file)[0]) == bool(before)


def test_a_line_that_is_none_is_said_with_the_way_out(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("node\n")
    with pytest.raises(CredentialsError, match="Invalid known hosts entry: node") as caught:
        trusted(file)
    assert "ssh.known_hosts" in caught.value.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError) as caught:
        trusted(tmp_path)
    assert caught.value.subject == str(tmp_path)
