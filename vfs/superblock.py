"""Filesystem instances and the types that make them. Linux: super_block, file_system_type."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from vfs import abi
from vfs.errors import oserror
from vfs.refs import RefCounted

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.virtual_filesystem import VirtualFilesystem

# How the dentry cache may be used for a filesystem's directories (Superblock.dcache).
DCACHE_PINNED = 0  # the cache *is* the directory: a name without a dentry does not exist (tmpfs)
DCACHE_VALID = 1  # what is cached, positive or negative, is true until we change it
DCACHE_REVALIDATE = 2  # others change the directory too: ask Inode.revalidate at each step

# Linux: SB_* in include/linux/fs.h; the ones that live on the superblock, with mount(2)'s values.
SB_FLAGS = (
    abi.MS_RDONLY | abi.MS_SYNCHRONOUS | abi.MS_MANDLOCK | abi.MS_DIRSYNC | abi.MS_LAZYTIME
    | abi.MS_POSIXACL | abi.MS_SILENT
)  # fmt: skip


# Options that every filesystem takes in mount(2)'s data, as (flags set, flags cleared), whatever
# value they come with. Linux: ``common_set_sb_flag`` and ``common_clear_sb_flag`` in fs_context.c.
_FLAG_OPTIONS = {
    "dirsync": (abi.MS_DIRSYNC, 0),
    "lazytime": (abi.MS_LAZYTIME, 0),
    "mand": (abi.MS_MANDLOCK, 0),
    "ro": (abi.MS_RDONLY, 0),
    "sync": (abi.MS_SYNCHRONOUS, 0),
    "async": (0, abi.MS_SYNCHRONOUS),
    "nolazytime": (0, abi.MS_LAZYTIME),
    "nomand": (0, abi.MS_MANDLOCK),
    "rw": (0, abi.MS_RDONLY),
}


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


class FilesystemContext:
    """Linux: ``fs_context``. What a mount or a remount asks for, collected before it is done.

    ``options`` keeps the order in which they were given; a flag's value is None. Those that mean
    a superblock flag ("ro", "sync", ...) are taken out and set in ``flags``.
    """

    __slots__ = ("cred", "flags", "options", "source", "type", "vfs")

    def __init__(
        self,
        vfs: VirtualFilesystem,
        fstype: FilesystemType,
        cred: Credentials,
        source: bytes = b"none",
        flags: int = 0,
        options: Iterable[tuple[str, str | None]] = (),
    ) -> None:
        self.vfs = vfs
        self.type = fstype
        self.cred = cred
        self.source = source
        self.flags = flags & SB_FLAGS
        self.options: list[tuple[str, str | None]] = []
        for key, value in options:
            if key in _FLAG_OPTIONS:
                set_bits, clear_bits = _FLAG_OPTIONS[key]
                self.flags = self.flags & ~clear_bits | set_bits
            else:
                self.options.append((key, value))

    @staticmethod
    def parse_options(data: str) -> list[tuple[str, str | None]]:
        """mount(2)'s data, ``"size=1m,mode=755"``, as pairs (``generic_parse_monolithic``)."""
        pairs: list[tuple[str, str | None]] = []
        for item in data.split(","):
            if item:
                key, equals, value = item.partition("=")
                pairs.append((key, value if equals else None))
        return pairs


class FilesystemType:
    """Linux: ``file_system_type``. A name and the way to mount it; registered with the root object.

    ``requires_device`` is FS_REQUIRES_DEV, shown by /proc/filesystems as the absence of "nodev".
    """

    name: str = ""
    requires_device = False

    def mount(self, context: FilesystemContext) -> Superblock:
        """Make or find a superblock whose ``root`` is set; the caller receives a reference to it.

        Raises: EINVAL for an unknown option or a bad value; what the filesystem adds.
        """
        raise NotImplementedError


class Superblock(RefCounted):
    """Linux: ``super_block``. Lives while a mount of it does; ``release`` shuts it down.

    Holds one reference on ``root``. ``flags`` carries SB_* (mount(2)'s MS_* values).
    """

    __slots__ = (
        "_next_ino", "block_size", "dcache", "dev", "flags", "magic", "max_bytes", "root",
        "source", "type", "vfs",
    )  # fmt: skip

    def __init__(self, context: FilesystemContext, *, magic: int, dcache: int) -> None:
        self.vfs = context.vfs
        super().__init__(self.vfs.ledger)
        self.type = context.type
        self.source = context.source
        self.flags = context.flags
        self.magic = magic
        self.dcache = dcache
        self.dev = self.vfs.allocate_anonymous_dev()
        self.block_size = abi.PAGE_SIZE
        self.max_bytes = abi.MAX_LFS_FILESIZE
        self.root: Dentry | None = None  # set once by the type's mount()
        self._next_ino = 1
        self.vfs.superblocks.append(self)

    def allocate_ino(self) -> int:
        """The next inode number: 1, 2, ... so that runs repeat exactly."""
        ino = self._next_ino
        self._next_ino = ino + 1
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
        """Remount with new flags and options; all of them or none.

        Raises: EINVAL for an option this filesystem does not know.
        """
        if context.options:
            raise oserror(errno.EINVAL)
        self.flags = context.flags

    def check(self) -> None:
        """Raises InvariantViolation on the first broken rule of the filesystem's own accounting."""

    def show_options(self) -> str:
        """The filesystem's own options as mountinfo shows them, ``",size=1024k"`` or ``""``."""
        return ""

    def release(self) -> None:
        """Linux: ``kill_sb``: take the tree apart, evict the inodes, free the device number."""
        if self.root is not None:
            self.vfs.dcache.shrink_superblock(self)
            root, self.root = self.root, None
            root.kill_tree()
        self.vfs.superblocks.remove(self)
        self.vfs.free_anonymous_dev(self.dev)
        super().release()
