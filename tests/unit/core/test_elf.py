from __future__ import annotations

import platform
import struct
import sys
from pathlib import Path

import pytest

from kubeworker.core.artifacts import elf

SHELL = Path("/bin/sh").resolve()


def read(content: bytes) -> elf.Read:
    return lambda offset, length: content[offset : offset + length]


def static_program(machine: int) -> bytes:
    """A header and one PT_LOAD segment, as a linker writes them for a static program."""
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 120, 120, 0x1000)
    return (
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400078, 64, 0, 0, 64, len(segment), 1, 0, 0, 0)
        + segment
    )


def test_this_machines_shell_needs_libc_and_is_for_this_machine() -> None:
    found = elf.parse(read(SHELL.read_bytes()))
    assert found is not None
    assert found.architecture == {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    assert "libc" in [elf.library(name) for name in found.needed]
    assert found.interpreter
    assert not found.static


def test_the_interpreter_is_read_like_any_other_program() -> None:
    assert elf.parse(read(Path(sys.executable).resolve().read_bytes())) is not None


@pytest.mark.parametrize(("machine", "name"), [(0x3E, "amd64"), (0xB7, "arm64"), (0x102, "machine 0x102")])
def test_a_static_program_of_any_machine(machine: int, name: str) -> None:
    found = elf.parse(read(static_program(machine)))
    assert found == elf.Elf(architecture=name, interpreter=False, needed=())
    assert found.static


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"<html>" * 20, b"\x1f\x8b" + bytes(100), b"\x7fELF\x01\x01" + bytes(90)]
)
def test_what_is_no_64_bit_elf_file_is_not_taken_for_one(content: bytes) -> None:
    assert elf.parse(read(content)) is None


@pytest.mark.parametrize("length", [10, 63, 64, 100])
def test_a_cut_file_is_not_taken_for_a_program(length: int) -> None:
    assert elf.parse(read(SHELL.read_bytes()[:length])) is None
