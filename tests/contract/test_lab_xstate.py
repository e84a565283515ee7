"""The library that user-mode-linux is started with: registers are set by one who knows the first of them only."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kubeworker.lab import xstate

TRACER = r"""
#include <elf.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KNOWN = 576, XMM0 = 160, STATE = 512 }; /* of the XSAVE area: legacy part, header; Intel SDM, volume 1, 13.4 */

int main(void) {
  unsigned char registers[KNOWN], again[KNOWN];
  struct iovec all = {registers, KNOWN}, seen = {again, KNOWN};
  pid_t child = fork();
  if (!child) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); _exit(7); }
  int status;
  waitpid(child, &status, 0);
  if (ptrace(PTRACE_GETREGSET, child, NT_X86_XSTATE, &all)) return 2;
  memset(registers + XMM0, 0x5a, 16);
  registers[STATE] |= 2; /* SSE is in use */
  if (ptrace(PTRACE_SETREGSET, child, NT_X86_XSTATE, &all)) return perror("set"), kill(child, SIGKILL), 3;
  if (ptrace(PTRACE_GETREGSET, child, NT_X86_XSTATE, &seen)) return 4;
  if (memcmp(again + XMM0, registers + XMM0, 16)) return 5;
  ptrace(PTRACE_CONT, child, 0, 0);
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 6;
}
"""


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("tracer") / "tracer"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-"], input=TRACER, text=True, check=True)
    return program


def test_registers_that_are_known_in_part_are_set_and_the_program_goes_on(tracer: Path, tmp_path: Path) -> None:
    library = xstate.library(tmp_path)
    done = subprocess.run([tracer], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_host_itself_refuses_them(tracer: Path) -> None:
    done = subprocess.run([tracer], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "set: Bad address\n"), "the library would not be needed"
