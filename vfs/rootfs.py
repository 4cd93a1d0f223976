"""The mount under every namespace's root: an empty directory that nobody sees. Linux: rootfs.

It is there so that the root a task sees has a parent, which pivot_root(2) needs, as on Linux.
"""

from __future__ import annotations

from vfs import abi
from vfs.dentry import Dentry
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode
from vfs.superblock import DCACHE_VALID, FilesystemType, Superblock

_RAMFS_MAGIC = 0x858458F6


class RootfsInode(Inode):
    """A directory in which nothing can be made: every operation is ``Inode``'s refusal."""

    __slots__ = ()

    def lookup(self, name: bytes) -> None:
        return None


class RootfsType(FilesystemType):
    """Linux: ``rootfs_fs_type``. Not registered: tasks cannot mount it."""

    name = "rootfs"

    def get_tree(self, context: FilesystemContext) -> Superblock:
        superblock = Superblock(context, magic=_RAMFS_MAGIC, dcache=DCACHE_VALID)
        superblock.root = Dentry.make_root(superblock, RootfsInode(superblock, abi.S_IFDIR | 0o755))
        return superblock
