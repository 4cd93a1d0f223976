"""What an image is made of: a tree of nodes, which a source fills in. Sources: ``host``, ``tasks``
(a VFS tree) and ``tar``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fsimpl.ext2.builder.files import SourceFile

Extent = tuple[int, int, int]
"""Bytes: offset in the file, length, offset in the source file. In order, with holes between."""

Progress = Callable[[str, int, int], None]
"""Told now and then: what is done ("scan", in files, or "write", in bytes), how much of it, of how
much (0: unknown). It may raise, to give up: nothing is left behind then.
"""


def ignore(what: str, done: int, total: int) -> None:
    """A Progress that nobody looks at."""


class Node:
    """A file of any type, with all its names. Times are nanoseconds since 1970.

    ``extents`` is a regular file's content in ``file``; None stands for all ``size`` bytes of it.
    ``children`` are a directory's names, in any order; a name is bytes without a slash.
    ``xattrs`` are whole names and values as getxattr(2) tells them. Ids are the source's.
    """

    __slots__ = (
        "atime_ns", "btime_ns", "children", "ctime_ns", "extents", "file", "gid", "ino", "mode",
        "mtime_ns", "nlink", "rdev", "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = 0
        self.size = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = 0
        self.xattrs: Sequence[tuple[bytes, bytes]] = ()
        self.target = b""
        self.file: SourceFile | None = None
        self.extents: list[Extent] | None = None
        self.children: dict[bytes, Node] = {} if stat.S_ISDIR(mode) else _NO_CHILDREN
        self.nlink = 0
        self.ino = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)


_NO_CHILDREN: Final[dict[bytes, Node]] = {}
"""Of everything that is no directory, so that a million files don't have a million of them."""


class Source(Protocol):
    """A tree to make an image of."""

    def scan(self, progress: Progress) -> Node:
        """The tree's root, a directory. Raises: ImageError; OSError with the file's name."""
        ...

    def close(self) -> None:
        """Give up descriptors and copies: the content can't be read any more."""
        ...


def data_extents(seek: Callable[[int, int], int], size: int) -> list[Extent] | None:
    """Where a file of ``size`` bytes has data; None: everywhere. ``seek`` is lseek(2) on it.

    Raises: as lseek(2) with SEEK_DATA and SEEK_HOLE.
    """
    extents: list[Extent] = []
    end = 0
    while end < size:
        try:
            start = seek(end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        if start >= size:
            break
        end = min(seek(start, os.SEEK_HOLE), size)
        if end <= start:
            # The file shrinks while we look; what is gone reads as zeros.
            break
        extents.append((start, end - start, start))
    return None if extents == [(0, size, 0)] else extents
