"""The open file description: what open(2) makes and dup(2) shares. Linux: struct file.

``FileDescription`` is both the object and the operations (Linux: ``file_operations``): a filesystem
subclasses it. The operations work at explicit offsets, on buffers that the caller owns, so that
bytes go straight into a guest's memory; position, permission bits, O_APPEND and times are handled
once, in ``vfs.operations``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from vfs import abi
from vfs.errors import oserror
from vfs.refs import RefCounted

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.mount import Mount
    from vfs.wait import WaitQueue

# What open(2) uses up; the rest stays with the description (do_dentry_open in fs/open.c).
_FLAGS_OF_OPEN_ONLY = abi.O_CREAT | abi.O_EXCL | abi.O_NOCTTY | abi.O_TRUNC | abi.O_CLOEXEC

Buffers = Sequence[memoryview]
# (name, inode number, type bits of the mode >> 12, cookie of the *next* position)
DirectoryEntry = tuple[bytes, int, int, int]


class FileDescription(RefCounted):
    """Linux: ``struct file``. Holds a reference on its mount and on its dentry until released.

    ``flags`` are the open(2) flags that stay (access mode, O_APPEND, O_NONBLOCK, ...). ``readable``
    and ``writable`` are FMODE_READ and FMODE_WRITE. ``position`` is the file offset in bytes, or a
    directory's cookie.

    Class attributes: ``seekable`` False makes lseek and pread fail with ESPIPE and passes position
    0; ``unlocked_io`` True has read, write and fsync called without the VFS lock; ``nowait`` True
    says that RWF_NOWAIT can be obeyed (FMODE_NOWAIT); ``generated`` True says that there may be
    more to read than ``inode.size``, so that a client must not read by it.
    """

    __slots__ = (
        "cred", "dentry", "flags", "inode", "mount", "position", "readable", "writable",
    )  # fmt: skip
    seekable: ClassVar[bool] = True
    unlocked_io: ClassVar[bool] = False
    nowait: ClassVar[bool] = False
    generated: ClassVar[bool] = False

    def __init__(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> None:
        assert dentry.inode is not None
        RefCounted.__init__(self, dentry.superblock.vfs.ledger)
        self.mount = mount.get()
        self.dentry = dentry.get()
        self.inode: Inode = dentry.inode
        self.flags = flags & ~_FLAGS_OF_OPEN_ONLY
        access = abi.O_ACCMODE if flags & abi.O_PATH else flags & abi.O_ACCMODE
        self.readable = access == abi.O_RDONLY or access == abi.O_RDWR
        self.writable = access == abi.O_WRONLY or access == abi.O_RDWR
        self.position = 0
        self.cred = cred
        if self.writable and mount is not None:
            mount.writers += 1

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Fill ``buffers`` from ``offset``; returns the bytes read, 0 at the end of file.

        ``flags`` are RWF_*. Raises: WouldBlock; what the filesystem adds.
        """
        raise oserror(errno.EISDIR if self.inode.is_dir else errno.EINVAL)

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Write ``buffers`` at ``offset`` (at the end with RWF_APPEND); returns bytes written.

        A short count is how ENOSPC in the middle is told. Grows ``inode.size``. Times and set-id
        bits are the VFS's.
        """
        raise oserror(errno.EINVAL)

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        """Entries from ``cookie`` on (0: the start), "." and ".." included.

        A cookie stays good while other names come and go: no entry that was there all along is
        missed or repeated.
        """
        raise oserror(errno.ENOTDIR)

    def llseek(self, offset: int, whence: int) -> int:
        """The position that SEEK_* ``whence`` and ``offset`` mean. Linux: ``generic_file_llseek``.

        Raises: EINVAL; ENXIO (SEEK_DATA and SEEK_HOLE outside of the file).
        """
        inode = self.inode
        if whence in (abi.SEEK_DATA, abi.SEEK_HOLE):
            if inode.is_dir:
                raise oserror(errno.EINVAL)
            inode.refresh()
            if not 0 <= offset < inode.size:
                raise oserror(errno.ENXIO)
            return self.seek_data(offset) if whence == abi.SEEK_DATA else self.seek_hole(offset)
        if whence == abi.SEEK_CUR:
            offset += self.position
        elif whence == abi.SEEK_END:
            if inode.is_dir:
                raise oserror(errno.EINVAL)
            inode.refresh()
            offset += inode.size
        if not 0 <= offset <= inode.superblock.max_bytes:
            raise oserror(errno.EINVAL)
        return offset

    def seek_data(self, offset: int) -> int:
        """SEEK_DATA: the first data at or after ``offset`` (which is below the size).

        Raises: ENXIO when there is none.
        """
        return offset

    def seek_hole(self, offset: int) -> int:
        """SEEK_HOLE: the first hole at or after ``offset``; the end of file counts as one."""
        return self.inode.size

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Raises: EOPNOTSUPP for a mode it does not know; ENOSPC."""
        raise oserror(errno.EOPNOTSUPP)

    def fsync(self, datasync: bool) -> None:
        """Linux: ``noop_fsync`` where memory is the store."""

    def flush(self) -> None:
        """A descriptor of this description was closed (Linux: ``f_op->flush``)."""

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        """Raises: ENOTTY for a command it does not know. Returns what goes back to the caller."""
        raise oserror(errno.ENOTTY)

    def ioctl_open(
        self, command: int, argument: bytes | memoryview | int, cred: Credentials
    ) -> FileDescription | None:
        """For an ioctl whose value is a new descriptor: what it stands for, which the caller
        receives; None for other commands, which go to ``ioctl``.
        """
        return None

    def poll(self) -> int:
        """The POLL* bits that hold now. Regular files are always ready (DEFAULT_POLLMASK)."""
        return abi.POLLIN | abi.POLLOUT | abi.POLLRDNORM | abi.POLLWRNORM

    def poll_queue(self) -> WaitQueue | None:
        """The queue that wakes when ``poll`` may answer differently; None: it never will."""
        return None

    def copy_range(
        self, offset: int, target: FileDescription, target_offset: int, length: int
    ) -> int | None:
        """copy_file_range(2) within one filesystem, if there is a short cut; None if not."""
        return None

    def release(self) -> None:
        """The last reference is gone. Subclasses give up their own state, then call this."""
        mount, dentry = self.mount, self.dentry
        # Linux: locks_remove_file.
        if locks := dentry.superblock.vfs.locks:
            locks.release(self.inode, self)
        if self.writable:
            mount.writers -= 1
        self.ledger.died(self)
        # The dentry goes before the mount, which may take the superblock with it.
        dentry.put()
        mount.put()

    def __repr__(self) -> str:
        return f"FileDescription({self.dentry.name!r} flags={self.flags:#o} count={self.count})"
