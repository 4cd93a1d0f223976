"""What every family of system calls uses: paths, descriptors, and waiting."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vfs import abi
from vfs.credentials import Credentials
from vfs.errors import WouldBlock, oserror
from vfs.fdtable import FdTable
from vfs.file import FileDescription
from vfs.mount import VirtualDentry
from vfs.namei import EMPTY, FOLLOW, filename_lookup, filename_parent, get_name

if TYPE_CHECKING:
    from vfs.namespace import MountNamespace
    from vfs.virtual_filesystem import VirtualFilesystem

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
T = TypeVar("T")


class FilesystemState:
    """Linux: ``struct fs_struct``: root, cwd and umask; shared by tasks cloned with CLONE_FS.

    ``root`` and ``cwd`` are held. ``users`` counts the tasks that share it.
    """

    __slots__ = ("cwd", "root", "umask", "users")

    def __init__(self, root: VirtualDentry, cwd: VirtualDentry, umask: int = 0o022) -> None:
        """Takes references of its own on ``root`` and ``cwd``."""
        self.root = VirtualDentry(root.mount, root.dentry).get()
        self.cwd = VirtualDentry(cwd.mount, cwd.dentry).get()
        self.umask = umask
        self.users = 1

    def set_root(self, root: VirtualDentry) -> None:
        """Takes over the caller's references."""
        old, self.root = self.root, root
        old.put()

    def set_cwd(self, cwd: VirtualDentry) -> None:
        """Takes over the caller's references."""
        old, self.cwd = self.cwd, cwd
        old.put()

    def put(self) -> None:
        self.users -= 1
        if not self.users:
            self.cwd.put()
            self.root.put()


class HeldFile:
    """A held description that goes back under the VFS lock. Linux: ``class_fd``."""

    __slots__ = ("_file",)

    def __init__(self, file: FileDescription) -> None:
        """Takes over the caller's reference."""
        self._file = file

    def __enter__(self) -> FileDescription:
        return self._file

    def __exit__(self, *exc: object) -> None:
        with self._file.inode.superblock.vfs.lock:
            self._file.put()


class TaskLock:
    """The VFS lock as a task takes it: while it is held, ``vfs.current`` is that task."""

    __slots__ = ("_before", "_task")

    def __init__(self, task: SyscallBase) -> None:
        self._task = task
        self._before: SyscallBase | None = None

    def __enter__(self) -> None:
        vfs = self._task.vfs
        vfs.lock.acquire()
        self._before = vfs.current
        vfs.current = self._task

    def __exit__(self, *exc: object) -> None:
        vfs = self._task.vfs
        vfs.current = self._before
        vfs.lock.release()


class SyscallBase:
    """The parts of ``task_struct`` that system calls use."""

    vfs: VirtualFilesystem
    pid: int
    cred: Credentials
    fs: FilesystemState
    files: FdTable
    namespace: MountNamespace
    nowait = False
    """Whether calls that would wait fail with EAGAIN, as if all descriptors were O_NONBLOCK."""

    @property
    def lock(self) -> TaskLock:
        """What every call takes, so that generated files know who asks (Linux: ``current``)."""
        return TaskLock(self)

    def _start(self, dirfd: int, path: bytes, resolve: int = 0) -> VirtualDentry:
        """Where a relative ``path`` starts, and with RESOLVE_IN_ROOT an absolute one; borrowed.

        Raises: EBADF.
        """
        absolute = path.startswith(b"/") and not resolve & abi.RESOLVE_IN_ROOT
        if dirfd == abi.AT_FDCWD or absolute:
            return self.fs.cwd
        file = self.files.get_file(dirfd)
        return VirtualDentry(file.mount, file.dentry)

    def _lookup(
        self, dirfd: int, path: Path, flags: int = FOLLOW, cred: Credentials | None = None
    ) -> VirtualDentry:
        """Resolve ``path``; the caller receives the references."""
        name = os.fsencode(path)
        get_name(name, flags)
        return filename_lookup(
            self.vfs, cred or self.cred, self.fs.root, self._start(dirfd, name), name, flags
        )

    def _parent(self, dirfd: int, path: Path) -> tuple[VirtualDentry, bytes, bool]:
        """The parent of ``path`` (received), its last name, and whether slashes follow."""
        name = os.fsencode(path)
        get_name(name)
        return filename_parent(self.vfs, self.cred, self.fs.root, self._start(dirfd, name), name)

    @staticmethod
    def _at_flags(flags: int, allowed: int, follow_by_default: bool = True) -> int:
        """``AT_*`` as lookup flags. Raises: EINVAL for a flag outside of ``allowed``."""
        if flags & ~allowed:
            raise oserror(errno.EINVAL)
        if follow_by_default:
            lookup = 0 if flags & abi.AT_SYMLINK_NOFOLLOW else FOLLOW
        else:
            lookup = FOLLOW if flags & abi.AT_SYMLINK_FOLLOW else 0
        return lookup | EMPTY if flags & abi.AT_EMPTY_PATH else lookup

    def _file(self, fd: int) -> FileDescription:
        """The description behind ``fd``, borrowed; not an O_PATH one. Raises: EBADF."""
        file = self.files.get_file(fd)
        if file.flags & abi.O_PATH:
            raise oserror(errno.EBADF)
        return file

    def _held_file(self, fd: int) -> HeldFile:
        """As ``_file``, held inside ``with``, for I/O without the lock. Raises: EBADF."""
        with self.lock:
            return HeldFile(self._file(fd).get())

    def _wait(self, nonblocking: bool, operation: Callable[[], T]) -> T:
        """Run ``operation`` until it does not raise WouldBlock; not under the VFS lock.

        After the waiter is in the queue the operation is tried once more, so that a wake-up in
        between is not lost. Raises: EAGAIN if ``nonblocking``, or ``nowait``.
        """
        while True:
            try:
                return operation()
            except WouldBlock as blocked:
                if nonblocking or self.nowait:
                    raise
                queue = blocked.queue
            woken = threading.Event()
            queue.add(woken.set)
            try:
                return operation()
            except WouldBlock as blocked:
                if blocked.queue is queue:
                    woken.wait()
            finally:
                queue.remove(woken.set)
