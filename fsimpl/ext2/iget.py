"""From a record of the inode table to an inode of the right class. Linux: ``__ext4_iget``."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from fsimpl.ext2.directory import Ext2Directory
from fsimpl.ext2.inode import Ext2Inode, Ext2Regular, Ext2Symlink
from fsimpl.ext2.layout import EXT2_GOOD_OLD_INODE_SIZE, INCOMPAT_LARGEDIR, DiskInode
from vfs import abi

if TYPE_CHECKING:
    from fsimpl.ext2.filesystem import Ext2Superblock

_FILE_TYPES: Final = {
    abi.S_IFREG, abi.S_IFDIR, abi.S_IFLNK, abi.S_IFCHR, abi.S_IFBLK, abi.S_IFIFO, abi.S_IFSOCK
}  # fmt: skip


def load_inode(superblock: Ext2Superblock, ino: int) -> Ext2Inode:
    """Inode number ``ino``, which is in range, from the disk. Linux: ``__ext4_iget``.

    Raises: EUCLEAN, EIO.
    """
    geometry = superblock.geometry
    disk = DiskInode.unpack(superblock.read_record(ino), 0, geometry.inode_size)
    kind = disk.mode & abi.S_IFMT
    if not disk.links_count:
        raise superblock.corrupt("deleted inode referenced", ino=ino)
    if kind not in _FILE_TYPES:
        raise superblock.corrupt(f"bogus i_mode ({disk.mode:o})", ino=ino)
    extra = disk.extra_isize
    if extra > geometry.inode_size - EXT2_GOOD_OLD_INODE_SIZE or extra & 3:
        raise superblock.corrupt(
            f"bad extra_isize {extra} (inode size {geometry.inode_size})", ino=ino
        )
    size = disk.size_low
    if stat.S_ISREG(kind) or (
        stat.S_ISDIR(kind) and geometry.super.feature_incompat & INCOMPAT_LARGEDIR
    ):
        size = disk.size
    if size > abi.MAX_LFS_FILESIZE:
        raise superblock.corrupt(f"bad i_size value: {size}", ino=ino)
    if stat.S_ISREG(kind):
        return Ext2Regular(superblock, ino, disk, size)
    if stat.S_ISDIR(kind):
        return Ext2Directory(superblock, ino, disk, size)
    if stat.S_ISLNK(kind):
        return Ext2Symlink(superblock, ino, disk, size)
    return Ext2Inode(superblock, ino, disk, size)
