"""Directories of proc, and those among them that belong to a task. Linux: fs/proc/base.c."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsimpl.proc.access import asking, require_access
from fsimpl.pseudo import MagicLink, PseudoDirectory, Row, Table, text
from vfs import abi
from vfs.dpath import d_path
from vfs.errors import oserror
from vfs.inode import Inode
from vfs.mount import VirtualDentry

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.superblock import Superblock
    from vfs.task import Task


class ProcDirectory(PseudoDirectory):
    """A directory of proc: what is not there cannot be made either, so that making it is ENOENT."""

    __slots__ = ()

    def lookup(self, name: bytes) -> Inode:
        """Raises: ENOENT."""
        found = super().lookup(name)
        if found is None:
            raise oserror(errno.ENOENT)
        return found


class TaskDirectory(ProcDirectory):
    """A directory about ``task``; it belongs to the task's user, and after its exit to root."""

    __slots__ = ("task",)
    task: Task

    def __init__(
        self,
        above: PseudoDirectory | Superblock,
        entries: Table | None = None,
        mode: int | None = None,
        task: Task | None = None,
    ) -> None:
        """``task`` is the one of the directory above, unless given."""
        if task is None:
            assert isinstance(above, TaskDirectory)
            task = above.task
        self.task = task
        super().__init__(above, entries, mode)

    def update(self) -> None:
        """Linux: ``task_dump_owner``."""
        cred = self.task.cred
        if self.task.exited:
            self.set_owner(0, 0)
        else:
            self.set_owner(cred.fsuid, cred.fsgid)

    def lookup(self, name: bytes) -> Inode:
        """Raises: ENOENT, also once the task has exited."""
        self.require_alive()
        return super().lookup(name)

    def revalidate(self, dentry: Dentry) -> bool:
        return not self.task.exited and super().revalidate(dentry)

    def listing(self) -> list[bytes]:
        """Raises: ENOENT once the task has exited."""
        self.require_alive()
        return super().listing()

    def require_alive(self, number: int = errno.ENOENT) -> None:
        """Raises: ``number`` (ENOENT) once the task has exited."""
        if self.task.exited:
            raise oserror(number)


class TaskLink(MagicLink):
    """A magic link to something that a task holds."""

    __slots__ = ()
    directory: TaskDirectory

    def target(self) -> VirtualDentry:
        """Where it leads; received. Raises: ENOENT."""
        raise oserror(errno.ENOENT)

    def follow_magic_link(self, cred: Credentials) -> VirtualDentry:
        """Linux: ``proc_pid_get_link``.

        Raises: ENOENT (the task has exited), EACCES, ENOENT (there is nothing).
        """
        self.directory.require_alive()
        require_access(self.directory.task, cred)
        return self.target()

    def readlink(self) -> bytes:
        """The path as the task that asks would say it. Linux: ``proc_pid_readlink``.

        Raises: as ``follow_magic_link``.
        """
        task = self.directory.task
        self.directory.require_alive()
        require_access(task, asking(task))
        current = task.vfs.current
        assert current is not None
        with self.target() as target:
            return d_path(target, current.fs.root)


class _PathLink(TaskLink):
    __slots__ = ("_path",)

    def __init__(self, above: TaskDirectory, path: Callable[[Task], VirtualDentry]) -> None:
        super().__init__(above)
        self._path = path

    def target(self) -> VirtualDentry:
        path = self._path(self.directory.task)
        return VirtualDentry(path.mount, path.dentry).get()


def path_link(path: Callable[[Task], VirtualDentry]) -> Row:
    """A magic link to the place, borrowed, that ``path`` names."""
    return Row(abi.S_IFLNK, lambda above: _PathLink(above, path))


def task_text(show: Callable[[Task], bytes], mode: int = 0o444) -> Row:
    """A file about the task. Linux: ``proc_single_show``: reading it is ESRCH after the exit."""

    def alive(directory: TaskDirectory) -> bytes:
        directory.require_alive(errno.ESRCH)
        return show(directory.task)

    return text(alive, mode=mode)
