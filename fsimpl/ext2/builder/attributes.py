"""Extended attributes into the inode, and what it has no room for into a block."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from fsimpl.ext2.builder.errors import ImageError, printable
from fsimpl.ext2.builder.geometry import INODE_SIZE
from fsimpl.ext2.builder.options import BLOCK_SIZE, Owners
from fsimpl.ext2.layout import EXT2_GOOD_OLD_INODE_SIZE, EXTRA_ISIZE
from fsimpl.ext2.xattrs import (
    ACL_ACCESS,
    ACL_DEFAULT,
    XATTR_BLOCK_HEADER,
    XATTR_END,
    XATTR_ENTRY,
    XATTR_IBODY_HEADER,
    XATTR_MAGIC,
    acl_to_disk,
    block_hash,
    entry_hash,
    padded,
    parse_acl,
    split_name,
)

INLINE_SIZE: Final = INODE_SIZE - EXT2_GOOD_OLD_INODE_SIZE - EXTRA_ISIZE
_CAPABILITY: Final = b"security.capability"
_STORED: Final = (b"user.", b"trusted.", b"security.")
_REFCOUNT: Final = struct.Struct("<I")
_REFCOUNT_OFFSET: Final = 4

DiskXattr = tuple[int, int, bytes, bytes]
"""Index, length of the rest of the name, that rest, value: what a block's order goes by."""


def to_disk(xattrs: Iterable[tuple[bytes, bytes]], owners: Owners) -> list[DiskXattr]:
    """What an ext2 can hold of ``xattrs``, with the image's ids, in a block's order.

    Raises: OSError: EINVAL, EOPNOTSUPP: an ACL that is none; EOVERFLOW as ``Owners.capability``.
    """
    found = []
    for name, value in xattrs:
        if name in (ACL_ACCESS, ACL_DEFAULT):
            value = acl_to_disk(parse_acl(owners.acl(value)))
        elif not name.startswith(_STORED):
            continue
        elif name == _CAPABILITY:
            value = owners.capability(value)
        index, rest = split_name(name)
        found.append((index, len(rest), rest, value))
    return sorted(found)


def pack_xattrs(xattrs: list[DiskXattr], path: bytes) -> tuple[bytes, bytes]:
    """What goes behind the inode's extra fields, and the block; either may be empty.

    Raises: ImageError: more than fits, of the file ``path``.
    """
    room = INLINE_SIZE - XATTR_IBODY_HEADER.size - len(XATTR_END)
    inside, outside = [], []
    for xattr in xattrs:
        size = _size(xattr)
        if size <= room:
            room -= size
            inside.append(xattr)
        else:
            outside.append(xattr)
    wanted = XATTR_BLOCK_HEADER.size + len(XATTR_END) + sum(map(_size, outside))
    if wanted > BLOCK_SIZE:
        raise ImageError(
            f"{printable(path)}: its extended attributes need {wanted} bytes; "
            f"an ext2 has a block of {BLOCK_SIZE} for them"
        )
    inline = block = b""
    if inside:
        area, _ = _pack(inside, INLINE_SIZE - XATTR_IBODY_HEADER.size, 0)
        inline = XATTR_IBODY_HEADER.pack(XATTR_MAGIC) + area
    if outside:
        size = BLOCK_SIZE - XATTR_BLOCK_HEADER.size
        area, hashes = _pack(outside, size, XATTR_BLOCK_HEADER.size)
        block = XATTR_BLOCK_HEADER.pack(XATTR_MAGIC, 1, 1, block_hash(hashes), 0) + area
    return inline, block


def with_refcount(block: bytes, count: int) -> bytes:
    """A block of attributes that ``count`` inodes share."""
    return block[:_REFCOUNT_OFFSET] + _REFCOUNT.pack(count) + block[_REFCOUNT_OFFSET + 4 :]


def _size(xattr: DiskXattr) -> int:
    return XATTR_ENTRY.size + padded(xattr[1]) + padded(len(xattr[3]))


def _pack(xattrs: list[DiskXattr], size: int, origin: int) -> tuple[bytes, list[int]]:
    """An area of ``size`` bytes whose value offsets count from ``origin`` bytes before it."""
    area = bytearray(size)
    front, back = 0, size
    hashes = []
    for index, length, rest, value in xattrs:
        back -= padded(len(value))
        hashes.append(entry_hash(rest, value))
        offset = back + origin if value else 0
        XATTR_ENTRY.pack_into(area, front, length, index, offset, 0, len(value), hashes[-1])
        front += XATTR_ENTRY.size
        area[front : front + length] = rest
        front += padded(length)
        area[back : back + len(value)] = value
    return bytes(area), hashes
