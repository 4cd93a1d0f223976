"""File descriptors: small numbers for open file descriptions. Linux: files_struct, fs/file.c."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from vfs.errors import oserror
from vfs.file import FileDescription
from vfs.refs import Ledger, RefCounted

DEFAULT_RLIMIT_NOFILE = 1024


class FdTable(RefCounted):
    """Linux: ``struct files_struct``. Shared by tasks cloned with CLONE_FILES.

    Holds one reference on the description behind each number. ``limit`` is RLIMIT_NOFILE's soft
    limit: one more than the highest number that may be given out.
    """

    __slots__ = ("_cloexec", "_files", "_lowest_free", "limit")

    def __init__(self, ledger: Ledger, limit: int = DEFAULT_RLIMIT_NOFILE) -> None:
        super().__init__(ledger)
        self._files: dict[int, FileDescription] = {}
        self._cloexec: set[int] = set()
        self._lowest_free = 0  # no number below it is free
        self.limit = limit

    def get_file(self, fd: int) -> FileDescription:
        """The description behind ``fd``, borrowed. Raises: EBADF."""
        file = self._files.get(fd)
        if file is None:
            raise oserror(errno.EBADF)
        return file

    def unused(self, lowest: int = 0) -> int:
        """Linux: ``get_unused_fd``: the number that ``install`` would give. Raises: EMFILE."""
        fd = max(lowest, self._lowest_free)
        while fd in self._files:
            fd += 1
        if fd >= self.limit:
            raise oserror(errno.EMFILE)
        return fd

    def install(self, file: FileDescription, cloexec: bool = False, lowest: int = 0) -> int:
        """Linux: ``alloc_fd`` + ``fd_install``. Takes over the caller's reference on ``file``.

        Raises: EMFILE (the reference stays the caller's).
        """
        fd = self.unused(lowest)
        if lowest <= self._lowest_free:
            self._lowest_free = fd + 1
        self._put_at(fd, file, cloexec)
        return fd

    def install_at(self, fd: int, file: FileDescription, cloexec: bool) -> FileDescription | None:
        """Linux: ``do_dup2``. Takes over the reference on ``file``; returns what was at ``fd``
        before, which the caller closes.

        Raises: EBADF if ``fd`` is beyond the limit (the reference stays the caller's).
        """
        if not 0 <= fd < self.limit:
            raise oserror(errno.EBADF)
        old = self._files.get(fd)
        self._put_at(fd, file, cloexec)
        return old

    def _put_at(self, fd: int, file: FileDescription, cloexec: bool) -> None:
        self._files[fd] = file
        if cloexec:
            self._cloexec.add(fd)
        else:
            self._cloexec.discard(fd)

    def remove(self, fd: int) -> FileDescription:
        """Free ``fd``; the caller receives its reference. Raises: EBADF."""
        file = self._files.pop(fd, None)
        if file is None:
            raise oserror(errno.EBADF)
        self._cloexec.discard(fd)
        self._lowest_free = min(self._lowest_free, fd)
        return file

    def cloexec(self, fd: int) -> bool:
        self.get_file(fd)
        return fd in self._cloexec

    def set_cloexec(self, fd: int, on: bool) -> None:
        """Raises: EBADF."""
        self._put_at(fd, self.get_file(fd), on)

    def numbers(self) -> list[int]:
        """The numbers in use, ascending."""
        return sorted(self._files)

    def copy(self, up_to: int | None = None) -> FdTable:
        """Linux: ``dup_fd``: a table of its own on the same descriptions, for fork(2)."""
        table = FdTable(self.ledger, self.limit)
        for fd in self.numbers():
            if up_to is not None and fd >= up_to:
                break
            table._put_at(fd, self._files[fd].get(), fd in self._cloexec)
        return table

    def __iter__(self) -> Iterator[tuple[int, FileDescription]]:
        return iter(sorted(self._files.items()))

    def release(self) -> None:
        for fd in self.numbers():
            close_file(self.remove(fd))
        super().release()


def close_file(file: FileDescription) -> None:
    """Linux: ``filp_close``: flush, then give the reference back, even if flush fails."""
    try:
        if file.readable or file.writable:
            file.flush()
    finally:
        file.put()
