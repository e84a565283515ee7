"""Whether a node reaches each kube-apiserver, trusts it, and is known there: the script, its answers, the rows. Pure.

POSIX sh with coreutils and curl. No file is written: the CA and the token come by standard input and a here-document,
and the token is in nobody's arguments or environment.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kubeworker.core.preflight.row import Row, Status

CONNECT_SECONDS = 4
"""For the connection; as long again for the rest."""
TRIES = 6
"""How often a token is shown that is not known yet: API servers see a new Secret a moment later than it is made."""

Caller: TypeAlias = Literal["token", "certificate", "nobody"]
"""token: the bootstrap token on standard input; certificate: kubelet's own; nobody: without credentials."""


def script(apiservers: Sequence[str], *, ca: bytes, caller: Caller, certificate: str) -> str:
    """Asks each HOST:PORT for /readyz, all at once. `certificate`: path of kubelet's, with its key."""
    return _SCRIPT.format(
        limit=CONNECT_SECONDS,
        total=2 * CONNECT_SECONDS,
        tries=TRIES,
        read="IFS= read -r token" if caller == "token" else ":",
        certificate=f"--cert {shlex.quote(certificate)}" if caller == "certificate" else "",
        ca=ca.decode().strip(),
        ask="\n".join(f"ask {shlex.quote(apiserver)} &" for apiserver in apiservers),
    )


_SCRIPT = """\
LC_ALL=C; export LC_ALL
command -v curl > /dev/null || {{ echo missing; exit 0; }}
token=
{read}
credentials() {{ [ -z "$token" ] || printf 'header = "Authorization: Bearer %s"\\n' "$token"; }}
get() {{ # get ADDRESS OPTION...: by curl, with the cluster's CA
  address=$1
  shift
  curl -q --silent --noproxy '*' --connect-timeout {limit} --max-time {total} --output /dev/null \\
    --cacert /dev/fd/3 "$@" "https://$address/readyz" 2>&1 3<< 'END-OF-CA'
{ca}
END-OF-CA
}}
ask() {{
  n=0
  while :; do
    n=$((n + 1))
    said=$(credentials | get "$1" --show-error --config - {certificate} \\
      --write-out '\\n%{{http_code}} %{{ssl_verify_result}}')
    status=$?
    if [ -z "$token" ] || [ $n = {tries} ]; then break; fi
    case $said in *'
401 '*) sleep 0.5 ;; *) break ;; esac
  done
  # Only curl's verbose output says what kept it from connecting; it is asked for without the token.
  why=
  [ "$status" != 7 ] || why=$(get "$1" --verbose | sed -n 's/.* failed: //p')
  said=$(printf %s "$said" | base64 -w0)
  why=$(printf %s "$why" | base64 -w0)
  printf 'api\\t%s\\t%s\\t%s\\t%s\\n' "$1" "$status" "$said" "$why"
}}
{ask}
wait
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one kube-apiserver, or curl, said."""

    apiserver: str
    status: int
    """curl's exit status (curl(1), EXIT CODES)."""
    http: int
    verify: int
    """OpenSSL's verdict on the certificate chain (verify(1), DIAGNOSTICS); 1 where curl has refused the name first."""
    text: str
    """curl's message."""
    why: str
    """The system's own word for a connection that failed."""


def parse(output: str) -> tuple[Answer, ...]:
    """The answers; none where the node has no curl. ValueError for anything else."""
    return tuple(_answer(line) for line in output.splitlines() if line != "missing")


def _answer(line: str) -> Answer:
    match line.split("\t"):
        case ["api", apiserver, status, said, why]:
            text, _, codes = base64.b64decode(said).decode(errors="replace").rpartition("\n")
            http, verify = codes.split()
            return Answer(
                apiserver=apiserver,
                status=int(status),
                http=int(http),
                verify=int(verify),
                text=next((each for each in text.splitlines() if each.startswith("curl:")), ""),
                why=next(iter(base64.b64decode(why).decode(errors="replace").splitlines()), ""),
            )
        case _:
            raise ValueError(f"the node answered {line!r}")


# ---------------------------------------------------------------------------------------------------------------
# What it means


def rows(node: str, answers: Sequence[Answer], caller: Caller, *, asked: Sequence[str], no_token: str) -> Iterator[Row]:
    """`api`: whether each is reached and trusted; `api-token`: whether it knows the node.

    `no_token`: why no token was made for a node that has not joined.
    """
    if not answers:
        message, fix = f"not asked: the node has no curl ({', '.join(asked)})", "apt-get install curl"
        yield Row(node=node, id="api", status="unknown", message=message, fix=fix)
        return
    place = {apiserver: number for number, apiserver in enumerate(asked)}
    judged = [(each, *_reached(each)) for each in sorted(answers, key=lambda each: place[each.apiserver])]
    up = [answer for answer, status, _, _ in judged if status == "ok"]
    for what in dict.fromkeys(what for _, status, what, _ in judged if status != "ok"):
        same = [each for each in judged if each[2] == what]
        status, fix = same[0][1], same[0][3]
        names = _names(answer for answer, *_ in same)
        yield Row(
            node=node,
            id="api",
            status="failed" if not up else status,
            message=f"{node} -> {names}: {what}",
            fix=fix.format(node=node, names=names),
        )
    if len(up) == len(judged):
        yield Row(node=node, id="api", status="ok", message=f"{_names(up)}: reached and trusted")
    if up:
        yield _known(node, up, caller, no_token)


def _reached(answer: Answer) -> tuple[Status, str, str]:
    """Whether it is reached and trusted, and what to do; warning: it is this API server's own trouble of the moment."""
    refused = answer.why == "Connection refused"
    match answer.status:
        case 0 if answer.http >= 500:
            return "warning", f"it is not ready ({answer.http})", "journalctl -u kube-apiserver, on {names}"
        case 0:
            return "ok", "", ""
        case 6:
            return "failed", "its name is not known on the node", "DNS or /etc/hosts on {node}"
        case 7 if refused:
            fix = "is kube-apiserver running there? If so, a firewall rejects: let {node} connect to {names}"
            return "warning", "refused", fix
        case 7:
            why = answer.why or answer.text
            return "failed", f"no way there: {why}", "a route from {node} to {names}, and no firewall that rejects"
        case 28 if "SSL" in answer.text or "Operation timed out" in answer.text:
            text = "it takes the connection, and then nothing comes (large packets lost?)"
            return "failed", text, "see path-mtu; else kube-apiserver itself, on {names}"
        case 28:
            text = f"no answer within {CONNECT_SECONDS} s (dropped by a firewall?)"
            return "failed", text, "let {node} connect to {names}"
        case 60 | 51:
            return _untrusted(answer)
        case 35:
            return "failed", f"no TLS is spoken there: {answer.text}", "is that kube-apiserver? See cluster.apiservers"
        case 58:
            return "failed", f"kubelet's client certificate can't be used: {answer.text}", "kubeworker status"
        case _:
            return "failed", answer.text or f"curl ended with status {answer.status}", "try curl on {node} by hand"


def _untrusted(answer: Answer) -> tuple[Status, str, str]:
    match answer.verify:
        case 0 | 1:
            host = answer.apiserver.rpartition(":")[0]
            text = f"its certificate is not for {host} (no such SAN)"
            return (
                "failed",
                text,
                f"add {host} to kube-apiserver's certificate, or use a name of it in cluster.apiservers",
            )
        case 9 | 10:
            text = "its certificate is not valid yet, or has expired, by the node's clock"
            return "failed", text, "the clock of {node}; else renew kube-apiserver's certificate"
        case _:
            text = f"its certificate is not of the cluster's CA: {answer.text.partition('problem: ')[2] or answer.text}"
            fix = "cluster.ca.cert must be the CA that has signed it; or something on the way replaces certificates"
            return "failed", text, fix


def _known(node: str, up: Sequence[Answer], caller: Caller, no_token: str) -> Row:
    refusing = [answer for answer in up if answer.http == 401]
    names = _names(refusing)
    match caller:
        case "nobody":
            closed = f"; without credentials it answers 401: {names}" if refusing else ""
            message = f"not asked with a token: {no_token}{closed}"
            return Row(node=node, id="api-token", status="unknown", message=message)
        case "token" if refusing:
            message = f"{node} -> {names}: its bootstrap token is not accepted (401)"
            fix = "kube-apiserver needs --enable-bootstrap-token-auth=true"
            return Row(node=node, id="api-token", status="failed", message=message, fix=fix)
        case "token":
            message = "its bootstrap token, made for this check, is accepted"
            return Row(node=node, id="api-token", status="ok", message=message)
        case "certificate" if refusing:
            message = f"{node} -> {names}: kubelet's client certificate is not accepted (401)"
            fix = "kube-apiserver's --client-ca-file must hold the cluster's CA"
            return Row(node=node, id="api-token", status="failed", message=message, fix=fix)
        case "certificate":
            message = "it has joined: kubelet's client certificate is accepted"
            return Row(node=node, id="api-token", status="ok", message=message)


def _names(answers: Iterable[Answer]) -> str:
    return ", ".join(answer.apiserver for answer in answers)
