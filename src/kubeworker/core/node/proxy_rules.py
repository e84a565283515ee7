"""What each mode of kube-proxy leaves in a node's kernel, and the shell that sees and removes it. Pure text.

kube-proxy cleans up after another mode only between nftables and the other two, at its start (platformCleanup in
cmd/kube-proxy/app/server_linux.go of 1.33); between ipvs and iptables it leaves everything, and its `--cleanup` takes
the rules of the present mode too. The names are those of pkg/proxy/{iptables,ipvs,nftables}/proxier.go.
"""

from __future__ import annotations

import ipaddress
import shlex
from typing import Literal, TypeAlias

from kubeworker.core.model import Leftover

Mode: TypeAlias = Literal["ipvs", "nftables", "iptables"]

RULES_SECONDS = 60
"""How long a kube-proxy that is healthy may take to make its first rules."""

# Extended regular expressions of chain names by table. kubelet's own (KUBE-FIREWALL, KUBE-KUBELET-CANARY,
# KUBE-IPTABLES-HINT) are in none.
_IPTABLES = {
    "nat": "KUBE-((SVC|SEP|EXT|SVL|FW)-.*|NODEPORTS|PROXY-CANARY)",
    "filter": "KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|PROXY-CANARY)",
    "mangle": "KUBE-PROXY-CANARY",
}
_IPVS = {
    "nat": "KUBE-(NODE-PORT|LOAD-BALANCER)",
    "filter": "KUBE-(NODE-PORT|SOURCE-RANGES-FIREWALL|IPVS-FILTER|IPVS-OUT-FILTER)",
    "mangle": "",
}
_BOTH = {
    "nat": "KUBE-(SERVICES|POSTROUTING|MARK-MASQ)",
    "filter": "KUBE-(FORWARD|PROXY-FIREWALL)",
    "mangle": "",
}
# Jumps to a chain of _BOTH that one of the two modes makes in a form of its own.
_IPTABLES_JUMP = "kubernetes load balancer firewall"
_IPVS_JUMP = "kube-proxy firewall rules"

# Prints what iptables-restore has to be given to take the chains away in one go: each flushed, the jumps to it deleted,
# itself deleted. Prints nothing where there are none. KUBE-MARK-MASQ stays where others jump to it: CNI plugins may be
# told to (portmap's externalSetMarkChain); kube-proxy's own --cleanup leaves it in any case.
_AWK = """
  /^:/ { name = substr($1, 2); if (chains != "" && name ~ ("^(" chains ")$")) mine[name] }
  /^-A / {
    rule[++count] = $0; from[count] = $2
    for (i = 3; i < NF; i++) if ($i == "-j" || $i == "-g") to[count] = $(i + 1)
  }
  END {
    for (i = 1; i <= count; i++)
      if (to[i] == "KUBE-MARK-MASQ" && from[i] !~ /^KUBE-/) used = 1
    for (name in mine) if (name != "KUBE-MARK-MASQ" || !used) { gone[name]; flushes = flushes ":" name " - [0:0]\\n" }
    for (name in gone) deletions = deletions "-X " name "\\n"
    for (i = 1; i <= count; i++)
      if (((to[i] in gone) || (jump != "" && index(rule[i], jump))) && !(from[i] in gone))
        jumps = jumps "-D" substr(rule[i], 3) "\\n"
    if (flushes jumps != "") printf "*%s\\n%s%s%sCOMMIT\\n", table, flushes, jumps, deletions
  }
"""


# A nft table, and iptables chains with another prefix, in which the former rules outlive kube-proxy's own cleaning.
_COPY_TABLE = "kubeworker-former"
_COPY_PREFIX = "KW-"


def leftovers(mode: Mode | None, *, kube_proxy: str, service_cidr: str, reason: str) -> tuple[Leftover, ...]:
    """The rules of every mode but this one (None: of every mode), in the order in which they can be removed.

    `kube_proxy` is the path of a kube-proxy, which is the tool at hand that can remove virtual servers; `service_cidr`
    tells the address by which the present mode's rules are known to be there.
    """
    first = _await(mode, str(ipaddress.ip_network(service_cidr)[1])) if mode else ""
    scripts: dict[Mode, tuple[str, str]] = {
        "iptables": (_iptables_present(shared=mode != "ipvs"), _iptables_remove(shared=mode != "ipvs")),
        "ipvs": (_IPVS_PRESENT, _ipvs_remove(kube_proxy)),
        "nftables": (_nft_present("kube-proxy"), _nft_remove("kube-proxy")),
    }
    # What kube-proxy removes at its start, well before it has rules of its own.
    keeps: dict[tuple[Mode, Mode | None], tuple[str, str]] = {
        ("iptables", "nftables"): (_COPY_CHAINS, _UNCOPY_CHAINS),
        ("nftables", "iptables"): (_COPY_NFT, _UNCOPY_NFT),
        ("nftables", "ipvs"): (_COPY_NFT, _UNCOPY_NFT),
    }
    found = []
    for other, (present, remove) in scripts.items():
        if other == mode:
            continue
        keep, unkeep = keeps.get((other, mode), ("", ""))
        found.append(
            Leftover(
                name=f"kube-proxy's {other} rules",
                present=present,
                remove=f"{first}{remove}{unkeep}",
                reason=reason,
                keep=keep,
                unkeep=unkeep,
                seconds=RULES_SECONDS + 60,
            )
        )
    copies = Leftover(
        name="copies of kube-proxy's former rules",
        present=_COPIES_PRESENT,
        remove=f"{first}{_UNCOPY_NFT}{_UNCOPY_CHAINS}",
        reason="left by a run that was cut short",
        seconds=RULES_SECONDS + 60,
    )
    return (*found, copies)


def _await(mode: Mode, address: str) -> str:
    """Until the present mode's rules are there, the former ones serve: /healthz answers before the first sync."""
    six = ":" in address
    tool, family = ("ip6tables", "ip6") if six else ("iptables", "ip")
    match mode:
        case "iptables":
            sign = f"{tool}-save -t nat | grep -q -e '-d {address}/.* -j KUBE-SVC-'"
        case "nftables":
            sign = f"nft list map {family} kube-proxy service-ips | grep -qF '{address} '"
        case "ipvs":
            # The virtual servers come first, and seconds before the rule that has a node's own connections to them
            # masqueraded: without it answers go to the Service's address.
            sign = f"{tool}-save -t nat | grep -q -e '--match-set KUBE-{'6-' if six else ''}CLUSTER-IP dst,dst'"
    return f"""tries=0
until {sign}; do
  tries=$((tries + 1))
  [ "$tries" -lt {RULES_SECONDS * 5} ] || {{ echo 'kube-proxy makes no rules for {address}'; exit 1; }}
  sleep 0.2
done 2> /dev/null
"""


def _chains(*groups: dict[str, str], jump: str = "") -> str:
    """POSIX sh that takes the groups' chains away, in every table of both families."""
    calls = "\n".join(
        f'  chains "$family" {table} {shlex.quote("|".join(filter(None, (group[table] for group in groups))))}'
        for table in ("nat", "filter", "mangle")
        if any(group[table] for group in groups)
    )
    return f"""chains() {{ # chains FAMILY TABLE NAMES
  rules=$("$1-save" -t "$2" 2> /dev/null | awk -v table="$2" -v chains="$3" -v jump='{jump}' '{_AWK}')
  [ -z "$rules" ] || printf '%s\\n' "$rules" | "$1-restore" -w 5 --noflush || exit 1
}}
for family in iptables ip6tables; do
  command -v "$family-save" > /dev/null || continue
{calls}
done
"""


# In the probe's own words (probe.py). The list of chains tells of most nodes that there is nothing to look for;
# where there may be something, the very tools that `remove` uses are asked.


def _iptables_present(*, shared: bool) -> str:
    # In ipvs mode the nat table has a KUBE-SERVICES too.
    both = ("KUBE-(SERVICES|POSTROUTING)", _BOTH["filter"])
    groups = (*_IPTABLES.values(), *both) if shared else (_IPTABLES["nat"], "KUBE-EXTERNAL-SERVICES")
    names = "|".join(filter(None, groups))
    signs = ["SVC-", "SEP-", "EXT-", "SVL-", "FW-", "NODEPORTS", "PROXY-CANARY", "EXTERNAL-SERVICES"]
    signs += ["SERVICES", "POSTROUTING", "FORWARD", "PROXY-FIREWALL"] if shared else []
    words = " ".join(f"'chain KUBE-{sign}'" for sign in signs)
    return f"rules_may_have {words} && iptables_chains '^:({names}) '"


def _iptables_remove(*, shared: bool) -> str:
    return _chains(_IPTABLES, _BOTH) if shared else _chains(_IPTABLES, jump=_IPTABLES_JUMP)


_IPVS_PRESENT = """[ -e /sys/class/net/kube-ipvs0 ] ||
  { [ -d /sys/module/ip_set ] && ipset list -n | grep -q '^KUBE-'; } ||
  { rules_may_have 'chain KUBE-LOAD-BALANCER ' &&
    { iptables -w 5 -t nat -S KUBE-LOAD-BALANCER || ip6tables -w 5 -t nat -S KUBE-LOAD-BALANCER; }; }"""


def _ipvs_remove(kube_proxy: str) -> str:
    # Virtual servers are removed over netlink, for which a plain node has no command but kube-proxy's own --cleanup.
    # That would take the other mode's iptables rules too, so it runs where the iptables it finds does nothing.
    return f"""{_chains(_IPVS, jump=_IPVS_JUMP)}
servers() {{ grep -q -E '^(TCP|UDP|SCTP) ' /proc/net/ip_vs 2> /dev/null; }}
if [ -e /sys/class/net/kube-ipvs0 ] && servers; then
  idle=$(mktemp -d) || exit 1
  for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    printf '#!/bin/sh\\nexit 0\\n' > "$idle/$tool" && chmod 755 "$idle/$tool"
  done
  PATH=$idle {shlex.quote(kube_proxy)} --cleanup > "$idle/said" 2>&1
  ! servers || {{ tail -n 3 "$idle/said"; echo 'virtual servers are left; ipvsadm --clear removes them'; exit 1; }}
  rm -rf "$idle"
fi
[ ! -e /sys/class/net/kube-ipvs0 ] || ip link delete kube-ipvs0 || exit 1
! command -v ipset > /dev/null || ipset list -n | sed -n 's/^KUBE-/destroy &/p' | ipset restore || exit 1
"""


def _nft_present(table: str) -> str:
    return f"""{{ rules_may_have 'table ip {table} ' 'table ip6 {table} ' &&
  {{ nft list table ip {table} || nft list table ip6 {table}; }}; }}"""


def _nft_remove(table: str) -> str:
    return f"""for family in ip ip6; do
  ! nft list table "$family" {table} > /dev/null 2>&1 || nft delete table "$family" {table} || exit 1
done
"""


# ---------------------------------------------------------------------------------------------------------------
# Copies: the same hooks at the same priorities, after the originals. Of two NAT chains at one hook the first one that
# knows the connection decides.

_UNCOPY_NFT = _nft_remove(_COPY_TABLE)
_UNCOPY_CHAINS = _chains(dict.fromkeys(("nat", "filter", "mangle"), f"{_COPY_PREFIX}.*"))

_COPY_NFT = f"""{_UNCOPY_NFT}for family in ip ip6; do
  rules=$(nft list table "$family" kube-proxy 2> /dev/null) || continue
  printf '%s\\n' "$rules" | sed '1s/ kube-proxy {{/ {_COPY_TABLE} {{/' | nft -f - || exit 1
done
"""

# The jumps from the kernel's own chains are appended, so that they count once the originals are gone.
_COPY_AWK = """
  /^:/ { name = substr($1, 2); if (name ~ ("^(" chains ")$")) mine[name] }
  /^-A / {
    to = ""; for (i = 3; i < NF; i++) if ($i == "-j" || $i == "-g") to = $(i + 1)
    if (($2 in mine) || (to in mine)) rules = rules $0 "\\n"
  }
  END {
    for (name in mine) heads = heads ":" name " - [0:0]\\n"
    text = heads rules; gsub(/KUBE-/, prefix, text)
    if (text != "") printf "*%s\\n%sCOMMIT\\n", table, text
  }
"""
_COPY_CALLS = "\n".join(
    f'  copy "$family" {table} {shlex.quote("|".join((_IPTABLES[table], _BOTH[table])))}' for table in ("nat", "filter")
)
_COPY_CHAINS = f"""{_UNCOPY_CHAINS}
copy() {{ # copy FAMILY TABLE NAMES
  rules=$("$1-save" -t "$2" 2> /dev/null | awk -v table="$2" -v chains="$3" -v prefix={_COPY_PREFIX} '{_COPY_AWK}')
  [ -z "$rules" ] || printf '%s\\n' "$rules" | "$1-restore" -w 5 --noflush || exit 1
}}
for family in iptables ip6tables; do
  command -v "$family-save" > /dev/null || continue
{_COPY_CALLS}
done
"""
_COPIES_PRESENT = f"""{_nft_present(_COPY_TABLE)} ||
  {{ rules_may_have 'chain {_COPY_PREFIX}' && iptables_chains '^:{_COPY_PREFIX}'; }}"""
