"""A host's kernel without modules, as its machines should see it.

On such a kernel (CONFIG_MODULES off: small virtual machines, sandboxes) nothing says which features are there:
/lib/modules does not exist. Programs that look for a module then take a feature that is there for absent.
"""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

_OPTIONS = {
    "ip_tables": "IP_NF_IPTABLES",
    "iptable_nat": "IP_NF_NAT",
    "iptable_mangle": "IP_NF_MANGLE",
    "iptable_raw": "IP_NF_RAW",
    "iptable_filter": "IP_NF_FILTER",
    "ip6_tables": "IP6_NF_IPTABLES",
    "ip6table_mangle": "IP6_NF_MANGLE",
    "ip6table_raw": "IP6_NF_RAW",
    "ip6table_filter": "IP6_NF_FILTER",
    "xt_socket": "NETFILTER_XT_MATCH_SOCKET",
    "xt_comment": "NETFILTER_XT_MATCH_COMMENT",
    "xt_mark": "NETFILTER_XT_MARK",
    "xt_TPROXY": "NETFILTER_XT_TARGET_TPROXY",
    "xt_CT": "NETFILTER_XT_TARGET_CT",
    "ip_set": "IP_SET",
}
"""Modules that Cilium's agent looks for (pkg/datapath/iptables), and the kernel option that builds each."""


def builtin(config: str) -> str:
    """The text of modules.builtin for a kernel of this configuration, of the modules above."""
    built_in = set(re.findall(r"^CONFIG_(\w+)=y$", config, flags=re.MULTILINE))
    return "".join(f"kernel/net/netfilter/{name}.ko\n" for name, option in _OPTIONS.items() if option in built_in)


def machine_files() -> dict[str, bytes]:
    """Files that tell a machine what this host's kernel has built in; none where the kernel has modules."""
    config = Path("/proc/config.gz")
    if Path("/proc/modules").exists() or has_modules() or not config.exists():
        return {}
    text = builtin(gzip.decompress(config.read_bytes()).decode())
    folder = f"/usr/lib/modules/{os.uname().release}"
    return {f"{folder}/modules.builtin": text.encode(), f"{folder}/modules.order": b""}


def has_modules() -> bool:
    """Whether this host has the running kernel's modules, which machines then see."""
    return Path("/lib/modules", os.uname().release).is_dir()
