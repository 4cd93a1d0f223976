"""A task's system calls with data for arguments and values, as a script or a socket has them."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from typing import Any, Final

from vfs import abi
from vfs.errors import oserror
from vfs.locks import F_RDLCK, F_UNLCK, F_WRLCK
from vfs.mountinfo import show_mountinfo, show_mounts, show_mountstats
from vfs.nsfs import open_namespace
from vfs.syscalls.mount_query import Statmount
from vfs.task import Task

_POLLNVAL = 0x20
_FLOCKS: Final = {fcntl.LOCK_SH: F_RDLCK, fcntl.LOCK_EX: F_WRLCK, fcntl.LOCK_UN: F_UNLCK}


class TaskCalls:
    """A ``Task``'s calls with the arguments that steps have, where they differ: data, not buffers;
    the xattr calls' three forms by their names.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._task, name)
        return method

    def preadv2(self, fd: int, sizes: tuple[int, ...], offset: int, flags: int = 0) -> bytes:
        buffers = [bytearray(size) for size in sizes]
        count = self._task.preadv2(fd, buffers, offset, flags)
        return b"".join(buffers)[:count]

    def mount(
        self,
        source: bytes | None,
        target: bytes,
        fstype: str | None,
        flags: int,
        data: str | None,
    ) -> None:
        self._task.mount(source, target, fstype, flags, data or "")

    def setrlimit_nofile(self, limit: int) -> None:
        self._task.files.limit = limit

    def access(self, path: bytes, mode: int) -> None:
        self._task.access(path, mode)

    def lgetxattr(self, path: bytes, name: bytes) -> bytes:
        return self._task.getxattr(path, name, follow=False)

    def lsetxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        self._task.setxattr(path, name, value, flags, follow=False)

    def llistxattr(self, path: bytes) -> list[bytes]:
        return self._task.listxattr(path, follow=False)

    def lremovexattr(self, path: bytes, name: bytes) -> None:
        self._task.removexattr(path, name, follow=False)

    def fgetxattr(self, fd: int, name: bytes) -> bytes:
        return self._task.getxattr(fd, name)

    def fsetxattr(self, fd: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._task.setxattr(fd, name, value, flags)

    def flistxattr(self, fd: int) -> list[bytes]:
        return self._task.listxattr(fd)

    def fremovexattr(self, fd: int, name: bytes) -> None:
        self._task.removexattr(fd, name)

    def poll(self, fd: int, events: int) -> int:
        with self._task.vfs.lock:
            try:
                file = self._task.files.get_file(fd)
            except OSError:
                return _POLLNVAL
            if file.flags & abi.O_PATH:
                return _POLLNVAL
            return file.poll() & (events | abi.POLLERR | abi.POLLHUP)

    def nsfd(self, pid: int, kind: str) -> int:
        """As open(2) of /proc/PID/ns/KIND. Raises: ENOENT (no such KIND), ESRCH, EMFILE."""
        if kind not in ("mnt", "user"):
            raise oserror(errno.ENOENT)
        with self._task.lock:
            owner = next((task for task in self._task.vfs.tasks if task.pid == pid), None)
            if owner is None:
                raise oserror(errno.ESRCH)
            namespace = owner.namespace if kind == "mnt" else owner.cred.user_ns
            file = open_namespace(self._task.vfs, namespace, self._task.cred)
            # What an open by name leaves.
            file.flags |= abi.O_LARGEFILE
            try:
                return self._task.files.install(file)
            except OSError:
                file.put()
                raise

    def flock(self, fd: int, operation: int) -> None:
        """flock(2), which never waits. Raises: EBADF, EINVAL, EAGAIN."""
        with self._task.lock:
            file = self._task.files.get_file(fd)
            if file.flags & abi.O_PATH:
                raise oserror(errno.EBADF)
            kind = _FLOCKS.get(operation & ~fcntl.LOCK_NB)
            if kind is None:
                raise oserror(errno.EINVAL)
            self._task.vfs.locks.set_flock(file.inode, file, file, kind)

    def mountinfo(self) -> bytes:
        return show_mountinfo(self._task.namespace, self._task.fs.root)

    def mounts(self) -> bytes:
        return show_mounts(self._task.namespace, self._task.fs.root)

    def mountstats(self) -> bytes:
        return show_mountstats(self._task.namespace, self._task.fs.root)

    def _mount_at(self, path: bytes) -> int:
        return self._task.statx(abi.AT_FDCWD, path, 0, abi.STATX_MNT_ID_UNIQUE).stx_mnt_id

    def statmount_at(self, path: bytes, mask: int) -> Statmount:
        return self._task.statmount(self._mount_at(path), mask)

    def listmount_at(self, path: bytes, flags: int = 0) -> list[int]:
        return self._task.listmount(self._mount_at(path), flags=flags)
