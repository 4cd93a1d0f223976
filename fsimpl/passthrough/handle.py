"""What an inode is on the host: a descriptor, and what can be done to a file through it alone."""

from __future__ import annotations

import errno
import os

from fsimpl.passthrough import oslib
from vfs import abi
from vfs.errors import oserror


class HostHandle:
    """An O_PATH descriptor: names a file, whatever becomes of its path, and gives no access to it.

    What needs more goes through the descriptor's magic link in /proc/self/fd, which leads to the
    very file. That directory is itself held open (``links``, borrowed), so it works where /proc is
    no longer in sight. It is the mounting process's: a child after fork(2) cannot use it.
    """

    __slots__ = ("fd", "link", "links")

    def __init__(self, fd: int, links: int) -> None:
        """Takes over ``fd``."""
        self.fd = fd
        self.links = links
        self.link = b"%d" % fd

    @staticmethod
    def open_links() -> int:
        """The directory of this process's descriptors, for ``links``."""
        return os.open("/proc/self/fd", abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC)

    @staticmethod
    def open_path_of(fd: int, links: int) -> int:
        """An O_PATH descriptor of the very file that ``fd`` (borrowed) has open."""
        return _open(b"%d" % fd, abi.O_PATH | abi.O_CLOEXEC, links)

    def close(self) -> None:
        os.close(self.fd)

    def open(self, flags: int) -> int:
        """A descriptor for data. ``flags`` are open(2)'s; the process's own rights decide.

        Reading it never waits: there are regular files that read like a pipe (/proc/kmsg), and get
        EAGAIN at their end. Opening it waits for a lease to be broken, as open(2) does.
        """
        flags |= abi.O_CLOEXEC | abi.O_NOCTTY
        try:
            return _open(self.link, flags | abi.O_NONBLOCK, self.links)
        except BlockingIOError:
            fd = _open(self.link, flags, self.links)
        os.set_blocking(fd, False)
        return fd

    def readlink(self) -> bytes:
        return os.readlink(b"", dir_fd=self.fd)

    def chmod(self, mode: int) -> None:
        """Raises: EOPNOTSUPP for a symlink."""
        oslib.fchmodat(self.links, self.link, mode)

    def chown(self, uid: int | None, gid: int | None) -> None:
        oslib.fchownat(
            self.links,
            self.link,
            0xFFFFFFFF if uid is None else uid,
            0xFFFFFFFF if gid is None else gid,
        )

    def utimens(self, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        oslib.utimensat(self.links, self.link, atime, mtime)

    def link_as(self, directory: HostHandle, name: bytes) -> None:
        """Works for O_TMPFILE's files too, and needs no capability."""
        oslib.linkat(self.links, self.link, directory.fd, name)

    def getxattr(self, name: bytes) -> bytes:
        return oslib.getxattrat(self.links, self.link, name)

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        oslib.setxattrat(self.links, self.link, name, value, flags)

    def removexattr(self, name: bytes) -> None:
        oslib.removexattrat(self.links, self.link, name)

    def listxattr(self) -> list[bytes]:
        return oslib.listxattrat(self.links, self.link)


def _open(link: bytes, flags: int, links: int) -> int:
    try:
        return os.open(link, flags, dir_fd=links)
    except OSError as error:
        # Not ``error`` itself: its file name is a descriptor's number, no news to a caller.
        raise oserror(error.errno or errno.EIO) from None
