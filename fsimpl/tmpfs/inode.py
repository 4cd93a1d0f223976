"""Files, symlinks and device nodes. Linux: ``shmem_get_inode`` and shmem's inode operations."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from fsimpl.tmpfs.file import TmpfsFile
from fsimpl.tmpfs.options import INODE_SPACE
from fsimpl.tmpfs.store import PageStore
from fsimpl.tmpfs.xattrs import SimpleXattrs, check_name, xattr_space
from vfs.errors import InvariantViolation, oserror
from vfs.inode import Inode, SetAttributes

if TYPE_CHECKING:
    from fsimpl.tmpfs.filesystem import TmpfsSuperblock
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.file import FileDescription
    from vfs.mount import Mount

_SHORT_SYMLINK: Final = 128  # a target with its NUL that fits needs no page (SHORT_SYMLINK_LEN)


class TmpfsInode(Inode):
    """Linux: ``shmem_inode_info``. Complete as it is for device nodes, FIFOs and sockets."""

    __slots__ = ("xattrs",)
    superblock: TmpfsSuperblock

    def __init__(
        self, superblock: TmpfsSuperblock, mode: int, uid: int, gid: int, rdev: int = 0
    ) -> None:
        """Linux: ``shmem_reserve_inode``. Raises: ENOSPC."""
        if not superblock.ispace.take(INODE_SPACE):
            raise oserror(errno.ENOSPC)
        super().__init__(superblock, mode, uid, gid, rdev)
        self.xattrs: SimpleXattrs | None = None
        superblock.inodes.add(self)

    @property
    def ispace(self) -> int:
        """What the inode, its further names and its attributes take of the inode space."""
        extra_names = 0 if self.is_dir else max(self.nlink - 1, 0)
        return (1 + extra_names) * INODE_SPACE + (self.xattrs.space if self.xattrs else 0)

    def evict(self) -> None:
        """Linux: ``shmem_evict_inode``."""
        superblock = self.superblock
        superblock.ispace.give(self.ispace)
        superblock.inodes.discard(self)

    def stamp(self, now: int) -> None:
        """Linux: ``inode_set_ctime_current``."""
        self.ctime_ns = now
        self.wire = None

    def check(self) -> None:
        """Raises InvariantViolation when what the inode holds is not what it shows."""

    def getxattr(self, name: bytes) -> bytes:
        """Raises: EINVAL, EOPNOTSUPP, ENODATA."""
        check_name(name)
        if self.xattrs is None:
            raise oserror(errno.ENODATA)
        return self.xattrs.get(name)

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Linux: ``shmem_xattr_handler_set``, which looks for space first.

        Raises: EINVAL, EOPNOTSUPP, ENOSPC, EEXIST, ENODATA.
        """
        check_name(name)
        ispace = self.superblock.ispace
        space = xattr_space(name, value)
        if not ispace.take(space):
            raise oserror(errno.ENOSPC)
        if self.xattrs is None:
            self.xattrs = SimpleXattrs()
        try:
            ispace.give(self.xattrs.set(name, value, flags))
        except OSError:
            ispace.give(space)
            raise
        self.stamp(self.superblock.vfs.clock.now_ns())

    def removexattr(self, name: bytes) -> None:
        """Raises: EINVAL, EOPNOTSUPP, ENODATA."""
        check_name(name)
        if self.xattrs is None:
            raise oserror(errno.ENODATA)
        self.superblock.ispace.give(self.xattrs.remove(name))
        self.stamp(self.superblock.vfs.clock.now_ns())

    def listxattr(self) -> list[bytes]:
        return [] if self.xattrs is None else self.xattrs.names()

    def killpriv(self) -> None:
        """Linux: ``cap_inode_killpriv``."""
        if self.xattrs is not None and b"security.capability" in self.xattrs:
            self.removexattr(b"security.capability")


class TmpfsRegular(TmpfsInode):
    """Linux: a regular file of ``shmem_file_operations``; ``store`` holds its bytes."""

    __slots__ = ("store",)

    def __init__(self, superblock: TmpfsSuperblock, mode: int, uid: int, gid: int) -> None:
        super().__init__(superblock, mode, uid, gid)
        self.store = PageStore(superblock.blocks)

    def take_store(self, store: PageStore) -> None:
        """Have the bytes in ``store``, for a file that has none. Raises: ENOSPC."""
        store.charge_to(self.superblock.blocks)
        self.store = store
        self.blocks = store.pages << 3

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        """Linux: ``shmem_setattr``. A smaller size, or the same, frees the pages beyond it.

        The VFS sends the times of a truncate along, except for truncate(2) to the size that the
        file has. There ``shmem_truncate_range`` moves them if the file has pages at all.
        """
        size = attributes.size
        if size is not None:
            if size <= self.size and self.store.pages:
                self.store.truncate(size)
                self.blocks = self.store.pages << 3
                if attributes.ctime_ns is None:
                    now = self.superblock.vfs.clock.now_ns()
                    attributes.ctime_ns = attributes.mtime_ns = now
            self.size = size
        self.copy_attributes(attributes)

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return TmpfsFile(mount, dentry, flags, cred)

    def evict(self) -> None:
        self.store.free()
        super().evict()

    def check(self) -> None:
        self.store.check()
        if self.blocks != self.store.pages << 3:
            raise InvariantViolation(f"{self!r}: {self.blocks} blocks, {self.store.pages} pages")


class TmpfsSymlink(TmpfsInode):
    """Linux: ``shmem_symlink_inode_operations``. A target of 128 bytes or more takes a page."""

    __slots__ = ("target",)

    def __init__(
        self, superblock: TmpfsSuperblock, mode: int, uid: int, gid: int, target: bytes
    ) -> None:
        """Raises: ENOSPC (inodes, then pages)."""
        super().__init__(superblock, mode, uid, gid)
        self.target = target
        self.size = len(target)
        if self.size >= _SHORT_SYMLINK:
            if not superblock.blocks.take(1):
                self.nlink = 0
                self.put()
                raise oserror(errno.ENOSPC)
            self.blocks = 8

    def readlink(self) -> bytes:
        return self.target

    def evict(self) -> None:
        self.superblock.blocks.give(self.blocks >> 3)
        super().evict()
