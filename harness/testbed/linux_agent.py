"""The process below ``LinuxTarget``: it forks the tasks that make the calls on the host kernel.

It is an interpreter of its own, so that a fork is cheap and no thread of the test's is copied. The
agent waits on a socket for one message a target: what to set up, and one socket for each task that
there may be. The first of them is the observer's, which is the first process of the target's pid
namespace and not a task under test. From then on the test talks to each task directly; a task ends
when its socket does, and all end with the observer.
"""

from __future__ import annotations

import ctypes
import errno
import gc
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

# The tasks' sockets, one descriptor on /proc behind them, lie where no descriptor that a test opens
# comes to lie.
FIRST_SOCKET = 4000
SLOTS = 17
_PROC = FIRST_SOCKET + SLOTS
SOFT_LIMIT = 1024
_HIGHEST_FD = 0xFFFFFFFF
_NAMESPACES = abi.CLONE_NEWUSER | abi.CLONE_NEWNS
_PR_SET_CHILD_SUBREAPER = 36


def main(control_fd: int) -> None:
    """Serve targets until the test goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Linux takes ids of namespaces from a stock of each CPU. Only on one and the same is a later
    # namespace the one with the larger id, which decides where its file may be mounted.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    control = socket.socket(fileno=control_fd)
    # Collecting garbage would only write to pages that are shared with forked tasks.
    gc.freeze()
    gc.disable()
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 65536, 64)
        if not message:
            return
        try:
            _start_target(control, sockets, **pickle.loads(message))
        except OSError as error:
            connection = Connection(os.dup(sockets[0]))
            connection.send((error.errno, (error.strerror, None)))
            connection.close()
        for fd in sockets:
            os.close(fd)


def _start_target(
    control: socket.socket, sockets: list[int], directory: str, options: str, user_namespace: bool
) -> None:
    """Fork the observer of a new target, the first process of a pid namespace, with whose end
    everything else in it ends.

    Raises: OSError if there can be no such namespaces.
    """
    mapped, go = os.pipe()
    flags = abi.CLONE_NEWPID | (abi.CLONE_NEWUSER if user_namespace else 0)
    try:
        try:
            pid = raw_clone(flags | signal.SIGCHLD)
        except OSError as error:
            wanted = "a user namespace" if user_namespace else "a pid namespace (CAP_SYS_ADMIN)"
            raise OSError(error.errno, f"{wanted}: {error.strerror}") from None
        if pid == 0:
            control.close()
            os.close(go)
            if not os.read(mapped, 1):
                os._exit(1)
            _observer(sockets, directory, options)
        if user_namespace:
            proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
            try:
                _map_own_ids(proc, pid)
            finally:
                os.close(proc)
        os.write(go, b"!")
    finally:
        os.close(mapped)
        os.close(go)


def _map_own_ids(proc: int, pid: int) -> None:
    """Give the user namespace of ``pid`` its ids: all of them, or only our own, as root."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _map_every_id(proc, pid)
        return
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        _write(proc, f"{pid}/{name}", text)


def _map_every_id(proc: int, pid: int) -> None:
    """Map each id that there is in our user namespace to itself in that of ``pid``, a child."""
    for name in ("uid_map", "gid_map"):
        with os.fdopen(os.open(f"self/{name}", os.O_RDONLY, dir_fd=proc)) as file:
            extents = [line.split() for line in file]
        lines = [f"{inside} {inside} {count}\n" for inside, _, count in extents]
        _write(proc, f"{pid}/{name}", "".join(lines))


def _write(proc: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY, dir_fd=proc)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _observer(sockets: list[int], directory: str, options: str) -> None:
    """Become the observer of a new target, which the other tasks are cloned from."""
    # 0, 1 and 2 will be files under test.
    sys.stdout = sys.stderr = None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for index, fd in enumerate(sockets):
        os.dup2(fd, FIRST_SOCKET + index)
    connection = Connection(FIRST_SOCKET)
    try:
        os.dup2(os.open("/proc", os.O_PATH | os.O_DIRECTORY), _PROC)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT_LIMIT, hard), hard))
        os.closerange(0, FIRST_SOCKET)
        os.umask(0o022)
        _enter(os.fsencode(directory), options)
        connection.send((0, _host_pid()))
    except OSError as error:
        wanted = f"a mount namespace on a tmpfs ({options})"
        connection.send((error.errno, (f"{wanted}: {error.strerror}", None)))
        os._exit(1)
    _serve(connection)


def _host_pid() -> int:
    """Our pid as the test knows it."""
    return int(os.readlink("self", dir_fd=_PROC))


def _enter(directory: bytes, options: str) -> None:
    """A mount namespace whose root is a new tmpfs.

    It covers the kernel's rootfs, which belongs to the whole host and is reached by a task that
    takes the tmpfs off: so it is read-only here. In a user namespace nobody can reach it; there,
    and where the host's root is the rootfs itself, the tmpfs is put at ``directory`` first.
    """
    calls = HostSyscalls()
    calls.unshare(abi.CLONE_NEWNS)
    calls.mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE, None)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        calls.umount2(b"/", abi.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _pivot(calls, directory, options)
    else:
        calls.setns(namespace, abi.CLONE_NEWNS)
        calls.mount(None, b"/", None, abi.MS_REMOUNT | abi.MS_BIND | abi.MS_RDONLY, None)
        calls.mount(b"none", b"/", "tmpfs", 0, options)
        calls.setns(namespace, abi.CLONE_NEWNS)
    finally:
        os.close(namespace)


def _pivot(calls: HostSyscalls, directory: bytes, options: str) -> None:
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
    result: Any
    while True:
        try:
            name, args = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: tuple[int, Any]
        try:
            if name == "clone":
                result = _clone(*args)
            elif name == "receive_fd":
                result = _receive_fd(connection)
            elif name == "map_ids":
                _map_ids(connection, *args)
                result = None
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


def _clone(slot: int, flags: int, uid: int, gid: int, groups: tuple[int, ...]) -> int:
    """Fork a task that serves socket ``slot`` and tells its pid there. Returns 0."""
    namespaces = flags & _NAMESPACES if flags & abi.CLONE_NEWUSER else 0
    if namespaces and flags & abi.CLONE_FS:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    flags &= ~namespaces
    if raw_clone(flags | signal.SIGCHLD) if flags else os.fork():
        return 0
    connection = Connection(FIRST_SOCKET + slot)
    try:
        if (uid, gid, set(groups)) != (os.getuid(), os.getgid(), _own_groups()):
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        if namespaces:
            HostSyscalls().unshare(namespaces)
        connection.send((0, _host_pid()))
    except OSError as error:
        connection.send((error.errno, (error.strerror, _host_pid())))
        os._exit(1)
    _serve(connection)
    os._exit(0)


def _own_groups() -> set[int]:
    """Our supplementary groups; in a user's own namespace those cannot be changed, nor seen."""
    with os.fdopen(os.open("self/setgroups", os.O_RDONLY, dir_fd=_PROC)) as file:
        return set() if file.read().strip() == "deny" else set(os.getgroups())


def _receive_fd(connection: Connection) -> int:
    """The number of the descriptor that comes behind the message. Raises: EMFILE."""
    end = socket.socket(fileno=connection.fileno())
    try:
        _, fds, _, _ = socket.recv_fds(end, 1, 1)
    finally:
        end.detach()
    if not fds:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return fds[0]


def _map_ids(connection: Connection, pid: int) -> None:
    """Map every id in the user namespace of ``pid``, whose parent comes behind the message.

    Only a process in the parent namespace may write the maps.
    """
    parent = _receive_fd(connection)
    try:
        if os.fstat(parent).st_ino == os.stat("self/ns/user", dir_fd=_PROC).st_ino:
            _map_every_id(_PROC, pid)
            return
        result, told = os.pipe()
        if os.fork() == 0:
            try:
                HostSyscalls().setns(parent, abi.CLONE_NEWUSER)
                _map_every_id(_PROC, pid)
                os.write(told, b"\0")
            except OSError as error:
                os.write(told, bytes((error.errno or 0,)))
            os._exit(0)
        os.close(told)
        try:
            number = os.read(result, 1)[0]
        finally:
            os.close(result)
        if number:
            raise OSError(number, os.strerror(number))
    finally:
        os.close(parent)


if __name__ == "__main__":
    main(int(sys.argv[1]))
