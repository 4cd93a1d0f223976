"""Opening what a walk has found. Linux: ``do_open`` in fs/namei.c, ``do_dentry_open``."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vfs import abi
from vfs.errors import oserror
from vfs.file import FileDescription
from vfs.inode import Inode, SetAttributes
from vfs.mount import Mount
from vfs.operations.attributes import vfs_setattr
from vfs.permission import (
    inode_permission,
    owner_or_capable,
)
from vfs.pipe import open_fifo

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry

_DEVICES: Final = (abi.S_IFCHR, abi.S_IFBLK)
# By access mode. Mode 3 asks for both and gives neither, as for ioctls on Linux.
_MASKS: Final = (abi.R_OK, abi.W_OK, abi.R_OK | abi.W_OK, abi.R_OK | abi.W_OK)


def vfs_open(
    mount: Mount, dentry: Dentry, flags: int, cred: Credentials, *, check: bool = True
) -> FileDescription:
    """Linux: ``do_open``, ``may_open`` and ``do_dentry_open``. The caller receives the description.

    ``flags`` are open(2)'s; O_CREAT and O_EXCL are dealt with already. ``check`` False is for a
    file that this call created. A FIFO's description may still have to wait for the other end:
    ``vfs.pipe`` tells.

    Raises: ENOENT, ENOTDIR, EROFS, ELOOP (a symlink), EISDIR, EACCES (permission; a device on a
    nodev mount), EPERM (append-only, O_NOATIME), ENXIO; the filesystem's.
    """
    inode = dentry.inode
    if inode is None:
        raise oserror(errno.ENOENT)
    if flags & abi.O_PATH:
        if flags & abi.O_DIRECTORY and not inode.is_dir:
            raise oserror(errno.ENOTDIR)
        kept = abi.O_PATH | abi.O_DIRECTORY | abi.O_NOFOLLOW
        return FileDescription(mount, dentry, flags & kept, cred)
    if flags & abi.O_DIRECTORY and not inode.is_dir:
        raise oserror(errno.ENOTDIR)
    kind = inode.mode & abi.S_IFMT
    truncate = bool(flags & abi.O_TRUNC) and kind == abi.S_IFREG
    if truncate:
        mount.want_write()
    if check:
        _may_open(mount, inode, flags, cred)
    elif kind in _DEVICES:
        _may_open_device(mount)
    if flags & abi.O_ACCMODE != abi.O_RDONLY and not inode.is_special:
        mount.want_write()
    if flags & abi.O_DIRECT and kind in (abi.S_IFCHR, abi.S_IFIFO):
        raise oserror(errno.EINVAL)
    if kind == abi.S_IFREG or kind == abi.S_IFDIR:
        file = inode.open(mount, dentry, flags, cred)
    elif kind in _DEVICES:
        file = inode.superblock.vfs.devices.open(mount, dentry, flags, cred)
    elif kind == abi.S_IFIFO:
        file = open_fifo(mount, dentry, flags, cred)
    else:
        raise oserror(errno.ENXIO)
    if truncate:
        try:
            vfs_setattr(mount, dentry, SetAttributes(size=0, file=file), cred)
        except BaseException:
            file.put()
            raise
    return file


def _may_open(mount: Mount, inode: Inode, flags: int, cred: Credentials) -> None:
    """Linux: ``may_open``."""
    access = flags & abi.O_ACCMODE
    mask = _MASKS[access]
    if flags & abi.O_TRUNC:
        mask |= abi.W_OK
    kind = inode.mode & abi.S_IFMT
    if kind == abi.S_IFLNK:
        raise oserror(errno.ELOOP)
    if kind == abi.S_IFDIR:
        if mask & abi.W_OK:
            raise oserror(errno.EISDIR)
    elif kind in _DEVICES:
        _may_open_device(mount)
    inode_permission(inode, cred, mask)
    if inode.flags & abi.FS_APPEND_FL and (
        (access != abi.O_RDONLY and not flags & abi.O_APPEND) or flags & abi.O_TRUNC
    ):
        raise oserror(errno.EPERM)
    if flags & abi.O_NOATIME and not owner_or_capable(inode, cred):
        raise oserror(errno.EPERM)


def _may_open_device(mount: Mount) -> None:
    """Linux: ``may_open_dev``. Raises: EACCES."""
    if mount.flags & abi.MS_NODEV or mount.superblock.nodev:
        raise oserror(errno.EACCES)
