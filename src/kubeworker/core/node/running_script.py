"""What `status` alone looks at on a node: who may read its keys, what its software was started with, the API proxy.

One shell text for the same channel as `check_script`'s; its answer is lines that begin with `look` and a tab. It only
looks. POSIX sh with coreutils, findutils, grep, sed and systemd.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from kubeworker.core.outlook import Running

WORD = "look\t"

KEY_FOLDERS = ("/etc/kubernetes", "/etc/containerd", "/root/.kube", "/var/lib/kubelet/pki")
"""Where kubelet's, kube-proxy's, mirrors' and other people's keys and kubeconfigs lie; some need not be there."""

_HOLDS_KEYS = r"PRIVATE KEY-----|client-key-data:|^kind: *Config$|^ *(- )?token:"
"""A private key, or a kubeconfig: even one that only names the key's path is nobody's to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSecret:
    """A key or kubeconfig that not root alone may read or change."""

    path: str
    mode: int
    owner: str
    changed: float
    """When mode, owner or content was last changed: seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedServer:
    """An API server, as the node's own probe has it (core/api_proxy/apiserver_probe.py)."""

    address: str
    ready: bool
    """Whether connections go to it."""
    answer: str
    """Its last: 200, 401, refused, timeout, ..."""
    since: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The answer."""

    secrets: tuple[OpenSecret, ...] = ()
    servers: tuple[ProxiedServer, ...] = ()
    running: Running = field(default_factory=Running)
    """Without what the API and the plan's probe tell."""


def script(*, bin_dir: str, folders: Iterable[str] = KEY_FOLDERS) -> str:
    """The shell text."""
    return f"""look() {{ printf 'look\\t%s\\t%s\\n' "$1" "$2"; }}
find {shlex.join(folders)} -xdev -type f -size -64k \\( -perm /077 -o ! -user root -o ! -group root \\) -print0 \\
  2>/dev/null |
  xargs -0 -r grep -lZE -e {shlex.quote(_HOLDS_KEYS)} -- 2>/dev/null |
  xargs -0 -r stat --printf 'look\\tsecret\\t%a\\t%U:%G\\t%Z\\t%n\\n' -- 2>/dev/null
if [ -r /run/kube-nginx/status ]; then
  while IFS= read -r line; do look server "$line"; done < /run/kube-nginx/status
fi
pid=$(systemctl show --property=MainPID --value -- kubelet.service)
[ ! -r "/proc/${{pid:-0}}/cmdline" ] ||
  look flags "$(tr '\\0' '\\n' < "/proc/$pid/cmdline" | sed -n 's/^--*\\([a-zA-Z0-9_-]*\\).*/\\1/p' | tr '\\n' ' ')"
# kubelet's first words of this start, those of its flags among them. head ends journalctl.
invocation=$(systemctl show --property=InvocationID --value -- kubelet.service)
[ -z "$invocation" ] || journalctl -q --no-pager -o cat "_SYSTEMD_INVOCATION_ID=$invocation" 2>/dev/null | head -n 60 |
  sed -n 's/^Flag \\(--[^ ]*\\) has been deprecated.*/look\\ttold\\tkubelet: flag \\1 has been deprecated/p'
# Names of keys only: their values may be secrets.
[ ! -r /etc/containerd/config.toml ] || sed -n -E \\
  -e 's/^ *version *= *([0-9]+).*/look\\tconfig\\t\\1/p' \\
  -e 's/^ *(bin_dir|enable_cdi) *=.*/look\\tkey\\t\\1/p' \\
  -e 's/^ *\\[(metrics)\\].*/look\\tkey\\t\\1/p' \\
  -e 's/^ *\\[.*registry"?\\."?(mirrors|configs|auths).*/look\\tkey\\t\\1/p' /etc/containerd/config.toml
if [ -x {bin_dir}/ctr ] && [ -S /run/containerd/containerd.sock ]; then
  timeout 10 {bin_dir}/ctr deprecations list --format json 2>/dev/null | tr -d '\\n' | base64 -w 0 |
    sed 's/^..*$/look\\tdeprecations\\t&\\n/'
fi
[ ! -r /etc/kubernetes/kube-proxy-config.yaml ] ||
  sed -n 's/^mode: *"*\\([a-z]*\\)"*.*/look\\tmode\\t\\1/p' /etc/kubernetes/kube-proxy-config.yaml
"""


def parse(lines: Iterable[str]) -> Seen:
    """Read the lines that begin with WORD; what is not understood is passed over: all of it is for information."""
    secrets: list[OpenSecret] = []
    servers: list[ProxiedServer] = []
    flags: set[str] = set()
    keys: set[str] = set()
    told: list[str] = []
    mode, config = "", 0
    for line in lines:
        match line.removeprefix(WORD).split("\t"):
            case ["secret", bits, owner, changed, *name]:
                path = "\t".join(name)
                secrets.append(OpenSecret(path=path, mode=int(bits, 8), owner=owner, changed=float(changed)))
            case ["server", address, state, answer, since] if since.isdigit():
                servers.append(
                    ProxiedServer(address=address, ready=state == "ready", answer=answer, since=float(since))
                )
            case ["flags", names]:
                flags |= set(names.split())
            case ["told", text]:
                told.append(text)
            case ["config", number]:
                config = config or int(number)
            case ["key", name]:
                keys.add(name)
            case ["deprecations", encoded]:
                told += _deprecations(encoded)
            case ["mode", name]:
                mode = name
            case _:
                pass
    running = Running(
        proxy_mode=mode,
        containerd_config=config,
        containerd_keys=frozenset(keys),
        kubelet_flags=frozenset(flags),
        told=tuple(dict.fromkeys(told)),
    )
    return Seen(secrets=tuple(secrets), servers=tuple(servers), running=running)


def _deprecations(encoded: str) -> list[str]:
    """The messages of `ctr deprecations list --format json`."""
    text = base64.b64decode(encoded).decode(errors="replace")
    return [f"containerd: {message}" for message in re.findall(r'"[mM]essage": *"((?:[^"\\]|\\.)*)"', text)]
