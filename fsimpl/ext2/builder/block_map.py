"""How a file's blocks are found: 12 pointers in the inode, then indirect blocks of three depths.

A *leaf* is an indirect block that points to data. Leaf 0 is the one that i_block[12] has; those
from 1 on are below i_block[13], those from 1025 on below i_block[14], 1024 of them in each block
between.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from fsimpl.ext2.builder.geometry import Run
from fsimpl.ext2.builder.options import BLOCK_SIZE
from fsimpl.ext2.layout import (
    EXT2_DIND_BLOCK,
    EXT2_IND_BLOCK,
    EXT2_N_BLOCKS,
    EXT2_NDIR_BLOCKS,
    EXT2_TIND_BLOCK,
    I_BLOCK,
)

POINTERS: Final = BLOCK_SIZE // 4
_TRIPLE: Final = 1 + POINTERS
"""The first leaf below i_block[14]."""
FILE_BLOCKS_MAX: Final = EXT2_NDIR_BLOCKS + POINTERS + POINTERS**2 + POINTERS**3

MappedRun = tuple[int, int, int]
"""Block of the file, number of blocks, block of the image. In order."""


def count_indirect(runs: Iterable[Run]) -> int:
    """How many indirect blocks a file needs whose data is in ``runs`` of its own blocks."""
    count = 0
    leaf = middle = -1
    double = triple = False
    for start, length in runs:
        end = start + length - EXT2_NDIR_BLOCKS
        if end <= 0:
            continue
        first = max(start - EXT2_NDIR_BLOCKS, 0) // POINTERS
        last = (end - 1) // POINTERS
        count += last - max(first, leaf + 1) + 1
        leaf = last
        double = double or (first < _TRIPLE and last >= 1)
        if last >= _TRIPLE:
            triple = True
            last_middle = (last - _TRIPLE) // POINTERS
            first_middle = max((first - _TRIPLE) // POINTERS, 0, middle + 1)
            count += last_middle - first_middle + 1
            middle = last_middle
    return count + double + triple


def map_blocks(runs: Iterable[MappedRun], indirect: list[int]) -> tuple[bytes, dict[int, bytes]]:
    """``i_block`` and the content of the indirect blocks, for which the blocks in ``indirect`` are
    used, as many as ``count_indirect`` says.
    """
    direct = [0] * EXT2_N_BLOCKS
    leaves: dict[int, bytearray] = {}
    for start, length, block in runs:
        end = start + length
        while start < end and start < EXT2_NDIR_BLOCKS:
            direct[start] = block
            start += 1
            block += 1
        while start < end:
            leaf, at = divmod(start - EXT2_NDIR_BLOCKS, POINTERS)
            some = min(end - start, POINTERS - at)
            table = leaves.get(leaf)
            if table is None:
                table = leaves[leaf] = bytearray(BLOCK_SIZE)
            struct.pack_into(f"<{some}I", table, at * 4, *range(block, block + some))
            start += some
            block += some
    free = iter(indirect)
    blocks: dict[int, bytes] = {}
    double: dict[int, int] = {}
    middles: dict[int, dict[int, int]] = {}
    for leaf, table in leaves.items():
        number = next(free)
        blocks[number] = bytes(table)
        if not leaf:
            direct[EXT2_IND_BLOCK] = number
        elif leaf < _TRIPLE:
            double[leaf - 1] = number
        else:
            middle, at = divmod(leaf - _TRIPLE, POINTERS)
            middles.setdefault(middle, {})[at] = number
    if double:
        direct[EXT2_DIND_BLOCK] = next(free)
        blocks[direct[EXT2_DIND_BLOCK]] = _table(double)
    if middles:
        top: dict[int, int] = {}
        for middle, pointers in middles.items():
            top[middle] = next(free)
            blocks[top[middle]] = _table(pointers)
        direct[EXT2_TIND_BLOCK] = next(free)
        blocks[direct[EXT2_TIND_BLOCK]] = _table(top)
    return I_BLOCK.pack(*direct), blocks


def _table(pointers: dict[int, int]) -> bytes:
    table = bytearray(BLOCK_SIZE)
    for at, number in pointers.items():
        struct.pack_into("<I", table, at * 4, number)
    return bytes(table)
