"""What a service of `Type=notify` tells systemd (sd_notify(3)): a datagram to the socket that it was given."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Tell `READY=1` or `WATCHDOG=1`; does nothing for a process that no service manager waits for.

    A manager that does not listen is no trouble of the service's: it would end it by itself.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            # An abstract socket's name begins with a zero byte, which systemd writes as @.
            channel.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError:
            return
