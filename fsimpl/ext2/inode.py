"""Inodes as the disk has them. Linux: ``ext4_iget`` and its inode operations, for reading."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fsimpl.ext2.attributes import acl_allows, get_attribute, list_attributes, read_acl
from fsimpl.ext2.blocks import find_run
from fsimpl.ext2.image import fill
from fsimpl.ext2.layout import (
    EXT4_EA_INODE_FL,
    EXT4_HUGE_FILE_FL,
    FAST_SYMLINK_MAX,
    RO_COMPAT_HUGE_FILE,
    DiskInode,
    decode_device,
    decode_time,
)
from fsimpl.ext2.xattrs import ACL_ACCESS
from vfs import abi
from vfs.inode import Inode
from vfs.permission import capability_permission, generic_permission

if TYPE_CHECKING:
    from fsimpl.ext2.filesystem import Ext2Superblock
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.file import FileDescription
    from vfs.mount import Mount

_GROUP_BITS: Final = 0o070
_SECTOR_SHIFT: Final = 9
_SYMLINK_MAX: Final = 4095
_ZEROS: Final = bytes(1 << 16)


class Ext2Inode(Inode):
    """Linux: ``ext4_inode_info``. Complete as it is for device nodes, FIFOs and sockets.

    ``block`` is the raw ``i_block``, ``file_acl`` the block of extended attributes or 0,
    ``extra_isize`` 0 if there is no room for attributes in the inode.
    """

    __slots__ = ("block", "extra_isize", "file_acl")
    superblock: Ext2Superblock

    def __init__(self, superblock: Ext2Superblock, ino: int, disk: DiskInode, size: int) -> None:
        """``disk`` and ``size`` are what ``load_inode`` has judged."""
        nouid32 = superblock.options.nouid32
        kind = disk.mode & abi.S_IFMT
        rdev = decode_device(disk.block) if kind in (abi.S_IFCHR, abi.S_IFBLK) else 0
        super().__init__(
            superblock,
            disk.mode,
            disk.uid_low if nouid32 else disk.uid,
            disk.gid_low if nouid32 else disk.gid,
            rdev,
            ino,
        )
        self.block = disk.block
        self.extra_isize = disk.extra_isize
        self.file_acl = disk.file_acl
        self.size = size
        self.nlink = disk.links_count
        self.flags = disk.flags
        self.generation = disk.generation
        self.blocks = disk.blocks_low
        if superblock.geometry.super.feature_ro_compat & RO_COMPAT_HUGE_FILE:
            self.blocks |= disk.blocks_high << 32
            if disk.flags & EXT4_HUGE_FILE_FL:
                self.blocks *= superblock.block_size >> _SECTOR_SHIFT
        self.atime_ns = decode_time(disk.atime, disk.atime_extra)
        self.mtime_ns = decode_time(disk.mtime, disk.mtime_extra)
        self.ctime_ns = decode_time(disk.ctime, disk.ctime_extra)
        self.btime_ns = decode_time(disk.crtime, disk.crtime_extra)

    def evict(self) -> None:
        del self.superblock.inodes[self.ino]

    def getxattr(self, name: bytes) -> bytes:
        """Raises: as ``get_attribute``."""
        return get_attribute(self, name)

    def listxattr(self) -> list[bytes]:
        return list_attributes(self)

    def permission(self, cred: Credentials, mask: int) -> None:
        """Linux: ``generic_permission`` with ``check_acl``: an ACL decides about those who are not
        the owner; where it gives the group class nothing, it need not be read.

        Raises: EACCES, EUCLEAN, EIO.
        """
        mode = self.mode
        if cred.fsuid != self.uid and mode & _GROUP_BITS and self.may_have_acl():
            entries = read_acl(self, ACL_ACCESS)
            if entries is not None:
                if not acl_allows(self, entries, cred, mask):
                    capability_permission(mode, cred, mask)
                return
        generic_permission(self, cred, mask)

    def may_have_acl(self) -> bool:
        return bool(self.file_acl or self.extra_isize) and not self.is_symlink

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill ``buffers`` with content from ``offset`` on; returns the bytes read, 0 at the end.
        Any thread may ask. Linux: ``generic_file_read_iter``.

        Raises: EUCLEAN, EIO; if nothing was read before.
        """
        superblock = self.superblock
        block_size = superblock.block_size
        at = offset
        end = min(self.size, offset + sum(map(len, buffers)))
        left = list(buffers)
        left.reverse()
        while at < end:
            logical, skip = divmod(at, block_size)
            try:
                first, count = find_run(self, logical, (end - 1) // block_size - logical + 1)
                length = min(count * block_size - skip, end - at)
                pieces = _take(left, length)
                if first:
                    fill(superblock.image, pieces, first * block_size + skip)
                else:
                    for piece in pieces:
                        _clear(piece)
            except OSError as error:
                if error.errno == errno.EIO:
                    superblock.complain(f"block {logical} of the file cannot be read", self, 0)
                if at == offset:
                    raise
                break
            at += length
        return max(at - offset, 0)


def _take(left: list[memoryview], length: int) -> list[memoryview]:
    """Cut ``length`` bytes off ``left``, which is in reverse."""
    pieces = []
    while length:
        buffer = left.pop()
        if len(buffer) > length:
            left.append(buffer[length:])
            buffer = buffer[:length]
        length -= len(buffer)
        pieces.append(buffer)
    return pieces


def _clear(buffer: memoryview) -> None:
    for at in range(0, len(buffer), len(_ZEROS)):
        part = buffer[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


class Ext2Regular(Ext2Inode):
    """A regular file."""

    __slots__ = ()

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return self.superblock.file_class(mount, dentry, flags, cred)


class Ext2Symlink(Ext2Inode):
    """A symlink: ``fast`` with its target in the inode, or with a block."""

    __slots__ = ("fast",)

    def __init__(self, superblock: Ext2Superblock, ino: int, disk: DiskInode, size: int) -> None:
        super().__init__(superblock, ino, disk, size)
        # Linux: ext4_inode_is_fast_symlink.
        sectors = superblock.block_size * superblock.geometry.cluster_ratio >> _SECTOR_SHIFT
        if disk.flags & EXT4_EA_INODE_FL:
            self.fast = size <= FAST_SYMLINK_MAX
        else:
            self.fast = self.blocks - (sectors if disk.file_acl else 0) == 0

    def readlink(self) -> bytes:
        """Raises: EUCLEAN (no target, or one that is not as long as it should be), EIO."""
        size = self.size
        superblock = self.superblock
        most = FAST_SYMLINK_MAX if self.fast else min(superblock.block_size - 1, _SYMLINK_MAX)
        if not 0 < size <= most:
            raise superblock.corrupt(f"symlink of {size} bytes", inode=self)
        if self.fast:
            target = self.block[:size]
        else:
            buffer = bytearray(size)
            self.read_into([memoryview(buffer)], 0)
            target = bytes(buffer)
        if b"\0" in target:
            raise superblock.corrupt("symlink with a NUL", inode=self)
        return target
