"""The system calls about namespaces that Python lacks."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

from harness.errors import UsageError

EXIT_OURS: Final = 125
"""Not the command's: we failed, and have said so in one line on standard error."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41}

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class ContainerError(UsageError):
    """This host does not let us; the message is one line that says what to do."""


def tell(message: str) -> None:
    """Write one line to standard error, from whichever of our processes this is."""
    line = message.replace("\n", "\\n").replace("\r", "\\r")
    print(f"dentry: {line}", file=sys.stderr, flush=True)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    words = (os.fsencode(source), os.fsencode(target), fstype.encode())
    _check(_LIBC.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)), target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_LIBC.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_LIBC.syscall(number, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_LIBC.unshare(flags))


def die_with_parent(number: int) -> None:
    """Have the kernel send this process signal `number` when the thread that forked it ends.

    Forgotten by the kernel when the process changes its user or gains capabilities.
    """
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def no_new_privileges() -> None:
    """Have set-id bits and file capabilities give nothing to this process and its children."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
