"""The shell text by which a node fetches artifacts itself, from a mirror, with curl or wget; and what came of it.

A mirror holds `BASE/kubeworker/sha256-<hex>.gz`: the artifact's bytes, compressed. It is trusted with nothing: the name
under which a file is written is this tool's, no more bytes are taken than the artifact has, and it becomes visible only
once its hash is right. What does not come that way is left for the control host to send.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubeworker.core.model import Blob
from kubeworker.core.node.node_script import incoming
from kubeworker.core.node.probe import HOME

FOLDER = "kubeworker"
"""Below the mirror's base URL, beside the publishers' own files."""

TRIES = 3
"""For each artifact, while the mirror gives any."""
STALLED_SECONDS = 15
"""Without a byte (curl: less than 1 kB/s) for so long, a try is over; and so long may connecting take."""


def file_name(blob: Blob) -> str:
    """The blob's name on the mirror."""
    return f"sha256-{blob.sha256}.gz"


def base_url(mirror: str) -> str:
    """Where the mirror has what nodes fetch."""
    return f"{mirror.rstrip('/')}/{FOLDER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What came of it."""

    got: frozenset[str]
    """sha256 of what is in the node's store now."""
    missed: Mapping[str, str]
    """sha256 -> why it is not."""


def pull_script(bin_dir: str, blobs: Sequence[Blob], mirror: str, *, home: str = HOME, slow: float = 1e6) -> str:
    """Fetch the blobs into the node's store, one after the other.

    On its standard output `kw pulled SHA256` or `kw missed SHA256 BASE64` for each. A try may take as long as a line of
    `slow` bytes/s needs.
    """
    wanted = "".join(f"{blob.sha256} {blob.size} {_try_seconds(blob, slow):.0f}\n" for blob in blobs)
    return f"""{incoming(bin_dir, home=home)}
base={shlex.quote(base_url(mirror))}
{_FUNCTIONS}
misses=0
while read -r sum size seconds; do
  case $misses in 0) tries={TRIES} ;; 1) tries=1 ;; *) tries=0 ;; esac
  number=0
  while [ "$number" -lt "$tries" ] && ! pull "$sum" "$size" "$seconds"; do
    number=$((number + 1))
    [ "$number" -ge "$tries" ] || sleep "$number"
  done
  if [ "$number" -lt "$tries" ]; then
    misses=0
    say pulled "$sum"
  else
    # A mirror that has failed twice in a row is not asked for the rest: each try may take its whole time.
    misses=$((misses + 1))
    say missed "$sum" "$(printf '%s' "$why" | base64 -w 0)"
  fi
done <<'KW'
{wanted}KW
finished=yes
"""


def pull_seconds(blobs: Sequence[Blob], *, slow: float = 1e6) -> float:
    """An upper bound for the time that the script takes."""
    return 120 + sum(TRIES * (_try_seconds(blob, slow) + TRIES) for blob in blobs)


def _try_seconds(blob: Blob, slow: float) -> float:
    return 2 * STALLED_SECONDS + blob.size / slow


def pulled(stdout: str, blobs: Sequence[Blob]) -> Pulled:
    """What the script said, complete or cut: a blob of which it said nothing was missed."""
    got = frozenset(re.findall(r"^kw pulled (\S+)$", stdout, re.MULTILINE))
    said = {
        sum_: base64.b64decode(why).decode("utf-8", "replace")
        for sum_, why in re.findall(r"^kw missed (\S+) (\S*)$", stdout, re.MULTILINE)
    }
    return Pulled(
        got=got,
        missed={blob.sha256: said.get(blob.sha256) or "it was cut off" for blob in blobs if blob.sha256 not in got},
    )


def progress(line: str) -> str:
    """A line of the script's output: the sha256 of what has just come, or nothing."""
    match line.split():
        case ["kw", "pulled", sum_]:
            return sum_
        case _:
            return ""


# wget: -nv and -t are GNU's and taken without effect by BusyBox; GNU's own default are twenty tries.
_FUNCTIONS = f"""\
for fetcher in curl wget none; do ! command -v "$fetcher" > /dev/null 2>&1 || break; done
fetch() {{ # fetch URL SECONDS
  case $fetcher in
    curl) timeout "$2" curl -fsSL --proto =http,https --proto-redir =http,https --connect-timeout {STALLED_SECONDS} \\
      --speed-limit 1000 --speed-time {STALLED_SECONDS} -- "$1" ;;
    wget) timeout "$2" wget -nv -t 1 -T {STALLED_SECONDS} -O - -- "$1" ;;
    *) echo 'neither curl nor wget is there' >&2; return 1 ;;
  esac
}}
pull() {{ # pull SHA256 SIZE SECONDS: into the store, or $why
  name=sha256-$1
  {{ fetch "$base/$name.gz" "$3" 2> "$work/said" < /dev/null 9>&-; echo $? > "$work/status"; }} |
    gzip -dc 2> /dev/null 9>&- | head -c $(($2 + 1)) > "$name" 2> "$work/head" ||
    fail "no space left below $store: $(cat "$work/head")"
  ! keep_blob "$1" "$name" || return 0
  case $(cat "$work/status") in
    # 23 (curl) and 3 (wget): nobody took it any more, since it is no gzip, or has more bytes than are wanted.
    0 | 3 | 23) why="the mirror has other bytes as $name.gz" ;;
    124) why="not there after $3 s" ;;
    *) why=$(tail -n 1 "$work/said" | cut -c -200) ;;
  esac
  rm -f -- "$name"
  return 1
}}"""
