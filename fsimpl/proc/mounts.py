"""/proc/PID/mountinfo, mounts and mountstats. Linux: fs/proc_namespace.c."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsimpl.proc.base import TaskDirectory
from fsimpl.pseudo import PseudoFile, Row, SeqFile
from vfs import abi
from vfs.errors import oserror
from vfs.mount import VirtualDentry
from vfs.mountinfo import show_mountinfo, show_mounts, show_mountstats
from vfs.namespace import MountNamespace

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.mount import Mount
    from vfs.task import Task
    from vfs.wait import WaitQueue

ShowMounts = Callable[[MountNamespace, VirtualDentry], bytes]


class MountsFile(SeqFile):
    """Linux: ``struct proc_mounts``. Shows the namespace, from the root, that the task had when
    this was opened, and holds both: neither unshare(2) nor the task's exit changes what is read.
    """

    __slots__ = ("namespace", "root")
    inode: MountsInode

    def __init__(
        self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials, task: Task
    ) -> None:
        super().__init__(mount, dentry, flags, cred)
        self.namespace = task.namespace.get()
        self.root = VirtualDentry(task.fs.root.mount, task.fs.root.dentry).get()

    def generate(self) -> bytes:
        return self.inode.show_mounts(self.namespace, self.root)

    def release(self) -> None:
        self.root.put()
        self.namespace.put()
        super().release()


class PolledMountsFile(MountsFile):
    """mountinfo and mounts: poll(2) tells once of each change of the table.

    ``event`` is the state of the table that was told about.
    """

    __slots__ = ("event",)

    def __init__(
        self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials, task: Task
    ) -> None:
        super().__init__(mount, dentry, flags, cred, task)
        self.event = task.namespace.event

    def poll(self) -> int:
        """Linux: ``mounts_poll``."""
        ready = abi.POLLIN | abi.POLLRDNORM
        if self.namespace.event != self.event:
            self.event = self.namespace.event
            ready |= abi.POLLERR | abi.POLLPRI
        return ready

    def poll_queue(self) -> WaitQueue:
        return self.namespace.poll_queue


class MountsInode(PseudoFile):
    """A file about the mounts that a task sees."""

    __slots__ = ("kind", "show_mounts")
    directory: TaskDirectory

    def __init__(
        self, above: TaskDirectory, show: ShowMounts, kind: type[MountsFile], mode: int
    ) -> None:
        super().__init__(above, mode)
        self.show_mounts = show
        self.kind = kind

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> MountsFile:
        """Linux: ``mounts_open_common``. Raises: EINVAL once the task has exited."""
        task = self.directory.task
        if task.exited:
            raise oserror(errno.EINVAL)
        return self.kind(mount, dentry, flags, cred, task)


def _row(show: ShowMounts, kind: type[MountsFile], mode: int = 0o444) -> Row:
    return Row(abi.S_IFREG, lambda above: MountsInode(above, show, kind, mode))


MOUNTINFO = _row(show_mountinfo, PolledMountsFile)
MOUNTS = _row(show_mounts, PolledMountsFile)
MOUNTSTATS = _row(show_mountstats, MountsFile, 0o400)
