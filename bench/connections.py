"""Which machines are connected to, counted on the wire: TCP SYN packets to port 22 on the lab's bridge."""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
# Packets that this host sends are shown to sockets of every protocol only (dev_queue_xmit_nit in net/core/dev.c).
_SYN, _ACK = 0x02, 0x10


@contextlib.contextmanager
def counted(bridge: str, port: int = 22) -> Iterator[collections.Counter[str]]:
    """Connections by destination address while the context lasts; of every process of this host (packet(7))."""
    seen: collections.Counter[str] = collections.Counter()
    over = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as tap:
        tap.bind((bridge, _ETH_P_ALL))
        tap.settimeout(0.1)

        def listen() -> None:
            while True:
                try:
                    packet, sender = tap.recvfrom(128)
                except TimeoutError:
                    # What is still in the buffer when the context ends belongs to it.
                    if over.is_set():
                        return
                    continue
                address = opened(packet, port) if sender[1] == _ETH_P_IP else ""
                if address:
                    seen[address] += 1

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join(timeout=10)


def opened(packet: bytes, port: int) -> str:
    """The address that a packet opens a TCP connection to, at this port; empty for any other packet (RFC 791, 9293)."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return ""
    header = 4 * (packet[0] & 0x0F)
    if len(packet) < header + 14:
        return ""
    (destination_port,) = struct.unpack_from("!H", packet, header + 2)
    flags = packet[header + 13]
    if destination_port != port or not flags & _SYN or flags & _ACK:
        return ""
    return socket.inet_ntoa(packet[16:20])
