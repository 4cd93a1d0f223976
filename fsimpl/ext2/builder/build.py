"""From a tree to the plan of an image."""

from __future__ import annotations

import gc
import stat
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from operator import itemgetter
from typing import Final

from fsimpl.ext2.builder.attributes import with_refcount
from fsimpl.ext2.builder.block_map import MappedRun, map_blocks
from fsimpl.ext2.builder.directories import HASH_VERSION
from fsimpl.ext2.builder.errors import ImageError
from fsimpl.ext2.builder.geometry import INODE_SIZE, Allocator, Run, plan_geometry
from fsimpl.ext2.builder.options import BLOCK_SIZE, BuildOptions, Owners
from fsimpl.ext2.builder.plan import ImagePlan, Piece
from fsimpl.ext2.builder.records import Record, Records, SharedBlock
from fsimpl.ext2.builder.tree import Node, Progress, Source, ignore
from fsimpl.ext2.layout import (
    COMPAT_DIR_INDEX,
    COMPAT_EXT_ATTR,
    EXT2_DEFM_ACL,
    EXT2_DEFM_XATTR_USER,
    EXT2_FLAGS_SIGNED_HASH,
    EXT2_GOOD_OLD_FIRST_INO,
    EXTRA_ISIZE,
    INCOMPAT_FILETYPE,
    RO_COMPAT_DIR_NLINK,
    RO_COMPAT_HUGE_FILE,
    RO_COMPAT_LARGE_FILE,
    RO_COMPAT_SPARSE_SUPER,
    SUPERBLOCK_OFFSET,
    DiskInode,
    GroupDescriptor,
    SuperBlock,
    encode_device,
    encode_time,
    has_super,
)

_LABEL_MAX: Final = 16
_LARGE: Final = (1 << 31) - 1
_HUGE: Final = ((1 << 32) - 1) * 512 - (1 << 32)
"""Beyond it (2 TiB, with room for indirect blocks) Linux wants huge_file to be set."""
_SECTORS: Final = BLOCK_SIZE // 512
_BITMAP_BITS: Final = BLOCK_SIZE * 8
_M16: Final = 0xFFFF
_M32: Final = 0xFFFFFFFF
_NO_BLOCKS: Final = bytes(60)


def build(
    source: Source, options: BuildOptions | None = None, progress: Progress = ignore
) -> ImagePlan:
    """Plan an image of ``source``, which the plan owns from then on; on an error it is closed.

    Nothing of the files' content is read. The same tree, options and UUID give the same plan.

    Raises: ImageError; OSError as scanning the source does.
    """
    options = options or BuildOptions()
    try:
        if len(options.label) > _LABEL_MAX or b"\0" in options.label:
            raise ImageError(f"a label has at most {_LABEL_MAX} bytes, and no NUL")
        with _no_collector():
            return _Build(source.scan(progress), options).plan(source)
    except BaseException:
        source.close()
        raise


@contextmanager
def _no_collector() -> Generator[None]:
    """Nothing here has cycles, and the collector would walk the growing tree again and again: of
    2.4 s for 54 000 files, 0.8 s.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Build:
    def __init__(self, root: Node, options: BuildOptions) -> None:
        self._options = options
        self._seed = uuid.uuid5(options.uuid, "dir_index").bytes
        self._records = Records(root, Owners(options), self._seed if options.htree else None)
        self._data_blocks = self._records.data_blocks()
        self._geometry = plan_geometry(
            self._records.inodes,
            self._data_blocks,
            options.size,
            options.blocks_per_group,
            options.inodes_per_group,
        )
        self._segments: list[tuple[int, bytes | memoryview]] = []
        self._mappings: list[Piece] = []
        self._copies: list[Piece] = []

    def plan(self, source: Source) -> ImagePlan:
        allocator = Allocator(self._geometry)
        shared = {key: self._shared(key, allocator) for key in self._records.references}
        # All metadata comes first, so that nothing but block groups divides a file's content.
        own = [
            (_singles(allocator.take(record.indirect)), self._meta(record, allocator))
            for record in self._records.all
        ]
        table = bytearray((EXT2_GOOD_OLD_FIRST_INO - 1) * INODE_SIZE)
        for record, (indirect, runs) in zip(self._records.all, own, strict=True):
            if record.runs and not record.meta:
                runs = _mapped(record.runs, allocator.take(record.blocks))
                self._content(record.node, runs)
            packed = self._inode(record, runs, indirect, shared)
            if record.node.ino == 2:
                table[INODE_SIZE : 2 * INODE_SIZE] = packed
            else:
                table += packed
        self._groups(memoryview(table).toreadonly())
        return ImagePlan(
            source,
            (self._options.size or self._geometry.blocks * BLOCK_SIZE) // BLOCK_SIZE * BLOCK_SIZE,
            self._options.uuid,
            sorted(self._segments, key=itemgetter(0)),
            self._mappings,
            self._copies,
        )

    def _shared(self, key: SharedBlock, allocator: Allocator) -> int:
        ((block, _),) = allocator.take(1)
        content = with_refcount(key[0], self._records.references[key])
        self._segments.append((block * BLOCK_SIZE, content))
        return block

    def _meta(self, record: Record, allocator: Allocator) -> list[MappedRun]:
        if not record.meta:
            return []
        runs = _mapped(record.runs, allocator.take(record.blocks))
        content = memoryview(record.meta)
        for start, count, block in runs:
            part = content[start * BLOCK_SIZE : (start + count) * BLOCK_SIZE]
            self._segments.append((block * BLOCK_SIZE, part))
        return runs

    def _content(self, node: Node, runs: list[MappedRun]) -> None:
        """Cut the file's extents where its runs end, and at pages."""
        assert node.file is not None
        extents = iter(node.extents or [(0, node.size, 0)])
        offset, length, source = next(extents)
        for start, count, block in runs:
            first, end = start * BLOCK_SIZE, (start + count) * BLOCK_SIZE
            while offset < end:
                some = min(length, end - offset)
                where = block * BLOCK_SIZE + offset - first
                self._piece(Piece(where, some, node.file, source))
                offset, length, source = offset + some, length - some, source + some
                if not length:
                    following = next(extents, None)
                    if following is None:
                        return
                    offset, length, source = following

    def _piece(self, piece: Piece) -> None:
        offset, length, file, source = piece
        head = -offset % BLOCK_SIZE
        whole = (length - head) // BLOCK_SIZE * BLOCK_SIZE
        if (offset - source) % BLOCK_SIZE or whole < self._options.mapping_min or whole <= 0:
            self._copies.append(piece)
            return
        if head:
            self._copies.append(Piece(offset, head, file, source))
        self._mappings.append(Piece(offset + head, whole, file, source + head))
        done = head + whole
        if done < length:
            self._copies.append(Piece(offset + done, length - done, file, source + done))

    def _inode(
        self,
        record: Record,
        runs: list[MappedRun],
        indirect: list[int],
        shared: dict[SharedBlock, int],
    ) -> bytes:
        node = record.node
        if runs:
            block, tables = map_blocks(runs, indirect)
            self._segments += ((number * BLOCK_SIZE, data) for number, data in tables.items())
        elif stat.S_ISLNK(node.mode):
            block = node.target
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            block = encode_device(node.rdev)
        else:
            block = _NO_BLOCKS
        acl = 0 if record.shared is None else shared[record.shared]
        sectors = (record.blocks + record.indirect + (record.shared is not None)) * _SECTORS
        uid, gid = record.owner
        atime, atime_extra = encode_time(node.atime_ns)
        ctime, ctime_extra = encode_time(node.ctime_ns)
        mtime, mtime_extra = encode_time(node.mtime_ns)
        crtime, crtime_extra = encode_time(node.btime_ns)
        packed = DiskInode(
            node.mode, uid & _M16, node.size & _M32, atime, ctime, mtime, 0, gid & _M16,
            node.nlink, sectors & _M32, record.flags, 0, block, 0, acl, node.size >> 32, 0,
            sectors >> 32, 0, uid >> 16, gid >> 16, 0, EXTRA_ISIZE, 0, ctime_extra, mtime_extra,
            atime_extra, crtime, crtime_extra,
        ).pack()  # fmt: skip
        return (packed + record.inline).ljust(INODE_SIZE, b"\0")

    def _groups(self, table: memoryview) -> None:
        geometry, records = self._geometry, self._records
        per_group = geometry.inodes_per_group
        directories = [0] * geometry.groups
        for record in records.all:
            if record.node.is_dir:
                directories[(record.node.ino - 1) // per_group] += 1
        bitmaps: dict[tuple[int, int], bytes] = {}
        descriptors = []
        left = self._data_blocks
        for group in range(geometry.groups):
            start, data, end = (
                group * geometry.per_group, geometry.data(group), geometry.end(group),
            )  # fmt: skip
            taken = min(left, end - data)
            left -= taken
            inodes = min(max(records.inodes - group * per_group, 0), per_group)
            at = geometry.bitmap(group)
            for number, used, size in (
                (at, data - start + taken, end - start), (at + 1, inodes, per_group),
            ):  # fmt: skip
                if (used, size) not in bitmaps:
                    bitmaps[used, size] = _bitmap(used, size)
                self._segments.append((number * BLOCK_SIZE, bitmaps[used, size]))
            if inodes:
                first = group * per_group * INODE_SIZE
                part = table[first : first + inodes * INODE_SIZE]
                self._segments.append(((at + 2) * BLOCK_SIZE, part))
            descriptors.append(
                GroupDescriptor(
                    at, at + 1, at + 2, end - data - taken, per_group - inodes, directories[group]
                )
            )
        packed = b"".join(descriptor.pack() for descriptor in descriptors)
        free = sum(descriptor.free_blocks_count for descriptor in descriptors)
        superblock = self._superblock(free)
        for group in range(geometry.groups):
            if has_super(group, sparse=True):
                start = group * geometry.per_group * BLOCK_SIZE
                copy = superblock._replace(block_group_nr=min(group, _M16)).pack()
                self._segments.append((start if group else SUPERBLOCK_OFFSET, copy))
                self._segments.append((start + BLOCK_SIZE, packed))

    def _superblock(self, free_blocks: int) -> SuperBlock:
        geometry, records, options = self._geometry, self._records, self._options
        inodes = geometry.inodes_per_group * geometry.groups
        ro_compat = RO_COMPAT_SPARSE_SUPER
        if records.largest > _LARGE:
            ro_compat |= RO_COMPAT_LARGE_FILE
        if records.largest > _HUGE:
            ro_compat |= RO_COMPAT_HUGE_FILE
        if records.many_subdirectories:
            ro_compat |= RO_COMPAT_DIR_NLINK
        return SuperBlock(
            inodes_count=inodes,
            blocks_count_low=geometry.blocks,
            free_blocks_count_low=free_blocks,
            free_inodes_count=inodes - records.inodes,
            log_block_size=2,
            log_cluster_size=2,
            blocks_per_group=geometry.per_group,
            clusters_per_group=geometry.per_group,
            inodes_per_group=geometry.inodes_per_group,
            inode_size=INODE_SIZE,
            feature_compat=COMPAT_EXT_ATTR | (COMPAT_DIR_INDEX if records.indexed else 0),
            feature_incompat=INCOMPAT_FILETYPE,
            feature_ro_compat=ro_compat,
            uuid=options.uuid.bytes,
            volume_name=options.label,
            hash_seed=self._seed,
            def_hash_version=HASH_VERSION,
            default_mount_opts=EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL,
            min_extra_isize=EXTRA_ISIZE,
            want_extra_isize=EXTRA_ISIZE,
            flags=EXT2_FLAGS_SIGNED_HASH,
        )


def _singles(runs: Iterable[Run]) -> list[int]:
    return [block for start, count in runs for block in range(start, start + count)]


def _mapped(logical: list[Run], physical: list[Run]) -> list[MappedRun]:
    """The runs of a file over those of the image, which have as many blocks in all."""
    mapped = []
    places = iter(physical)
    block, room = 0, 0
    for start, count in logical:
        while count:
            if not room:
                block, room = next(places)
            some = min(count, room)
            mapped.append((start, some, block))
            start, count, block, room = start + some, count - some, block + some, room - some
    return mapped


def _bitmap(used: int, size: int) -> bytes:
    """A block of bits: ``used`` are set, and those that stand for nothing beyond ``size``."""
    bits = (1 << used) - 1 | (1 << _BITMAP_BITS) - (1 << size)
    return bits.to_bytes(BLOCK_SIZE, "little")
