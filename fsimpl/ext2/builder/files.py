"""Where the bytes of an image's files come from: files of the host, opened when they are needed.

Nothing here maps memory, so that a file that is cut short meanwhile costs zeros and not a SIGBUS.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

from vfs.errors import oserror

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE: Final = 4000
"""Bytes of a path that one openat(2) takes; PATH_MAX is 4096."""


def open_quietly(directory: int, name: bytes, flags: int) -> int:
    """openat(2) without following ``name``, waiting for a FIFO's other end, or an access time where
    we may leave none.
    """
    try:
        return os.open(name, flags | os.O_NOATIME | _OPEN, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags | _OPEN, dir_fd=directory)


class HostRoot:
    """A directory of the host that paths start from. Owns ``fd``, of the O_PATH kind."""

    __slots__ = ("fd",)

    def __init__(self, path: bytes) -> None:
        """Raises: as open(2)."""
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Once is enough; files below can't be opened any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of ``path`` (relative, b"" is the directory itself) with ``flags`` of
        open(2), opened as by ``open_quietly``. A path may be longer than PATH_MAX.

        Raises: as openat(2).
        """
        start, above = self.fd, -1
        try:
            while len(path) > _PIECE:
                cut = path.rindex(b"/", 0, _PIECE)
                start = os.open(path[:cut], os.O_PATH | os.O_DIRECTORY | _OPEN, dir_fd=start)
                if above >= 0:
                    os.close(above)
                above, path = start, path[cut + 1 :]
            return open_quietly(start, path or b".", flags)
        finally:
            if above >= 0:
                os.close(above)


class SourceFile:
    """Bytes to read from or to map. ``size`` in bytes is what the image's maker saw."""

    __slots__ = ("size",)
    size: int

    def open(self) -> int:
        """A descriptor for reading, which the caller closes. Raises: ESTALE; as openat(2)."""
        raise NotImplementedError

    def is_unchanged(self, fd: int) -> bool:
        """Whether what ``fd`` (of ``open``) has is still what the image's maker saw."""
        raise NotImplementedError

    @property
    def name(self) -> bytes:
        """For messages."""
        raise NotImplementedError


class HostFile(SourceFile):
    """A regular file below ``root``, told from others by its device and inode number, and from
    its own future by size and modification time.

    With ``appended`` a file that has grown is taken for one that was only appended to.
    """

    __slots__ = ("appended", "dev", "ino", "mtime_ns", "path", "root")

    def __init__(
        self,
        root: HostRoot,
        path: bytes,
        identity: tuple[int, int],
        size: int,
        mtime_ns: int,
        appended: bool = False,
    ) -> None:
        """``root`` is borrowed. ``identity`` is (st_dev, st_ino)."""
        self.root = root
        self.path = path
        self.dev, self.ino = identity
        self.size = size
        self.mtime_ns = mtime_ns
        self.appended = appended

    def open(self) -> int:
        fd = self.root.open(self.path, os.O_RDONLY)
        try:
            if not self.is_unchanged(fd):
                raise oserror(errno.ESTALE, self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def is_unchanged(self, fd: int) -> bool:
        stat = os.fstat(fd)
        if (stat.st_ino, stat.st_dev) != (self.ino, self.dev):
            return False
        if self.appended and stat.st_size > self.size:
            return True
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns)

    @property
    def name(self) -> bytes:
        return self.path


class SpoolFile(SourceFile):
    """Copies of what nobody else could be asked for later, in memory or in a temporary file.

    Owns ``fd``, which nobody else changes.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        """Takes over ``fd``, of an empty file."""
        self.fd = fd
        self.size = 0

    @classmethod
    def in_memory(cls) -> SpoolFile:
        return cls(os.memfd_create("dentry-ext2", os.MFD_CLOEXEC))

    def append(self, data: bytes | bytearray | memoryview) -> int:
        """Add ``data`` at the end; return where it begins. Raises: ENOSPC."""
        start = self.size
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fd, view, self.size)
            self.size += count
            view = view[count:]
        return start

    def align(self, size: int) -> None:
        """Have the next byte begin at a multiple of ``size``, where it can be mapped."""
        self.size += -self.size % size
        os.ftruncate(self.fd, self.size)

    def open(self) -> int:
        return os.dup(self.fd)

    def is_unchanged(self, fd: int) -> bool:
        return True

    @property
    def name(self) -> bytes:
        return b"(copied)"

    def close(self) -> None:
        """Once is enough."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class OpenFile:
    """A descriptor that closes with its last holder, who may be reading in another thread."""

    __slots__ = ("fd",)

    def __init__(self, file: SourceFile) -> None:
        self.fd = -1
        self.fd = file.open()

    def __del__(self) -> None:
        if self.fd >= 0:
            with suppress(OSError):
                os.close(self.fd)


def read_fully(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset``; return the bytes read, fewer at the end of the file."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done
