"""System calls about namespaces and privileges that Python 3.11's ``os`` lacks. Each raises OSError
as ``os`` does.
"""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p
from typing import Any, Final

from fsimpl.passthrough.oslib import call
from harness.syscall_numbers import number
from vfs import abi

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_SET_CHILD_SUBREAPER: Final = 36
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    return function


_unshare = _function("unshare", c_int)
_mount = _function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _function("umount2", c_char_p, c_int)
_pivot_root = _function("pivot_root", c_char_p, c_char_p)
_prctl = _function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_syscall: Final[Any] = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = c_long


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _at(path: str, function: Any, *arguments: object) -> None:
    try:
        call(function, *arguments)
    except OSError as error:
        error.filename = path
        raise


def unshare(flags: int) -> None:
    call(_unshare, flags)


def mount(
    source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None
) -> None:
    words = (_encoded(source), os.fsencode(target), _encoded(fstype), flags, _encoded(data))
    _at(target, _mount, *words)


def umount2(target: str, flags: int) -> None:
    _at(target, _umount2, os.fsencode(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    _at(new_root, _pivot_root, os.fsencode(new_root), os.fsencode(put_old))


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """Return a descriptor with close-on-exec."""
    flags |= os.O_CLOEXEC
    return call(_syscall, number("open_tree"), dirfd, os.fsencode(path), c_uint(flags))


def move_mount(from_fd: int, to_fd: int, to_path: str, flags: int) -> None:
    """The mount that ``from_fd`` stands for goes to ``to_path``."""
    flags |= abi.MOVE_MOUNT_F_EMPTY_PATH
    path = os.fsencode(to_path)
    call(_syscall, number("move_mount"), from_fd, b"", to_fd, path, c_uint(flags))


def mount_setattr(fd: int, attr_set: int) -> None:
    """Set MOUNT_ATTR_* on the mount that ``fd`` stands for and all below. Raises: ENOSYS < 5.12."""
    attr = struct.pack("=QQQQ", attr_set, 0, 0, 0)
    flags = c_uint(abi.AT_EMPTY_PATH | abi.AT_RECURSIVE)
    call(_syscall, number("mount_setattr"), fd, b"", flags, attr, c_size_t(len(attr)))


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    return call(_prctl, option, arg2, arg3, 0, 0)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process signal ``number`` when the thread that forked it ends.

    Forgotten by the kernel when the process changes its user or gains capabilities.
    """
    prctl(PR_SET_PDEATHSIG, number)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a descriptor of ours, with close-on-exec, of the process's ``fd``."""
    return call(_syscall, number("pidfd_getfd"), pidfd, fd, 0)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", c_void_p))


def seccomp_set_filter(program: bytes, flags: int) -> int:
    """Install an assembled ``program``: 0, or with NEW_LISTENER the listener's descriptor.

    Raises: EACCES without no_new_privs and CAP_SYS_ADMIN, EINVAL for a malformed program, ESRCH
    when TSYNC met a thread with filters of its own.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    result = call(
        _syscall, number("seccomp"), SECCOMP_SET_MODE_FILTER, c_uint(flags), ctypes.byref(prog)
    )
    if flags & SECCOMP_FILTER_FLAG_TSYNC and result:
        raise ProcessLookupError(3, f"thread {result} has a filter of its own")
    return result
