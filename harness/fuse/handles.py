"""Handles: what OPEN and OPENDIR gave out, until RELEASE and RELEASEDIR."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from vfs.errors import InvariantViolation, oserror
from vfs.operations import vfs_iterate

if TYPE_CHECKING:
    from vfs.file import DirectoryEntry, FileDescription

_T = TypeVar("_T")


class IdTable(dict[int, _T]):
    """What the client's numbers stand for. Indexing with one never given raises ``number``."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, key: int) -> _T:
        raise oserror(self._number)


class DirectoryHandle:
    """An open directory and where its listing stands. Linux: ``struct file`` with its f_pos.

    The iterator lives from one READDIR to the next, so that a listing is one pass and not one per
    reply; a client that seeks starts a new one. ``pending`` was read and did not fit.
    """

    __slots__ = ("cookie", "file", "iterator", "pending")

    def __init__(self, file: FileDescription) -> None:
        """Takes over the caller's reference on ``file``."""
        self.file = file
        self.iterator: Iterator[DirectoryEntry] | None = None
        self.pending: DirectoryEntry | None = None
        self.cookie = 0

    def seek(self, cookie: int) -> Iterator[DirectoryEntry]:
        """The entries from ``cookie`` on, ``pending`` first.

        Raises: ENOENT (the directory is deleted); the filesystem's.
        """
        iterator = self.iterator
        if iterator is None or cookie != self.cookie:
            self.pending = None
            self.cookie = cookie
            self.iterator = iterator = vfs_iterate(self.file, cookie)
        return iterator

    def rewind(self) -> None:
        """Forget the iterator; the next READDIR starts one at its own offset."""
        self.iterator = None
        self.pending = None


class HandleTable:
    """The open files and directories of a session; one number space. Linux: ``fuse_file.fh``.

    Holds one reference on each description. ``next`` will be the next handle.
    """

    __slots__ = ("directories", "files", "next")

    def __init__(self) -> None:
        self.files = IdTable["FileDescription"](errno.EBADF)
        self.directories = IdTable[DirectoryHandle](errno.EBADF)
        self.next = 1

    def add_file(self, file: FileDescription) -> int:
        """A handle for ``file``; takes over the caller's reference."""
        fh = self.next
        self.next = fh + 1
        self.files[fh] = file
        return fh

    def add_directory(self, file: FileDescription) -> int:
        """A handle for the open directory ``file``; takes over the caller's reference."""
        fh = self.next
        self.next = fh + 1
        self.directories[fh] = DirectoryHandle(file)
        return fh

    def restore(self, fh: int, file: FileDescription) -> None:
        """Have a handle that the client knows from elsewhere; takes over the caller's reference on
        ``file`` unless it raises. ``next`` is set before. Raises: EINVAL if it cannot be.
        """
        if fh in self.files or fh in self.directories or not 0 < fh < self.next:
            raise oserror(errno.EINVAL)
        if file.inode.is_dir:
            self.directories[fh] = DirectoryHandle(file)
        else:
            self.files[fh] = file

    def descriptions(self) -> list[FileDescription]:
        """Every open file and directory, borrowed."""
        return [*self.files.values(), *(handle.file for handle in self.directories.values())]

    def clear(self) -> None:
        """Close everything."""
        files = self.descriptions()
        self.files.clear()
        self.directories.clear()
        for file in files:
            file.put()

    def check(self) -> None:
        """Raises InvariantViolation if a handle names a dead description."""
        for file in self.descriptions():
            if file.count < 1:
                raise InvariantViolation(f"{file!r} is dead but has a handle")
