"""Files that are in no directory: what fsopen(2) and its like give out. Linux: fs/anon_inodes.c.

All of a VirtualFilesystem's share one inode on one hidden filesystem, which is there while one of
them is open.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vfs import abi
from vfs.credentials import Credentials
from vfs.dentry import Dentry
from vfs.errors import oserror
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode, SetAttributes
from vfs.mount import Mount, VirtualDentry
from vfs.superblock import DCACHE_VALID, FilesystemType, Superblock

if TYPE_CHECKING:
    from vfs.virtual_filesystem import VirtualFilesystem

_ANON_INODE_FS_MAGIC: Final = 0x09041934


class AnonInode(Inode):
    """Linux: ``anon_inode_inode``. A file of no type: nothing about it can be changed."""

    __slots__ = ()

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        """Linux: ``anon_inode_setattr``. Raises: EOPNOTSUPP."""
        raise oserror(errno.EOPNOTSUPP)


class AnonInodeSuperblock(Superblock):
    """Holds the one inode, beside an empty root directory."""

    __slots__ = ("_owner", "inode")

    def __init__(self, context: FilesystemContext, owner: AnonInodes) -> None:
        super().__init__(context, magic=_ANON_INODE_FS_MAGIC, dcache=DCACHE_VALID)
        self._owner = owner
        self.root = Dentry.make_root(self, Inode(self, abi.S_IFDIR | 0o755))
        self.inode = AnonInode(self, 0o600)
        self.inode.flags = abi.FS_NOATIME_FL

    def dname(self, dentry: Dentry) -> bytes:
        """Linux: ``anon_inodefs_dname``."""
        return b"anon_inode:" + dentry.name

    def release(self) -> None:
        self._owner.mount = None
        self.inode.put()
        super().release()


class AnonInodes(FilesystemType):
    """Linux: ``anon_inode_fs_type`` and ``anon_inode_mnt``. One per VirtualFilesystem, not
    registered. ``mount`` is borrowed, and None while nobody has such a file open.
    """

    name = "anon_inodefs"

    def __init__(self, vfs: VirtualFilesystem) -> None:
        self._vfs = vfs
        self.mount: Mount | None = None

    def get_tree(self, context: FilesystemContext) -> Superblock:
        return AnonInodeSuperblock(context, self)

    def make_path(self, name: bytes) -> VirtualDentry:
        """A dentry called ``name`` on the one inode, for one file; the caller receives both
        references. Linux: ``alloc_path_pseudo``.
        """
        if self.mount is None:
            with (
                FilesystemContext(self._vfs, self, Credentials.root()) as context,
                context.get_tree() as superblock,
            ):
                mount = self.mount = Mount(superblock, self.name.encode())
        else:
            mount = self.mount.get()
        superblock = mount.superblock
        assert isinstance(superblock, AnonInodeSuperblock)
        dentry = self._vfs.dcache.disconnected(superblock, name, superblock.inode.get())
        return VirtualDentry(mount, dentry)
