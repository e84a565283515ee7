"""The API proxy's probe: a shell program on the node that keeps kube-nginx's list of API servers to those that work.

nginx itself notices only a connection that fails, and never cuts one that has gone silent. So this program asks every
API server's /readyz in turn, writes the ready ones to a file that kube-nginx's configuration includes, and has
kube-nginx read it again; `worker_shutdown_timeout` in that configuration then ends the old sessions.

- Lost: at once after a refused connection or an answer that says so (500); else after FAILURES that are late, or none.
- Found again: after SUCCESSES good answers in a row. The change is due at a second of the wall clock that is the node's
  own (`slot`), for it cuts the node's sessions, and a fleet must not dial anew in one moment.
- None answers: the last list stays. As soon as one does, those on the list get their failures forgiven; where none of
  the list is among those that answer, the one that does is taken at once.
- No two changes within REST seconds.

POSIX sh with coreutils and curl. All that it writes lies in one folder below /run, each file by rename:
`upstream.conf` for nginx; `loaded.conf`, what nginx was last told to read, so that a change that was cut off is
finished by the next start; and `status`, a line for each API server: its address, ready or lost, its last answer, and
since when it is so in seconds since the epoch, tabs between.
"""

from __future__ import annotations

import ipaddress
import shlex

LIMIT = 1
"""Seconds that an API server has for its answer."""
FAILURES = 2
"""Bad answers in a row after which an API server is lost; a refused connection, or a 500, is enough by itself."""
SUCCESSES = 3
"""Good answers in a row after which a lost one is ready again."""
SPREAD = 30
"""Seconds over which the nodes of a fleet take a returned API server into use again."""
REST = 5
"""Seconds between two changes."""


def slot(address: str) -> int:
    """The node's own second of each SPREAD: nodes with neighbouring addresses have different ones."""
    return int(ipaddress.ip_address(address)) % SPREAD


def preferred(address: str, count: int) -> int:
    """Which of `count` API servers the node with this address takes while that one is ready.

    The sum of the address's digits to the base `count`, modulo `count`: the Thue-Morse sequence where that is 2. Each
    aligned block of `count` neighbouring addresses has each of them once, and addresses with any step between them are
    spread too, which a plain remainder would not do (10.0.0.10, .20, .30).
    """
    rest, digits = int(ipaddress.ip_address(address)), 0
    while count > 1 and rest:
        rest, digit = divmod(rest, count)
        digits += digit
    return digits % count


def script(
    *, apiservers: str, folder: str, ca: str, client_cert: str, reload: tuple[str, ...], slot: int, seconds: int
) -> str:
    """The program.

    `apiservers` is a file with one nginx `server HOST:PORT ...;` line for each; `folder` is where it writes; `ca` and
    `client_cert` (certificate and key in one PEM file; it need not be there) are what it asks with; `reload` is the
    command that has nginx read its configuration again; it asks every `seconds`.
    """
    return _SCRIPT.format(
        apiservers=shlex.quote(apiservers),
        folder=shlex.quote(folder),
        ca=shlex.quote(ca),
        client_cert=shlex.quote(client_cert),
        reload=shlex.join(reload),
        slot=slot,
        seconds=seconds,
        limit=LIMIT,
        failures=FAILURES,
        successes=SUCCESSES,
        spread_ms=SPREAD * 1000,
        rest_ms=REST * 1000,
    )


_SCRIPT = """\
#!/bin/sh
# Managed by kubeworker: asks each kube-apiserver whether it is ready, and has kube-nginx use those that are.
set -u
LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 022
apiservers={apiservers} run={folder}
ca={ca} client_cert={client_cert}
slot={slot}
nl='
'
say() {{ printf '%s\\n' "$1" >&2; }}
nginx_reload() {{ {reload}; }}
# Seconds with milliseconds of the wall clock as one number of milliseconds, in $now.
clock() {{ now=$(date +%s%3N); }}
# All of a file in $text, without a process.
slurp() {{
  text=
  [ ! -r "$1" ] || while IFS= read -r line; do text=$text$line$nl; done < "$1"
}}
put() {{ # put FILE TEXT: the file appears whole, or not at all
  printf '%s' "$2" > "$run/.$1.new" && mv -f "$run/.$1.new" "$run/$1"
}}

names() {{ # names TEXT ADDRESS: whether the text has a line for this server
  case $1 in *"server $2 "* | *"server $2;"*) return 0 ;; *) return 1 ;; esac
}}

# servers: `server HOST:PORT ...;` lines of nginx, as $address_N and $line_N for N = 1..$count.
count=0
while read -r word address rest; do
  [ "$word" = server ] || continue
  count=$((count + 1))
  eval "address_$count=\\${{address%;}} line_$count=\\"server \\$address\\${{rest:+ \\$rest}}\\""
  eval "answer_$count=none good_$count=0 bad_$count=0"
done < "$apiservers"
[ "$count" -gt 0 ] || {{ say "$apiservers names no kube-apiserver"; exit 1; }}

# What was known before this start is in nginx's list: who is not in it was lost.
[ -s "$run/upstream.conf" ] || {{ slurp "$apiservers"; put upstream.conf "$text"; }}
slurp "$run/upstream.conf"
clock
n=0
while [ $n -lt $count ]; do
  n=$((n + 1))
  eval "address=\\$address_$n"
  if names "$text" "$address"; then state=ready; else state=lost; fi
  eval "state_$n=\\$state since_$n=${{now%???}}"
done
rm -f "$run/status"
# The first answers are shown as they come: whoever has started this waits for them.
pause=0
due=0 changed=0 shown='' silent=no state='' good=0 bad=0

ask() {{ # ask N ADDRESS: curl's exit status and the answer's HTTP status, to .answer.N
  if [ -r "$client_cert" ]; then readyz "$2" --cert "$client_cert"; else status=58; fi
  # 58: a certificate that can't be used, as one that is being replaced.
  [ $status != 58 ] || readyz "$2"
  printf '%s %s\\n' "$status" "$code" > "$run/.answer.$1"
}}

readyz() {{ # readyz ADDRESS [CURL-OPTION...]: in $status and $code
  address=$1
  shift
  status=0
  code=$(curl -q --silent --output /dev/null --noproxy '*' --max-time {limit} --cacert "$ca" "$@" \\
    --write-out '%{{http_code}}' "https://$address/readyz") || status=$?
}}

judge() {{ # judge N: what the answer says, in $answer and $verdict (good, bad or lost)
  status='' code=''
  read -r status code < "$run/.answer.$1"
  case $status:$code in
    # 401 and 403: it is there, and does not know this node's certificate, or has --anonymous-auth=false.
    0:200 | 0:401 | 0:403) answer=$code verdict=good ;;
    # It says itself that it is not ready.
    0:5??) answer=$code verdict=lost ;;
    0:*) answer=$code verdict=bad ;;
    7:*) answer=refused verdict=lost ;;
    28:*) answer=timeout verdict=bad ;;
    35:* | 60:* | 77:*) answer=untrusted verdict=bad ;;
    127:*) answer=no-curl verdict=bad ;;
    :*) answer=none verdict=bad ;;
    *) answer=curl-$status verdict=bad ;;
  esac
}}

turn() {{ # turn N STATE: a server changes
  eval "state_$1=$2 since_$1=${{now%???}} address=\\$address_$1 answer=\\$answer_$1"
  if [ "$2" = lost ]; then say "$address is lost: $answer"; else say "$address is ready again: $answer"; fi
}}

round() {{ # ask all at once, and count
  n=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    : > "$run/.answer.$n"
    eval "ask $n \\"\\$address_$n\\"" &
  done
  sleep "$pause" &
  wait
  pause={seconds}
  clock
  n=0 answering=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    judge $n
    eval "answer_$n=\\$answer"
    case $verdict in
      good) eval "good_$n=\\$((good_$n + 1)) bad_$n=0"; answering=$((answering + 1)) ;;
      bad) eval "bad_$n=\\$((bad_$n + 1)) good_$n=0" ;;
      lost) eval "bad_$n={failures} good_$n=0" ;;
    esac
  done
}}

listed() {{ # whether server N is in the list that nginx has
  eval "address=\\$address_$1"
  names "$live" "$address"
}}

wake() {{ # After a time without any answer: what is on the list gets another chance; one must be of use at once.
  silent=no useful=no
  say "kube-apiservers answer again"
  n=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    eval "good=\\$good_$n"
    if [ "$good" != 0 ] && listed $n; then useful=yes; fi
  done
  n=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    eval "good=\\$good_$n"
    if [ $useful = yes ]; then ! listed $n || eval "bad_$n=0"
    elif [ "$good" != 0 ]; then eval "good_$n={successes}"
    else eval "bad_$n={failures}"; fi
  done
}}

weigh() {{ # new states from the counts
  n=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    eval "state=\\$state_$n good=\\$good_$n bad=\\$bad_$n"
    if [ "$state" = ready ] && [ "$bad" -ge {failures} ]; then turn $n lost
    elif [ "$state" = lost ] && [ "$good" -ge {successes} ]; then turn $n ready; fi
  done
}}

show() {{ # the status file, where it says something new
  report=''
  n=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    eval "report=\\$report\\$address_$n'\t'\\$state_$n'\t'\\$answer_$n'\t'\\$since_$n\\$nl"
  done
  [ "$report" = "$shown" ] || {{ put status "$report" && shown=$report; }}
}}

next_slot() {{ # the middle of this node's next own second, in $due
  due=$((now - now % {spread_ms} + slot * 1000 + 500))
  [ $due -ge "$now" ] || due=$((due + {spread_ms}))
}}

change() {{ # change WANTED: nginx reads the new list
  put upstream.conf "$1" || return
  clock
  changed=$now due=0
  nginx_reload || {{ say "kube-nginx was not reloaded"; return; }}
  put loaded.conf "$1"
  n=0 used=''
  while [ $n -lt $count ]; do
    n=$((n + 1))
    eval "address=\\$address_$n"
    ! names "$1" "$address" || used="$used $address"
  done
  say "kube-nginx uses$used"
}}

follow() {{ # bring nginx's list to what is ready
  wanted='' lost_listed=no
  slurp "$run/upstream.conf"
  live=$text
  n=0
  while [ $n -lt $count ]; do
    n=$((n + 1))
    eval "state=\\$state_$n line=\\$line_$n"
    if [ "$state" = ready ]; then wanted=$wanted$line$nl
    elif listed $n; then lost_listed=yes; fi
  done
  [ -n "$wanted" ] || return 0
  slurp "$run/loaded.conf"
  if [ "$wanted" = "$live" ] && [ "$wanted" = "$text" ]; then due=0; return 0; fi
  # A server that is lost goes at once, and so does a change that was cut off; one that is back waits for its second.
  if [ $lost_listed = yes ] || [ "$wanted" = "$live" ]; then due=$now
  elif [ "$due" = 0 ] || [ $((due - now)) -gt {spread_ms} ]; then next_slot; fi
  # A clock that was set back must not keep a change away.
  [ "$changed" -le "$now" ] || changed=$now
  left=$((due - now)) rested=$((changed + {rest_ms} - now))
  [ $left -ge $rested ] || left=$rested
  # No later than the next round may end: exactly then.
  [ $left -le $(({seconds} * 1000 + 500)) ] || return 0
  if [ $left -gt 0 ]; then sleep "$((left / 1000)).$(printf %03d $((left % 1000)))"; fi
  change "$wanted"
}}

while :; do
  round
  slurp "$run/upstream.conf"
  live=$text
  if [ "$answering" = 0 ]; then
    [ $silent = yes ] || say "no kube-apiserver answers: kube-nginx keeps its list"
    silent=yes
  elif [ $silent = yes ]; then wake; fi
  # Without any answer it is as likely this node's own network: nobody is judged by that.
  [ $silent = yes ] || weigh
  show
  [ $silent = yes ] || follow
done
"""
