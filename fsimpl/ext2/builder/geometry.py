"""Block groups: how many, how large, and where in them data may be.

Group: [superblock, group descriptors,] block bitmap, inode bitmap, inode table, data. The part in
brackets is in the groups that sparse_super names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsimpl.ext2.builder.errors import ImageError
from fsimpl.ext2.builder.options import BLOCK_SIZE
from fsimpl.ext2.layout import GROUP_DESC_SIZE, has_super

INODE_SIZE: Final = 256
_INODES_A_BLOCK: Final = BLOCK_SIZE // INODE_SIZE
_BITMAP: Final = BLOCK_SIZE * 8
"""Blocks and inodes that one block of bitmap, and so a group, can have."""
_BLOCKS_MAX: Final = (1 << 32) - 1
_BYTES_AN_INODE: Final = 16384
"""mke2fs's ratio, for an image that has room to write in."""
_MIB: Final = 1 << 20

Run = tuple[int, int]
"""First block of the image, number of blocks."""


class Geometry:
    """Where everything is that is at a fixed place. Blocks are of 4096 bytes."""

    __slots__ = ("blocks", "descriptor_blocks", "groups", "inodes_per_group", "per_group")

    def __init__(self, blocks: int, per_group: int, inodes_per_group: int) -> None:
        self.blocks = blocks
        self.per_group = per_group
        self.inodes_per_group = inodes_per_group
        self.groups = -(-blocks // per_group)
        self.descriptor_blocks = -(-self.groups * GROUP_DESC_SIZE // BLOCK_SIZE)

    @property
    def table_blocks(self) -> int:
        """Of one group's inode table."""
        return self.inodes_per_group // _INODES_A_BLOCK

    def bitmap(self, group: int) -> int:
        """The block bitmap's block; the inode bitmap and the inode table follow it."""
        front = 1 + self.descriptor_blocks if has_super(group, sparse=True) else 0
        return group * self.per_group + front

    def data(self, group: int) -> int:
        """The first block that is free for data."""
        return self.bitmap(group) + 2 + self.table_blocks

    def end(self, group: int) -> int:
        """The block behind the group's last."""
        return min((group + 1) * self.per_group, self.blocks)

    def capacity(self) -> int:
        """Blocks for data in all groups; a group without room for its tables has fewer than 0."""
        return sum(self.end(group) - self.data(group) for group in range(self.groups))

    def runs(self) -> Iterator[Run]:
        """Where data may be."""
        for group in range(self.groups):
            start, end = self.data(group), self.end(group)
            if end > start:
                yield start, end - start


def plan_geometry(
    inodes: int,
    data_blocks: int,
    size: int | None,
    blocks_per_group: int | None,
    inodes_per_group: int | None,
) -> Geometry:
    """Groups for ``inodes`` (the reserved ones included) and ``data_blocks``; see BuildOptions.

    Raises: ImageError: numbers that no ext2 has, or a size that is too small, with the one needed.
    """
    per_group = _BITMAP if blocks_per_group is None else blocks_per_group
    if not 256 <= per_group <= _BITMAP or per_group % 8:
        raise ImageError(
            f"{per_group} blocks per group: it must be a multiple of 8 from 256 to {_BITMAP}"
        )
    if inodes_per_group is not None:
        if not 1 <= inodes_per_group <= _BITMAP:
            raise ImageError(f"{inodes_per_group} inodes per group: it must be 1 to {_BITMAP}")
        inodes_per_group = _whole_table(inodes_per_group)
    if size is None:
        return _smallest(inodes, data_blocks, per_group, inodes_per_group)
    return _sized(inodes, data_blocks, size // BLOCK_SIZE, per_group, inodes_per_group)


def _whole_table(inodes: int) -> int:
    return -(-inodes // _INODES_A_BLOCK) * _INODES_A_BLOCK


def _smallest(inodes: int, data_blocks: int, per_group: int, given: int | None) -> Geometry:
    groups = max(1, -(-data_blocks // per_group), -(-inodes // (given or _BITMAP)))
    while True:
        geometry = Geometry(
            groups * per_group, per_group, given or _whole_table(-(-inodes // groups))
        )
        if geometry.data(0) >= per_group:
            raise ImageError(
                f"{per_group} blocks per group are too few: the tables of {groups} groups with "
                f"{geometry.inodes_per_group} inodes each take {geometry.data(0)}"
            )
        spare = geometry.capacity() - data_blocks
        last = geometry.end(groups - 1) - geometry.data(groups - 1)
        if spare >= 0:
            break
        groups += max(1, -spare // per_group)
    # What is too much is cut from the last group, but for the tables that it has.
    blocks = geometry.blocks - min(spare, last)
    if blocks > _BLOCKS_MAX:
        raise ImageError("the content needs more than the 16 TiB that an ext2 can have")
    return Geometry(blocks, per_group, geometry.inodes_per_group)


def _sized(
    inodes: int, data_blocks: int, blocks: int, per_group: int, given: int | None
) -> Geometry:
    if blocks > _BLOCKS_MAX:
        raise ImageError("an ext2 with blocks of 4096 bytes has less than 16 TiB")
    most = -(-blocks // per_group)
    # Generous with inodes if there is room; without the last group if it has none for its tables.
    for wanted in (max(inodes, blocks * BLOCK_SIZE // _BYTES_AN_INODE), inodes):
        for groups in range(most, max(most - 2, 0), -1):
            a_group = given or min(_whole_table(-(-wanted // groups)), _BITMAP)
            geometry = Geometry(min(blocks, groups * per_group), per_group, a_group)
            if (
                geometry.data(groups - 1) <= geometry.end(groups - 1)
                and a_group * groups >= inodes
                and geometry.capacity() >= data_blocks
            ):
                return geometry
    needed = _smallest(inodes, data_blocks, per_group, given).blocks * BLOCK_SIZE
    raise ImageError(
        f"the image needs {-(-needed // _MIB)} MiB, given {blocks * BLOCK_SIZE // _MIB} MiB"
    )


class Allocator:
    """Hands out the data blocks of an image from the first on."""

    __slots__ = ("_count", "_next", "_runs", "used")

    def __init__(self, geometry: Geometry) -> None:
        self._runs = geometry.runs()
        self._next, self._count = next(self._runs, (0, 0))
        self.used = 0

    def take(self, count: int) -> list[Run]:
        """The next ``count`` blocks, which must be there."""
        runs = []
        self.used += count
        while count:
            if not self._count:
                self._next, self._count = next(self._runs)
            some = min(count, self._count)
            runs.append((self._next, some))
            self._next += some
            self._count -= some
            count -= some
        return runs
