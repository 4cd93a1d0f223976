"""/proc/PID/fd and fdinfo: a task's open files. Linux: fs/proc/fd.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from fsimpl.proc.access import require_access
from fsimpl.proc.base import TaskDirectory, TaskLink
from fsimpl.pseudo import PseudoFile
from vfs import abi
from vfs.errors import oserror
from vfs.inode import Inode
from vfs.mount import VirtualDentry

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.file import FileDescription

_LINK_SIZE = 64
_LONGEST_NUMBER = 10


def parse_number(name: bytes) -> int | None:
    """The number that ``name`` writes in decimal. Linux: ``name_to_int``: no leading zeros."""
    if not name.isdigit() or len(name) > _LONGEST_NUMBER or (name[:1] == b"0" and name != b"0"):
        return None
    return int(name)


class _Descriptors(TaskDirectory):
    """Numbers of open descriptors as names."""

    __slots__ = ()

    def file(self, fd: int) -> FileDescription:
        """The description behind ``fd``, borrowed. Raises: ENOENT."""
        self.require_alive()
        try:
            return self.task.files.get_file(fd)
        except OSError:
            raise oserror(errno.ENOENT) from None

    def names(self) -> list[bytes]:
        return [b"%d" % fd for fd in self.task.files.numbers()]

    def find(self, name: bytes) -> Inode | None:
        fd = parse_number(name)
        if fd is None:
            return None
        self.file(fd)
        return self.make(fd)

    def make(self, fd: int) -> Inode:
        raise NotImplementedError

    def still(self, name: bytes, inode: Inode) -> bool:
        """Linux: ``tid_fd_revalidate``."""
        try:
            self.file(int(name))
        except FileNotFoundError:
            return False
        return True


class FdDirectory(_Descriptors):
    """/proc/PID/fd. Its size is the number of open files."""

    __slots__ = ()
    default_mode = 0o500

    def make(self, fd: int) -> Inode:
        return FdLink(self, fd)

    def update(self) -> None:
        super().update()
        size = 0 if self.task.exited else len(self.task.files.numbers())
        if size != self.size:
            self.size = size
            self.changed()

    def refresh(self) -> None:
        """Linux: ``proc_fd_getattr``. Raises: ENOENT."""
        self.require_alive()
        self.update()

    def permission(self, cred: Credentials, mask: int) -> None:
        """Linux: ``proc_fd_permission``: a task may always look at its own. Raises: EACCES."""
        if self.task.exited or self.task is not self.task.vfs.current:
            super().permission(cred, mask)


class FdLink(TaskLink):
    """/proc/PID/fd/N. Its mode says what the description is open for."""

    __slots__ = ("fd",)
    directory: FdDirectory

    def __init__(self, above: FdDirectory, fd: int) -> None:
        self.fd = fd
        super().__init__(above, 0)
        self.size = _LINK_SIZE

    def update(self) -> None:
        """Linux: ``tid_fd_update_inode``."""
        super().update()
        try:
            file = self.directory.file(self.fd)
        except FileNotFoundError:
            return
        mode = abi.S_IFLNK | (0o500 if file.readable else 0) | (0o300 if file.writable else 0)
        if mode != self.mode:
            self.mode = mode
            self.changed()

    def target(self) -> VirtualDentry:
        file = self.directory.file(self.fd)
        return VirtualDentry(file.mount, file.dentry).get()


class FdinfoDirectory(_Descriptors):
    """/proc/PID/fdinfo."""

    __slots__ = ()

    def make(self, fd: int) -> Inode:
        return FdinfoFile(self, fd)

    def permission(self, cred: Credentials, mask: int) -> None:
        """Linux: ``proc_fdinfo_permission``. Raises: ESRCH, EACCES."""
        self.require_alive(errno.ESRCH)
        require_access(self.task, cred)
        super().permission(cred, mask)


class FdinfoFile(PseudoFile):
    """/proc/PID/fdinfo/N."""

    __slots__ = ("fd",)
    directory: FdinfoDirectory

    def __init__(self, above: FdinfoDirectory, fd: int) -> None:
        self.fd = fd
        super().__init__(above)

    def show(self) -> bytes:
        """Linux: ``seq_show``. Raises: ENOENT once the descriptor is closed."""
        file = self.directory.file(self.fd)
        flags = file.flags
        if self.directory.task.files.cloexec(self.fd):
            flags |= abi.O_CLOEXEC
        return b"pos:\t%d\nflags:\t0%o\nmnt_id:\t%d\nino:\t%d\n" % (
            file.position, flags, file.mount.id, file.inode.ino,
        )  # fmt: skip
