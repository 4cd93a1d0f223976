"""An inode's extended attributes and ACLs, as they are found on the disk. Linux: fs/ext4/xattr.c.

What the structures are stands in ``xattrs.py``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from fsimpl.ext2 import xattrs
from fsimpl.ext2.layout import EXT2_GOOD_OLD_INODE_SIZE, EXT4_EA_INODE_FL, INCOMPAT_EA_INODE
from vfs import abi
from vfs.errors import oserror

if TYPE_CHECKING:
    from fsimpl.ext2.inode import Ext2Inode
    from vfs.credentials import Credentials

_ACLS: Final = (xattrs.ACL_ACCESS, xattrs.ACL_DEFAULT)
_READ: Final = (b"user.", b"trusted.", b"security.")
_ACL_MAX: Final = 1 << 16


class Found(NamedTuple):
    """An entry: its whole name, where its value is in ``area``, or the inode that holds it."""

    name: bytes
    area: memoryview
    offset: int
    size: int
    value_inode: int
    block: int


def find_attributes(inode: Ext2Inode) -> Iterator[Found]:
    """The entries in the inode, then those in its block. Names of unknown kinds are left out.

    Raises: EUCLEAN, EIO.
    """
    superblock = inode.superblock
    if inode.extra_isize:
        record = superblock.read_record(inode.ino)
        start = EXT2_GOOD_OLD_INODE_SIZE + inode.extra_isize
        header = xattrs.XATTR_IBODY_HEADER
        if start + header.size <= len(record):
            (magic,) = header.unpack_from(record, start)
            if magic == xattrs.XATTR_MAGIC:
                area = memoryview(record)[start + header.size :]
                yield from _entries(inode, area, 0, 0)
    block = inode.file_acl
    if block:
        data = superblock.read_block(block, inode)
        magic, _, blocks, *_ = xattrs.XATTR_BLOCK_HEADER.unpack_from(data)
        if magic != xattrs.XATTR_MAGIC or blocks != 1:
            raise superblock.corrupt("bad block of extended attributes", inode=inode, block=block)
        yield from _entries(inode, memoryview(data), xattrs.XATTR_BLOCK_HEADER.size, block)


def _entries(inode: Ext2Inode, area: memoryview, at: int, block: int) -> Iterator[Found]:
    """Linux: ``check_xattrs``. Value offsets count from the start of ``area``."""
    superblock = inode.superblock
    with_inodes = superblock.geometry.super.feature_incompat & INCOMPAT_EA_INODE
    entry = xattrs.XATTR_ENTRY

    def wrong(what: str) -> OSError:
        return superblock.corrupt(
            f"extended attributes: {what} at offset {at}", inode=inode, block=block
        )

    end = len(area)
    while True:
        if at + len(xattrs.XATTR_END) > end:
            raise wrong("entries without an end")
        if area[at : at + len(xattrs.XATTR_END)] == xattrs.XATTR_END:
            return
        if at + entry.size > end:
            raise wrong("an entry beyond the end")
        name_len, index, offset, value_inode, size, _ = entry.unpack_from(area, at)
        following = at + entry.size + xattrs.padded(name_len)
        if following > end:
            raise wrong("a name beyond the end")
        rest = bytes(area[at + entry.size : at + entry.size + name_len])
        if b"\0" in rest:
            raise wrong("a name with a NUL")
        if size > abi.XATTR_SIZE_MAX:
            raise wrong("a value of bad size")
        if value_inode:
            if not with_inodes:
                raise wrong("a value in an inode")
        elif size and offset + size > end:
            raise wrong("a value beyond the end")
        name = xattrs.join_name(index, rest)
        if name is not None:
            yield Found(name, area, offset, size, value_inode, block)
        at = following


def _value(inode: Ext2Inode, found: Found) -> bytes:
    """Linux: ``ext4_xattr_inode_get`` for a value that has an inode."""
    if not found.value_inode:
        return bytes(found.area[found.offset : found.offset + found.size])
    superblock = inode.superblock
    holder = superblock.get_inode(found.value_inode, inode)
    try:
        if not holder.flags & EXT4_EA_INODE_FL or holder.size != found.size:
            raise superblock.corrupt(
                f"inode {holder.ino} is no value of an extended attribute",
                inode=inode, block=found.block,
            )  # fmt: skip
        data = bytearray(found.size)
        holder.read_into([memoryview(data)], 0)
        return bytes(data)
    finally:
        holder.put()


def get_attribute(inode: Ext2Inode, name: bytes) -> bytes:
    """Linux: ``vfs_getxattr`` with ext4's handlers.

    Raises: EINVAL (a prefix and nothing after it), EOPNOTSUPP (an unknown one; the ACL of a
    symlink), ENODATA, EUCLEAN, EIO.
    """
    if name in _ACLS:
        if inode.is_symlink:
            raise oserror(errno.EOPNOTSUPP)
        entries = read_acl(inode, name)
        if entries is None:
            raise oserror(errno.ENODATA)
        return xattrs.format_acl(entries)
    if name in _READ:
        raise oserror(errno.EINVAL)
    if not name.startswith(_READ):
        raise oserror(errno.EOPNOTSUPP)
    for found in find_attributes(inode):
        if found.name == name:
            return _value(inode, found)
    raise oserror(errno.ENODATA)


def list_attributes(inode: Ext2Inode) -> list[bytes]:
    """The names that ``get_attribute`` knows: not a prefix alone, which only damage can make one.

    Raises: EUCLEAN, EIO.
    """
    names = {
        found.name: None
        for found in find_attributes(inode)
        if (found.name.startswith(_READ) and found.name not in _READ)
        or (found.name in _ACLS and not inode.is_symlink)
    }
    return list(names)


def read_acl(inode: Ext2Inode, name: bytes) -> xattrs.AclEntries | None:
    """An ACL, if there is one. Raises: EUCLEAN, EIO."""
    for found in find_attributes(inode):
        if found.name == name:
            try:
                return xattrs.acl_from_disk(_value(inode, found))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise inode.superblock.corrupt(
                    f"bad ACL {name.decode()}", inode=inode, block=found.block
                ) from None
    return None


def acl_allows(inode: Ext2Inode, entries: xattrs.AclEntries, cred: Credentials, want: int) -> bool:
    """Linux: ``posix_acl_permission``. ``want`` is R_OK|W_OK|X_OK.

    Raises: EIO, if nothing in the ACL is about ``cred``.
    """
    mask = next((allowed for tag, allowed, _ in entries if tag == xattrs.ACL_MASK), 7)
    in_a_group = False
    for tag, allowed, who in entries:
        enough = allowed & want == want
        if tag == xattrs.ACL_USER_OBJ:
            if cred.fsuid == inode.uid:
                return enough
        elif tag == xattrs.ACL_USER:
            if cred.fsuid == who:
                return enough and mask & want == want
        elif tag in (xattrs.ACL_GROUP_OBJ, xattrs.ACL_GROUP):
            if cred.in_group(inode.gid if tag == xattrs.ACL_GROUP_OBJ else who):
                in_a_group = True
                if enough:
                    return mask & want == want
        elif tag == xattrs.ACL_OTHER:
            return enough and not in_a_group
    raise oserror(errno.EIO)
