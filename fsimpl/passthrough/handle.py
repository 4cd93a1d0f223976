"""What an inode is on the host: a descriptor, or a file handle to get one by again."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, Self

from fsimpl.passthrough import oslib
from vfs import abi
from vfs.errors import oserror

if TYPE_CHECKING:
    from fsimpl.passthrough.descriptors import DescriptorBudget, MountAnchor


# Reading never waits: there are regular files that read like a pipe (/proc/kmsg), and get EAGAIN at
# their end.
_DATA: Final = abi.O_CLOEXEC | abi.O_NOCTTY
PROMPT_DATA: Final = _DATA | abi.O_NONBLOCK


class HostHandle:
    """An O_PATH descriptor: names a file, whatever becomes of its path, and gives no access to it.

    What needs more goes through the descriptor's magic link in /proc/self/fd, which leads to the
    very file. That directory is itself held open (``budget.links``), so it works where /proc is no
    longer in sight. It is the mounting process's: a child after fork(2) cannot use it.

    ``fd`` is -1 while the handle is parked: the descriptor was given up, and ``file_handle`` (None:
    not asked for yet; b"": there is none) brings another on the mount that ``anchor`` holds open.
    ``descriptor`` is how to get at it. One may be given up whenever another is made, but for those
    of handles that are ``pinned``. ``mount`` tells which host mount the file is on; ``used`` says
    that it was used of late, ``fruitful`` that the last new name looked up in it was there.
    """

    __slots__ = (
        "anchor", "budget", "fd", "file_handle", "fruitful", "is_dir", "mount", "pins", "used",
    )  # fmt: skip

    def __init__(self, fd: int, mount: bytes, budget: DescriptorBudget, is_dir: bool) -> None:
        """Takes over ``fd``."""
        self.is_dir = is_dir
        self.fd = fd
        self.mount = mount
        self.budget = budget
        self.file_handle: bytes | None = None
        self.anchor: MountAnchor | None = None
        self.pins = 0
        self.used = False
        self.fruitful = False

    def descriptor(self) -> int:
        """The descriptor, until the next one is made. Raises: ESTALE, ENFILE."""
        fd = self.fd
        if fd < 0:
            fd = self.budget.unpark(self)
        self.used = True
        return fd

    def pinned(self) -> Self:
        """For ``with``: ``descriptor()``, which stays for as long. Raises: ESTALE, ENFILE."""
        return self

    def __enter__(self) -> int:
        fd = self.descriptor()
        self.pins += 1
        return fd

    def __exit__(self, *exc: object) -> None:
        self.pins -= 1

    def is_file(self, directory: int, name: bytes) -> bool:
        """Whether ``name`` is this very file, where its number alone could be another's by now."""
        try:
            return oslib.name_to_handle_at(directory, name) == self.file_handle
        except OSError:
            return False

    def close(self) -> None:
        self.budget.close(self)

    def _link(self) -> bytes:
        return b"%d" % self.descriptor()

    def open(self, flags: int) -> int:
        """A descriptor for data. ``flags`` are open(2)'s; the process's own rights decide.

        Reading it never waits. Opening it waits for a lease to be broken, as open(2) does.
        """
        flags |= _DATA
        link, links = self._link(), self.budget.links
        try:
            return open_link(link, flags | PROMPT_DATA, links)
        except BlockingIOError:
            fd = open_link(link, flags, links)
        os.set_blocking(fd, False)
        return fd

    def readlink(self) -> bytes:
        return os.readlink(b"", dir_fd=self.descriptor())

    def chmod(self, mode: int) -> None:
        """Raises: EOPNOTSUPP for a symlink."""
        oslib.fchmodat(self.budget.links, self._link(), mode)

    def chown(self, uid: int | None, gid: int | None) -> None:
        oslib.fchownat(
            self.budget.links,
            self._link(),
            0xFFFFFFFF if uid is None else uid,
            0xFFFFFFFF if gid is None else gid,
        )

    def utimens(self, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        oslib.utimensat(self.budget.links, self._link(), atime, mtime)

    def link_as(self, directory: HostHandle, name: bytes) -> None:
        """Works for O_TMPFILE's files too, and needs no capability."""
        with self.pinned() as fd:
            oslib.linkat(self.budget.links, b"%d" % fd, directory.descriptor(), name)

    def getxattr(self, name: bytes) -> bytes:
        return oslib.getxattrat(self.budget.links, self._link(), name)

    def lacks_xattr(self, name: bytes) -> bool:
        return oslib.lacks_xattr(self.budget.links, self._link(), name)

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        oslib.setxattrat(self.budget.links, self._link(), name, value, flags)

    def removexattr(self, name: bytes) -> None:
        oslib.removexattrat(self.budget.links, self._link(), name)

    def listxattr(self) -> list[bytes]:
        return oslib.listxattrat(self.budget.links, self._link())


def open_link(link: bytes, flags: int, links: int) -> int:
    """Open what the descriptor numbered ``link`` stands for, anew; ``links`` is /proc/self/fd."""
    try:
        return os.open(link, flags, dir_fd=links)
    except OSError as error:
        # Not ``error`` itself: its file name is a descriptor's number, no news to a caller.
        raise oserror(error.errno or errno.EIO) from None
