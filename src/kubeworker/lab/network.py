"""The lab's network: one bridge per lab with a /24 of its own. No address translation, no firewall rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kubeworker.errors import LabError
from kubeworker.lab import host

_LINKS = Path("/sys/class/net")


def used_networks() -> tuple[str, ...]:
    """Every IPv4 network that this host has a route to or an address in, the default route apart."""
    routes: list[dict[str, Any]] = json.loads(host.run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    return tuple(route["dst"] for route in routes if route["dst"] not in {"default", "0.0.0.0/0"})


def ensure_bridge(name: str, gateway: str) -> None:
    """The bridge exists, is up, and has the lab's first address."""
    if not (_LINKS / name).exists():
        host.run(["ip", "link", "add", name, "type", "bridge"])
    wanted = f"{gateway}/24"
    links: list[dict[str, Any]] = json.loads(host.run(["ip", "-json", "address", "show", "dev", name]))
    have = {f"{address['local']}/{address['prefixlen']}" for link in links for address in link.get("addr_info", ())}
    if wanted not in have:
        host.run(["ip", "address", "add", wanted, "dev", name])
    host.run(["ip", "link", "set", name, "up"])


def ensure_tap(name: str, bridge: str) -> None:
    """A tap device on the bridge, up; the process that opens it is its machine's network interface (tuntap)."""
    if not (_LINKS / name).exists():
        host.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"])
    host.run(["ip", "link", "set", name, "master", bridge, "up"])


def remove_link(name: str) -> None:
    """The network interface is gone; no error if it never was."""
    if not (_LINKS / name).exists():
        return
    try:
        host.run(["ip", "link", "delete", name])
    except LabError:
        # The kernel removes a veth by itself when its other end's namespace dies.
        if (_LINKS / name).exists():
            raise


def links(prefix: str) -> tuple[str, ...]:
    """Names of this host's interfaces that begin so."""
    return tuple(sorted(link.name for link in _LINKS.iterdir() if link.name.startswith(prefix)))
