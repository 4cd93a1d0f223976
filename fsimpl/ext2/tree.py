"""The index of a directory: which of its blocks a name can be in. Linux: ``dx_probe``."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fsimpl.ext2.hashes import DX_HASH_LEGACY_UNSIGNED, DX_HASH_TEA, DX_HASH_TEA_UNSIGNED, name_hash
from fsimpl.ext2.layout import (
    DX_COUNT_LIMIT,
    DX_ENTRY,
    DX_NODE_ENTRIES,
    DX_ROOT_ENTRIES,
    DX_ROOT_INFO,
    DX_ROOT_INFO_OFFSET,
    EXT2_FLAGS_UNSIGNED_HASH,
    INCOMPAT_LARGEDIR,
)

if TYPE_CHECKING:
    from fsimpl.ext2.directory import Ext2Directory

_BLOCK_MASK: Final = 0x0FFFFFFF


class BadIndex(Exception):
    """The index makes no sense; the directory is good without it."""


def leaves_for(directory: Ext2Directory, name: bytes) -> Iterator[int]:
    """The blocks of ``directory`` that ``name`` can be in, in order: one, but for hashes that go on
    in the next.

    Raises: BadIndex, as the first is asked for or later; EUCLEAN, EIO.
    """
    data, _ = directory.read(0)
    zero, version, length, levels, _ = DX_ROOT_INFO.unpack_from(data, DX_ROOT_INFO_OFFSET)
    disk = directory.superblock.geometry.super
    most = 3 if disk.feature_incompat & INCOMPAT_LARGEDIR else 2
    if zero or length != DX_ROOT_INFO.size or levels >= most or version > DX_HASH_TEA_UNSIGNED:
        raise BadIndex(f"bad root of the index (hash {version}, {levels} levels)")
    if version <= DX_HASH_TEA and disk.flags & EXT2_FLAGS_UNSIGNED_HASH:
        version += DX_HASH_LEGACY_UNSIGNED
    wanted = name_hash(name, version, disk.hash_seed)
    yield from _descend(directory, data, DX_ROOT_ENTRIES, levels, wanted)


def _descend(
    directory: Ext2Directory, data: bytes, offset: int, levels: int, wanted: int
) -> Iterator[int]:
    """The leaves below the node ``data`` (entries from ``offset`` on) for the hash ``wanted``."""
    _, count = DX_COUNT_LIMIT.unpack_from(data, offset)
    if not 0 < count <= (len(data) - offset) // DX_ENTRY.size:
        raise BadIndex(f"index node of {count} entries")
    words = struct.unpack_from(f"<{2 * count}I", data, offset)
    # The first entry has no hash: its place holds limit and count.
    hashes = (0, *words[2::2])
    index = bisect_right(hashes, wanted) - 1
    # A hash that goes on from the block before has bit 0 set, which no name's hash has.
    while index < count:
        block = words[2 * index + 1] & _BLOCK_MASK
        if not 0 < block < directory.length:
            raise BadIndex(f"index leads to block {block}")
        if levels:
            child, _ = directory.read(block)
            yield from _descend(directory, child, DX_NODE_ENTRIES, levels - 1, wanted)
        else:
            yield block
        index += 1
        if index < count and hashes[index] != wanted | 1:
            return
