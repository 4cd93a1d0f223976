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

    ``place`` is what the last getdents64(2) gave, never longer than one buffer, and where in it,
    by cookie and offset, the reader stood before the last entry and after it: one who takes a few
    entries at a time goes on there. They are unpacked as they are taken.
    """

    __slots__ = ("buffer", "fd", "place")
    inode: PassthroughInode

    def __init__(
        self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials, fd: int
    ) -> None:
        """Takes over ``fd``."""
        super().__init__(mount, dentry, flags, cred)
        self.fd = fd
        self.buffer: oslib.DirentBuffer | None = None
        self.place = b"", 0, 0, 0, 0

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        """Raises (on the way): EINVAL for a cookie that the host cannot seek to."""
        chunk, position = self._resume(cookie)
        if position == len(chunk):
            chunk, position = self._fill(cookie), 0
        # What lies above the shared directory is not for those inside.
        top = self.inode.ino if self.dentry.is_root else None
        while chunk:
            for name, ino, kind, following, end in oslib.dirents(chunk, position):
                self.place = chunk, cookie, position, following, end
                cookie, position = following, end
                if top is not None and name == b"..":
                    ino = top
                yield name, ino, kind, cookie
            chunk, position = self._fill(cookie), 0

    def _resume(self, cookie: int) -> tuple[bytes, int]:
        """The chunk and where in it ``cookie`` stands, or its end. A reader comes back with the
        cookie of the last entry it was given, or, if that one did not fit, of the one before.
        """
        chunk, before, position, after, end = self.place
        if cookie and cookie == after:
            return chunk, end
        if cookie and cookie == before:
            return chunk, position
        return b"", 0

    def _fill(self, cookie: int) -> bytes:
        if self.buffer is None:
            self.buffer = oslib.DirentBuffer()
        try:
            os.lseek(self.fd, cookie, abi.SEEK_SET)
        except OverflowError:
            # No cookie of ours: past the end of any directory.
            return b""
        return self.buffer.read(self.fd)

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
