"""Finds out what a command calls: ``python -m harness.sandbox.collect [-o FILE] -- COMMAND``.

The command runs under a filter that sends every call to us before it is done (seccomp's user
notifications), which needs neither the audit log nor ptrace. What a process calls after it has
installed a filter of its own, as the daemon does under ``--seccomp=log``, is counted apart: it is
what an allow-list has to hold.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import select
import struct
import sys
import time
from collections import Counter
from errno import EBADF, EINTR, ENOENT, ESRCH
from pathlib import Path
from typing import Final, NoReturn, TextIO

from harness import linux
from harness.sandbox.bpf import Program
from harness.sandbox.errors import SandboxError
from harness.sandbox.seccomp import RET_USER_NOTIF
from harness.syscall_numbers import names

# id, pid, flags; nr, arch, instruction pointer, arguments
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_CONTINUE: Final = 1

ARGUMENTS: Final = {
    "clone": 0, "epoll_ctl": 1, "fallocate": 1, "fcntl": 1, "futex": 1, "ioctl": 1, "madvise": 2,
    "mmap": 2, "mprotect": 2, "prctl": 0, "prlimit64": 1, "seccomp": 0, "setsockopt": 2,
    "socket": 0, "socketpair": 0,
}  # fmt: skip
"""The argument by which a call is more or less dangerous."""


class Calls:
    """What was called, how often, and with which telling arguments (their low 32 bits)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.arguments: dict[str, set[int]] = {}

    def add(self, name: str, args: tuple[int, ...]) -> None:
        self.counts[name] += 1
        if name in ARGUMENTS:
            value = args[ARGUMENTS[name]] & 0xFFFFFFFF
            self.arguments.setdefault(name, set()).add(value)

    def report(self) -> dict[str, object]:
        return {
            "calls": dict(sorted(self.counts.items())),
            "arguments": {
                name: [hex(value) for value in sorted(values)]
                for name, values in sorted(self.arguments.items())
            },
        }


class Collector:
    """The listener's end: lets every call through, and writes it down."""

    def __init__(self, listener: int) -> None:
        """``listener`` is borrowed."""
        self._listener = listener
        self._names = names(platform.machine())
        self._groups: dict[int, int] = {}
        self._filtered: set[int] = set()
        self.starting = Calls()
        self.serving = Calls()

    def run(self) -> None:
        """Until the last process with the filter is gone."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            events = poll.poll()[0][1]
            if events & select.POLLIN:
                self._one()
            elif events & select.POLLHUP:
                return

    def _one(self) -> None:
        # The kernel insists on zeros.
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (ENOENT, EINTR):
                return  # the caller was killed meanwhile
            raise
        ident, thread, _, number, _, _, *args = _NOTIFICATION.unpack(buffer)
        name = self._names.get(number, str(number))
        group = self._group(thread)
        (self.serving if group in self._filtered else self.starting).add(name, tuple(args))
        if name == "seccomp" and args[0] == linux.SECCOMP_SET_MODE_FILTER:
            self._filtered.add(group)
        elif name in ("exit", "exit_group"):
            # Numbers are used again.
            self._groups.pop(thread, None)
            if name == "exit_group":
                self._filtered.discard(group)
        try:
            fcntl.ioctl(self._listener, _SEND, _RESPONSE.pack(ident, 0, 0, _CONTINUE))
        except OSError as error:
            if error.errno != ENOENT:
                raise

    def _group(self, thread: int) -> int:
        group = self._groups.get(thread)
        if group is None:
            try:
                status = Path(f"/proc/{thread}/status").read_text()
            except OSError as error:
                if error.errno not in (ENOENT, ESRCH):
                    raise
                return thread
            group = int(status.split("Tgid:", 1)[1].split(None, 1)[0])
            self._groups[thread] = group
        return group


def collect(command: list[str]) -> tuple[Collector, int]:
    """Run ``command`` to its end, and that of all its descendants; return its exit code too.

    Raises:
        SandboxError: the kernel has no user notifications.
    """
    report, child_report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report)
        _run(command, child_report)
    os.close(child_report)
    listener = -1
    try:
        with os.fdopen(report, "rb") as pipe:
            announced = pipe.read(4)
        listener = _fetch(child, int.from_bytes(announced, "little"))
        collector = Collector(listener)
        collector.run()
    finally:
        if listener >= 0:
            os.close(listener)
        _, status = os.waitpid(child, 0)
    return collector, os.waitstatus_to_exitcode(status)


def _run(command: list[str], report: int) -> NoReturn:
    try:
        program = Program()
        program.ret(RET_USER_NOTIF)
        assembled = program.assemble()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        # From the filter's installation until we have its listener, every call would hang: so
        # where the listener will be is said before.
        free = os.dup(report)
        os.close(free)
        os.write(report, free.to_bytes(4, "little"))
        linux.seccomp_set_filter(assembled, linux.SECCOMP_FILTER_FLAG_NEW_LISTENER)
        os.close(free)
        os.close(report)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
    finally:
        os._exit(127)


def _fetch(child: int, number: int) -> int:
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        while not poll.poll(0):
            try:
                return linux.pidfd_getfd(pidfd, number)
            except OSError as error:
                if error.errno not in (EBADF, ESRCH):
                    raise
            time.sleep(0.001)
    finally:
        os.close(pidfd)
    raise SandboxError("the command could not be run under a filter with a listener")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.sandbox.collect", description=__doc__)
    parser.add_argument("-o", "--output", metavar="FILE", help="the report; default: stderr")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        collector, status = collect(options.command)
    except SandboxError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    report = {"starting": collector.starting.report(), "serving": collector.serving.report()}
    if options.output is None:
        _write(sys.stderr, report)
    else:
        with open(options.output, "w") as file:
            _write(file, report)
    return status if status >= 0 else 128 - status


def _write(file: TextIO, report: object) -> None:
    json.dump(report, file, indent=1)
    file.write("\n")


if __name__ == "__main__":
    sys.exit(main())
