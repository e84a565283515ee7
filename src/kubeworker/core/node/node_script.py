"""The shell text that carries out one stage on a node as a transaction, and the one that receives blobs.

A stage's script holds the actions' names, paths and hashes; contents (secrets among them) come as a tar on its standard
input. It ends in one of two states: everything is in place and every unit passed its gate, or what was there before is
back. Closing the SSH connection does not stop it half-way: it then finishes or rolls back on its own, holding the
node's lock until it has.

On its standard output: `kw action N start`, `kw action N done` (N counts the plan's actions from 0), and when it fails
one `kw error BASE64` and, for a unit, `kw journal BASE64`.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from kubeworker.core import applied
from kubeworker.core.actions import (
    Action,
    DaemonReload,
    EnableUnit,
    ImportImage,
    InstallPackages,
    LoadModule,
    MakeDirectory,
    PutBinary,
    PutFile,
    PutLink,
    ReloadUnit,
    RemoveLeftover,
    RemovePath,
    RestartUnit,
    SetMode,
    SetSysctl,
    StagePlan,
    StartUnit,
    StopUnit,
    SwapOff,
    UnitAction,
    subject,
)
from kubeworker.core.model import Blob, ConfigCheck, Unit
from kubeworker.core.node.probe import HOME, managed_paths, store_path
from kubeworker.errors import ActionFailed

LOCK_WAIT = 60
"""Seconds to wait for another run that holds the node's lock."""

STALL = 60
"""Seconds without a byte after which a stream counts as cut off: as long as the control host waits for an answer."""

CHECK_TIMEOUT = 60
"""Seconds that a component's config checker may take."""

START_TIMEOUT = 120
"""Seconds that `systemctl start` and the like may block (systemd's own default is 90)."""

EXITS = 3
"""How often a unit may end by itself, and be started again by systemd, before its health check counts as missed."""

ALONE_SECONDS = 10
"""Seconds that a unit still has for its health check when the connection to the control host is gone."""

JOURNAL_LINES = 20


def stage_script(plan: StagePlan, *, home: str = HOME) -> str:
    """The script for one stage; its standard input is `stage_input(plan)`."""
    sections = (
        f"home={shlex.quote(home)}\nstore={shlex.quote(plan.bin_dir + '/.store')}",
        _FUNCTIONS,
        _unit_functions(plan),
        _each_path(plan),
        "begin_stage",
        *_prepare(plan),
        *_candidates(plan),
        *_checks(plan),
        *_swaps(plan),
        *_keeps(plan),
        *_units(plan),
        "commit",
        *_leftovers(plan, after_stop=False),
        *_images(plan),
        *_bookkeeping(plan),
        *_records(plan),
        "finished=yes",
    )
    return "\n".join(section for section in sections if section) + "\n"


def stage_input(plan: StagePlan) -> bytes:
    """The tar of the files that the stage writes, each member named by the number of its action."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, action in enumerate(plan.actions):
            if isinstance(action, PutFile):
                member = tarfile.TarInfo(str(number))
                member.size = len(action.file.content)
                member.mode = 0o600
                archive.addfile(member, io.BytesIO(action.file.content))
    return buffer.getvalue()


def stage_seconds(plan: StagePlan) -> float:
    """An upper bound for the time the stage takes, for the caller's own timeout."""
    units = [action.unit for action in plan.actions if isinstance(action, StartUnit | RestartUnit | ReloadUnit)]
    installs = 900 * sum(isinstance(action, InstallPackages) for action in plan.actions)
    images = 300 * sum(isinstance(action, ImportImage) for action in plan.actions)
    # Twice: a failing unit is followed by the start of its former version.
    waits = 2 * sum(START_TIMEOUT + unit.gate.timeout for unit in units)
    stops = 2 * START_TIMEOUT * sum(isinstance(action, StopUnit) for action in plan.actions)
    leftovers = sum(action.leftover.seconds for action in plan.actions if isinstance(action, RemoveLeftover))
    return 120 + LOCK_WAIT + CHECK_TIMEOUT * len(plan.checks) + waits + stops + leftovers + installs + images


def receive_script(bin_dir: str, blobs: Sequence[Blob], *, home: str = HOME) -> str:
    """Take a tar.gz with members `sha256-<hex>` from standard input into the node's store, each checked first.

    Each is hashed and made visible while the next one arrives: the last should be a small one. Blobs that arrived whole
    are kept even if the stream was cut, so that the next run sends only the rest.
    """
    names = " ".join(_names(blob.sha256 for blob in blobs))
    return f"""{incoming(bin_dir, home=home)}
mkfifo "$work/names" || fail "$work/names can't be made"
exec 3<&0
tar -xzvf - --no-same-owner <&3 > "$work/names" 2> "$work/tar" 9>&- &
taker=$!
# A control host that lost its power or its link never ends its stream, and sshd would wait for it for hours.
(
  cd / # it may end a second after the script, and must not keep the store's file system busy
  still=0 was=''
  while sleep 1 && kill -0 "$taker"; do
    now=$(du -sb -- "$incoming")
    if [ "$now" = "$was" ]; then still=$((still + 1)); else still=0 was=$now; fi
    [ "$still" -lt {STALL} ] || kill "$taker"
  done
) > /dev/null 2>&1 3<&- 9>&- &
watch=$!
end_watch() {{ kill "$watch" 2> /dev/null; drop_incoming; }}
on_exit=end_watch
wanted={shlex.quote(names)} received=' ' last=''
arrived() {{
  case " $wanted " in *" $last "*) ! keep_blob "${{last#sha256-}}" "$last" || received="$received$last " ;; esac
}}
# tar names a member as it begins it: the one before is complete then.
while read -r name; do
  arrived
  last=$name
done < "$work/names"
wait "$taker" || case $(cat "$work/tar") in
  *'No space left'* | *'Wrote only'*) fail "no space left below $store (nothing was changed)" ;;
esac
arrived
missing=''
for name in $wanted; do
  case $received in *" $name "*) ;; *) missing="$missing $name" ;; esac
done
index_arrived
[ -z "$missing" ] || fail "not received whole:$missing $(head -c 300 "$work/tar")"
finished=yes
"""


def incoming(bin_dir: str, *, home: str = HOME) -> str:
    """The beginning of a script that fills the node's store: it holds the node's lock, in an empty folder of its own.

    `keep_blob SHA256 NAME` makes a file of that folder visible in the store, once its content has been checked.
    """
    return f"""home={shlex.quote(home)}
store={shlex.quote(bin_dir + "/.store")}
{_FUNCTIONS}
incoming=$store/incoming
drop_incoming() {{ rm -rf -- "$incoming"; }}
on_exit=drop_incoming
(umask 022 && mkdir -p -- "${{store%/*}}") && mkdir -p -- "$store" && chmod 700 "$store" && chown 0:0 "$store" ||
  fail "$store can't be made"
began=$(date +%s)
rm -rf -- "$incoming"
mkdir -m 700 -- "$incoming" || fail "$incoming can't be made"
cd "$incoming" || fail "$incoming can't be entered"
keep_blob() {{ # keep_blob SHA256 NAME
  # openssl, where it is there, uses the processor's instructions for it, which Debian's sha256sum does not.
  [ "$(openssl sha256 -r "$2" 2> /dev/null)" = "$1 *$2" ] ||
    printf '%s  %s\\n' "$1" "$2" | sha256sum --check --status 2> /dev/null || return 1
  sync -- "$2" 2> "$work/sync" || case $(cat "$work/sync") in
    *'No space left'*) fail "no space left below $store (nothing was changed)" ;;
  esac
  chown 0:0 "$2" && chmod 755 "$2" && mv -fT -- "$2" "$store/$2" || fail "$store/$2 can't be written"
  as_indexed "$1" "$store/$2" >> "$work/arrived"
}}
index_arrived() {{ # what came need not be hashed again by the stage that puts it in its place
  [ -s "$work/arrived" ] || return 0
  now=$(date +%s.%N)
  # A change that the clock of the ctime is too coarse to show would show in the mtime, which comes with the stream.
  cut -f 6- "$work/arrived" | xargs -d '\n' stat --printf '\t%s\t%.9Y\t%.9Z\t%i\t%n\n' -- 2> /dev/null |
    awk -F '\t' -v began="$began" -v now="$now" '
      NR == FNR {{ line = $0; sub(/^[^\t]*/, "", line); sums[line] = $1; next }}
      ($0 in sums) && $3 + 0.1 < began + 0 && $4 + 0.1 < now + 0 {{ print sums[$0] $0 }}
    ' "$work/arrived" - >> "$home/index"
}}"""


def verdict(node: str, plan: StagePlan | None, *, status: int, stdout: str, stderr: str) -> None:
    """Raise ActionFailed (with the unit's last journal lines) unless the script said that it was done."""
    if status == 0:
        return
    said = _decoded(stdout, "error")
    error = said or stderr.strip()[-500:] or f"the node's shell ended with status {status}"
    journal = _decoded(stdout, "journal")
    where = f"{plan.component}: " if plan is not None else ""
    hint = "what was there before is back; mend the cause and run apply again"
    if plan is None:
        hint = "nothing was installed; mend the cause and run apply again"
    if not said:
        # Something killed the script, which could not put anything back.
        hint = "it was stopped half-way; run apply again: it finishes what is missing"
    first, *more = [*error.splitlines(), *journal.splitlines()]
    raise ActionFailed(where + first + "".join(f"\n    {line}" for line in more), subject=node, hint=hint)


def progress(line: str) -> tuple[int, bool] | None:
    """A line of the script's output: the number of the action that started (False) or is done (True)."""
    match line.split():
        case ["kw", "action", number, "start" | "done" as what]:
            return int(number), what == "done"
        case _:
            return None


def started(line: str) -> tuple[str, str] | None:
    """A line of the script's output: a unit, and when its main process began, by the node's clock (RFC 3339).

    None where the line tells something else, or systemd did not say when (a unit whose process has ended).
    """
    match line.split():
        case ["kw", "started", unit, _, day, time, "UTC"]:
            return unit, f"{day}T{time}Z"
        case _:
            return None


def _decoded(stdout: str, word: str) -> str:
    found = re.findall(rf"^kw {word} (\S*)$", stdout, re.MULTILINE)
    return base64.b64decode(found[-1]).decode("utf-8", "replace") if found else ""


# ---------------------------------------------------------------------------------------------------------------
# The parts of a stage's script


def candidate_path(path: str) -> str:
    """Where a file lies before it goes live: beside its target, so that going live is one rename."""
    folder, name = path.rsplit("/", 1)
    return f"{folder}/.{name}.kubeworker-new"


def _each_path(plan: StagePlan) -> str:
    files = {directory.path for directory in plan.stage.directories}
    # A drop-in that somebody gave to an absent unit is known from the observation alone.
    removed = [action.path for action in plan.actions if isinstance(action, RemovePath)]
    paths = [path for path in dict.fromkeys([*managed_paths(plan.stage), *removed]) if path not in files]
    calls = "".join(f'\n  "$1" {shlex.quote(path)}' for path in paths)
    return f"each_path() {{ # each_path FUNCTION: call it with every managed path of the stage\n  :{calls}\n}}"


def _numbered(plan: StagePlan, *kinds: type[Action]) -> Iterator[tuple[int, Action]]:
    return ((number, action) for number, action in enumerate(plan.actions) if isinstance(action, kinds))


def _act(number: int, *lines: str) -> str:
    return "\n".join((f"begin {number}", *lines, f"end {number}"))


def _call(function: str, *arguments: str | int) -> str:
    return shlex.join([function, *map(str, arguments)])


def _prepare(plan: StagePlan) -> Iterator[str]:
    kinds = (InstallPackages, SwapOff, LoadModule, SetSysctl, MakeDirectory)
    for number, action in _numbered(plan, *kinds):
        match action:
            case InstallPackages(packages=packages):
                yield _act(number, _call("install_packages", *packages))
            case SwapOff():
                yield _act(number, "swap_off")
            case LoadModule(name=name):
                yield _act(number, _call("try", f"modprobe {name}", "modprobe", "--", name))
            case SetSysctl(key=key, value=value):
                yield _act(number, _call("try", f"sysctl {key}", "sysctl", "-qw", f"{key}={value}"))
            case MakeDirectory(directory=directory):
                yield _act(number, _call("directory", directory.path, f"{directory.mode:04o}", directory.owner))
            case _:
                pass


def _candidates(plan: StagePlan) -> Iterator[str]:
    for number, action in _numbered(plan, PutBinary, PutFile, PutLink):
        match action:
            case PutBinary(binary=binary):
                blob = store_path(plan.bin_dir, binary.blob.sha256)
                mode = f"{binary.mode:04o}"
                yield _call("binary_candidate", blob, binary.blob.sha256, mode, binary.owner, binary.path)
            case PutFile(file=file):
                yield _call("file_candidate", number, file.sha256, f"{file.mode:04o}", file.owner, file.path)
            case PutLink(link=link):
                yield _call("link_candidate", link.target, link.path)
            case _:
                pass
    yield "check_candidates"


def _checks(plan: StagePlan) -> Iterator[str]:
    fresh = {subject(action) for action in plan.actions if isinstance(action, PutBinary | PutFile | PutLink)}
    for check in plan.checks:
        words = " ".join(_check_word(word, fresh) for word in check.command)
        folder = 'tmp=$(mktemp -d "$work/check.XXXXXX")\n' if _TMP in words else ""
        yield f"{folder}run_check {words}\n{_judge(check)}"


_TMP = '"$tmp"'
"""A folder for the checker alone, as a word of shell."""


def _check_word(word: str, fresh: set[str]) -> str:
    """A word of a check's command as shell: `{/path}` becomes the candidate or the live file, `{tmp}` a directory."""
    pieces = re.split(r"(\{tmp\}|\{/[^{}]*\})", word)
    return "".join(_check_piece(piece, fresh) for piece in pieces) or "''"


def _check_piece(piece: str, fresh: set[str]) -> str:
    if piece == "{tmp}":
        return _TMP
    if piece.startswith("{/"):
        path = piece[1:-1]
        return shlex.quote(candidate_path(path) if path in fresh else path)
    return shlex.quote(piece) if piece else ""


def _judge(check: ConfigCheck) -> str:
    refusal = f"{check.name} refuses the new configuration" + (f" ({check.hint})" if check.hint else "")
    rejections = "".join(f"{_call('reject', text, refusal)}\n" for text in check.reject)
    verdict = _call("check_holds", check.expect) if check.expect else '[ "$check_status" -eq 0 ]'
    return f"{rejections}{verdict} || {_call('check_failed', refusal)}"


def _swaps(plan: StagePlan) -> Iterator[str]:
    for action in plan.actions:
        match action:
            case StartUnit(unit=unit) | RestartUnit(unit=unit) | ReloadUnit(unit=unit):
                # Without its record a unit counts as not well started: a run that dies from here on is finished by
                # the next.
                yield _call("forget_start", unit.name)
            case _:
                pass
    yield "await_sync"
    yield "swapping=yes"
    yield from _stops(plan)
    for number, action in enumerate(plan.actions):
        match action:
            case PutBinary() | PutFile() | PutLink():
                yield _act(number, _call("swap", subject(action)))
            case RemovePath(path=path):
                yield _act(number, _call("remove", path))
            case SetMode(path=path, mode=mode, owner=owner):
                yield _act(number, _call("set_mode", path, f"{mode:04o}", owner))
            case _:
                pass


def _stops(plan: StagePlan) -> Iterator[str]:
    for number, action in _numbered(plan, StopUnit):
        yield _act(number, _call("stop_for_good", subject(action)))
    yield from _leftovers(plan, after_stop=True)


def _keeps(plan: StagePlan) -> Iterator[str]:
    for _, action in _numbered(plan, RemoveLeftover):
        if isinstance(action, RemoveLeftover) and action.leftover.keep:
            leftover = action.leftover
            yield _call("keep_leftover", leftover.seconds, leftover.keep, leftover.unkeep)


def _leftovers(plan: StagePlan, *, after_stop: bool) -> Iterator[str]:
    """Removed once nothing makes them any more: after an absent unit's stop, or when the stage's units are healthy."""
    early = {leftover.name for unit in plan.stage.absent_units for leftover in unit.leftovers}
    for number, action in _numbered(plan, RemoveLeftover):
        if isinstance(action, RemoveLeftover) and (action.leftover.name in early) == after_stop:
            leftover = action.leftover
            yield _act(number, _call("remove_leftover", leftover.name, leftover.seconds, leftover.remove))


def _units(plan: StagePlan) -> Iterator[str]:
    kinds = (DaemonReload, EnableUnit, StartUnit, RestartUnit, ReloadUnit)
    last_reload = max((number for number, _ in _numbered(plan, DaemonReload)), default=-1)
    for number, action in _numbered(plan, *kinds):
        match action:
            case DaemonReload():
                yield _act(number, "daemon_reload")
            case EnableUnit(unit=unit):
                later = ("--no-reload",) if number < last_reload else ()
                yield _act(number, _call("enable_unit", unit.name, *later))
            case StartUnit() | RestartUnit() | ReloadUnit():
                yield _act(number, *_unit_action(action))
            case _:
                pass


def _unit_action(action: UnitAction) -> Iterator[str]:
    name = action.unit.name
    match action:
        case StartUnit():
            yield _call("start", name)
        case RestartUnit(follows=""):
            yield _call("restart", name)
        case RestartUnit():
            # systemd has restarted it already, in the stage of the unit it requires.
            yield _call("start", name)
        case ReloadUnit(unit=unit):
            yield _call("reload_workers" if unit.forks_workers else "reload", name)
        case _:
            assert_never(action)
    yield _call("await_gate", name, action.unit.gate.timeout, _gate_function(name))
    yield _call("record_start", name, action.record)
    yield _call("tell_start", name)


def _unit_functions(plan: StagePlan) -> str:
    units = [action.unit for action in plan.actions if isinstance(action, StartUnit | RestartUnit | ReloadUnit)]
    return "\n".join(f"{_gate_function(unit.name)}() {{\n{_gate(unit)}\n}}" for unit in units)


def _gate_function(name: str) -> str:
    return "gate_" + re.sub(r"[^A-Za-z0-9]", "_", name)


def _gate(unit: Unit) -> str:
    gate = unit.gate
    steps = [_call("answers", *_http_words(url)) for url in gate.http]
    steps += [f'listens "$1" {shlex.quote(address)}' for address in gate.listen]
    if gate.command:
        steps.append(_call("succeeds", gate.otherwise, *gate.command))
    if not steps and not unit.oneshot:
        # Nothing to ask: it must at least stay up.
        steps.append('stays_up "$1"')
    return "\n".join(f"  {step} || return 1" for step in steps) or "  :"


def _http_words(url: str) -> tuple[str, str, str, str]:
    found = re.fullmatch(r"http://(\[[^\]]+\]|[^/:]+)(?::([0-9]+))?(/.*)?", url)
    if found is None:
        raise ValueError(f"{url!r} is not a plain http URL")
    host = found[1].strip("[]")
    return url, host, found[2] or "80", found[3] or "/"


def _images(plan: StagePlan) -> Iterator[str]:
    for number, action in _numbered(plan, ImportImage):
        if isinstance(action, ImportImage):
            image = action.image
            blob = store_path(plan.bin_dir, image.archive.sha256)
            yield _act(number, _call("import_image", image.ctr, blob, image.archive.sha256, image.reference))


def _bookkeeping(plan: StagePlan) -> Iterator[str]:
    placed = [action.binary for action in plan.actions if isinstance(action, PutBinary)]
    for binary in placed:
        yield _call("placed", binary.blob.sha256, binary.path)
        yield _call("index", binary.blob.sha256, binary.path, store_path(plan.bin_dir, binary.blob.sha256))
    emptied = [action.path for action in plan.actions if isinstance(action, RemovePath) and action.folder_too]
    for folder in dict.fromkeys(path.rpartition("/")[0] for path in emptied):
        yield _call("drop_empty", folder)
    stopped = [action.unit for action in plan.actions if isinstance(action, StopUnit)]
    for unit in stopped:
        yield _call("forget_unit", unit.name, *unit.directories)
        yield _call("displaced", *unit.paths)
    if placed or stopped or any(isinstance(action, ImportImage) for action in plan.actions):
        yield _call("tidy_store", *_names(plan.kept))


def _records(plan: StagePlan) -> Iterator[str]:
    """The last word: a stage that did not get here has the record of the one before."""
    for stage in (*plan.settled, plan.stage):
        yield _call("record_applied", stage.component, plan.origin.tool, plan.origin.inputs, applied.text(stage))
    yield "records"


def _names(hashes: Iterable[str]) -> Iterator[str]:
    return (f"sha256-{sha256}" for sha256 in hashes)


# Quoting, exit paths and rollback live here once; the generated part of a script is calls of these functions.
_FUNCTIONS = rf"""set -u
LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 077
finished='' kept='' large='' swapping='' committed='' reloaded='' on_exit='' touched=' ' syncing='' ended=''
say() {{ printf 'kw %s\n' "$*" 2> /dev/null || :; }}
begin() {{ say action "$1" start; }}
end() {{ say action "$1" "done"; }}
fail() {{ # fail MESSAGE: report it and leave; the exit trap puts back what was there
  say error "$(printf '%s' "$1" | base64 -w 0)"
  exit 1
}}
leave() {{
  trap '' INT TERM
  [ -z "$swapping" ] || [ -n "$committed" ] || put_back
  [ -z "$on_exit" ] || "$on_exit"
  [ -n "$finished" ] || [ ! -s "$work/candidates" ] || xargs -d '\n' rm -f -- < "$work/candidates"
  rm -rf -- "$work"
  [ -n "$finished" ] || exit 1
}}
# A closed connection shows as HUP, or as PIPE at the next word: the work goes on to its end, since half of it would
# be worse than all or nothing. INT and TERM (a node going down) put the former state back.
trap '' HUP PIPE
trap 'exit 1' INT TERM
{{ [ -d "$home/started" ] || mkdir -p -- "$home" "$home/started"; }} && exec 9> "$home/lock" ||
  fail "$home can't be written"
flock -w {LOCK_WAIT} 9 || fail 'another run holds the lock of this node'
for old in "$home"/work.*; do [ ! -e "$old" ] || rm -rf -- "$old"; done
work=$(mktemp -d "$home/work.XXXXXX") || fail "no work folder below $home (is the disk full?)"
trap leave EXIT
: > "$work/candidates"; : > "$work/sums"; : > "$work/fresh"; : > "$work/created"; : > "$work/units"
try() {{ # try WHAT COMMAND...
  what=$1; shift
  "$@" > "$work/out" 2>&1 < /dev/null 9>&- || fail "$what: $(tail -n 5 "$work/out")"
}}
beside() {{ # beside PATH SUFFIX: sets $name to .NAME.kubeworker-SUFFIX in the same folder
  name=${{1%/*}}/.${{1##*/}}.kubeworker-$2
}}

begin_stage() {{
  began=$(date +%s)
  mkdir -m 700 "$work/in" "$work/applied"
  timeout {STALL} tar -xf - -C "$work/in" --no-same-owner 2> "$work/out" ||
    fail "the files did not arrive whole: $(cat "$work/out")"
  each_path drop_leftover
}}
drop_leftover() {{ beside "$1" new; drop "$name"; }}
drop() {{ if [ -e "$1" ] || [ -L "$1" ]; then rm -f -- "$1"; fi; }}
install_packages() {{
  DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND
  try 'apt-get update' apt-get -q update
  try "apt-get install $*" apt-get -qy install --no-install-recommends -- "$@"
}}
swap_off() {{
  try swapoff swapoff -a
  # systemd makes its own swap units (of GPT partitions, of zram): masked, they stay off after a reboot.
  for unit in $(systemctl list-units --all --plain --no-legend --type=swap | cut -d ' ' -f 1); do
    try "systemctl mask $unit" systemctl mask -q -- "$unit"
  done
  [ ! -f /etc/fstab ] || try /etc/fstab sed -E -i \
    's/^([^#[:space:]]+[[:space:]]+[^[:space:]]+[[:space:]]+swap([[:space:]].*)?)$/# kubeworker: \1/' /etc/fstab
}}
directory() {{ # directory PATH MODE OWNER
  (umask 022; mkdir -p -- "$1") 2> "$work/out" || fail "$(cat "$work/out")"
  set_mode "$@"
}}
set_mode() {{ # set_mode PATH MODE OWNER
  try "$1" chown -h -- "$3" "$1"
  [ -L "$1" ] || try "$1" chmod -- "$2" "$1"
}}
new_candidate() {{ # new_candidate PATH: sets $name
  [ ! -d "$1" ] || [ -L "$1" ] || fail "$1 is a directory; a file belongs there"
  [ -d "${{1%/*}}" ] || directory_of "$1"
  beside "$1" new
  printf '%s\n' "$name" >> "$work/candidates" || fail "no space left below $home"
}}
directory_of() {{ (umask 022; mkdir -p -- "${{1%/*}}") 2> "$work/out" || fail "$(cat "$work/out")"; }}
file_candidate() {{ # file_candidate NUMBER SHA256 MODE OWNER PATH
  new_candidate "$5"
  try "$5" install -T -m "$3" -o "${{4%%:*}}" -g "${{4#*:}}" -- "$work/in/$1" "$name"
  printf '%s  %s\n' "$2" "$name" >> "$work/sums" || fail "no space left below $home"
  printf '%s\n' "$name" >> "$work/fresh" || fail "no space left below $home"
}}
binary_candidate() {{ # binary_candidate BLOB SHA256 MODE OWNER PATH
  new_candidate "$5"
  # A hard link where the store is on the same file system: no second copy on the disk and nothing to write. Whoever
  # damages the visible file in place damages the blob with it; then both stats differ from the index, both hashes are
  # wrong, and the blob is sent again as a new file. A copy would save that upload, at twice the disk on every node.
  as_was=$(as_indexed "$2" "$1")
  large=yes
  if [ "$3 $4" = '0755 root:root' ] && ln -T -- "$1" "$name" 2> /dev/null; then
    # Untouched since it was hashed, as the index says: the same bytes need not be hashed a second time.
    ! grep -qxF -e "$as_was" "$home/index" 2> /dev/null || return 0
  else
    try "$5" cp --reflink=auto -- "$1" "$name"
    set_mode "$name" "$3" "$4"
    printf '%s\n' "$name" >> "$work/fresh" || fail "no space left below $home"
  fi
  printf '%s  %s\n' "$2" "$name" >> "$work/sums" || fail "no space left below $home"
}}
link_candidate() {{ # link_candidate TARGET PATH
  new_candidate "$2"
  try "$2" ln -s -T -- "$1" "$name"
}}
check_candidates() {{
  [ -z "$large" ] || date +%s.%N > "$work/hashed"
  [ -s "$work/sums" ] || return 0
  if [ -s "$work/fresh" ]; then
    # On the disk before the rename makes it visible: after a power cut there is the old file or the new one. A busy
    # disk takes its time, so that hashes and the components' own checkers go on meanwhile. What is a link to a blob is
    # there since that came.
    xargs -d '\n' sync -- < "$work/fresh" > "$work/synced" 2>&1 9>&- &
    syncing=$!
  fi
  if [ -n "$large" ]; then
    # Several times as fast, where openssl is there; what it does not find right sha256sum looks at, and names.
    cut -c 67- "$work/sums" | xargs -d '\n' openssl sha256 -r > "$work/out" 2> /dev/null
    sed 's/^\(.\{{64\}}\)  /\1 */' "$work/sums" | cmp -s - "$work/out" && return 0
  fi
  sha256sum --check --quiet "$work/sums" > "$work/out" 2>&1 || fail "not what was sent: $(head -n 5 "$work/out")"
}}
await_sync() {{ [ -z "$syncing" ] || wait "$syncing" || fail "$(cat "$work/synced")"; }}
run_check() {{ # run_check COMMAND...: sets $check_status; the output lies in $work/out
  check_status=0
  timeout {CHECK_TIMEOUT} "$@" > "$work/out" 2>&1 < /dev/null 9>&- || check_status=$?
}}
check_holds() {{ grep -qF -e "$1" "$work/out"; }}
reject() {{ # reject TEXT MESSAGE: the output must not hold the text
  ! check_holds "$1" || fail "$2$nl$(grep -F -e "$1" "$work/out" | check_output)"
}}
check_failed() {{ # check_failed MESSAGE
  # klog's info lines and its warnings of deprecated flags are not the reason.
  fail "$1$nl$(grep -v -e '^I[0-9]\{{4\}} [0-9]' -e '^Flag --.* deprecated' "$work/out" | check_output)"
}}
check_output() {{ # of a checker, with the files' own names
  tail -n 20 | cut -c -600 | sed 's,\.\([^/]*\)\.kubeworker-new,\1,g'
}}
nl='
'

swap() {{ # swap PATH: the candidate goes live; the former version stays beside it until the stage is good
  keep_former "$1"
  beside "$1" new
  mv -fT -- "$name" "$1" 2> "$work/out" || fail "$(cat "$work/out")"
}}
keep_former() {{
  beside "$1" old
  # One that lies there already is of a run that was killed: it is the last version known to be good.
  [ ! -e "$name" ] && [ ! -L "$name" ] || return 0
  if [ -e "$1" ] || [ -L "$1" ]; then ln -T -- "$1" "$name" 2> "$work/out" || fail "$(cat "$work/out")"
  else printf '%s\n' "$1" >> "$work/created"; fi
}}
remove() {{ # remove PATH
  [ ! -d "$1" ] || [ -L "$1" ] || fail "$1 is a directory; remove it by hand"
  keep_former "$1"
  try "$1" rm -f -- "$1"
}}
drop_empty() {{ rmdir -- "$1" 2> /dev/null || :; }}
put_back() {{
  # What was not running before is stopped while systemd still knows its unit file; the last touched first, since it
  # may require another.
  sort -rn "$work/units" > "$work/touched"
  while read -r _ unit was enabled; do
    [ "$enabled" = enabled ] || systemctl disable -q -- "$unit"
    [ "$was" = active ] || {{ systemctl stop -- "$unit"; systemctl reset-failed -- "$unit"; }}
  done < "$work/touched" > /dev/null 2>&1 9>&-
  each_path put_back_one
  xargs -r -d '\n' rm -f -- < "$work/created"
  [ -z "$reloaded" ] || systemctl daemon-reload < /dev/null 9>&-
  while read -r _ unit was enabled; do
    [ "$enabled" != enabled ] || [ "$(systemctl is-enabled -- "$unit")" = enabled ] || systemctl enable -q -- "$unit"
    [ "$was" = active ] || continue
    systemctl reset-failed -- "$unit"
    timeout {START_TIMEOUT} systemctl restart -- "$unit" && restore_record "$unit"
  done < "$work/touched" > /dev/null 2>&1 9>&-
  [ -z "$kept" ] || sh -c "$kept" > /dev/null 2>&1 < /dev/null 9>&-
}}
put_back_one() {{
  beside "$1" old
  if [ -e "$name" ] || [ -L "$name" ]; then mv -fT -- "$name" "$1"; fi
}}
commit() {{
  committed=yes
  each_path drop_former
}}
drop_former() {{ beside "$1" old; drop "$name"; }}

# Not only where systemd says NeedDaemonReload: of drop-ins in a folder that is new it knows nothing until then.
daemon_reload() {{ reloaded=yes; try 'systemctl daemon-reload' systemctl daemon-reload; }}
enable_unit() {{ # enable_unit UNIT [OPTION]
  touch_unit "$1"
  # With --no-reload where daemon_reload follows anyway.
  try "systemctl enable $1" systemctl enable "${{2:---quiet}}" -- "$1"
}}
touch_unit() {{ # remember how the unit was before the stage, once
  case $touched in *" $1 "*) return 0 ;; esac
  touched="$touched$1 " number=$((${{number:--1}} + 1))
  look_at "$1"
  printf '%s %s %s %s\n' "$number" "$1" "${{state:-unknown}}" "${{enabled:-none}}" >> "$work/units"
}}
look_at() {{ # look_at UNIT: sets $state, $enabled, $restarts, $since and $invocation; each systemctl costs milliseconds
  state='' enabled='' restarts=0 invocation='' since=''
  TZ=UTC systemctl show -p ActiveState -p UnitFileState -p NRestarts -p InvocationID -p ExecMainStartTimestamp \
    -- "$1" > "$work/unit" 2> /dev/null
  while IFS='=' read -r key value; do
    case $key in
      ActiveState) state=$value ;;
      UnitFileState) enabled=$value ;;
      NRestarts) restarts=$value ;;
      InvocationID) invocation=$value ;;
      ExecMainStartTimestamp) since=$value ;;
    esac
  done < "$work/unit"
}}
forget_start() {{
  touch_unit "$1"
  [ ! -f "$home/started/$1" ] || mv -f -- "$home/started/$1" "$work/record.$1"
}}
stop_for_good() {{ # stop_for_good UNIT
  touch_unit "$1"
  # The record stays until the files are gone: by it the next run knows that this one did not get to its end.
  [ ! -f "$home/started/$1" ] || cp -- "$home/started/$1" "$work/record.$1"
  [ "$(systemctl is-active -- "$1")" = inactive ] || systemctl_unit stop "$1"
  systemctl reset-failed -- "$1" 2> /dev/null
  case $(systemctl is-enabled -- "$1" 2> /dev/null) in
    enabled | enabled-runtime) try "systemctl disable $1" systemctl disable -q -- "$1" ;;
  esac
}}
keep_leftover() {{ # keep_leftover SECONDS SCRIPT UNDO
  kept=$kept$nl$3
  timeout "$1" sh -c "$2" > "$work/out" 2>&1 < /dev/null 9>&- || :
}}
remove_leftover() {{ # remove_leftover NAME SECONDS SCRIPT
  try "$1" timeout "$2" sh -c "$3"
}}
forget_unit() {{ # forget_unit UNIT DIRECTORY...: what is left of it once its files are gone
  rm -f -- "$home/started/$1"
  rmdir -- "/etc/systemd/system/$1.d" "/run/systemd/system/$1.d" 2> /dev/null
  shift
  [ "$#" -eq 0 ] || rmdir -- "$@" 2> /dev/null
  :
}}
restore_record() {{
  [ -f "$work/record.$1" ] || return 0
  read -r restart reload _ < "$work/record.$1" && look_at "$1" && record_start "$1" "$restart $reload"
}}
record_start() {{ # record_start UNIT DIGESTS: of the start that `look_at` saw last
  printf '%s %s\n' "$2" "$invocation" > "$work/record" &&
    mv -f -- "$work/record" "$home/started/$1" || fail "no space left below $home"
}}
tell_start() {{ say started "$1" "$since"; }} # as `look_at` saw it last
record_applied() {{ # record_applied COMPONENT TOOL INPUTS TEXT: what was asked for (core/applied.py)
  printf '{applied.FORMAT}\t%s\t%s\t%s\n%s' "${{ended:=$(date +%s)}}" "$2" "$3" "$4" > "$work/applied/$1" ||
    fail "no space left below $home"
}}
records() {{ # the records made in $work/applied go live
  {{ [ -d "$home/applied" ] || mkdir -- "$home/applied"; }} && mv -f -t "$home/applied" -- "$work"/applied/* ||
    fail "no space left below $home"
}}
systemctl_done() {{ # systemctl_done VERB UNIT
  timeout {START_TIMEOUT} systemctl "$1" -- "$2" > "$work/out" 2>&1 < /dev/null 9>&-
}}
systemctl_unit() {{ systemctl_done "$@" || unit_not "$@"; }}
unit_not() {{ unit_failed "$2" "systemctl $1 $2: $(head -n 1 "$work/out")"; }}
start() {{
  look_at "$1"
  case $state in
    active) ;;
    # Half-way up it may have read the former files: starting it would change nothing.
    activating | deactivating | reloading) restart "$1" ;;
    *) started_by start "$1" ;;
  esac
}}
restart() {{ started_by restart "$1"; }}
started_by() {{ # started_by VERB UNIT: starts of before do not count (systemd.unit(5), StartLimitBurst=)
  systemctl_done "$@" && return 0
  case $(systemctl show --property=Result --value -- "$2") in
    start-limit-hit) systemctl reset-failed -- "$2"; systemctl_unit "$@" ;;
    *) unit_not "$@" ;;
  esac
}}
reload() {{ systemctl_unit reload "$1"; }}
reload_workers() {{ # until the last worker has gone that still takes connections with the former configuration
  main=$(systemctl show --property=MainPID --value -- "$1")
  workers=$(cat "/proc/$main/task/$main/children" 2> /dev/null)
  reload "$1"
  for tries in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    old=''
    for pid in $workers; do
      case $(tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline") in '' | *'is shutting down'*) ;; *) old=$pid ;; esac
    done
    [ -n "$old" ] || return 0
    sleep 0.25
  done
  unit_failed "$1" "worker $old of $1 did not make way for a new one"
}}
unit_failed() {{ # unit_failed UNIT MESSAGE
  # With --since, journalctl's own -n counts from the start. klog's info lines (I1124 20:57:08 ...), kubelet's dump of
  # its flags among them, would crowd out the one that says why.
  lines=$(journalctl -u "$1" --since "@$began" --no-pager -o short 2> /dev/null | grep -v ': I[0-9]\{{4\}} [0-9]' |
    tail -n {JOURNAL_LINES} | cut -c -400)
  say journal "$(printf '%s' "$lines" | base64 -w 0)"
  fail "$2"
}}
uptime() {{ read -r now _ < /proc/uptime; now=${{now%.*}}; }}
await_gate() {{ # await_gate UNIT SECONDS FUNCTION
  uptime; deadline=$((now + $2)) gate='' told='' first=''
  while :; do
    look_at "$1"
    [ "$state" != active ] || ! "$3" "$1" || return 0
    case $state in
      failed | inactive) unit_failed "$1" "$1 is $state after its start" ;;
    esac
    exits=$((restarts - ${{first:=$restarts}}))
    [ "$exits" -lt {EXITS} ] || unit_failed "$1" "$1 ended by itself $exits times after its start"
    uptime
    [ "$now" -lt "$deadline" ] || break
    if [ "$now" != "$told" ]; then
      told=$now
      # A connection that is gone shows here. Nobody approves certificates then, and the next run waits for the lock.
      printf 'kw wait %s\n' "$1" 2> /dev/null || [ "$deadline" -le $((now + {ALONE_SECONDS})) ] ||
        deadline=$((now + {ALONE_SECONDS}))
    fi
    sleep 0.1
  done
  [ "$state" = active ] || gate="it is $state"
  unit_failed "$1" "$1 is not healthy after $2 s: $gate"
}}
answers() {{ # answers URL HOST PORT PATH: within a second, in which one process asks again and again
  # Nothing ever comes from descriptor 4: to read from it is to sleep without a process.
  # shellcheck disable=SC2016  # for the inner shell
  status=$(timeout 5 bash -c 'exec 4<> <(:)
    ask() {{
      exec 3<> "/dev/tcp/$0/$1" && printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$2" "$0" >&3 &&
        read -r _ status _ <&3
    }}
    for ((tries = 0; tries < 20; tries++)); do
      status=
      ask "$1" "$2"; [ "$status" != 200 ] || break
      read -r -t 0.05 -u 4
    done
    echo "$status"' "$2" "$3" "$4" 2> /dev/null)
  gate="$1 answers ${{status:-nothing}}"
  [ "$status" = 200 ]
}}
listens() {{ # listens UNIT ADDRESS:PORT; the wildcard sockets serve the address too
  gate="none of its processes listens on $2"
  # A foreign process on the port must not pass for a unit that fails because of it.
  ss -Hltnp "( src $2 or src 0.0.0.0:${{2##*:}} or src [::]:${{2##*:}} )" |
    grep -o 'pid=[0-9]*' | sort -u > "$work/pids"
  while IFS='=' read -r _ pid; do
    ! grep -q "/$1\(/\|\$\)" "/proc/$pid/cgroup" 2> /dev/null || return 0
  done < "$work/pids"
  return 1
}}
succeeds() {{ # succeeds OTHERWISE COMMAND...
  gate=$1; shift
  timeout 10 "$@" > "$work/out" 2>&1 < /dev/null 9>&- && return 0
  gate=${{gate:-$*: $(tail -n 3 "$work/out")}}
  return 1
}}
stays_up() {{ # stays_up UNIT
  gate="it does not stay up"
  before=$(systemctl show --property=InvocationID --value -- "$1")
  sleep 1
  [ "$(systemctl is-active -- "$1")" = active ] &&
    [ "$(systemctl show --property=InvocationID --value -- "$1")" = "$before" ]
}}

import_image() {{ # import_image CTR BLOB SHA256 REFERENCE
  printf '%s  %s\n' "$3" "$2" | sha256sum --check --status 2> /dev/null || fail "the archive of $4 is damaged"
  try "import of $4" timeout 300 "$1" -n k8s.io images import -- "$2"
  "$1" -n k8s.io images ls -q 2> /dev/null | grep -qxF -e "$4" || fail "the archive does not hold $4"
}}
placed() {{ # placed SHA256 PATH: the store's memory of which blobs a path had
  printf '%s\t%s\n' "$1" "$2" >> "$store/history"
}}
displaced() {{ # displaced PATH...: what lay there is no former version of anything any more
  [ -f "$store/history" ] || return 0
  for path in "$@"; do
    awk -F '\t' -v path="$path" '$2 != path' "$store/history" > "$work/history" &&
      cat -- "$work/history" > "$store/history"
  done
}}
as_indexed() {{ # as_indexed SHA256 PATH...: the lines that the index has while they stay as they are
  sum=$1; shift
  stat --printf "$sum\t%s\t%.9Y\t%.9Z\t%i\t%n\n" -- "$@" 2> /dev/null
}}
index() {{ # index SHA256 PATH...: what was just hashed need not be hashed by the next probe
  hashed=$(cat "$work/hashed"); now=$(date +%s.%N)
  as_indexed "$@" |
    awk -F '\t' -v hashed="$hashed" -v now="$now" '$3 + 0.1 < hashed + 0 && $4 + 0.1 < now + 0' >> "$home/index"
}}
tidy_store() {{ # tidy_store NAME...: besides those, the current and one previous blob of each path stay
  [ ! -f "$store/history" ] || awk -F '\t' '
    {{ sub(/^/, "sha256-", $1); if ($1 != last[$2]) {{ previous[$2] = last[$2]; last[$2] = $1 }} }}
    END {{
      for (path in last) {{ print last[path]; print previous[path] }}
    }}' "$store/history" > "$work/kept"
  for name in "$@"; do printf '%s\n' "$name"; done >> "$work/kept"
  for path in "$store"/sha256-*; do
    grep -qxF -e "${{path##*/}}" "$work/kept" || rm -f -- "$path"
  done
}}"""
