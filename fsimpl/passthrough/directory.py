"""Open directories of the host, read at the host file system's own cookies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fsimpl.passthrough import oslib
from fsimpl.passthrough.ioctls import host_ioctl
from vfs import abi
from vfs.file import DirectoryEntry, FileDescription

if TYPE_CHECKING:
    from fsimpl.passthrough.inode import PassthroughInode
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.mount import Mount


class PassthroughDirectory(FileDescription):
    """An open directory. A cookie is the host's ``d_off``, so it is as stable as it is there.

    ``chunk`` is what the last getdents64(2) gave, and ``index`` how far the reader came in it: one
    who takes a few entries at a time goes on there. It is never longer than one buffer.
    """

    __slots__ = ("buffer", "chunk", "fd", "index")
    inode: PassthroughInode

    def __init__(
        self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials, fd: int
    ) -> None:
        """Takes over ``fd``."""
        super().__init__(mount, dentry, flags, cred)
        self.fd = fd
        self.buffer: oslib.DirentBuffer | None = None
        self.chunk: list[DirectoryEntry] = []
        self.index = 0

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        """Raises (on the way): EINVAL for a cookie that the host cannot seek to."""
        index = self._resume(cookie)
        chunk = self.chunk
        if index == len(chunk):
            index, chunk = 0, self._fill(cookie)
        while chunk:
            while index < len(chunk):
                entry = chunk[index]
                index += 1
                self.index = index
                yield entry
            index, chunk = 0, self._fill(chunk[-1][3])

    def _resume(self, cookie: int) -> int:
        """Where in the chunk ``cookie`` stands, or its end. A reader comes back with the cookie of
        the last entry it was given, or, if that one did not fit, of the one before.
        """
        chunk = self.chunk
        if cookie:
            for index in (self.index, self.index - 1):
                if 0 < index <= len(chunk) and chunk[index - 1][3] == cookie:
                    return index
        return len(chunk)

    def _fill(self, cookie: int) -> list[DirectoryEntry]:
        if self.buffer is None:
            self.buffer = oslib.DirentBuffer()
        try:
            os.lseek(self.fd, cookie, abi.SEEK_SET)
        except OverflowError:
            # No cookie of ours: past the end of any directory.
            return []
        chunk = self.buffer.read(self.fd)
        if self.dentry.is_root:
            # What lies above the shared directory is not for those inside.
            ino = self.inode.ino
            chunk = [(n, ino if n == b".." else i, kind, at) for n, i, kind, at in chunk]
        self.chunk = chunk
        self.index = 0
        return chunk

    def fsync(self, datasync: bool) -> None:
        if datasync:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        return host_ioctl(self, command, argument)

    def release(self) -> None:
        try:
            os.close(self.fd)
        finally:
            super().release()
