"""A user-mode-linux of 2022 on processors of today: registers that are larger than it knows.

It has room for 2,696 bytes of each program's registers (HOST_FP_SIZE of Linux 6.1), set by PTRACE_SETREGSET. The host
takes nothing but all of them there (xstateregs_set of arch/x86/kernel/fpu/regset.c), and with AMX they are more: the
machine went off at its first program, with `put_fp_registers` on its console. Newer versions ask for the size
(host_fp_size). Here what it does not know stays as it was; programs on the machine have no AMX.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from kubeworker.lab import cache, host

_SOURCE = r"""
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char all[1 << 16] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...) {
  va_list list;
  va_start(list, request);
  pid_t pid = va_arg(list, pid_t);
  void *address = va_arg(list, void *), *data = va_arg(list, void *);
  va_end(list);
  if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
    long word; /* which the system call stores, and the function returns: ptrace(2) */
    if (syscall(SYS_ptrace, request, pid, address, &word) < 0) return -1;
    errno = 0;
    return word;
  }
  long status = syscall(SYS_ptrace, request, pid, address, data);
  if (status == 0 || errno != EFAULT || request != PTRACE_SETREGSET || (long)address != NT_X86_XSTATE) return status;
  struct iovec *known = data, whole = {all, sizeof all};
  if (known->iov_len > sizeof all || syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &whole) < 0) return -1;
  memcpy(all, known->iov_base, known->iov_len);
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, address, &whole);
}
"""


def library(folder: Path) -> Path:
    """The library that the kernel's process is to be started with (LD_PRELOAD), compiled now if the cache has none."""

    def make(target: Path) -> None:
        host.run(["gcc", "-O2", "-shared", "-fPIC", "-x", "c", "-o", target, "-"], stdin=_SOURCE)

    digest = hashlib.sha256(_SOURCE.encode()).hexdigest()[:16]
    return cache.once(folder / f"xstate-{digest}.so", make)
