"""What Linux says of processes and sockets in /proc, read without a process of one's own (proc(5))."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping

_ESTABLISHED = "01"
"""TCP_ESTABLISHED (include/net/tcp_states.h)."""


def established(text: str, port: int) -> dict[int, tuple[int, str]]:
    """Of /proc/PID/net/tcp, the established IPv4 connections to that remote port: socket inode -> local port and
    remote address (proc_pid_net(5)). Addresses are there as the little-endian machines have them that this runs on.
    """
    found: dict[int, tuple[int, str]] = {}
    for line in text.splitlines()[1:]:
        words = line.split()
        (local, remote), state, inode = words[1:3], words[3], int(words[9])
        address, _, remote_port = remote.partition(":")
        if state == _ESTABLISHED and int(remote_port, 16) == port:
            number = ipaddress.IPv4Address(bytes.fromhex(address)[::-1])
            found[inode] = (int(local.partition(":")[2], 16), str(number))
    return found


def socket_inodes(links: Collection[str]) -> frozenset[int]:
    """The sockets among what /proc/PID/fd points to."""
    return frozenset(int(link[len("socket:[") : -1]) for link in links if link.startswith("socket:["))


def start_ticks(stat: str) -> int:
    """When the process of this /proc/PID/stat began, in clock ticks since the kernel's start (proc_pid_stat(5))."""
    # The name, second and in parentheses, may hold anything; starttime is the 22nd field.
    return int(stat.rpartition(")")[2].split()[19])


def environment(text: bytes) -> Mapping[str, str]:
    """The variables in /proc/PID/environ."""
    pairs = (entry.partition("=") for entry in text.decode(errors="replace").split("\0") if "=" in entry)
    return {name: value for name, _, value in pairs}
