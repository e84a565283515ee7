"""The one probe script that `verify` runs on a node, and what it saw, as values.

The script only looks; `checks.py` judges. It is POSIX sh with coreutils, sed, iproute2 and systemd, answers in
lines of tab-separated fields (free text in base64), and bounds each command, so that a hung service costs seconds. It
starts few processes: where that is slow (virtual machines under load), it is what takes the time.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from kubeworker.core.model import Certificate, Check, FileMode, NodeCommand, UnitActive

COMMAND_SECONDS = 20
"""How long a NodeCommand may take; all of them run side by side."""

JOURNAL_LINES = 8
"""How many last journal lines are shown of a unit that is not active."""

_UNIT_PROPERTIES = "LoadState,ActiveState,SubState,Result,UnitFileState,NeedDaemonReload,MainPID"

_PRELUDE = f"""\
LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/sbin:/sbin; export PATH
d=$(mktemp -d -p /run kubeworker-verify.XXXXXX) || exit 1
trap 'rm -rf "$d"' EXIT
nl='
'
b64() {{ printf '\\t'; [ -z "$1" ] || printf %s "$1" | base64 -w0; }}
unit() {{
  p=$(systemctl show --property={_UNIT_PROPERTIES} -- "$1")
  pid=${{p#*MainPID=}}; pid=${{pid%%"$nl"*}}
  exe=
  [ "${{pid:-0}}" = 0 ] || exe=$(readlink "/proc/$pid/exe")
  # Replaced by the same bytes (a damaged file that was healed): what runs is what lies there.
  case $exe in
    *' (deleted)')
      now=${{exe%' (deleted)'}}
      [ "$(sha256sum < "/proc/$pid/exe")" != "$(sha256sum < "$now" 2>/dev/null)" ] || exe=$now ;;
  esac
  case $nl$p in
    *"${{nl}}ActiveState=active"* | *"${{nl}}ActiveState=reloading"*) j= ;;
    *) j=$(journalctl --quiet --no-pager -o cat -n {JOURNAL_LINES} -u "$1" 2>&1) ;;
  esac
  printf 'unit\\t%s' "$1"; b64 "$p"; b64 "$exe"; b64 "$j"; echo
}}
file() {{ printf 'file\\t%s\\t' "$1"; stat -Lc '%a %U:%G' -- "$1" 2>/dev/null || echo; }}
certificate() {{
  c=$(sed -n '/-BEGIN CERTIFICATE-/,/-END CERTIFICATE-/p' -- "$1" 2>/dev/null)
  [ -n "$c" ] ||
    c=$(sed -n 's/^ *client-certificate-data: *//p' -- "$1" 2>/dev/null | tr -d '"' | base64 -d 2>/dev/null)
  printf 'certificate\\t%s' "$1"; b64 "$c"; echo
}}
run() {{
  n=$1; shift
  ( timeout -k 1 {COMMAND_SECONDS} "$@" </dev/null >"$d/$n" 2>&1; echo $? >"$d/$n.status" ) &
}}
answer() {{
  read -r status < "$d/$1.status"
  printf 'command\\t%s\\t%s\\t' "$2" "$status"
  [ ! -s "$d/$1" ] || head -c 65536 "$d/$1" | base64 -w0
  echo
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSeen:
    """A unit as `systemctl show` gives it, the file its main process runs, and its last words if it is not active."""

    properties: Mapping[str, str]
    executable: str
    journal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """A listening TCP socket; the wildcard of either family is "*"."""

    address: str
    port: int
    process: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSeen:
    """A command's exit status (124 or 137: it was stopped after COMMAND_SECONDS) and its output."""

    status: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the probe script saw on one node."""

    units: Mapping[str, UnitSeen] = field(default_factory=dict)
    sockets: tuple[Socket, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Path -> "MODE OWNER:GROUP", links followed; "" where there is none."""
    certificates: Mapping[str, bytes] = field(default_factory=dict)
    """Path -> PEM certificates, never a key; empty where there is none."""
    commands: Mapping[str, CommandSeen] = field(default_factory=dict)
    """By check id."""


def script(checks: tuple[Check, ...]) -> str:
    """The sh text that gathers what the node-local ones among `checks` need."""
    calls: list[str] = []
    answers: list[str] = []
    for number, check in enumerate(checks):
        match check:
            case UnitActive(unit=unit):
                calls.append(shlex.join(["unit", unit]))
            case FileMode(path=path):
                calls.append(shlex.join(["file", path]))
            case Certificate(path=path):
                calls.append(shlex.join(["certificate", path]))
            case NodeCommand(id=id_, command=command):
                # First, so that they run while the rest is looked at.
                calls.insert(0, shlex.join(["run", str(number), *command]))
                answers.append(shlex.join(["answer", str(number), id_]))
            case _:
                pass
    sockets = "ss -Hltnp | while read -r line; do printf 'socket\\t%s\\n' \"$line\"; done"
    return "\n".join([_PRELUDE, *dict.fromkeys(calls), sockets, "wait", *answers, "exit 0", ""])


def parse(stdout: str) -> Evidence:
    """Read the script's answer; a line of an unknown kind is a bug and raises ValueError."""
    units: dict[str, UnitSeen] = {}
    sockets: list[Socket] = []
    files: dict[str, str] = {}
    certificates: dict[str, bytes] = {}
    commands: dict[str, CommandSeen] = {}
    for line in stdout.splitlines():
        match line.split("\t"):
            case ["unit", name, properties, executable, journal]:
                units[name] = UnitSeen(
                    properties=dict(p.split("=", 1) for p in _text(properties).splitlines() if "=" in p),
                    executable=_text(executable),
                    journal=_text(journal),
                )
            case ["socket", description]:
                sockets.append(_socket(description))
            case ["file", path, seen]:
                files[path] = seen
            case ["certificate", path, pem]:
                certificates[path] = base64.b64decode(pem)
            case ["command", id_, status, output]:
                commands[id_] = CommandSeen(status=int(status), output=_text(output))
            case _:
                raise ValueError(f"verify's probe answered {line!r}")
    return Evidence(units=units, sockets=tuple(sockets), files=files, certificates=certificates, commands=commands)


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")


def _socket(description: str) -> Socket:
    """One line of `ss -Hltnp`: LISTEN 0 4096 127.0.0.1:8443 0.0.0.0:* users:(("kube-nginx",pid=7,fd=5))."""
    fields = description.split()
    address, _, port = fields[3].rpartition(":")
    address = address.partition("%")[0].strip("[]")
    process = fields[5].partition('"')[2].partition('"')[0] if len(fields) > 5 else ""
    return Socket(address="*" if address in {"0.0.0.0", "::", "*"} else address, port=int(port), process=process)  # noqa: S104
