"""Just enough of ELF (elf(5)) to say which machine a binary is for and which shared libraries it needs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Read: TypeAlias = Callable[[int, int], bytes]
"""(offset, length) -> bytes of the file; fewer at its end."""

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_MACHINES = {0x03: "386", 0x28: "arm", 0x3E: "amd64", 0xB7: "arm64", 0xF3: "riscv64", 0x15: "ppc64le", 0x16: "s390x"}
"""e_machine in Go's spelling of architectures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """What the headers of a 64-bit little-endian ELF file say."""

    architecture: str
    """amd64, arm64, ...; `machine 0x..` for one that has no name here."""
    interpreter: bool
    """Whether the kernel starts a dynamic loader for it."""
    needed: tuple[str, ...]
    """DT_NEEDED, in the file's order: libcrypt.so.1, libc.so.6"""

    @property
    def static(self) -> bool:
        """It needs nothing from the machine but the kernel."""
        return not self.interpreter and not self.needed


def parse(read: Read) -> Elf | None:
    """The file's headers; None when it is no 64-bit little-endian ELF file or is cut short."""
    head = read(0, 64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return None
    machine = struct.unpack_from("<H", head, 18)[0]
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    table = read(offset, size * count)
    if size < 56 or len(table) < size * count:
        return None
    segments = [_Segment.unpack(table, index * size) for index in range(count)]
    return Elf(
        architecture=_MACHINES.get(machine, f"machine {machine:#x}"),
        interpreter=any(segment.kind == _PT_INTERP for segment in segments),
        needed=tuple(_needed(read, segments)),
    )


def library(name: str) -> str:
    """A library's name as ldd shows it, without version: libcrypt.so.1 -> libcrypt."""
    return name.partition(".so")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int

    @classmethod
    def unpack(cls, table: bytes, at: int) -> _Segment:
        kind, _flags, offset, address, _physical, size = struct.unpack_from("<IIQQQQ", table, at)
        return cls(kind=kind, offset=offset, address=address, size=size)


def _needed(read: Read, segments: list[_Segment]) -> Iterator[str]:
    for dynamic in (segment for segment in segments if segment.kind == _PT_DYNAMIC):
        entries = _dynamic(read(dynamic.offset, dynamic.size))
        strings = next((_file_offset(value, segments) for tag, value in entries if tag == _DT_STRTAB), None)
        if strings is None:
            continue
        for tag, value in entries:
            if tag == _DT_NEEDED:
                yield read(strings + value, 256).partition(b"\0")[0].decode("ascii", "replace")


def _dynamic(table: bytes) -> list[tuple[int, int]]:
    entries: list[tuple[int, int]] = []
    for tag, value in struct.iter_unpack("<qQ", table[: len(table) // 16 * 16]):
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    return entries


def _file_offset(address: int, segments: list[_Segment]) -> int | None:
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    return None
