"""`verify --deep`: what is asked of a node about one registry or mirror, and what its answers mean. Pure.

The node's own `ctr content fetch-object` and `fetch-blob` download an image as a pull does, with containerd's code and
hosts directory, but to nowhere: a real pull would skip each blob that any namespace has already (containerd's content
store shares them) and so prove nothing of the mirror, and it would change what images kubelet sees. The log of
`ctr --debug` names the URL of each answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeworker.core.model import MirrorPull
from kubeworker.core.registry_hosts import CERTS_D, host
from kubeworker.core.verify.checks import Verdict, failed, passed

FETCH_SECONDS = 45
"""How long one download may take; containerd gives up on a host that does not answer after 30."""

MANIFEST_BYTES = 4 << 20
"""The largest manifest that registries have to take (distribution-spec)."""

# The lines of the log that say who answered and who did not. Not the whole: "do request" shows the headers of
# hosts.toml, all but Authorization.
_WHO_ANSWERED = (
    r's/.* msg="fetch response received" .* response\.status="\([0-9]*\)[^"]*" url="\([^"]*\)"$/answer \1 \2/p',
    '/ msg="trying next host/p',
    '/ msg="fetch failed/p',
    "/^ctr: /p",
)
SHORT_LOG = shlex.join(["sed", "-n", *(word for each in _WHO_ANSWERED for word in ("-e", each))])

_FUNCTIONS = rf"""set -u
LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 077
d=$(mktemp -d -p /run kubeworker-verify.XXXXXX) || exit 1
trap 'rm -rf "$d"' EXIT
trap 'exit 1' HUP INT TERM
hosts={CERTS_D}
only() {{ # only FOLDER URL: from here on, a hosts directory that knows one mirror, as the node's hosts.toml has it
  hosts=$d/hosts
  mkdir -p "$hosts/$1"
  {{
    printf 'server = "%s"\n' "$2"
    awk -v host="[host.\"$2\"]" -v header="[host.\"$2\".header]" '
      $0 == host {{ inside = 1; next }}
      $0 == header {{ inside = 1; print "[header]"; next }}
      /^\[/ {{ inside = 0 }}
      inside' "{CERTS_D}/$1/hosts.toml"
  }} > "$hosts/$1/hosts.toml"
}}
fetch() {{ # fetch COMMAND ARGUMENT...: the object on standard output
  timeout -k 1 {FETCH_SECONDS} "$ctr" --debug content "$1" --hosts-dir "$hosts" "$2" $3 2> "$d/log" < /dev/null
  echo "$?" > "$d/status"
}}
say() {{ # say WORD FIELD: how the last fetch ended
  said=$({SHORT_LOG} "$d/log" | base64 -w 0)
  printf '%s\t%s\t%s\t%s\n' "$1" "$(cat "$d/status")" "$2" "$said"
}}
object() {{ # object REFERENCE
  fetch fetch-object "$1" '' | head -c {MANIFEST_BYTES} > "$d/object"
  say object "$(base64 -w 0 < "$d/object")"
}}
blob() {{ # blob REFERENCE DIGEST
  sum=$(fetch fetch-blob "$1" "$2" | sha256sum)
  say blob "sha256:${{sum%% *}}"
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one request."""

    status: int
    host: str
    """HOST[:PORT] that was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """One download, whole or not."""

    status: int
    """ctr's exit status; 124 or 137: it was stopped after FETCH_SECONDS."""
    content: bytes = field(default=b"", repr=False)
    digest: str = ""
    answers: tuple[Answer, ...] = ()
    troubles: tuple[str, ...] = ()
    """Hosts that did not serve it, each with the reason."""
    error: str = ""
    """ctr's last word."""

    @property
    def served_by(self) -> str:
        """The host whose answer it is: the last good one."""
        return next((each.host for each in reversed(self.answers) if each.status < 300), "")


# ---------------------------------------------------------------------------------------------------------------
# Scripts


def manifest_script(check: MirrorPull, reference: str, *, only_mirror: bool) -> str:
    """Prints the node's machine (uname -m) and the manifest of that name."""
    return _script(check, [["object", reference]], only_mirror=only_mirror)


def blobs_script(check: MirrorPull, digests: Sequence[str]) -> str:
    """Downloads the blobs and prints their hashes."""
    return _script(check, [["blob", check.image, digest] for digest in digests], only_mirror=True)


def blobs_seconds(digests: Sequence[str]) -> float:
    """How long that may take."""
    return 10 + FETCH_SECONDS * len(digests)


def _script(check: MirrorPull, calls: Sequence[Sequence[str]], *, only_mirror: bool) -> str:
    narrow = [["only", check.folder, check.mirror]] if check.mirror and only_mirror else []
    lines = (shlex.join(call) for call in (*narrow, *calls))
    return f"{_FUNCTIONS}ctr={shlex.quote(check.ctr)}\nprintf 'machine\\t%s\\n' \"$(uname -m)\"\n" + "\n".join(
        (*lines, "exit 0", "")
    )


def parse(stdout: str) -> tuple[str, tuple[Fetched, ...]]:
    """The machine's architecture in Go's spelling, and the downloads in their order; ValueError for anything else."""
    machine, found = "", []
    for line in stdout.splitlines():
        match line.split("\t"):
            case ["machine", name]:
                machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(name, name)
            case ["object", status, encoded, log]:
                content = base64.b64decode(encoded)
                digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                found.append(_fetched(int(status), content, digest, log))
            case ["blob", status, digest, log]:
                found.append(_fetched(int(status), b"", digest, log))
            case _:
                raise ValueError(f"verify's download answered {line[:200]!r}")
    return machine, tuple(found)


_ERROR = re.compile(r' error="((?:[^"\\]|\\.)*)"')
_HOST = re.compile(r' host="?([^" ]+)"?')
_MESSAGE = re.compile(r' msg="((?:[^"\\]|\\.)*)"')
_REQUEST = re.compile(r'^(?:failed to do request: )?(?:Head|Get) "(https?://[^"]*)": ')


def _fetched(status: int, content: bytes, digest: str, log: str) -> Fetched:
    answers: list[Answer] = []
    troubles: dict[str, str] = {}
    error = ""
    for line in base64.b64decode(log).decode(errors="replace").splitlines():
        if line.startswith("answer "):
            _, code, url = line.split(" ", 2)
            answers.append(Answer(status=int(code), host=host(url)))
        elif line.startswith("ctr: "):
            error = _reason(line.removeprefix("ctr: "))[1]
        else:
            said, named = _ERROR.search(line) or _MESSAGE.search(line), _HOST.search(line)
            asked, reason = _reason(_unquoted(said.group(1)) if said else line)
            troubles.setdefault(named.group(1) if named else asked, reason)
    if status in {124, 137}:
        error = f"no answer within {FETCH_SECONDS} s"
    return Fetched(
        status=status,
        content=content,
        digest=digest,
        answers=tuple(answers),
        troubles=tuple(f"{name}: {reason}" if name else reason for name, reason in troubles.items()),
        error=error,
    )


def _reason(text: str) -> tuple[str, str]:
    """The host that a request's error names, and the error without the request."""
    asked = _REQUEST.match(text)
    short = text[asked.end() :] if asked else text
    short = re.sub(r"^(trying next host|fetch failed) after status: ", "answers ", short)
    return host(asked.group(1)) if asked else "", " ".join(short.split())[:300]


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


# ---------------------------------------------------------------------------------------------------------------
# Manifests


def document(fetched: Fetched) -> Mapping[str, Any]:
    """A manifest or an index; ValueError for anything else."""
    try:
        found = json.loads(fetched.content)
    except ValueError as error:
        raise ValueError(f"{fetched.served_by} did not answer with a manifest: {error}") from error
    if not isinstance(found, dict) or not ("manifests" in found or "config" in found):
        raise ValueError(f"{fetched.served_by} did not answer with a manifest")
    return found


def of_machine(index: Mapping[str, Any], architecture: str) -> str:
    """The digest of an index's manifest for this architecture; "" where the document is no index."""
    listed = index.get("manifests")
    if not listed:
        return ""
    fits = [
        each["digest"]
        for each in listed
        if (each.get("platform") or {}).get("architecture") == architecture
        and (each.get("platform") or {}).get("os", "linux") == "linux"
    ]
    return str((fits or [listed[0]["digest"]])[0])


def blobs(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The digests of the config and the layers."""
    return tuple(dict.fromkeys(str(each["digest"]) for each in (manifest["config"], *manifest.get("layers", ()))))


def by_digest(image: str, digest: str) -> str:
    """The image's name with a digest instead of its tag."""
    name, _, last = image.rpartition("/")
    return f"{name}/{last.partition('@')[0].partition(':')[0]}@{digest}"


# ---------------------------------------------------------------------------------------------------------------
# Verdicts


def judge(check: MirrorPull, downloads: Sequence[Fetched]) -> Verdict:
    """The verdict once every part of the image was asked for (or one was not to be had)."""
    for each in downloads:
        if each.status != 0:
            reasons = "; ".join(each.troubles) or each.error or f"ctr ended with status {each.status}"
            return failed(check, f"{check.image}: {reasons}")
    by: dict[str, int] = {}
    for each in downloads:
        by[each.served_by] = by.get(each.served_by, 0) + 1
    served = ", ".join(f"{name} ({count} of {len(downloads)})" if len(by) > 1 else name for name, count in by.items())
    strangers = [name for name in by if name not in check.served_by]
    troubles = "; ".join(dict.fromkeys(trouble for each in downloads for trouble in each.troubles))
    if strangers:
        wanted = "the mirror" if len(check.served_by) == 1 else "a mirror"
        return failed(check, f"{check.image}: served by {served}, not by {wanted}: {troubles or 'it was not asked'}")
    return passed(check, f"{check.image}: served by {served}" + (f" ({troubles})" if troubles else ""))


def other_bytes(check: MirrorPull, wanted: str, got: Fetched) -> Verdict | None:
    """The verdict on a blob that came whole and is not what its digest says; None where it is."""
    if got.status != 0 or got.digest == wanted:
        return None
    return failed(check, f"{check.image}: {got.served_by} serves other bytes as {wanted}")
