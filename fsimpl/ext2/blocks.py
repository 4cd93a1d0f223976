"""Where the blocks of a file are: through indirect blocks, or through a tree of extents.

Linux: fs/ext4/indirect.c and extents.c. Both answer with runs: from a block of the file on, so many
blocks lie one behind the other on the disk, or so many are not there. Whatever the disk says, each
step goes one level down, and a run is at least a block long.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from fsimpl.ext2.layout import (
    EXT2_IND_BLOCK,
    EXT2_N_BLOCKS,
    EXT2_NDIR_BLOCKS,
    EXT4_EXTENTS_FL,
    EXTENT_HEADER,
    EXTENT_INDEX,
    EXTENT_INIT_MAX,
    EXTENT_LEAF,
    EXTENT_MAGIC,
)

if TYPE_CHECKING:
    from fsimpl.ext2.inode import Ext2Inode

Run = tuple[int, int]
"""The first block on the disk, 0 for a hole, and how many blocks."""

_DEEPEST: Final = 5
_ENTRY_SIZE: Final = 12
_POINTER_SIZE: Final = 4
_MAX_LOGICAL: Final = 1 << 32


def find_run(inode: Ext2Inode, logical: int, limit: int) -> Run:
    """The run from block ``logical`` of the file on; ``limit`` (1 at least) is how much is wanted,
    so that it may be shorter than it could be. Any thread may ask.

    Raises: EUCLEAN (with the block that is wrong in the log), EIO.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return _in_extents(inode, logical, limit)
    return _in_pointers(inode, logical, limit)


def _in_pointers(inode: Ext2Inode, logical: int, limit: int) -> Run:
    """Linux: ``ext4_ind_map_blocks``."""
    superblock = inode.superblock
    if logical < EXT2_NDIR_BLOCKS:
        return _run_of(inode, inode.block, logical, EXT2_NDIR_BLOCKS, limit)
    fanout = superblock.block_size // _POINTER_SIZE
    left = logical - EXT2_NDIR_BLOCKS
    span = fanout
    place = EXT2_IND_BLOCK
    while left >= span:
        left -= span
        span *= fanout
        place += 1
        if place == EXT2_N_BLOCKS:
            raise superblock.corrupt(f"block {logical} is beyond its map", inode=inode)
    (block,) = struct.unpack_from("<I", inode.block, place * _POINTER_SIZE)
    if not block:
        return 0, min(span - left, limit)
    while True:
        table = superblock.read_block(block, inode)
        span //= fanout
        if span == 1:
            return _run_of(inode, table, left, fanout, limit, block)
        index, left = divmod(left, span)
        wanted = min(fanout - index, -(-(left + limit) // span))
        pointers = struct.unpack_from(f"<{wanted}I", table, index * _POINTER_SIZE)
        block = pointers[0]
        if not block:
            return 0, min(_leading_zeros(pointers) * span - left, limit)


def _leading_zeros(pointers: tuple[int, ...]) -> int:
    return next((n for n, pointer in enumerate(pointers) if pointer), len(pointers))


def _run_of(
    inode: Ext2Inode, table: bytes, index: int, length: int, limit: int, block: int = 0
) -> Run:
    """The run from ``index`` on in a ``table`` of ``length`` pointers, which ``block`` holds."""
    wanted = min(length - index, limit)
    pointers = struct.unpack_from(f"<{wanted}I", table, index * _POINTER_SIZE)
    first = pointers[0]
    if not first:
        return 0, _leading_zeros(pointers)
    count = 1
    while count < wanted and pointers[count] == first + count:
        count += 1
    inode.superblock.check_blocks(first, count, inode, block)
    return first, count


def _in_extents(inode: Ext2Inode, logical: int, limit: int) -> Run:
    """Linux: ``ext4_ext_map_blocks``."""
    superblock = inode.superblock
    if logical >= _MAX_LOGICAL:
        raise superblock.corrupt(f"block {logical} is beyond its map", inode=inode)
    node = inode.block
    block = depth = 0
    low, high = 0, _MAX_LOGICAL
    level = 0
    while True:
        entries, depth = _extent_header(inode, node, block, depth if level else None)
        here, following = _search(inode, node, block, entries, logical, low, high)
        high = following
        if here is None:
            return 0, min(high - logical, limit)
        if not depth:
            break
        low, child, child_high, _ = EXTENT_INDEX.unpack_from(node, here)
        block = child | child_high << 32
        node = superblock.read_block(block, inode)
        level += 1
    start, length, first_high, first_low = EXTENT_LEAF.unpack_from(node, here)
    written = length <= EXTENT_INIT_MAX
    if not written:
        length -= EXTENT_INIT_MAX
    if not length or start + length > high:
        raise superblock.corrupt(
            f"extent of {length} blocks at {start} overlaps what follows", inode=inode, block=block
        )
    first = first_low | first_high << 32
    superblock.check_blocks(first, length, inode, block)
    passed = logical - start
    if passed >= length:
        return 0, min(high - logical, limit)
    if not written:
        return 0, min(length - passed, limit)
    return first + passed, min(length - passed, limit)


def _extent_header(inode: Ext2Inode, node: bytes, block: int, above: int | None) -> tuple[int, int]:
    """Entries and depth of ``node``; ``above`` is its parent's depth, None for the root.

    Linux: ``__ext4_ext_check``.
    """
    magic, entries, most, depth, _ = EXTENT_HEADER.unpack_from(node)
    room = (len(node) - EXTENT_HEADER.size) // _ENTRY_SIZE
    wrong = ""
    if magic != EXTENT_MAGIC:
        wrong = "invalid magic"
    elif (depth > _DEEPEST) if above is None else (depth != above - 1):
        wrong = "unexpected eh_depth"
    elif not 0 < most <= room:
        wrong = "invalid eh_max"
    elif entries > most:
        wrong = "invalid eh_entries"
    elif not entries and (depth or above is not None):
        wrong = "eh_entries is 0"
    if wrong:
        raise inode.superblock.corrupt(
            f"bad extent header: {wrong} (magic {magic:x}, entries {entries}, max {most},"
            f" depth {depth})",
            inode=inode, block=block,
        )  # fmt: skip
    return entries, depth


def _search(
    inode: Ext2Inode, node: bytes, block: int, entries: int, logical: int, low: int, high: int
) -> tuple[int | None, int]:
    """The offset of the last entry that begins at or before ``logical`` (None: all are behind it),
    and where what follows it begins. All must be in order, from ``low`` to ``high``.
    """
    starts = struct.unpack_from("<" + "I8x" * entries, node, EXTENT_HEADER.size)
    here = None
    before = low - 1
    for index, start in enumerate(starts):
        if not before < start < high:
            raise inode.superblock.corrupt(
                f"extent entries out of order at {start}", inode=inode, block=block
            )
        before = start
        if start <= logical:
            here = index
    if here is None:
        return None, starts[0] if starts else high
    following = starts[here + 1] if here + 1 < entries else high
    return EXTENT_HEADER.size + here * _ENTRY_SIZE, following
