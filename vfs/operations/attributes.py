"""Attributes of a file: changing them, asking about them. Linux: fs/attr.c, fs/open.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi
from vfs.errors import oserror
from vfs.inode import SetAttributes
from vfs.mount import Mount
from vfs.permission import (
    inode_permission,
    mode_after_write,
    setattr_prepare,
    sgid_is_dropped,
)
from vfs.times import touch_atime

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.superblock import Statfs


def vfs_setattr(mount: Mount, dentry: Dentry, attributes: SetAttributes, cred: Credentials) -> None:
    """Linux: ``notify_change`` with the rules of chmod, chown, truncate and utimensat around it.

    ``attributes`` is changed on the way: set-id bits that must go, ctime, mtime for a new size.
    Truncating needs W_OK unless it comes through an open file.

    Raises: EISDIR, EINVAL (a size for what has none), EACCES (truncating), EROFS, EPERM, EFBIG,
    EACCES; the filesystem's.
    """
    inode = dentry.inode
    if inode is None:
        raise oserror(errno.ENOENT)
    inode.refresh()
    now = inode.superblock.vfs.clock.now_ns()
    size = attributes.size
    if size is not None:
        if inode.is_dir:
            raise oserror(errno.EISDIR)
        if not inode.is_regular or size < 0:
            raise oserror(errno.EINVAL)
        if attributes.file is None:
            inode_permission(inode, cred, abi.W_OK)
    mount.want_write()
    if size is not None:
        if inode.flags & (abi.FS_APPEND_FL | abi.FS_IMMUTABLE_FL):
            raise oserror(errno.EPERM)
        if size > inode.superblock.max_bytes:
            raise oserror(errno.EFBIG)
    changes_owner = (
        attributes.chown or attributes.uid is not None or attributes.gid is not None
    ) and not inode.is_dir
    if changes_owner:
        # A change of mode as any other: who may not change modes may not change owners either.
        mode = inode.mode if attributes.mode is None else attributes.mode
        kept = mode & ~abi.S_ISUID
        if sgid_is_dropped(inode, cred):
            kept &= ~abi.S_ISGID
        if kept != mode:
            attributes.mode = kept & abi.S_IALLUGO
    setattr_prepare(inode, attributes, cred)
    if changes_owner:
        if not inode.host_managed:
            inode.killpriv()
    elif size is not None:
        kept_bits = mode_after_write(inode, cred)
        if kept_bits is not None and attributes.mode is None:
            attributes.mode = kept_bits
        if not inode.host_managed:
            inode.killpriv()
    if size is not None and size == inode.size and attributes.file is None:
        # truncate(2) to the size that a file has leaves its times alone; ftruncate(2) does not.
        if attributes.mode is not None or attributes.atime_ns is not None:
            attributes.ctime_ns = now
    else:
        attributes.ctime_ns = now
        if size is not None and attributes.mtime_ns is None and not inode.host_managed:
            attributes.mtime_ns = now
    inode.setattr(attributes, cred)


def vfs_access(mount: Mount, dentry: Dentry, mask: int, cred: Credentials) -> None:
    """Linux: ``do_faccessat`` after its walk; ``cred`` is who is asked about.

    Raises: EACCES (noexec mount), EROFS, EPERM, EACCES.
    """
    inode = dentry.inode
    if inode is None:
        raise oserror(errno.ENOENT)
    if not mask:
        return
    if mask & abi.X_OK and inode.is_regular and mount.flags & abi.MS_NOEXEC:
        raise oserror(errno.EACCES)
    inode_permission(inode, cred, mask)
    if mask & abi.W_OK and mount.read_only and not inode.is_special:
        raise oserror(errno.EROFS)


def vfs_readlink(mount: Mount, dentry: Dentry, cred: Credentials) -> bytes:
    """Raises: EINVAL for what is no symlink."""
    inode = dentry.inode
    if inode is None:
        raise oserror(errno.ENOENT)
    target = inode.readlink()
    touch_atime(mount, inode)
    return target


def vfs_statfs(mount: Mount, dentry: Dentry) -> Statfs:
    """The filesystem's figures; the mount's flags are the caller's to add."""
    return dentry.superblock.statfs()
