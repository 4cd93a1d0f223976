"""What is on the disk of an ext2, ext3 or ext4: little-endian structures and their constants.

Linux: fs/ext2/ext2.h, fs/ext4/ext4.h and the kernel's Documentation/filesystems/ext4. Field names
are the kernel's without their prefix (``s_``, ``bg_``, ``i_``); of a pair of halves the lower one
has the plain name, the upper one ends in ``_high`` as far as the width is hidden by a property.

Each structure is a tuple: ``pack()`` gives its bytes, ``unpack(buffer, offset)`` takes it from any
buffer without judging it (``struct.error`` if the buffer is too short). Nothing here checks what a
hostile disk may hold; block numbers, counts and lengths are the reader's to judge.

Extended attributes have ``xattrs.py``, the hashes of indexed directories ``hashes.py``.
"""

from __future__ import annotations

import stat
import struct
from typing import Final, NamedTuple

from vfs import abi

Buffer = bytes | bytearray | memoryview

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 1024
EXT2_MAGIC: Final = 0xEF53
EXT2_ROOT_INO: Final = 2
EXT2_GOOD_OLD_FIRST_INO: Final = 11
EXT2_GOOD_OLD_INODE_SIZE: Final = 128
EXT2_GOOD_OLD_REV: Final = 0
EXT2_DYNAMIC_REV: Final = 1
EXT2_OS_LINUX: Final = 0
EXT2_VALID_FS: Final = 1
EXT2_ERROR_FS: Final = 2
EXT2_ERRORS_CONTINUE: Final = 1
EXT2_MIN_BLOCK_SIZE: Final = 1024
EXT2_MAX_BLOCK_SIZE: Final = 65536
EXT2_LINK_MAX: Final = 32000
"""What ext2 holds; ext4 holds 65000, and any number of subdirectories with DIR_NLINK."""
EXT2_NAME_LEN: Final = 255
EXT2_FLAGS_SIGNED_HASH: Final = 1
EXT2_FLAGS_UNSIGNED_HASH: Final = 2
EXT2_DEFM_XATTR_USER: Final = 0x4
EXT2_DEFM_ACL: Final = 0x8

COMPAT_DIR_PREALLOC: Final = 0x1
COMPAT_HAS_JOURNAL: Final = 0x4
COMPAT_EXT_ATTR: Final = 0x8
COMPAT_RESIZE_INODE: Final = 0x10
COMPAT_DIR_INDEX: Final = 0x20
COMPAT_SPARSE_SUPER2: Final = 0x200
COMPAT_NAMES: Final = {
    0x1: "dir_prealloc", 0x2: "imagic_inodes", 0x4: "has_journal", 0x8: "ext_attr",
    0x10: "resize_inode", 0x20: "dir_index", 0x40: "lazy_bg", 0x200: "sparse_super2",
    0x400: "fast_commit", 0x800: "stable_inodes", 0x1000: "orphan_file",
}  # fmt: skip

INCOMPAT_COMPRESSION: Final = 0x1
INCOMPAT_FILETYPE: Final = 0x2
INCOMPAT_RECOVER: Final = 0x4
INCOMPAT_JOURNAL_DEV: Final = 0x8
INCOMPAT_META_BG: Final = 0x10
INCOMPAT_EXTENTS: Final = 0x40
INCOMPAT_64BIT: Final = 0x80
INCOMPAT_MMP: Final = 0x100
INCOMPAT_FLEX_BG: Final = 0x200
INCOMPAT_EA_INODE: Final = 0x400
INCOMPAT_CSUM_SEED: Final = 0x2000
INCOMPAT_LARGEDIR: Final = 0x4000
INCOMPAT_INLINE_DATA: Final = 0x8000
INCOMPAT_ENCRYPT: Final = 0x10000
INCOMPAT_CASEFOLD: Final = 0x20000
INCOMPAT_NAMES: Final = {
    0x1: "compression", 0x2: "filetype", 0x4: "needs_recovery", 0x8: "journal_dev",
    0x10: "meta_bg", 0x40: "extent", 0x80: "64bit", 0x100: "mmp", 0x200: "flex_bg",
    0x400: "ea_inode", 0x1000: "dirdata", 0x2000: "metadata_csum_seed", 0x4000: "large_dir",
    0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold",
}  # fmt: skip

RO_COMPAT_SPARSE_SUPER: Final = 0x1
RO_COMPAT_LARGE_FILE: Final = 0x2
RO_COMPAT_BTREE_DIR: Final = 0x4
RO_COMPAT_HUGE_FILE: Final = 0x8
RO_COMPAT_GDT_CSUM: Final = 0x10
RO_COMPAT_DIR_NLINK: Final = 0x20
RO_COMPAT_EXTRA_ISIZE: Final = 0x40
RO_COMPAT_BIGALLOC: Final = 0x200
RO_COMPAT_METADATA_CSUM: Final = 0x400
RO_COMPAT_NAMES: Final = {
    0x1: "sparse_super", 0x2: "large_file", 0x4: "btree_dir", 0x8: "huge_file",
    0x10: "uninit_bg", 0x20: "dir_nlink", 0x40: "extra_isize", 0x80: "has_snapshot",
    0x100: "quota", 0x200: "bigalloc", 0x400: "metadata_csum", 0x800: "replica",
    0x1000: "read-only", 0x2000: "project", 0x4000: "shared_blocks", 0x8000: "verity",
    0x10000: "orphan_present",
}  # fmt: skip

EXT4_INDEX_FL: Final = 0x1000
EXT4_HUGE_FILE_FL: Final = 0x40000
EXT4_EXTENTS_FL: Final = 0x80000
EXT4_EA_INODE_FL: Final = 0x200000
EXT4_INLINE_DATA_FL: Final = 0x10000000

EXT2_NDIR_BLOCKS: Final = 12
EXT2_IND_BLOCK: Final = 12
EXT2_DIND_BLOCK: Final = 13
EXT2_TIND_BLOCK: Final = 14
EXT2_N_BLOCKS: Final = 15
FAST_SYMLINK_MAX: Final = 59
"""Bytes of a target that fits in ``i_block`` with its NUL; a longer one has a block."""

I_BLOCK: Final = struct.Struct("<15I")


def feature_names(names: dict[int, str], bits: int) -> list[str]:
    """The names of the features in ``bits``, those without one as ``0x...``."""
    return [names.get(1 << n, hex(1 << n)) for n in range(32) if bits >> n & 1]


def has_super(group: int, *, sparse: bool) -> bool:
    """Whether block group ``group`` has a copy of superblock and descriptors (ext2_bg_has_super).

    With ``sparse`` (sparse_super) only group 0, 1 and the powers of 3, 5 and 7 have.
    """
    if group <= 1 or not sparse:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


class SuperBlock(NamedTuple):
    """``struct ext4_super_block``, up to what ext2 and plain ext4 use. 1024 bytes at offset 1024.

    ``uuid``, ``volume_name``, ``last_mounted``, ``hash_seed`` and ``jnl_blocks`` are raw bytes.
    """

    inodes_count: int = 0
    blocks_count_low: int = 0
    r_blocks_count_low: int = 0
    free_blocks_count_low: int = 0
    free_inodes_count: int = 0
    first_data_block: int = 0
    log_block_size: int = 0
    log_cluster_size: int = 0
    blocks_per_group: int = 0
    clusters_per_group: int = 0
    inodes_per_group: int = 0
    mtime: int = 0
    wtime: int = 0
    mnt_count: int = 0
    max_mnt_count: int = 0xFFFF
    magic: int = EXT2_MAGIC
    state: int = EXT2_VALID_FS
    errors: int = EXT2_ERRORS_CONTINUE
    minor_rev_level: int = 0
    lastcheck: int = 0
    checkinterval: int = 0
    creator_os: int = EXT2_OS_LINUX
    rev_level: int = EXT2_DYNAMIC_REV
    def_resuid: int = 0
    def_resgid: int = 0
    first_ino: int = EXT2_GOOD_OLD_FIRST_INO
    inode_size: int = EXT2_GOOD_OLD_INODE_SIZE
    block_group_nr: int = 0
    feature_compat: int = 0
    feature_incompat: int = 0
    feature_ro_compat: int = 0
    uuid: bytes = bytes(16)
    volume_name: bytes = b""
    last_mounted: bytes = b""
    algorithm_usage_bitmap: int = 0
    prealloc_blocks: int = 0
    prealloc_dir_blocks: int = 0
    reserved_gdt_blocks: int = 0
    journal_uuid: bytes = bytes(16)
    journal_inum: int = 0
    journal_dev: int = 0
    last_orphan: int = 0
    hash_seed: bytes = bytes(16)
    def_hash_version: int = 0
    jnl_backup_type: int = 0
    desc_size: int = 0
    default_mount_opts: int = 0
    first_meta_bg: int = 0
    mkfs_time: int = 0
    jnl_blocks: bytes = bytes(68)
    blocks_count_high: int = 0
    r_blocks_count_high: int = 0
    free_blocks_count_high: int = 0
    min_extra_isize: int = 0
    want_extra_isize: int = 0
    flags: int = 0
    raid_stride: int = 0
    mmp_interval: int = 0
    mmp_block: int = 0
    raid_stripe_width: int = 0
    log_groups_per_flex: int = 0
    checksum_type: int = 0
    overhead_clusters: int = 0
    backup_bg_first: int = 0
    backup_bg_second: int = 0
    checksum_seed: int = 0
    checksum: int = 0

    @property
    def block_size(self) -> int:
        """In bytes. A hostile ``log_block_size`` makes it huge: look at that first."""
        return EXT2_MIN_BLOCK_SIZE << self.log_block_size

    @property
    def blocks_count(self) -> int:
        return self.blocks_count_low | self.blocks_count_high << 32

    @property
    def free_blocks_count(self) -> int:
        return self.free_blocks_count_low | self.free_blocks_count_high << 32

    @property
    def r_blocks_count(self) -> int:
        return self.r_blocks_count_low | self.r_blocks_count_high << 32

    @property
    def group_desc_size(self) -> int:
        """32 without 64bit; with it what the superblock says."""
        return self.desc_size if self.feature_incompat & INCOMPAT_64BIT else GROUP_DESC_SIZE

    @property
    def record_size(self) -> int:
        """Bytes of an inode on this disk."""
        dynamic = self.rev_level >= EXT2_DYNAMIC_REV
        return self.inode_size if dynamic else EXT2_GOOD_OLD_INODE_SIZE

    def pack(self) -> bytes:
        return _SUPERBLOCK.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0) -> SuperBlock:
        return cls._make(_SUPERBLOCK.unpack_from(buffer, offset))


_SUPERBLOCK: Final = struct.Struct(
    "<11I2I6H4I2HI2H3I16s16s64sI2BH16s3I16s2BH3I68s3I2HI2HQI2B210x3I28xI392xI"
)
assert _SUPERBLOCK.size == SUPERBLOCK_SIZE


class GroupDescriptor(NamedTuple):
    """``struct ext4_group_desc``: 32 bytes, or 64 with 64bit. Both unpack to whole numbers.

    ``block_bitmap``, ``inode_bitmap`` and ``inode_table`` are block numbers.
    """

    block_bitmap: int = 0
    inode_bitmap: int = 0
    inode_table: int = 0
    free_blocks_count: int = 0
    free_inodes_count: int = 0
    used_dirs_count: int = 0
    flags: int = 0
    itable_unused: int = 0
    checksum: int = 0

    def pack(self) -> bytes:
        """As 32 bytes; the numbers must fit in them."""
        return _GROUP.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0) -> GroupDescriptor:
        return cls._make(_GROUP.unpack_from(buffer, offset))

    def pack64(self) -> bytes:
        low, high = zip(*(divmod(n, 1 << 32)[::-1] for n in self[:3]), strict=True)
        counts = [*self[3:6], self.itable_unused]
        fields = [*(n & 0xFFFF for n in self[3:6]), self.flags]
        tail = (self.itable_unused & 0xFFFF, self.checksum)
        return _GROUP64.pack(*low, *fields, *tail, *high, *(n >> 16 for n in counts))

    @classmethod
    def unpack64(cls, buffer: Buffer, offset: int = 0) -> GroupDescriptor:
        words = _GROUP64.unpack_from(buffer, offset)
        return cls(
            block_bitmap=words[0] | words[9] << 32,
            inode_bitmap=words[1] | words[10] << 32,
            inode_table=words[2] | words[11] << 32,
            free_blocks_count=words[3] | words[12] << 16,
            free_inodes_count=words[4] | words[13] << 16,
            used_dirs_count=words[5] | words[14] << 16,
            flags=words[6],
            itable_unused=words[7] | words[15] << 16,
            checksum=words[8],
        )


_GROUP: Final = struct.Struct("<3I4H8x2H")
_GROUP64: Final = struct.Struct("<3I4H8x2H3I4H12x")
GROUP_DESC_SIZE: Final = _GROUP.size
GROUP_DESC_SIZE_64: Final = _GROUP64.size
assert (GROUP_DESC_SIZE, GROUP_DESC_SIZE_64) == (32, 64)
BG_INODE_UNINIT: Final = 1
BG_BLOCK_UNINIT: Final = 2

# Times. A second count of 32 bits, signed; the extra field of large inodes has two more bits of it
# (the epoch) below 30 bits of nanoseconds.

TIME_MIN: Final = -(1 << 31)
TIME_MAX: Final = (1 << 34) - (1 << 31) - 1
"""Seconds, 2446-05-10; without extra fields (1 << 31) - 1, 2038-01-19."""
_NS: Final = 10**9


def encode_time(time_ns: int) -> tuple[int, int]:
    """The second count and the extra field, both unsigned, of a time in nanoseconds.

    A time out of range becomes the nearest that can be told, as Linux has it
    (timestamp_truncate).
    """
    seconds, nanoseconds = divmod(time_ns, _NS)
    if not TIME_MIN <= seconds <= TIME_MAX:
        seconds, nanoseconds = (TIME_MIN if seconds < TIME_MIN else TIME_MAX), 0
    return seconds & 0xFFFFFFFF, nanoseconds << 2 | (seconds + (1 << 31)) >> 32


def decode_time(seconds: int, extra: int = 0) -> int:
    """Nanoseconds since 1970 of an unsigned second count and an extra field."""
    signed = (seconds ^ 1 << 31) - (1 << 31)
    return (signed + ((extra & 3) << 32)) * _NS + (extra >> 2)


class DiskInode(NamedTuple):
    """``struct ext4_inode``. The last eight fields are in the extra part of an inode > 128 bytes.

    The id, block and ``file_acl`` halves are apart on the disk: use the properties. ``block`` is
    the raw 60 bytes of ``i_block`` (``I_BLOCK`` takes them apart). ``blocks_low`` counts 512 bytes.
    """

    mode: int
    uid_low: int
    size_low: int
    atime: int
    ctime: int
    mtime: int
    dtime: int
    gid_low: int
    links_count: int
    blocks_low: int
    flags: int
    version: int
    block: bytes
    generation: int
    file_acl_low: int
    size_high: int
    obso_faddr: int
    blocks_high: int
    file_acl_high: int
    uid_high: int
    gid_high: int
    checksum_low: int
    extra_isize: int = 0
    checksum_high: int = 0
    ctime_extra: int = 0
    mtime_extra: int = 0
    atime_extra: int = 0
    crtime: int = 0
    crtime_extra: int = 0
    version_high: int = 0
    projid: int = 0

    @property
    def uid(self) -> int:
        return self.uid_low | self.uid_high << 16

    @property
    def gid(self) -> int:
        return self.gid_low | self.gid_high << 16

    @property
    def size(self) -> int:
        """In bytes. Old disks keep a directory's ACL in the upper half, and none is that large."""
        return self.size_low | self.size_high << 32

    @property
    def file_acl(self) -> int:
        """The block of extended attributes, 0 if there is none."""
        return self.file_acl_low | self.file_acl_high << 32

    def pack(self) -> bytes:
        """As 160 bytes: the old inode and 32 bytes of the extra part."""
        return _INODE_FULL.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0, record_size: int = 128) -> DiskInode:
        """``record_size`` is the disk's. Extra fields beyond ``extra_isize`` unpack as 0."""
        fields = _INODE.unpack_from(buffer, offset)
        if record_size <= EXT2_GOOD_OLD_INODE_SIZE:
            return cls._make((*fields, *_NO_EXTRA))
        (extra_isize,) = _U16.unpack_from(buffer, offset + EXT2_GOOD_OLD_INODE_SIZE)
        here = offset + EXT2_GOOD_OLD_INODE_SIZE
        usable = min(extra_isize, EXTRA_ISIZE, record_size - EXT2_GOOD_OLD_INODE_SIZE)
        extra = bytes(buffer[here : here + usable]).ljust(EXTRA_ISIZE, b"\0")
        return cls._make((*fields, extra_isize, *_INODE_EXTRA.unpack(extra)[1:]))


_U16: Final = struct.Struct("<H")
_INODE: Final = struct.Struct("<2H5I2H3I60s4I5H2x")
_INODE_EXTRA: Final = struct.Struct("<2H7I")
_INODE_FULL: Final = struct.Struct("<2H5I2H3I60s4I5H2x2H7I")
_NO_EXTRA: Final = (0,) * 9
EXTRA_ISIZE: Final = _INODE_EXTRA.size
assert (_INODE.size, EXTRA_ISIZE) == (EXT2_GOOD_OLD_INODE_SIZE, 32)

# Device numbers: one that fits the old 16 bits is in i_block[0], any other in i_block[1].


def encode_device(rdev: int) -> bytes:
    """``i_block`` of a device node; ``rdev`` is what ``os.makedev`` makes."""
    major, minor = abi.major(rdev), abi.minor(rdev)
    if major < 256 and minor < 256:
        return I_BLOCK.pack(major << 8 | minor, *[0] * 14)
    return I_BLOCK.pack(0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12, *[0] * 13)


def decode_device(block: Buffer) -> int:
    """The device number, as ``os.makedev`` makes it, of an ``i_block``."""
    old, new = struct.unpack_from("<2I", block)
    if old:
        return abi.makedev(old >> 8 & 0xFF, old & 0xFF)
    return abi.makedev(new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)


# Directories: entries follow each other by ``rec_len`` (a multiple of 4) and fill each block.

DIR_ENTRY: Final = struct.Struct("<IHBB")
"""inode, rec_len, name_len, file_type; the name follows. Without filetype name_len has 16 bits."""

FT_UNKNOWN: Final = 0
FILE_TYPES: Final = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4,
    stat.S_IFIFO: 5, stat.S_IFSOCK: 6, stat.S_IFLNK: 7,
}  # fmt: skip
"""The file type of a directory entry by the type bits of a mode."""


def dir_entry_size(name_length: int) -> int:
    """The least ``rec_len`` of an entry (EXT2_DIR_REC_LEN)."""
    return name_length + 11 & ~3


def decode_rec_len(rec_len: int, block_size: int) -> int:
    """With blocks of 64 KiB 0 and 65535 mean a whole block (ext4_rec_len_from_disk)."""
    return block_size if block_size > 65535 and rec_len in (0, 65535) else rec_len


# Indexed directories: the root is in block 0 behind "." and "..", nodes hide in an unused entry.
# The first entry's hash is the place of limit and count, each of 16 bits.

DX_ROOT_INFO_OFFSET: Final = 24
DX_ROOT_INFO: Final = struct.Struct("<I4B")
"""reserved_zero, hash_version, info_length, indirect_levels, unused_flags."""
DX_ROOT_ENTRIES: Final = DX_ROOT_INFO_OFFSET + DX_ROOT_INFO.size
DX_NODE_ENTRIES: Final = DIR_ENTRY.size
DX_COUNT_LIMIT: Final = struct.Struct("<2H")
"""limit, count: both in entries, the first one included."""
DX_ENTRY: Final = struct.Struct("<2I")
"""hash (bit 0: continues the block before), block within the directory."""

# Extents: a header in i_block and in each block of the tree, then indexes, or at depth 0 leaves.

EXTENT_MAGIC: Final = 0xF30A
EXTENT_HEADER: Final = struct.Struct("<4HI")
"""magic, entries, max, depth, generation."""
EXTENT_INDEX: Final = struct.Struct("<2IHH")
"""first logical block, child's block low, high, unused."""
EXTENT_LEAF: Final = struct.Struct("<I2HI")
"""first logical block, length, first block's high half, low half."""
EXTENT_INIT_MAX: Final = 32768
"""A longer length is of an unwritten extent, which reads as zeros, and has this much too much."""
