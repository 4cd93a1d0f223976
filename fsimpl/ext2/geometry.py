"""What a superblock says, judged: which disks are read, and where on them things are."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from fsimpl.ext2.image import Image, read_exactly
from fsimpl.ext2.layout import (
    COMPAT_SPARSE_SUPER2,
    EXT2_GOOD_OLD_FIRST_INO,
    EXT2_GOOD_OLD_INODE_SIZE,
    EXT2_GOOD_OLD_REV,
    EXT2_MAGIC,
    GROUP_DESC_SIZE_64,
    INCOMPAT_64BIT,
    INCOMPAT_CSUM_SEED,
    INCOMPAT_EA_INODE,
    INCOMPAT_EXTENTS,
    INCOMPAT_FILETYPE,
    INCOMPAT_FLEX_BG,
    INCOMPAT_LARGEDIR,
    INCOMPAT_META_BG,
    INCOMPAT_MMP,
    INCOMPAT_NAMES,
    INCOMPAT_RECOVER,
    RO_COMPAT_BIGALLOC,
    RO_COMPAT_SPARSE_SUPER,
    SUPERBLOCK_SIZE,
    SuperBlock,
    feature_names,
    has_super,
)
from vfs.errors import oserror
from vfs.fs_context import FilesystemContext

_KNOWN: Final = (
    INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG | INCOMPAT_EXTENTS | INCOMPAT_64BIT
    | INCOMPAT_MMP | INCOMPAT_FLEX_BG | INCOMPAT_EA_INODE | INCOMPAT_CSUM_SEED | INCOMPAT_LARGEDIR
)  # fmt: skip
_MAX_LOG_BLOCK_SIZE: Final = 6
_DIRTY: Final = "write access unavailable, cannot proceed (try mounting with noload)"


class Geometry:
    """A superblock without contradictions, of a disk that fits its image, and what follows from it.

    Sizes are in bytes; ``blocks_count``, ``first_data_block`` and ``superblock_block`` in blocks of
    ``block_size``. Descriptors are looked at when they are used.
    """

    __slots__ = (
        "block_size", "blocks_count", "cluster_ratio", "desc_size", "first_data_block", "first_ino",
        "groups", "inode_size", "inodes_count", "inodes_per_group", "itable_blocks", "super",
        "superblock_block",
    )  # fmt: skip

    def __init__(
        self, context: FilesystemContext, image: Image, sb: int, noload: bool = False
    ) -> None:
        """Read the superblock ``sb`` KiB from the start. Linux: ``ext4_load_super``,
        ``ext4_check_geometry``, ``ext4_block_group_meta_init``.

        Raises: EINVAL (no such file system, one that is not read here, or a superblock that makes
        no sense), EROFS (a journal to be replayed), EUCLEAN; each said in the context's log.
        """

        def refuse(message: str, number: int = errno.EINVAL) -> OSError:
            context.errorf(f"{context.type.name}: {message}")
            return oserror(number)

        if not sb:
            raise refuse("unable to read superblock")
        try:
            raw = read_exactly(image, sb << 10, SUPERBLOCK_SIZE)
        except OSError as error:
            raise refuse("unable to read superblock") from error
        disk = SuperBlock.unpack(raw)
        if disk.magic != EXT2_MAGIC:
            raise refuse(f"no ext2, ext3 or ext4 file system: no magic number at {sb} KiB")
        incompat = disk.feature_incompat
        if incompat & ~_KNOWN:
            names = ", ".join(feature_names(INCOMPAT_NAMES, incompat & ~_KNOWN))
            raise refuse(f"couldn't mount because of unsupported optional features: {names}")
        if incompat & INCOMPAT_RECOVER and not noload:
            raise refuse(_DIRTY, errno.EROFS)
        if disk.log_block_size > _MAX_LOG_BLOCK_SIZE:
            raise refuse(f"invalid log block size: {disk.log_block_size}")
        self.super = disk
        self.block_size = block_size = disk.block_size
        self.cluster_ratio = 1
        if disk.feature_ro_compat & RO_COMPAT_BIGALLOC:
            shift = disk.log_cluster_size - disk.log_block_size
            if not 0 <= shift < 32:
                raise refuse(f"invalid log cluster size: {disk.log_cluster_size}")
            self.cluster_ratio = 1 << shift
        if disk.rev_level == EXT2_GOOD_OLD_REV:
            self.first_ino = EXT2_GOOD_OLD_FIRST_INO
        else:
            self.first_ino = disk.first_ino
            if self.first_ino < EXT2_GOOD_OLD_FIRST_INO:
                raise refuse(f"invalid first ino: {self.first_ino}")
        size = self.inode_size = disk.record_size
        if size & (size - 1) or not EXT2_GOOD_OLD_INODE_SIZE <= size <= block_size:
            raise refuse(f"unsupported inode size: {size}")
        self.desc_size = disk.group_desc_size
        if incompat & INCOMPAT_64BIT and (
            self.desc_size & (self.desc_size - 1)
            or not GROUP_DESC_SIZE_64 <= self.desc_size <= block_size
        ):
            raise refuse(f"unsupported descriptor size {self.desc_size}")
        self._count(disk, sb, image.size, refuse)

    def _count(
        self, disk: SuperBlock, sb: int, image_size: int, refuse: Callable[[str], OSError]
    ) -> None:
        block_size = self.block_size
        inodes_per_group = self.inodes_per_group = disk.inodes_per_group
        if not 0 < inodes_per_group <= block_size * 8:
            raise refuse(f"invalid inodes per group: {inodes_per_group}")
        per_group = disk.blocks_per_group
        if not 0 < per_group <= block_size * 8 * self.cluster_ratio:
            raise refuse(f"#blocks per group too big: {per_group}")
        blocks_count = disk.blocks_count
        if not disk.feature_incompat & INCOMPAT_64BIT:
            blocks_count &= 0xFFFFFFFF
        self.blocks_count = blocks_count
        if blocks_count * block_size > image_size:
            raise refuse(
                f"bad geometry: block count {blocks_count} exceeds size of device"
                f" ({image_size // block_size} blocks)"
            )
        first = self.first_data_block = disk.first_data_block
        if first >= blocks_count:
            raise refuse(
                f"bad geometry: first data block {first} is beyond end of filesystem"
                f" ({blocks_count})"
            )
        if not first and block_size == 1024 and self.cluster_ratio == 1:
            raise refuse("bad geometry: first data block is 0 with a 1k block and cluster size")
        self.groups = -(-(blocks_count - first) // per_group)
        self.itable_blocks = -(-inodes_per_group * self.inode_size // block_size)
        self.inodes_count = disk.inodes_count
        if self.inodes_count != self.groups * inodes_per_group:
            raise refuse(
                f"inodes count not valid: {self.inodes_count} vs {self.groups * inodes_per_group}"
            )
        self.superblock_block = (sb << 10) // block_size

    def group_start(self, group: int) -> int:
        """The first block of ``group``."""
        return self.first_data_block + group * self.super.blocks_per_group

    def has_super(self, group: int) -> bool:
        """Linux: ``ext4_bg_has_super``."""
        disk = self.super
        if disk.feature_compat & COMPAT_SPARSE_SUPER2:
            return group in (0, disk.backup_bg_first, disk.backup_bg_second)
        return has_super(group, sparse=bool(disk.feature_ro_compat & RO_COMPAT_SPARSE_SUPER))

    def descriptor_place(self, group: int) -> tuple[int, int]:
        """Block of ``group``'s descriptor, and the offset in it. Linux: ``descriptor_loc``."""
        in_block = self.block_size // self.desc_size
        number, index = divmod(group, in_block)
        disk = self.super
        if not disk.feature_incompat & INCOMPAT_META_BG or number < disk.first_meta_bg:
            return self.superblock_block + 1 + number, index * self.desc_size
        first_group = number * in_block
        skipped = int(self.has_super(first_group))
        # With blocks of 1 KiB, and clusters, group 0 starts at block 0, the superblock at 1.
        if not first_group and self.block_size == 1024 and not self.first_data_block:
            skipped += 1
        return self.group_start(first_group) + skipped, index * self.desc_size

    @property
    def overhead(self) -> int:
        """Blocks that no file has. Linux: ``ext4_calculate_overhead``, without the journal."""
        disk = self.super
        if disk.overhead_clusters:
            return disk.overhead_clusters * self.cluster_ratio
        groups = self.groups
        in_block = self.block_size // self.desc_size
        descriptors = -(-groups // in_block)
        total = self.first_data_block + groups * (2 + self.itable_blocks)
        meta_bg = bool(disk.feature_incompat & INCOMPAT_META_BG)
        if meta_bg and disk.first_meta_bg < descriptors:
            descriptors = disk.first_meta_bg
            # Each of the others is in the first, the second and the last of the groups it tells of.
            whole, rest = divmod(groups - descriptors * in_block, in_block)
            total += whole * min(in_block, 3) + min(rest, 2)
        if disk.feature_compat & COMPAT_SPARSE_SUPER2:
            copies = {0, disk.backup_bg_first, disk.backup_bg_second}
        elif disk.feature_ro_compat & RO_COMPAT_SPARSE_SUPER:
            copies = {0, 1, *(base**n for base in (3, 5, 7) for n in range(1, 32))}
        else:
            return total + groups * (1 + descriptors + disk.reserved_gdt_blocks)
        supers = sum(group < groups for group in copies)
        reserved = 0 if meta_bg and not descriptors else disk.reserved_gdt_blocks
        return total + supers * (1 + descriptors + reserved)
