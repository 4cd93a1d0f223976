"""Filesystem instances and the types that make them. Linux: super_block, file_system_type."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from vfs import abi
from vfs.errors import oserror
from vfs.refs import RefCounted
from vfs.user_namespace import INITIAL_USER_NAMESPACE

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.fs_context import FilesystemContext, Parameter
    from vfs.mount import Mount

# How the dentry cache may be used for a filesystem's directories (Superblock.dcache).
DCACHE_PINNED = 0  # the cache *is* the directory: a name without a dentry does not exist (tmpfs)
DCACHE_VALID = 1  # what is cached, positive or negative, is true until we change it
DCACHE_REVALIDATE = 2  # others change the directory too: ask Inode.revalidate at each step

# Linux: SB_* in include/linux/fs.h; the ones that live on the superblock, with mount(2)'s values.
SB_FLAGS = (
    abi.MS_RDONLY | abi.MS_SYNCHRONOUS | abi.MS_MANDLOCK | abi.MS_DIRSYNC | abi.MS_LAZYTIME
    | abi.MS_POSIXACL | abi.MS_SILENT
)  # fmt: skip


class Statfs(NamedTuple):
    """Linux: ``struct kstatfs``. Block counts are in units of ``bsize`` bytes."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namelen: int
    frsize: int
    fsid: int


class FilesystemType:
    """Linux: ``file_system_type`` and ``fs_context_operations``. A name and the way to mount it;
    registered with the root object.

    ``requires_device`` is FS_REQUIRES_DEV, shown by /proc/filesystems as the absence of "nodev".
    ``userns_mount`` is FS_USERNS_MOUNT: the root of a user namespace may make one, too.
    """

    name: str = ""
    requires_device = False
    userns_mount = False

    def init_context(self, context: FilesystemContext) -> None:
        """Give ``context`` the state that parameters will change (``fs_private``); also called
        before a reconfiguration. Raises: what the filesystem adds.
        """

    def split_options(self, data: str) -> list[str]:
        """mount(2)'s data as the parameters in it. Linux: half of ``parse_monolithic``."""
        return data.split(",")

    def parse_parameter(self, context: FilesystemContext, parameter: Parameter) -> bool:
        """Take one parameter, in the order in which they are given; False if it is none of ours.

        Raises: EINVAL (``context.invalfc``) for a bad value; what the filesystem adds.
        """
        return False

    def get_tree(self, context: FilesystemContext) -> Superblock:
        """Make or find a superblock whose ``root`` is set; the caller receives a reference to it.

        One that is there already is taken through ``context.reuse``. Raises: what the filesystem
        adds.
        """
        raise NotImplementedError

    def free_context(self, context: FilesystemContext) -> None:
        """``context`` is done with: give back what ``fs_private`` holds."""


class Superblock(RefCounted):
    """Linux: ``super_block``. Lives while a mount of it does; ``release`` shuts it down.

    Holds one reference on ``root``. ``flags`` carries SB_* (mount(2)'s MS_* values). ``mounts`` are
    its instances, borrowed. ``user_ns`` is whose administrator may reconfigure it; ``nodev``
    (SB_I_NODEV) says that device nodes on it open nothing, because another one's made them.
    ``next_ino`` is the number that the next inode gets.
    """

    __slots__ = (
        "block_size", "dcache", "dev", "flags", "magic", "max_bytes", "mounts",
        "next_ino", "nodev", "root", "type", "user_ns", "vfs",
    )  # fmt: skip

    def __init__(self, context: FilesystemContext, *, magic: int, dcache: int) -> None:
        self.vfs = context.vfs
        super().__init__(self.vfs.ledger)
        self.type = context.type
        self.flags = context.flags
        self.mounts: dict[Mount, None] = {}
        self.user_ns = context.user_ns
        self.nodev = context.user_ns is not INITIAL_USER_NAMESPACE
        self.magic = magic
        self.dcache = dcache
        self.dev = self.vfs.allocate_anonymous_dev()
        self.block_size = abi.PAGE_SIZE
        self.max_bytes = abi.MAX_LFS_FILESIZE
        self.root: Dentry | None = None  # set once by the type's get_tree()
        self.next_ino = 1
        self.vfs.superblocks.append(self)

    def allocate_ino(self) -> int:
        """The next inode number: 1, 2, ... so that runs repeat exactly."""
        ino = self.next_ino
        self.next_ino = ino + 1
        return ino

    @property
    def read_only(self) -> bool:
        """Linux: ``sb_rdonly``."""
        return bool(self.flags & abi.MS_RDONLY)

    def statfs(self) -> Statfs:
        """Linux: ``simple_statfs``."""
        return Statfs(self.magic, self.block_size, 0, 0, 0, 0, 0, abi.NAME_MAX, self.block_size, 0)

    def sync(self) -> None:
        """Write back what is dirty (syncfs(2)). Nothing to do where memory is the store."""

    def reconfigure(self, context: FilesystemContext) -> None:
        """Take over what the context's parameters ask for; all of it or nothing. ``flags`` are
        the caller's (``FilesystemContext.reconfigure``).

        Raises: what the filesystem adds.
        """

    def has_orphans(self) -> bool:
        """Linux: ``s_remove_count``: whether files are in use whose last name is gone, which wait
        to be freed, so that the filesystem cannot become read-only.
        """
        return False

    def require_no_writers(self) -> None:
        """Linux: ``sb_prepare_remount_readonly``. Raises: EBUSY if the filesystem cannot become
        read-only, because a file is open for writing or waits to be freed.
        """
        if self.has_orphans() or any(mount.writers for mount in self.mounts):
            raise oserror(errno.EBUSY)

    def check(self) -> None:
        """Raises InvariantViolation on the first broken rule of the filesystem's own accounting."""

    def show_options(self) -> str:
        """The filesystem's own options as mountinfo shows them, ``",size=1024k"`` or ``""``."""
        return ""

    def dname(self, dentry: Dentry) -> bytes | None:
        """Linux: ``d_dname``: what d_path shows for a ``dentry`` that is in no directory
        ("anon_inode:[fscontext]"); None: its name.
        """
        return None

    def show_path(self, root: Dentry) -> bytes | None:
        """Linux: ``super_operations.show_path``: what mountinfo shows as the ``root`` of a mount,
        without escapes; None: the path within the filesystem.
        """
        return None

    def release(self) -> None:
        """Linux: ``kill_sb``: take the tree apart, evict the inodes, free the device number."""
        if self.root is not None:
            self.vfs.dcache.shrink_superblock(self)
            root, self.root = self.root, None
            root.kill_tree()
        self.vfs.superblocks.remove(self)
        self.vfs.free_anonymous_dev(self.dev)
        super().release()
