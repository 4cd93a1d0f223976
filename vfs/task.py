"""A task: who calls, from where, with which open files. Linux: task_struct, as the VFS sees it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Self

from vfs.abi import CLONE_FILES, CLONE_FS, CLONE_NEWNS, CLONE_NEWUSER
from vfs.credentials import Credentials
from vfs.errors import oserror
from vfs.fdtable import FdTable
from vfs.namespace import MountNamespace
from vfs.syscalls.attributes import AttributeSyscalls
from vfs.syscalls.base import FilesystemState
from vfs.syscalls.fs_context import FsContextSyscalls
from vfs.syscalls.mount_api import MountApiSyscalls
from vfs.syscalls.mount_query import MountQuerySyscalls
from vfs.syscalls.mounts import MountSyscalls
from vfs.syscalls.names import NameSyscalls
from vfs.syscalls.open_close import OpenSyscalls
from vfs.syscalls.process import ProcessSyscalls, root_of
from vfs.syscalls.read_write import ReadWriteSyscalls

if TYPE_CHECKING:
    from vfs.virtual_filesystem import VirtualFilesystem


class Task(
    OpenSyscalls,
    ReadWriteSyscalls,
    AttributeSyscalls,
    NameSyscalls,
    MountSyscalls,
    MountApiSyscalls,
    FsContextSyscalls,
    MountQuerySyscalls,
    ProcessSyscalls,
):
    """Linux: ``task_struct`` with its ``nsproxy``, ``fs_struct`` and ``files_struct``.

    Its methods are the system calls, by their Linux names and argument order. A task holds its
    namespace, its root and cwd, and its descriptors until ``exit``. Any thread may call it; calls
    that block wait in that thread. ``with`` ends it. ``comm`` is its name, which a clone inherits.
    """

    def __init__(
        self,
        vfs: VirtualFilesystem,
        pid: int,
        namespace: MountNamespace,
        cred: Credentials,
        fs: FilesystemState,
        files: FdTable,
    ) -> None:
        """Takes over the references given (``VirtualFilesystem.create_task`` is the way to one)."""
        self.vfs = vfs
        self.pid = pid
        self.namespace = namespace
        self.cred = cred
        self.fs = fs
        self.files = files
        self.comm = b"task"
        self.exited = False

    @classmethod
    def create(
        cls, vfs: VirtualFilesystem, pid: int, namespace: MountNamespace, cred: Credentials
    ) -> Self:
        """The first task of ``namespace`` (of which it takes its own reference), at its root."""
        root = root_of(namespace)
        fs = FilesystemState(root, root)
        return cls(vfs, pid, namespace.get(), cred, fs, FdTable(vfs.ledger))

    def clone(self, flags: int = 0, cred: Credentials | None = None) -> Task:
        """clone(2) as far as the VFS knows: CLONE_FS and CLONE_FILES share, CLONE_NEWNS copies the
        namespace; without flags it is fork(2). ``cred`` is who the child is; with CLONE_NEWUSER it
        is so before the user namespace is made, and owns it.

        Raises: EINVAL (CLONE_NEWNS or CLONE_NEWUSER with CLONE_FS); as ``unshare``.
        """
        if flags & (CLONE_NEWNS | CLONE_NEWUSER) and flags & CLONE_FS:
            raise oserror(errno.EINVAL)
        with self.lock:
            if flags & CLONE_FS:
                fs = self.fs
                fs.users += 1
            else:
                fs = FilesystemState(self.fs.root, self.fs.cwd, self.fs.umask)
            files = self.files.get() if flags & CLONE_FILES else self.files.copy()
            child = Task(self.vfs, 0, self.namespace.get(), self.cred, fs, files)
            child.comm = self.comm
            self.vfs.adopt_task(child)
            if cred is not None and flags & CLONE_NEWUSER:
                child.cred = cred
            try:
                child.unshare(flags & ~(CLONE_FS | CLONE_FILES))
            except OSError:
                child.exit()
                raise
            if cred is not None and not flags & CLONE_NEWUSER:
                child.cred = cred
            return child

    def exit(self) -> None:
        """Linux: ``do_exit``: close everything, leave root, cwd and namespace. Once is enough."""
        with self.lock:
            if self.exited:
                return
            self.exited = True
            self.files.put()
            self.fs.put()
            self.namespace.put()
            self.vfs.forget_task(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.exit()
