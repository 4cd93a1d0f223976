"""/proc/PID/ns: the namespaces a task is in. Linux: fs/proc/namespaces.c."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsimpl.proc.access import asking, require_access
from fsimpl.proc.base import TaskDirectory, TaskLink
from fsimpl.pseudo import Row
from vfs import abi
from vfs.nsfs import nsfs_path

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.mount import VirtualDentry
    from vfs.namespace import MountNamespace
    from vfs.task import Task
    from vfs.user_namespace import UserNamespace


class NamespaceLink(TaskLink):
    """A magic link to a namespace; ``kind`` is what stands before its number."""

    __slots__ = ("kind", "namespace_of")

    def __init__(
        self,
        above: TaskDirectory,
        kind: bytes,
        namespace_of: Callable[[Task], MountNamespace | UserNamespace],
    ) -> None:
        super().__init__(above)
        self.kind = kind
        self.namespace_of = namespace_of

    def target(self) -> VirtualDentry:
        task = self.directory.task
        return nsfs_path(task.vfs, self.namespace_of(task))

    def follow_magic_link(self, cred: Credentials) -> VirtualDentry:
        """Linux: ``proc_ns_get_link``. Raises: EACCES, also once the task has exited."""
        self.directory.require_alive(errno.EACCES)
        return super().follow_magic_link(cred)

    def readlink(self) -> bytes:
        """Linux: ``proc_ns_readlink``. Raises: as ``follow_magic_link``."""
        task = self.directory.task
        self.directory.require_alive(errno.EACCES)
        require_access(task, asking(task))
        return b"%b:[%d]" % (self.kind, self.namespace_of(task).inum)


def _link(kind: bytes, namespace_of: Callable[[Task], MountNamespace | UserNamespace]) -> Row:
    return Row(abi.S_IFLNK, lambda above: NamespaceLink(above, kind, namespace_of))


class NamespacesDirectory(TaskDirectory):
    """/proc/PID/ns."""

    __slots__ = ()
    default_mode = 0o511
    table = {
        b"mnt": _link(b"mnt", lambda task: task.namespace),
        b"user": _link(b"user", lambda task: task.cred.user_ns),
    }
