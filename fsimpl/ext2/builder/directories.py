"""The blocks of a directory, in a row or with an index of hashes."""

from __future__ import annotations

from typing import Final

from fsimpl.ext2.builder.options import BLOCK_SIZE
from fsimpl.ext2.hashes import DX_HASH_HALF_MD4, name_hash
from fsimpl.ext2.layout import (
    DIR_ENTRY,
    DX_COUNT_LIMIT,
    DX_ENTRY,
    DX_NODE_ENTRIES,
    DX_ROOT_ENTRIES,
    DX_ROOT_INFO,
    DX_ROOT_INFO_OFFSET,
    FILE_TYPES,
    dir_entry_size,
)

Entry = tuple[bytes, int, int]
"""Name, inode number, file type."""

HASH_VERSION: Final = DX_HASH_HALF_MD4
_DIR: Final = FILE_TYPES[0o040000]
_ROOT_LIMIT: Final = (BLOCK_SIZE - DX_ROOT_ENTRIES) // DX_ENTRY.size
_NODE_LIMIT: Final = (BLOCK_SIZE - DX_NODE_ENTRIES) // DX_ENTRY.size
_DOTS: Final = 2 * dir_entry_size(2)
_PAD: Final = (b"", b"\0", b"\0\0", b"\0\0\0")


def linear_directory(ino: int, parent: int, entries: list[Entry]) -> bytes:
    """The blocks of directory ``ino`` with ``entries`` in their order."""
    return _pack([(b".", ino, _DIR), (b"..", parent, _DIR), *entries])


def _pack(entries: list[Entry]) -> bytes:
    """Entries in as few blocks as their order allows; the last of each takes the rest of it."""
    out = bytearray()
    end = BLOCK_SIZE
    last = 0
    for name, ino, kind in entries:
        size = len(name) + 11 & ~3
        here = len(out)
        if here + size > end:
            DIR_ENTRY.pack_into(out, last, *_stretched(out, last, end))
            out += bytes(end - here)
            here = end
            end += BLOCK_SIZE
        last = here
        out += DIR_ENTRY.pack(ino, size, len(name), kind)
        out += name
        out += _PAD[-len(name) & 3]
    DIR_ENTRY.pack_into(out, last, *_stretched(out, last, end))
    return bytes(out.ljust(end, b"\0"))


def _stretched(out: bytearray, last: int, end: int) -> tuple[int, int, int, int]:
    ino, _, length, kind = DIR_ENTRY.unpack_from(out, last)
    return ino, end - last, length, kind


def indexed_directory(ino: int, parent: int, entries: list[Entry], seed: bytes) -> bytes | None:
    """As ``linear_directory``, with an index over the hashes of the names.

    None if one block holds it all, or if it is too large for an index of two levels.
    """
    if _DOTS + sum(dir_entry_size(len(entry[0])) for entry in entries) <= BLOCK_SIZE:
        return None
    hashed = sorted((name_hash(entry[0], HASH_VERSION, seed), entry) for entry in entries)
    leaves: list[list[Entry]] = []
    starts: list[int] = []
    room = 0
    before = -1
    for value, entry in hashed:
        size = dir_entry_size(len(entry[0]))
        if size > room:
            # Names with one hash in two blocks: bit 0 tells a search to go on in the second.
            starts.append(value | (value == before))
            leaves.append([])
            room = BLOCK_SIZE
        leaves[-1].append(entry)
        room -= size
        before = value
    nodes = 0 if len(leaves) <= _ROOT_LIMIT else -(-len(leaves) // _NODE_LIMIT)
    if nodes > _ROOT_LIMIT:
        return None
    pointers = list(zip(starts, range(1 + nodes, 1 + nodes + len(leaves)), strict=True))
    index = []
    if nodes:
        cuts = range(0, len(pointers), _NODE_LIMIT)
        for cut in cuts:
            node = bytearray(BLOCK_SIZE)
            DIR_ENTRY.pack_into(node, 0, 0, BLOCK_SIZE, 0, 0)
            _fill(node, DX_NODE_ENTRIES, _NODE_LIMIT, pointers[cut : cut + _NODE_LIMIT])
            index.append(bytes(node))
        pointers = [(starts[cut], 1 + number) for number, cut in enumerate(cuts)]
    root = bytearray(BLOCK_SIZE)
    DIR_ENTRY.pack_into(root, 0, ino, dir_entry_size(1), 1, _DIR)
    root[8:9] = b"."
    DIR_ENTRY.pack_into(root, 12, parent, BLOCK_SIZE - 12, 2, _DIR)
    root[20:22] = b".."
    levels = 1 if nodes else 0
    DX_ROOT_INFO.pack_into(root, DX_ROOT_INFO_OFFSET, 0, HASH_VERSION, DX_ROOT_INFO.size, levels, 0)
    _fill(root, DX_ROOT_ENTRIES, _ROOT_LIMIT, pointers)
    return b"".join([bytes(root), *index, *(_pack(leaf) for leaf in leaves)])


def _fill(block: bytearray, offset: int, limit: int, pointers: list[tuple[int, int]]) -> None:
    for number, pointer in enumerate(pointers):
        DX_ENTRY.pack_into(block, offset + number * DX_ENTRY.size, *pointer)
    DX_COUNT_LIMIT.pack_into(block, offset, limit, len(pointers))
