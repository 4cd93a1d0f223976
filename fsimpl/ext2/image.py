"""Where an image's bytes come from, and a bounded cache of its blocks.

Bytes are read by pread(2) and never mapped: an image that somebody cuts short while it is mounted
gives EIO, not a signal.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from vfs import abi
from vfs.errors import oserror
from vfs.file import FileDescription
from vfs.namei import FOLLOW, filename_lookup, get_name
from vfs.operations import vfs_open

if TYPE_CHECKING:
    from vfs.syscalls.base import SyscallBase

_CACHE_BYTES: Final = 8 << 20
_DEEPEST: Final = 8
"""Images in images: each level takes Python's stack."""


class Image(Protocol):
    """An open image. ``identity`` is equal for two of the same file; ``size`` is in bytes;
    ``unlocked`` says that reading needs no VFS lock. ``level`` counts the images that it is in.
    """

    identity: tuple[object, ...]
    size: int
    unlocked: bool
    level: int

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill ``buffers`` (IOV_MAX at most) from ``offset``; returns the bytes read, fewer at the
        end. Raises: EIO; the store's.
        """
        ...

    def close(self) -> None: ...


class HostImage:
    """A regular file or a block device of the host."""

    __slots__ = ("_fd", "identity", "level", "size", "unlocked")

    def __init__(self, path: bytes) -> None:
        """Raises: ENOENT, EACCES and others of open(2); ENOTBLK (neither file nor device)."""
        # O_NONBLOCK, for it may be a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
                raise oserror(errno.ENOTBLK)
            self.size = os.lseek(fd, 0, os.SEEK_END)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.identity: tuple[object, ...] = (status.st_dev, status.st_ino)
        self.unlocked = True
        self.level = 0

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(self._fd, buffers, offset)

    def close(self) -> None:
        os.close(self._fd)


class FileImage:
    """A regular file of the tree, as a loop device has it: a description that stays open."""

    __slots__ = ("_file", "identity", "level", "size", "unlocked")

    def __init__(self, path: bytes, task: SyscallBase) -> None:
        """``path`` is as ``task`` sees it.

        Raises: as opening it; ENOTBLK (not a regular file); ELOOP (too many images in images).
        """
        get_name(path, FOLLOW)
        cred = task.cred
        with filename_lookup(task.vfs, cred, task.fs.root, task.fs.cwd, path, FOLLOW) as found:
            inode = found.inode
            if not inode.is_regular:
                raise oserror(errno.ENOTBLK)
            below: Image | None = getattr(inode.superblock, "image", None)
            self.level = 0 if below is None else below.level + 1
            if self.level >= _DEEPEST:
                raise oserror(errno.ELOOP)
            self._file: FileDescription = vfs_open(found.mount, found.dentry, abi.O_RDONLY, cred)
        inode.refresh()
        self.size = inode.size
        self.identity: tuple[object, ...] = (inode,)
        self.unlocked = self._file.unlocked_io

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        return self._file.read(buffers, offset, 0)

    def close(self) -> None:
        self._file.put()


class BlockCache:
    """The blocks that were read last, up to 8 MiB of them. Any thread may ask."""

    __slots__ = ("_blocks", "_image", "_limit", "_lock", "block_size")

    def __init__(self, image: Image, block_size: int) -> None:
        self._image = image
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._limit = _CACHE_BYTES // block_size
        self._lock = threading.Lock()
        self.block_size = block_size

    def read(self, block: int) -> bytes:
        """Block ``block`` of the image. Raises: EIO (the image ends before)."""
        blocks = self._blocks
        with self._lock:
            found = blocks.get(block)
            if found is not None:
                blocks.move_to_end(block)
                return found
        data = read_exactly(self._image, block * self.block_size, self.block_size)
        with self._lock:
            blocks[block] = data
            if len(blocks) > self._limit:
                blocks.popitem(last=False)
        return data

    def blocks(self) -> list[int]:
        """Which blocks it has."""
        with self._lock:
            return list(self._blocks)


def read_exactly(image: Image, offset: int, length: int) -> bytes:
    """``length`` bytes. Raises: EIO (the image ends before)."""
    data = bytearray(length)
    fill(image, [memoryview(data)], offset)
    return bytes(data)


def fill(image: Image, buffers: Sequence[memoryview], offset: int) -> None:
    """Fill ``buffers`` from ``offset``. Raises: EIO (the image ends before)."""
    left = list(buffers)
    while left:
        count = image.preadv(left[: abi.IOV_MAX], offset)
        if count <= 0:
            raise oserror(errno.EIO)
        offset += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
