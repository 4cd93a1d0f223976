"""From a list of allowed calls to an installed filter. Linux: seccomp(2).

The filter is a binary search over the numbers, so that a call costs about eight comparisons; calls
that are allowed whatever their arguments cost nothing, because the kernel finds them out once and
remembers.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from errno import EACCES, EINVAL, ENOSYS
from typing import Any, Final

from harness import linux
from harness.sandbox.bpf import JEQ_K, JGE_K, Program
from harness.sandbox.errors import SandboxError
from harness.syscall_numbers import AUDIT_ARCH, names, numbers

LOG = logging.getLogger(__name__)

RET_KILL_PROCESS: Final = 0x80000000
RET_TRAP: Final = 0x00030000
RET_ERRNO: Final = 0x00050000
RET_USER_NOTIF: Final = 0x7FC00000
RET_LOG: Final = 0x7FFC0000
RET_ALLOW: Final = 0x7FFF0000

ACTIONS: Final = {"kill": RET_KILL_PROCESS, "trap": RET_TRAP, "log": RET_LOG}

# struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments.
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = 16
# The x32 ABI has the same arch as x86-64, and numbers of its own from here on.
_X32: Final = 0x40000000

TRAP_STATUS: Final = 128 + signal.SIGSYS


@dataclass(frozen=True)
class Check:
    """A condition on an argument: its low 32 bits under ``mask`` are one of ``values``.

    The kernel reads no more than 32 bits of what is checked here: ioctl and fcntl commands,
    protections, options, and the flags of clone(2).
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True)
class Policy:
    """What a process may call. Calls that are nowhere here get the action that was asked for."""

    allowed: frozenset[str]
    checks: Mapping[str, tuple[Check, ...]]
    """All of a call's must hold."""
    refused: Mapping[str, int]
    """Calls that are answered with this errno, whatever the action."""


def compile_filter(policy: Policy, machine: str, action: int) -> bytes:
    """The program for ``machine``; ``action`` is a RET_* for what the policy does not allow.

    Calls of another architecture than ``machine`` end the process, except that ``RET_LOG`` lets
    them through as it does everything. Names that ``machine`` lacks are passed over.

    Raises:
        SandboxError: an unknown machine.
    """
    table = numbers(machine)
    program = Program()
    program.load(_ARCH)
    program.jump_if(JEQ_K, AUDIT_ARCH[machine], "native", "")
    program.ret(RET_LOG if action == RET_LOG else RET_KILL_PROCESS)
    program.label("native")
    program.load(_NR)
    if machine == "x86_64":
        program.jump_if(JGE_K, _X32, "", "search")
        program.ret(RET_LOG if action == RET_LOG else RET_KILL_PROCESS)
        program.label("search")
    wanted = policy.allowed | policy.checks.keys() | policy.refused.keys()
    calls = sorted((table[name], name) for name in wanted if name in table)
    _search(program, calls, policy, action)
    return program.assemble()


def _search(program: Program, calls: list[tuple[int, str]], policy: Policy, action: int) -> None:
    if len(calls) == 1:
        number, name = calls[0]
        program.jump_if(JEQ_K, number, f"call {name}", "")
        program.ret(action)
        program.label(f"call {name}")
        _verdict(program, name, policy, action)
        return
    middle = len(calls) // 2
    right = f"from {calls[middle][1]}"
    program.jump_if(JGE_K, calls[middle][0], "", f"below {right}")
    program.jump(right)
    program.label(f"below {right}")
    _search(program, calls[:middle], policy, action)
    program.label(right)
    _search(program, calls[middle:], policy, action)


def _verdict(program: Program, name: str, policy: Policy, action: int) -> None:
    if name in policy.refused:
        program.ret(RET_ERRNO | policy.refused[name])
        return
    refuse = f"refuse {name}"
    for index, check in enumerate(policy.checks.get(name, ())):
        program.load(_ARGS + 8 * check.argument)
        if check.mask != 0xFFFFFFFF:
            program.mask(check.mask)
        passed = f"{name} {index}"
        for value in check.values[:-1]:
            program.jump_if(JEQ_K, value, passed, "")
        program.jump_if(JEQ_K, check.values[-1], passed, refuse)
        program.label(passed)
    program.ret(RET_ALLOW)
    if name in policy.checks:
        program.label(refuse)
        program.ret(action)


def install(policy: Policy, mode: str) -> None:
    """Bind all threads of this process to ``policy``, for good.

    What it does not allow ``kill``s the process, is written to the kernel's ``log`` and done, or
    ``trap``s: the call's name goes to stderr and the process exits with status 159. ``none``
    installs nothing.

    Raises:
        SandboxError: a kernel without seccomp, or a thread with filters of its own.
    """
    if mode == "none":
        return
    program = compile_filter(policy, platform.machine(), ACTIONS[mode])
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if mode == "trap":
        _report_traps()
    try:
        linux.seccomp_set_filter(program, linux.SECCOMP_FILTER_FLAG_TSYNC)
    except OSError as error:
        if error.errno in (ENOSYS, EINVAL):
            raise SandboxError(
                "this kernel has no seccomp filters: run with --seccomp none"
            ) from None
        if error.errno == EACCES:
            raise SandboxError("seccomp filters are not permitted here") from None
        raise SandboxError(f"seccomp: {error.strerror}") from None


# SIGSYS. Python's own handlers run later, in another thread and without the siginfo.

_HANDLER: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_SA_SIGINFO: Final = 4
_SI_SYSCALL: Final = 24


class _SigAction(ctypes.Structure):
    """glibc's struct sigaction."""

    _fields_ = (
        ("handler", _HANDLER),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_installed: list[Any] = []
"""Keeps what the kernel calls from being freed."""


def _report_traps() -> None:
    table = names(platform.machine())

    def report(_signal: int, info: int, _context: int) -> None:
        try:
            number = ctypes.c_int.from_address(info + _SI_SYSCALL).value
            name = table.get(number, "?")
            thread = threading.current_thread().name
            os.write(2, f"seccomp: {name} ({number}) refused in {thread}\n".encode())
        finally:
            os._exit(TRAP_STATUS)

    action = _SigAction(_HANDLER(report), flags=_SA_SIGINFO)
    _installed.append(action)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(signal.SIGSYS, ctypes.byref(action), None):
        raise SandboxError(f"sigaction: {os.strerror(ctypes.get_errno())}")
