"""The filesystem type ``ext2``, which reads ext2, ext3 and ext4, and its superblock."""

from __future__ import annotations

import errno
import logging
from typing import Final

from fsimpl.ext2.directory import Ext2Directory
from fsimpl.ext2.file import Ext2File, Ext2LockedFile
from fsimpl.ext2.geometry import Geometry
from fsimpl.ext2.iget import load_inode
from fsimpl.ext2.image import BlockCache, FileImage, HostImage, Image
from fsimpl.ext2.inode import Ext2Inode
from fsimpl.ext2.layout import (
    COMPAT_HAS_JOURNAL,
    EXT2_MAGIC,
    EXT2_NAME_LEN,
    EXT2_ROOT_INO,
    INCOMPAT_64BIT,
    INCOMPAT_EXTENTS,
    DiskInode,
    GroupDescriptor,
)
from fsimpl.ext2.options import ERRORS, Ext2Options
from vfs import abi
from vfs.dentry import Dentry
from vfs.errors import oserror
from vfs.fs_context import FilesystemContext, Parameter
from vfs.superblock import DCACHE_VALID, FilesystemType, Statfs, Superblock

_logger = logging.getLogger(__name__)
_MOST_COMPLAINTS: Final = 100
_DEFAULT_SB: Final = 1


class Ext2Type(FilesystemType):
    """Linux: ``ext2_fs_type`` of the ext4 driver, but read-only, and for ext3 and ext4, too.

    ``source`` is a file or block device of the host, by a path as the process sees it: whoever can
    mount this type can read every image that the process can. With the option ``loop`` it is a
    regular file of the tree, by a path as the mounting task sees it, which stays open.
    """

    name = "ext2"
    requires_device = True

    def init_context(self, context: FilesystemContext) -> None:
        context.fs_private = Ext2Options()

    def parse_parameter(self, context: FilesystemContext, parameter: Parameter) -> bool:
        return Ext2Options.of(context).parse(context, parameter)

    def get_tree(self, context: FilesystemContext) -> Superblock:
        """Linux: ``get_tree_bdev``: an image that is mounted already is mounted once more, with the
        options that it has.

        Raises: EINVAL (no source; no ext2; features that are not read), EACCES (``rw`` asked for
        in words), ENOENT and others of opening the source, ENOTBLK, EROFS (a journal to be
        replayed), EUCLEAN, EIO. The context's log says more.
        """
        options = Ext2Options.of(context)
        source = context.require_source()
        if context.flags_mask & abi.MS_RDONLY and not context.flags & abi.MS_RDONLY:
            context.errorf(f"{self.name}: images are mounted read-only")
            raise oserror(errno.EACCES)
        context.flags |= abi.MS_RDONLY
        image = self._open(context, source, options.loop)
        for superblock in context.vfs.superblocks:
            if (
                isinstance(superblock, Ext2Superblock)
                and superblock.image.identity == image.identity
            ):
                image.close()
                return context.reuse(superblock)
        try:
            sb = _DEFAULT_SB if options.sb is None else options.sb
            geometry = Geometry(context, image, sb, options.noload)
        except BaseException:
            image.close()
            raise
        return Ext2Superblock.mounted(context, image, geometry, options)

    def _open(self, context: FilesystemContext, source: bytes, loop: bool) -> Image:
        try:
            if not loop:
                return HostImage(source)
            if context.vfs.current is not None:
                return FileImage(source, context.vfs.current)
        except OSError as error:
            if error.errno == errno.ENOTBLK:
                kinds = "regular file" if loop else "regular file or block device"
                context.errorf(f"{self.name}: an image is a {kinds}")
            raise
        raise context.invalfc("loop: there is no tree yet to take it from")


class Ext2Superblock(Superblock):
    """Linux: ``ext4_sb_info``. Reads through ``image``, which it closes in the end.

    ``inodes`` are those that live, by number. ``file_class`` is what its regular files open to.
    ``complaints`` are what the log says of the disk.
    """

    __slots__ = (
        "_cache", "_fsid", "_label", "complaints", "file_class", "geometry", "image", "inodes",
        "options",
    )  # fmt: skip

    def __init__(
        self, context: FilesystemContext, image: Image, geometry: Geometry, options: Ext2Options
    ) -> None:
        """Takes over ``image``."""
        super().__init__(context, magic=EXT2_MAGIC, dcache=DCACHE_VALID)
        self.image = image
        self.geometry = geometry
        self.options = options
        self.block_size = geometry.block_size
        self.inodes: dict[int, Ext2Inode] = {}
        self.file_class: type[Ext2File] = Ext2File if image.unlocked else Ext2LockedFile
        self._cache = BlockCache(image, geometry.block_size)
        self.complaints: set[str] = set()
        self._label = context.source.decode(errors="backslashreplace")
        uuid = geometry.super.uuid
        self._fsid = int.from_bytes(uuid[:8], "little") ^ int.from_bytes(uuid[8:], "little")

    @classmethod
    def mounted(
        cls, context: FilesystemContext, image: Image, geometry: Geometry, options: Ext2Options
    ) -> Ext2Superblock:
        """A superblock with its root. Takes over ``image``. Raises: EUCLEAN, EIO."""
        superblock = cls(context, image, geometry, options)
        try:
            root = superblock.get_inode(EXT2_ROOT_INO)
            try:
                if not isinstance(root, Ext2Directory):
                    raise superblock.corrupt("root inode is no directory", inode=root)
                if root.parent_number() != EXT2_ROOT_INO:
                    raise superblock.corrupt("root inode is in another directory", inode=root)
            except OSError:
                root.put()
                raise
        except OSError:
            context.errorf(f"{context.type.name}: corrupt root inode, run e2fsck")
            for complaint in superblock.complaints:
                context.errorf(f"{context.type.name}: {complaint}")
            superblock.put()
            raise
        superblock.root = Dentry.make_root(superblock, root)
        return superblock

    # What is wrong

    def complain(self, message: str, inode: Ext2Inode | int | None, block: int) -> None:
        """Log that something on the disk is wrong, once, with its inode and ``block`` (0: none)."""
        ino = inode.ino if isinstance(inode, Ext2Inode) else inode
        where = "" if ino is None else f"inode #{ino}: "
        where += f"block {block}: " if block else ""
        text = where + message
        complaints = self.complaints
        if text in complaints or len(complaints) > _MOST_COMPLAINTS:
            return
        complaints.add(text)
        _logger.error("ext2 (%s): %s", self._label, text)
        if len(complaints) > _MOST_COMPLAINTS:
            _logger.error("ext2 (%s): what else is wrong is not logged", self._label)

    def corrupt(
        self, message: str, *, inode: Ext2Inode | None = None, ino: int | None = None,
        block: int = 0,
    ) -> OSError:  # fmt: skip
        """Linux: ``ext4_error_inode_block``: logs it; returns EUCLEAN, to be raised."""
        self.complain(message, ino if inode is None else inode, block)
        return oserror(errno.EUCLEAN)

    # Blocks and inodes

    def check_blocks(self, first: int, count: int, inode: Ext2Inode | None, block: int) -> None:
        """Linux: ``ext4_inode_block_valid``. ``block`` is who says so. Raises: EUCLEAN."""
        geometry = self.geometry
        if not geometry.first_data_block < first or first + count > geometry.blocks_count:
            what = f"block {first}" if count == 1 else f"blocks {first}-{first + count - 1}"
            raise self.corrupt(f"invalid {what}", inode=inode, block=block)

    def read_block(self, block: int, inode: Ext2Inode | None = None) -> bytes:
        """A block of metadata, of ``inode`` if it is one's. Any thread may ask.

        Raises: EUCLEAN (there is no such block), EIO.
        """
        self.check_blocks(block, 1, inode, 0)
        try:
            return self._cache.read(block)
        except OSError:
            self.complain("unable to read", inode, block)
            raise

    def cached_blocks(self) -> list[int]:
        """The blocks of metadata that were read last."""
        return self._cache.blocks()

    def read_record(self, ino: int) -> bytes:
        """The bytes of inode ``ino``, which is in range. Linux: ``__ext4_get_inode_loc``.

        Raises: EUCLEAN, EIO.
        """
        geometry = self.geometry
        group, index = divmod(ino - 1, geometry.inodes_per_group)
        place, offset = geometry.descriptor_place(group)
        data = self.read_block(place)
        if geometry.super.feature_incompat & INCOMPAT_64BIT:
            table = GroupDescriptor.unpack64(data, offset).inode_table
        else:
            table = GroupDescriptor.unpack(data, offset).inode_table
        if not geometry.first_data_block < table <= geometry.blocks_count - geometry.itable_blocks:
            raise self.corrupt(f"inode table of group {group} at block {table}", block=place)
        block, start = divmod(index * geometry.inode_size, geometry.block_size)
        return self.read_block(table + block)[start : start + geometry.inode_size]

    def get_inode(self, ino: int, referrer: Ext2Inode | None = None) -> Ext2Inode:
        """Inode ``ino``, which ``referrer`` tells of; the caller receives a reference.
        Linux: ``ext4_iget``.

        Raises: EUCLEAN, EIO.
        """
        inode = self.inodes.get(ino)
        if inode is not None:
            inode.get()
            return inode
        geometry = self.geometry
        if ino != EXT2_ROOT_INO and not geometry.first_ino <= ino <= geometry.inodes_count:
            raise self.corrupt(f"bad inode number: {ino}", inode=referrer)
        inode = load_inode(self, ino)
        self.inodes[ino] = inode
        return inode

    # The superblock's operations

    def statfs(self) -> Statfs:
        """Linux: ``ext4_statfs``, with the counts of the superblock."""
        geometry = self.geometry
        disk = geometry.super
        overhead = 0
        if not self.options.minixdf:
            overhead = geometry.overhead
            if disk.feature_compat & COMPAT_HAS_JOURNAL and not disk.overhead_clusters:
                overhead += self._journal_blocks()
        free = disk.free_blocks_count
        reserved = disk.r_blocks_count
        if disk.feature_incompat & INCOMPAT_EXTENTS:
            # Linux: ext4_set_resv_clusters, for extents that must be split.
            ratio = geometry.cluster_ratio
            reserved += min(geometry.blocks_count // ratio // 50, 4096) * ratio
        return Statfs(
            self.magic, self.block_size, max(geometry.blocks_count - overhead, 0), free,
            max(free - reserved, 0), geometry.inodes_count, disk.free_inodes_count,
            EXT2_NAME_LEN, self.block_size, self._fsid,
        )  # fmt: skip

    def _journal_blocks(self) -> int:
        """What the journal takes, 0 if its inode is none. Raises: EUCLEAN, EIO."""
        ino = self.geometry.super.journal_inum
        if not 0 < ino <= self.geometry.inodes_count:
            return 0
        return DiskInode.unpack(self.read_record(ino)).size // self.block_size

    def reconfigure(self, context: FilesystemContext) -> None:
        """Linux: ``ext4_reconfigure``: what was given holds. Raises: EACCES (read-write)."""
        if context.flags_mask & abi.MS_RDONLY and not context.flags & abi.MS_RDONLY:
            raise oserror(errno.EACCES)
        new = Ext2Options.of(context)
        if new.errors is not None:
            self.options.errors = new.errors

    def show_options(self) -> str:
        number = self.geometry.super.errors
        default = ERRORS[number - 1] if 0 < number <= len(ERRORS) else ERRORS[0]
        return self.options.show(default)

    def release(self) -> None:
        super().release()
        self.image.close()
