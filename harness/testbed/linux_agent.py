"""The process below ``LinuxTarget``: it forks the tasks that make the calls on the host kernel.

It is an interpreter of its own, so that a fork is cheap and no thread of the test's is copied. The
agent waits on a socket for one message a target: what to set up, and one socket for each task that
there may be. From then on the test talks to each task directly; a task ends when its socket does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from harness.testbed.host_syscalls import HostSyscalls, raw_clone
from harness.testbed.state import observe_task, observe_tree
from vfs import abi

# The tasks' sockets lie where no descriptor that a test opens comes to lie.
FIRST_SOCKET = 4000
SOFT_LIMIT = 1024
_HIGHEST_FD = 0xFFFFFFFF
_CLONE_NEWNS = 0x20000
_CLONE_NEWUSER = 0x10000000
_PR_SET_CHILD_SUBREAPER = 36


def main(control_fd: int) -> None:
    """Serve targets until the test goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    control = socket.socket(fileno=control_fd)
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 65536, 64)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _first_task(sockets, **pickle.loads(message))
        for fd in sockets:
            os.close(fd)


def _first_task(sockets: list[int], directory: str, options: str) -> None:
    """Become the root task of a new target."""
    # 0, 1 and 2 will be files under test.
    sys.stdout = sys.stderr = None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for index, fd in enumerate(sockets):
        os.dup2(fd, FIRST_SOCKET + index)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT_LIMIT, hard), hard))
    connection = Connection(FIRST_SOCKET)
    try:
        os.closerange(0, FIRST_SOCKET)
        os.umask(0o022)
        _enter(os.fsencode(directory), options)
        connection.send((0, os.getpid()))
    except OSError as error:
        connection.send((error.errno, str(error)))
        os._exit(1)
    _serve(connection)


def _enter(directory: bytes, options: str) -> None:
    """A mount namespace whose root is a new tmpfs, put at ``directory`` first."""
    calls = HostSyscalls()
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        calls.unshare(_CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    calls.unshare(_CLONE_NEWNS)
    calls.mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE, None)
    calls.mount(b"none", directory, "tmpfs", 0, options)
    calls.chdir(directory)
    try:
        calls.pivot_root(b".", b".")
        calls.umount2(b".", abi.MNT_DETACH)
    except OSError as error:
        # The root is the initial ramfs, which cannot be left.
        if error.errno != errno.EINVAL:
            raise
        calls.chroot(b".")
    calls.chdir(b"/")


def _serve(connection: Connection) -> None:
    """Make calls for the test until its end of the socket is closed."""
    calls = HostSyscalls()
    while True:
        try:
            name, args = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: tuple[int, Any]
        try:
            if name == "clone":
                result = _clone(*args)
                if result is None:
                    return
            else:
                result = _perform(calls, name, args)
            answer = 0, result
        except OSError as error:
            answer = error.errno or -1, None
        except Exception:
            answer = -1, traceback.format_exc()
        connection.send(answer)
        if name == "exit":
            os._exit(0)


def _perform(calls: HostSyscalls, name: str, args: tuple[Any, ...]) -> Any:
    match name:
        case "exit":
            return None
        case "observe_tree":
            return observe_tree(calls)
        case "observe_task":
            return observe_task(calls)
        case "close_range":
            first, last, *flags = args
            # The sockets above are not the test's to close.
            if FIRST_SOCKET <= last <= _HIGHEST_FD and first < FIRST_SOCKET:
                last = FIRST_SOCKET - 1
            return calls.close_range(first, last, *flags)
    return getattr(calls, name)(*args)


def _clone(slot: int, flags: int, uid: int, gid: int, groups: tuple[int, ...]) -> int | None:
    """Fork a task that serves socket ``slot``. Returns its pid; in the child, when it is done."""
    pid = raw_clone(flags | signal.SIGCHLD) if flags else os.fork()
    if pid:
        return pid
    connection = Connection(FIRST_SOCKET + slot)
    try:
        if (uid, gid, set(groups)) != (os.getuid(), os.getgid(), set(os.getgroups())):
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        connection.send((0, os.getpid()))
    except OSError as error:
        connection.send((error.errno, str(error)))
        os._exit(1)
    _serve(connection)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
