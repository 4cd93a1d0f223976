"""Directories, read block by block. Linux: fs/ext4/dir.c and namei.c.

An indexed directory is a plain one to those who do not know of the index, whose blocks look empty.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fsimpl.ext2.blocks import find_run
from fsimpl.ext2.inode import Ext2Inode
from fsimpl.ext2.layout import (
    COMPAT_DIR_INDEX,
    DIR_ENTRY,
    EXT2_ROOT_INO,
    EXT4_EA_INODE_FL,
    EXT4_INDEX_FL,
    FILE_TYPES,
    INCOMPAT_FILETYPE,
    decode_rec_len,
    dir_entry_size,
)
from fsimpl.ext2.tree import BadIndex, leaves_for
from vfs.errors import oserror
from vfs.file import DirectoryEntry, FileDescription

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.mount import Mount

_TYPES: Final = {number: mode >> 12 for mode, number in FILE_TYPES.items()}
_DOTS: Final = (b".", b"..")

Entry = tuple[int, bytes, int, int, int]
"""Offset in the block, name, inode number, file type as getdents(2) tells it, rec_len."""


class Ext2Directory(Ext2Inode):
    """A directory. It is found by the name in one other only, which its ".." must tell, so that
    no walk goes in circles on a disk with links to directories.
    """

    __slots__ = ()

    @property
    def length(self) -> int:
        """Its blocks. Raises: EUCLEAN."""
        superblock = self.superblock
        length, rest = divmod(self.size, superblock.block_size)
        if rest or not 0 < length <= superblock.geometry.blocks_count:
            raise superblock.corrupt(f"directory of {self.size} bytes", inode=self)
        return length

    def read(self, number: int) -> tuple[bytes, int]:
        """Block ``number`` of the directory, and where it is on the disk. Raises: EUCLEAN, EIO."""
        block, _ = find_run(self, number, 1)
        if not block:
            raise self.superblock.corrupt(f"directory with a hole at block {number}", inode=self)
        return self.superblock.read_block(block, self), block

    def entries(self, number: int) -> Iterator[Entry]:
        """What is in block ``number``. Linux: ``__ext4_check_dir_entry``. Raises: EUCLEAN, EIO."""
        superblock = self.superblock
        data, block = self.read(number)
        block_size = len(data)
        with_types = superblock.geometry.super.feature_incompat & INCOMPAT_FILETYPE
        inodes_count = superblock.geometry.inodes_count
        at = 0
        while at < block_size:
            wrong = ""
            if at + DIR_ENTRY.size > block_size:
                wrong = "directory entry overrun"
                ino = rec_len = name_len = kind = 0
            else:
                ino, rec_len, name_len, kind = DIR_ENTRY.unpack_from(data, at)
                rec_len = decode_rec_len(rec_len, block_size)
                if not with_types:
                    name_len |= kind << 8
                    kind = 0
                if rec_len < dir_entry_size(1):
                    wrong = "rec_len is smaller than minimal"
                elif rec_len & 3:
                    wrong = "rec_len % 4 != 0"
                elif rec_len < dir_entry_size(name_len):
                    wrong = "rec_len is too small for name_len"
                elif at + rec_len > block_size:
                    wrong = "directory entry overrun"
                elif ino > inodes_count:
                    wrong = "inode out of bounds"
            if not wrong and ino:
                start = at + DIR_ENTRY.size
                name = data[start : start + name_len]
                if not name or b"/" in name or b"\0" in name:
                    wrong = "bad name"
                elif name in _DOTS and (number or at >= 2 * dir_entry_size(1)):
                    wrong = "'.' or '..' out of place"
                else:
                    yield at, name, ino, _TYPES.get(kind, 0), rec_len
            if wrong:
                raise superblock.corrupt(
                    f"bad entry in directory: {wrong} - offset={at}, inode={ino},"
                    f" rec_len={rec_len}, name_len={name_len}",
                    inode=self, block=block,
                )  # fmt: skip
            at += rec_len

    def parent_number(self) -> int:
        """The inode number that ".." has. Raises: EUCLEAN, EIO."""
        first = self.entries(0)
        own, above = next(first, None), next(first, None)
        if own is None or above is None or (own[1], own[2], above[1]) != (b".", self.ino, b".."):
            raise self.superblock.corrupt("directory without '.' and '..'", inode=self)
        return above[2]

    def lookup(self, name: bytes) -> Inode | None:
        """Linux: ``ext4_lookup``. Raises: EUCLEAN, EIO."""
        ino = self._find(name)
        if ino is None:
            return None
        superblock = self.superblock
        if ino in (self.ino, EXT2_ROOT_INO):
            raise superblock.corrupt(f"{name!r} linked to a directory above", inode=self)
        inode = superblock.get_inode(ino, self)
        try:
            if inode.is_dir:
                assert isinstance(inode, Ext2Directory)
                above = inode.parent_number()
                if above != self.ino:
                    raise superblock.corrupt(
                        f"directory is in inode {self.ino}, but says it is in {above}", inode=inode
                    )
            elif inode.flags & EXT4_EA_INODE_FL and inode.is_regular:
                raise superblock.corrupt("unexpected EA_INODE flag", inode=inode)
        except OSError:
            inode.put()
            raise
        return inode

    def _find(self, name: bytes) -> int | None:
        """Linux: ``__ext4_find_entry``."""
        numbers: Iterator[int] | range = range(self.length)
        if (
            self.flags & EXT4_INDEX_FL
            and self.superblock.geometry.super.feature_compat & COMPAT_DIR_INDEX
        ):
            try:
                return self._find_in(leaves_for(self, name), name)
            except BadIndex as error:
                self.superblock.complain(f"{error}; reading all of it", self, 0)
        return self._find_in(numbers, name)

    def _find_in(self, numbers: Iterator[int] | range, name: bytes) -> int | None:
        for number in numbers:
            data, _ = self.read(number)
            if name in data:
                for entry in self.entries(number):
                    if entry[1] == name:
                        return entry[2]
        return None

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return Ext2DirectoryFile(mount, dentry, flags, cred)


class Ext2DirectoryFile(FileDescription):
    """An open directory; its cookies are offsets in it, and nothing moves."""

    __slots__ = ()
    inode: Ext2Directory

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        """In the order of the disk. A cookie amid an entry means the next one.

        Raises: EUCLEAN, EIO.
        """
        if cookie < 0:
            raise oserror(errno.EINVAL)
        return self._entries(cookie)

    def _entries(self, cookie: int) -> Iterator[DirectoryEntry]:
        directory = self.inode
        block_size = directory.superblock.block_size
        for number in range(cookie // block_size, directory.length):
            start = number * block_size
            for at, name, ino, kind, rec_len in directory.entries(number):
                if start + at >= cookie:
                    yield name, ino, kind, start + at + rec_len
