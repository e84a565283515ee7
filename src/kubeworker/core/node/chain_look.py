"""The words of shell in which a Leftover asks for chains (`present`): in the probe, and alone in verify's check."""

from __future__ import annotations

ASKED = r"""rules_may_have() { # rules_may_have TEXTS...: whether one is in the list of chains, or nobody can tell
  [ "$rules" != '?' ] || return 0
  for text; do case $rules in *"$text"*) return 0 ;; esac; done
  return 1
}
iptables_chains() { # iptables_chains PATTERN: whether a line matches that declares a chain of kube-proxy's or a copy
  [ -n "${saved+once}" ] || saved=$({ iptables-save; ip6tables-save; } | grep '^:K')
  printf '%s\n' "$saved" | grep -q -E "$1"
}"""
"""$rules is nft's list of chains, or `?` where it was not asked or can't tell: then iptables is."""

ALONE = f"rules='?'\n{ASKED}"
"""The same for a script that has no such list."""
