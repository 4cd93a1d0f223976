"""tmpfs: the type, and the superblock with its limits. Linux: mm/shmem.c."""

from __future__ import annotations

import os

from fsimpl.tmpfs.directory import TmpfsDirectory
from fsimpl.tmpfs.inode import TmpfsInode
from fsimpl.tmpfs.limits import Limit
from fsimpl.tmpfs.options import INODE_SPACE, TmpfsOptions
from vfs import abi
from vfs.dentry import Dentry
from vfs.errors import InvariantViolation
from vfs.fs_context import FilesystemContext, Parameter
from vfs.superblock import (
    DCACHE_PINNED,
    FilesystemType,
    Statfs,
    Superblock,
)

_DEFAULT_MODE = 0o1777


class TmpfsType(FilesystemType):
    """Linux: ``shmem_fs_type``. Every mount makes a superblock of its own.

    ``ram_pages`` is the memory that default limits and ``size=...%`` are a part of: the host's,
    unless given.
    """

    name = "tmpfs"
    userns_mount = True

    def __init__(self, ram_pages: int | None = None) -> None:
        self.ram_pages = os.sysconf("SC_PHYS_PAGES") if ram_pages is None else ram_pages

    def init_context(self, context: FilesystemContext) -> None:
        """Linux: ``shmem_init_fs_context``."""
        context.fs_private = TmpfsOptions(self.ram_pages)

    def parse_parameter(self, context: FilesystemContext, parameter: Parameter) -> bool:
        return TmpfsOptions.of(context).parse(context, parameter)

    def get_tree(self, context: FilesystemContext) -> Superblock:
        """Linux: ``shmem_fill_super``. The root is the mounting user's, unless options say."""
        return TmpfsSuperblock(context, TmpfsOptions.of(context))


class TmpfsSuperblock(Superblock):
    """Linux: ``shmem_sb_info``. ``blocks`` counts pages of 4 KiB; ``ispace`` counts bytes, of which
    an inode takes 1024, each further name of a file as many, and an extended attribute its size.

    ``inodes`` are those that live, named or not; each leaves when it is evicted.
    """

    __slots__ = (
        "blocks", "huge", "inode64", "inodes", "ispace", "noswap", "ram_pages", "root_gid",
        "root_mode", "root_uid",
    )  # fmt: skip

    def __init__(self, context: FilesystemContext, options: TmpfsOptions) -> None:
        super().__init__(context, magic=abi.TMPFS_MAGIC, dcache=DCACHE_PINNED)
        self.ram_pages = ram_pages = options.ram_pages
        self.blocks = Limit(ram_pages // 2 if options.blocks is None else options.blocks)
        max_inodes = ram_pages // 2 if options.inodes is None else options.inodes
        self.ispace = Limit(max_inodes * INODE_SPACE)
        self.root_mode = _DEFAULT_MODE if options.mode is None else options.mode
        self.root_uid = context.cred.fsuid if options.uid is None else options.uid
        self.root_gid = context.cred.fsgid if options.gid is None else options.gid
        self.inode64 = bool(options.inode64)
        self.huge = options.huge or "never"
        self.noswap = options.noswap
        self.inodes: set[TmpfsInode] = set()
        root = TmpfsDirectory(self, abi.S_IFDIR | self.root_mode, self.root_uid, self.root_gid)
        self.root = Dentry.make_root(self, root)

    def statfs(self) -> Statfs:
        """Linux: ``shmem_statfs``: zeros where there is no limit.

        Linux draws ``f_fsid`` at random; here it is the device number, so that runs repeat.
        """
        blocks, ispace = self.blocks, self.ispace
        free = blocks.free if blocks.maximum else 0
        files = ispace.maximum // INODE_SPACE
        free_files = ispace.free // INODE_SPACE if files else 0
        return Statfs(
            self.magic, abi.PAGE_SIZE, blocks.maximum, free, free, files, free_files,
            abi.NAME_MAX, abi.PAGE_SIZE, self.dev,
        )  # fmt: skip

    def reconfigure(self, context: FilesystemContext) -> None:
        """Linux: ``shmem_reconfigure``. Limits may move, but not appear, nor fall below what is
        used; mode, uid and gid are read and ignored.

        Raises: EINVAL.
        """
        options = TmpfsOptions.of(context)
        blocks, ispace = self.blocks, self.ispace
        new_ispace = None if options.inodes is None else options.inodes * INODE_SPACE
        for limit, asked, things, too_low in (
            (blocks, options.blocks, "size", "Too small a size"),
            (ispace, new_ispace, "inodes", "Too few inodes"),
        ):
            if asked and not limit.maximum:
                raise context.invalfc(f"Cannot retroactively limit {things}")
            if asked and asked < limit.used:
                raise context.invalfc(f"{too_low} for current use")
        if options.noswap and not self.noswap:
            raise context.invalfc("Cannot disable swap on remount")
        if options.blocks is not None:
            blocks.maximum = options.blocks
        if new_ispace is not None:
            ispace.maximum = new_ispace
        if options.huge is not None:
            self.huge = options.huge
        if options.inode64 is not None:
            self.inode64 = options.inode64

    def has_orphans(self) -> bool:
        return any(not inode.nlink for inode in self.inodes)

    def show_options(self) -> str:
        """Linux: ``shmem_show_options``: what differs from the defaults, in the kernel's order."""
        default = self.ram_pages // 2
        shown = []
        if self.blocks.maximum != default:
            kib = self.blocks.maximum << 2 & (1 << 64) - 1
            shown.append(f"size={kib}k")
        max_inodes = self.ispace.maximum // INODE_SPACE
        if max_inodes != default:
            shown.append(f"nr_inodes={max_inodes}")
        if self.root_mode != _DEFAULT_MODE:
            shown.append(f"mode={self.root_mode:03o}")
        if self.root_uid:
            shown.append(f"uid={self.root_uid}")
        if self.root_gid:
            shown.append(f"gid={self.root_gid}")
        if self.inode64:
            shown.append("inode64")
        if self.huge != "never":
            shown.append(f"huge={self.huge}")
        if self.noswap:
            shown.append("noswap")
        return "".join("," + option for option in shown)

    def check(self) -> None:
        """The accounts against the inodes, and the directories against the dentry cache.

        Raises InvariantViolation on the first difference. Needs the VFS lock.
        """
        pages = ispace = 0
        names: dict[TmpfsInode, int] = dict.fromkeys(self.inodes, 0)
        for inode in self.inodes:
            inode.check()
            pages += inode.blocks >> 3
            ispace += inode.ispace
        if pages != self.blocks.used:
            raise InvariantViolation(f"{pages} pages in inodes, {self.blocks.used} on the account")
        if ispace != self.ispace.used:
            raise InvariantViolation(
                f"{ispace} bytes of inode space in use, {self.ispace.used} on the account"
            )
        assert self.root is not None
        for dentry in self.vfs.dcache.walk(self.root):
            inode_or_none = dentry.inode
            if not isinstance(inode_or_none, TmpfsInode):
                continue
            inode = inode_or_none
            if inode not in names:
                raise InvariantViolation(f"{dentry!r} names the evicted {inode!r}")
            names[inode] += 1
            if isinstance(inode, TmpfsDirectory):
                cached = {
                    name: child.inode
                    for name, child in (dentry.children or {}).items()
                    if child.inode is not None
                }
                if cached != dict(inode.names()):
                    raise InvariantViolation(f"{inode!r} and {dentry!r} differ in their names")
        for inode, count in names.items():
            links = count
            if isinstance(inode, TmpfsDirectory):
                subdirectories = sum(child.is_dir for _, child in inode.names())
                links = 2 + subdirectories if count else 0
            if inode.nlink != links:
                raise InvariantViolation(f"{inode!r}: nlink is {inode.nlink}, {links} counted")
