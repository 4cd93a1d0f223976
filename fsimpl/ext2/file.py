"""Open regular files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from fsimpl.ext2.blocks import find_run
from vfs.errors import oserror
from vfs.file import Buffers, FileDescription

if TYPE_CHECKING:
    from fsimpl.ext2.inode import Ext2Regular

_RUNS: Final = 1 << 32


class Ext2File(FileDescription):
    """Linux: ``ext4_file_operations``. Reads without the VFS lock: the image is the host's."""

    __slots__ = ()
    unlocked_io: ClassVar[bool] = True
    inode: Ext2Regular

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Raises: EUCLEAN, EIO."""
        return self.inode.read_into(buffers, offset)

    def seek_data(self, offset: int) -> int:
        """Raises: ENXIO, EUCLEAN, EIO."""
        found = self._seek(offset, data=True)
        if found >= self.inode.size:
            raise oserror(errno.ENXIO)
        return found

    def seek_hole(self, offset: int) -> int:
        """Raises: EUCLEAN, EIO."""
        return self._seek(offset, data=False)

    def _seek(self, offset: int, *, data: bool) -> int:
        """The first offset from ``offset`` on with data, or without; or the size.

        Linux: ``ext4_seek_data``, ``ext4_seek_hole``: unwritten extents are holes.
        """
        inode = self.inode
        superblock = inode.superblock
        block_size = superblock.block_size
        size = inode.size
        # Each block is in one run, and between two of them is one hole or the end of a table.
        budget = 2 * superblock.geometry.blocks_count + 16
        while offset < size:
            logical = offset // block_size
            first, count = find_run(inode, logical, min(-(-size // block_size) - logical, _RUNS))
            if bool(first) == data:
                return offset
            offset = (logical + count) * block_size
            budget -= 1
            if not budget:
                raise superblock.corrupt("map of more blocks than there are", inode=inode)
        return size


class Ext2LockedFile(Ext2File):
    """The same of an image in a file that is read under the VFS lock."""

    __slots__ = ()
    unlocked_io = False
