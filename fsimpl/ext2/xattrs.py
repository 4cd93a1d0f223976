"""Extended attributes and ACLs on the disk. Linux: fs/ext4/xattr.c, fs/ext4/acl.c.

An inode's attributes are in the space behind its extra fields, in a block of their own (which
inodes with the same attributes may share), or some here and some there. Both begin with a header;
entries grow from it, closed by four zero bytes, values grow towards it from the end.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Final

from vfs.errors import oserror

XATTR_MAGIC: Final = 0xEA020000
XATTR_IBODY_HEADER: Final = struct.Struct("<I")
"""magic. Value offsets in the inode count from behind this header."""
XATTR_BLOCK_HEADER: Final = struct.Struct("<5I12x")
"""magic, refcount, blocks (1), hash, checksum. Value offsets count from the block's start."""
XATTR_REFCOUNT_MAX: Final = 1024
XATTR_ENTRY: Final = struct.Struct("<2BH3I")
"""name_len, name_index, value_offs, value_inum (0), value_size, hash; the name follows."""
XATTR_END: Final = bytes(4)

XATTR_INDEXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
    8: b"system.richacl",
}
"""The prefixes that an entry has as a number. Those without a dot at the end are whole names."""
ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"

_WHOLE: Final = {name: n for n, name in XATTR_INDEXES.items() if not name.endswith(b".")}
_PREFIXES: Final = {name: n for n, name in XATTR_INDEXES.items() if name.endswith(b".")}
_M: Final = 0xFFFFFFFF


def split_name(name: bytes) -> tuple[int, bytes]:
    """The index and the rest of a whole attribute name.

    Raises: EOPNOTSUPP, for a prefix that the disk has no number for.
    """
    if name in _WHOLE:
        return _WHOLE[name], b""
    prefix, dot, rest = name.partition(b".")
    index = _PREFIXES.get(prefix + dot)
    if index is None or not rest:
        raise oserror(errno.EOPNOTSUPP)
    return index, rest


def join_name(index: int, rest: bytes) -> bytes | None:
    """The whole name, or None for an index that is not known."""
    prefix = XATTR_INDEXES.get(index)
    return None if prefix is None else prefix + rest


def padded(length: int) -> int:
    """``length`` rounded up to the 4 bytes that names and values are aligned to."""
    return length + 3 & ~3


def entry_hash(rest: bytes, value: bytes) -> int:
    """The hash of an entry in a block, of the name without prefix and the value."""
    result = 0
    for char in rest:
        result = (result << 5 ^ result >> 27 ^ char) & _M
    words = padded(len(value)) // 4
    for word in struct.unpack(f"<{words}I", value.ljust(words * 4, b"\0")):
        result = (result << 16 ^ result >> 16 ^ word) & _M
    return result


def block_hash(entry_hashes: Iterable[int]) -> int:
    """The hash in a block's header, of the hashes of its entries in order.

    0, which says that the block is not to be shared, if an entry has no hash.
    """
    result = 0
    for value in entry_hashes:
        if not value:
            return 0
        result = (result << 16 ^ result >> 16 ^ value) & _M
    return result


ACL_USER_OBJ: Final = 0x01
ACL_USER: Final = 0x02
ACL_GROUP_OBJ: Final = 0x04
ACL_GROUP: Final = 0x08
ACL_MASK: Final = 0x10
ACL_OTHER: Final = 0x20
ACL_UNDEFINED_ID: Final = 0xFFFFFFFF
_ACL_XATTR_VERSION: Final = 2
_ACL_DISK_VERSION: Final = 1
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_SHORT: Final = struct.Struct("<2H")
_ACL_LONG: Final = struct.Struct("<2HI")

AclEntries = list[tuple[int, int, int]]
"""Tag, permissions and id (ACL_UNDEFINED_ID for tags other than ACL_USER and ACL_GROUP)."""


def parse_acl(value: bytes) -> AclEntries:
    """The entries of an ACL as getxattr(2) tells it.

    Raises: EINVAL, for another version or a broken length; EOPNOTSUPP.
    """
    body = len(value) - _ACL_HEADER.size
    if body < 0 or body % _ACL_LONG.size:
        raise oserror(errno.EINVAL)
    if _ACL_HEADER.unpack_from(value)[0] != _ACL_XATTR_VERSION:
        raise oserror(errno.EOPNOTSUPP)
    return list(_ACL_LONG.iter_unpack(value[_ACL_HEADER.size :]))


def format_acl(entries: AclEntries) -> bytes:
    """An ACL as getxattr(2) tells it."""
    return _ACL_HEADER.pack(_ACL_XATTR_VERSION) + b"".join(_ACL_LONG.pack(*e) for e in entries)


def acl_to_disk(entries: AclEntries) -> bytes:
    """Linux: ``ext4_acl_to_disk``: entries without an id are shorter by it."""
    return _ACL_HEADER.pack(_ACL_DISK_VERSION) + b"".join(
        _ACL_LONG.pack(*e) if e[0] in (ACL_USER, ACL_GROUP) else _ACL_SHORT.pack(*e[:2])
        for e in entries
    )


def acl_from_disk(value: bytes) -> AclEntries:
    """Linux: ``ext4_acl_from_disk``. Raises: EINVAL, for what is no ACL."""
    if len(value) < _ACL_HEADER.size or _ACL_HEADER.unpack_from(value)[0] != _ACL_DISK_VERSION:
        raise oserror(errno.EINVAL)
    entries = []
    at = _ACL_HEADER.size
    while at < len(value):
        try:
            tag, permissions = _ACL_SHORT.unpack_from(value, at)
            owner = ACL_UNDEFINED_ID
            if tag in (ACL_USER, ACL_GROUP):
                tag, permissions, owner = _ACL_LONG.unpack_from(value, at)
                at += _ACL_LONG.size
            elif tag in (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER):
                at += _ACL_SHORT.size
            else:
                raise oserror(errno.EINVAL)
        except struct.error:
            raise oserror(errno.EINVAL) from None
        entries.append((tag, permissions, owner))
    return entries
