"""The net of tests/lab/test_secrets.py, on real processes and files: what is planted is caught, in each form.

A search that finds nothing proves something only if it would have found it.
"""

from __future__ import annotations

import base64
import os
import subprocess
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.lab import leaks
from tests.lab.leaks import JWT, Leak, Sampler, Secret

pytestmark = pytest.mark.timeout(120)

PRIVATE: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = {
    "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ec": ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}
TOKEN = leaks.text("a token", "0123456789abcdef")


def pem(kind: str, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return PRIVATE[kind].private_bytes(Encoding.PEM, form, NoEncryption())


def in_file(secret: Secret, content: bytes, folder: Path) -> bool:
    place = folder / "searched"
    place.mkdir(exist_ok=True)
    (place / "file").write_bytes(content)
    found = leaks.search([secret], [place], folder)
    assert not (folder / "needles").exists()
    return found == {place / "file": {secret.name}}


def forms(kind: str) -> dict[str, bytes]:
    """How this key could be found written; the Secret is made from its PKCS8 PEM."""
    whole = pem(kind)
    body = b"".join(whole.splitlines()[1:-1])
    other = PrivateFormat.OpenSSH if kind == "ed25519" else PrivateFormat.TraditionalOpenSSL
    return {
        "PEM": whole,
        "the other PEM": pem(kind, other),
        "one line": body,
        "wrapped at 70": "\n".join(textwrap.wrap(body.decode(), 70)).encode(),
        "escaped as in JSON and by strace": whole.replace(b"\n", b"\\n"),
        "cut off": body[: len(body) * 3 // 4] if kind == "rsa" else body[: len(body) - 8],
        **{f"in base64, {shift} before": base64.b64encode(b"x" * shift + whole) for shift in range(3)},
        "base64 of it wrapped": base64.encodebytes(whole),
        "hex": PRIVATE[kind].private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()).hex().encode(),
    }


@pytest.mark.parametrize("kind", PRIVATE)
def test_a_key_is_found_in_every_form(kind: str, tmp_path: Path) -> None:
    secret = leaks.key("a key", pem(kind))
    missed = [
        form for form, content in forms(kind).items() if not in_file(secret, b"before " + content + b" after", tmp_path)
    ]
    assert missed == []


@pytest.mark.parametrize("kind", PRIVATE)
def test_neither_its_certificate_nor_another_key_is_taken_for_it(kind: str, tmp_path: Path) -> None:
    secret, private = leaks.key("a key", pem(kind)), PRIVATE[kind]
    now, name = datetime.now(UTC), x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    signed = builder.sign(private, None if kind == "ed25519" else hashes.SHA256()).public_bytes(Encoding.PEM)
    public = private.public_key().public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    others = b"".join(pem(each) for each in PRIVATE if each != kind)
    for content in (signed, base64.b64encode(signed), public, others):
        assert not in_file(secret, content, tmp_path)


def test_a_token_is_found_as_it_is_within_a_word_and_in_base64(tmp_path: Path) -> None:
    half = b"0123456789abcdef"
    assert in_file(TOKEN, b"x" * 100 + half + b"y", tmp_path)
    for shift in range(3):
        assert in_file(TOKEN, base64.b64encode(b"x" * shift + half + b"."), tmp_path)
    assert not in_file(TOKEN, b"0123456789abcdee", tmp_path)


def test_a_token_of_a_service_account_is_known_by_its_look(tmp_path: Path) -> None:
    parts = (b'{"alg":"RS256","kid":"x"}', b'{"aud":["https://kubernetes.default.svc"]}', b"s" * 64)
    (tmp_path / "file").write_bytes(b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts))
    assert leaks.search([TOKEN], [tmp_path / "file"], tmp_path, tokens=True) == {tmp_path / "file": {JWT}}


def test_arguments_and_environment_of_a_process_are_sampled(tmp_path: Path) -> None:
    argument, variable = (leaks.text(name, f"{name}-89abcdef01234567") for name in ("argument", "variable"))
    with Sampler().running(tmp_path / "seen"):
        environment = {**os.environ, "CANARY": "variable-89abcdef01234567"}
        process = subprocess.Popen(["sleep", "60", "60"], env=environment)
        other = subprocess.Popen(["sh", "-c", "sleep 60; : argument-89abcdef01234567"])
        time.sleep(1)
        for each in (process, other):
            each.kill()
            each.wait()
    found = leaks.search([argument, variable], [tmp_path / "seen"], tmp_path)
    assert found == {tmp_path / "seen": {"argument", "variable"}}


def test_a_file_of_a_moment_is_sampled_where_others_could_read_it(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    with Sampler([watched]).running(tmp_path / "seen"):
        for name, mode, content in (("open", 0o644, b"0123456789abcdef"), ("shut", 0o600, b"f" * 16)):
            (watched / name).touch(mode=mode)
            (watched / name).write_bytes(content)
        time.sleep(0.5)
        for path in watched.iterdir():
            path.unlink()
    seen = (tmp_path / "seen").read_bytes()
    assert b"0123456789abcdef" in seen
    assert b"f" * 16 not in seen


def test_a_program_of_a_moment_is_traced_with_its_arguments_and_environment(tmp_path: Path) -> None:
    key = leaks.key("a key", pem("rsa"))
    script = '/bin/true "$1"; CANARY=0123456789abcdef /bin/true'
    traced = [*leaks.strace(tmp_path / "log"), "sh", "-c", script, "sh", pem("rsa").decode()]
    subprocess.run(traced, check=True, timeout=60)
    assert leaks.search([TOKEN, key], [tmp_path / "log"], tmp_path) == {tmp_path / "log": {"a token", "a key"}}


def test_children_of_a_process_that_runs_already_are_traced(tmp_path: Path) -> None:
    process = subprocess.Popen(["sh"], stdin=subprocess.PIPE, text=True)
    assert process.stdin
    with leaks.traced(process.pid, tmp_path / "log"):
        process.stdin.write("CANARY=0123456789abcdef /bin/true; exit\n")
        process.stdin.flush()
        process.wait(timeout=20)
    assert leaks.search([TOKEN], [tmp_path / "log"], tmp_path) == {tmp_path / "log": {"a token"}}


def test_a_secret_is_no_leak_only_where_it_belongs_and_root_alone_reads_it(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("mine", "open", "given", "stray")}
    for path in places.values():
        path.touch(mode=0o600)
        path.write_bytes(b"0123456789abcdef")
    places["open"].chmod(0o640)
    os.chown(places["given"], 1000, 1000)
    found = leaks.search([TOKEN], [tmp_path], tmp_path)
    assert leaks.leaks(found, shown=lambda path: path.name, allowed=lambda _, path: path != "stray") == [
        Leak(secret="a token", place="given", why="it is user 1000's"),
        Leak(secret="a token", place="open", why="mode 0640"),
        Leak(secret="a token", place="stray", why="it does not belong there"),
    ]


def test_only_what_changed_since_is_looked_at_and_what_is_left_out_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "left/out").mkdir(parents=True)
    (folder / "before").write_bytes(b"0123456789abcdef")
    time.sleep(0.05)
    stamp = tmp_path / "stamp"
    stamp.touch()
    time.sleep(0.05)
    for name in ("after", "left/out/after"):
        (folder / name).write_bytes(b"0123456789abcdef")
    found = leaks.search([TOKEN], [folder, tmp_path / "none"], tmp_path, without=[folder / "left"], newer=stamp)
    assert set(found) == {folder / "after"}
