"""Who may do what to an inode, in Linux's order. Linux: fs/namei.c, fs/attr.c, fs/inode.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi
from vfs.credentials import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
    Credentials,
)
from vfs.errors import oserror
from vfs.superblock import DCACHE_REVALIDATE

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.inode import Inode, SetAttributes

_DAC_OVERRIDE_BIT = 1 << CAP_DAC_OVERRIDE


def generic_permission(inode: Inode, cred: Credentials, mask: int) -> None:
    """Linux: ``generic_permission``. ``mask`` is R_OK|W_OK|X_OK.

    The owner class decides for the owner, the group class for members, the others' for the rest;
    capabilities override, except that executing a file needs one x bit somewhere.

    Raises: EACCES.
    """
    mode = inode.mode
    if cred.fsuid == inode.uid:
        granted = mode >> 6
    elif cred.in_group(inode.gid):
        granted = mode >> 3
    else:
        granted = mode
    if mask & ~granted & 7:
        capability_permission(mode, cred, mask)


def capability_permission(mode: int, cred: Credentials, mask: int) -> None:
    """What capabilities still allow where a ``mode`` or an ACL has denied: the second half of
    ``generic_permission``. Raises: EACCES.
    """
    if mode & abi.S_IFMT == abi.S_IFDIR:
        if cred.caps & _DAC_OVERRIDE_BIT:
            return
        if not mask & abi.W_OK and cred.capable(CAP_DAC_READ_SEARCH):
            return
    else:
        if mask == abi.R_OK and cred.capable(CAP_DAC_READ_SEARCH):
            return
        if cred.caps & _DAC_OVERRIDE_BIT and (not mask & abi.X_OK or mode & 0o111):
            return
    raise oserror(errno.EACCES)


def inode_permission(inode: Inode, cred: Credentials, mask: int) -> None:
    """Linux: ``inode_permission``.

    Raises: EROFS (writing a file, directory or symlink of a read-only superblock), EPERM
    (immutable), EACCES.
    """
    if mask & abi.W_OK:
        if inode.superblock.flags & abi.MS_RDONLY and inode.mode & abi.S_IFMT in (
            abi.S_IFREG,
            abi.S_IFDIR,
            abi.S_IFLNK,
        ):
            raise oserror(errno.EROFS)
        if inode.flags & abi.FS_IMMUTABLE_FL:
            raise oserror(errno.EPERM)
    inode.permission(cred, mask)


def owner_or_capable(inode: Inode, cred: Credentials) -> bool:
    """Linux: ``inode_owner_or_capable``."""
    return cred.fsuid == inode.uid or cred.capable(CAP_FOWNER)


def is_dead_directory(directory: Dentry) -> bool:
    """Linux: ``IS_DEADDIR``: a directory that was removed, in which no name can come to be.

    Where others change directories too, an unhashed one may only have moved: they must be asked.
    """
    return not directory.hashed and directory.superblock.dcache != DCACHE_REVALIDATE


def may_create(directory: Dentry, cred: Credentials) -> None:
    """Linux: ``may_create``. Raises: ENOENT (the directory is deleted), EROFS, EPERM, EACCES."""
    inode = directory.inode
    if inode is None or is_dead_directory(directory):
        raise oserror(errno.ENOENT)
    inode_permission(inode, cred, abi.W_OK | abi.X_OK)


def sticky_forbids(directory: Inode, victim: Inode, cred: Credentials) -> bool:
    """Linux: ``check_sticky``: from a sticky directory only owners take names away."""
    return bool(
        directory.mode & abi.S_ISVTX
        and victim.uid != cred.fsuid
        and directory.uid != cred.fsuid
        and not cred.capable(CAP_FOWNER)
    )


def may_delete(directory: Dentry, victim: Dentry, cred: Credentials, is_dir: bool) -> None:
    """Linux: ``may_delete``.

    Raises: ENOENT, EROFS, EACCES, EPERM (append-only directory, sticky, immutable or append-only
    victim), ENOTDIR or EISDIR (not the kind that was asked for), EBUSY (a root).
    """
    parent, inode = directory.inode, victim.inode
    if parent is None or inode is None:
        raise oserror(errno.ENOENT)
    inode_permission(parent, cred, abi.W_OK | abi.X_OK)
    if (
        parent.flags & abi.FS_APPEND_FL
        or sticky_forbids(parent, inode, cred)
        or inode.flags & (abi.FS_APPEND_FL | abi.FS_IMMUTABLE_FL)
    ):
        raise oserror(errno.EPERM)
    if is_dir:
        if not inode.is_dir:
            raise oserror(errno.ENOTDIR)
        if victim.is_root:
            raise oserror(errno.EBUSY)
    elif inode.is_dir:
        raise oserror(errno.EISDIR)
    if is_dead_directory(directory):
        raise oserror(errno.ENOENT)


def prepare_mode(directory: Inode, mode: int, cred: Credentials, umask: int) -> int:
    """Linux: ``vfs_prepare_mode``: a non-member cannot make a set-group-id executable in a setgid
    directory, where the file would get the directory's group; only then does the umask come.
    """
    both = abi.S_ISGID | abi.S_IXGRP
    if (
        mode & abi.S_IFMT != abi.S_IFDIR
        and directory.mode & abi.S_ISGID
        and mode & both == both
        and not cred.in_group(directory.gid)
        and not cred.capable(CAP_FSETID)
    ):
        mode &= ~abi.S_ISGID
    return mode & ~umask


def inode_init_owner(directory: Inode, mode: int, cred: Credentials) -> tuple[int, int, int]:
    """Linux: ``inode_init_owner``. ``(mode, uid, gid)`` of what ``cred`` creates in ``directory``.

    In a setgid directory the group is the directory's, and a new directory is setgid too.
    """
    if directory.mode & abi.S_ISGID:
        if mode & abi.S_IFMT == abi.S_IFDIR:
            mode |= abi.S_ISGID
        return mode, cred.fsuid, directory.gid
    return mode, cred.fsuid, cred.fsgid


def sgid_is_dropped(inode: Inode, cred: Credentials) -> bool:
    """Linux: ``setattr_should_drop_sgid``, for a write, truncate or chown by ``cred``."""
    if not inode.mode & abi.S_ISGID:
        return False
    if inode.mode & abi.S_IXGRP:
        return True
    return not cred.in_group(inode.gid) and not cred.capable(CAP_FSETID)


def mode_after_write(inode: Inode, cred: Credentials) -> int | None:
    """Linux: ``setattr_should_drop_suidgid``: the mode bits left after ``cred`` changes content.

    None: nothing to drop (no set-id bits, not a regular file, or CAP_FSETID).
    """
    mode = inode.mode
    if not mode & (abi.S_ISUID | abi.S_ISGID) or not inode.is_regular or cred.capable(CAP_FSETID):
        return None
    kept = mode & ~abi.S_ISUID
    if sgid_is_dropped(inode, cred):
        kept &= ~abi.S_ISGID
    return kept & abi.S_IALLUGO if kept != mode else None


def setattr_prepare(inode: Inode, attributes: SetAttributes, cred: Credentials) -> None:
    """Linux: ``may_setattr`` and ``setattr_prepare``. Strips a set-group-id bit that the caller may
    not set from ``attributes.mode``.

    Raises: EPERM (immutable or append-only; not the owner), EROFS, EACCES (times set to now by one
    who may not write).
    """
    explicit_times = (
        attributes.atime_ns is not None or attributes.mtime_ns is not None
    ) and not attributes.touch
    changes_owner = attributes.uid is not None or attributes.gid is not None
    if attributes.mode is not None or changes_owner or explicit_times:
        if inode.flags & (abi.FS_IMMUTABLE_FL | abi.FS_APPEND_FL):
            raise oserror(errno.EPERM)
    elif inode.flags & abi.FS_IMMUTABLE_FL:
        raise oserror(errno.EPERM)
    if attributes.touch and not owner_or_capable(inode, cred):
        inode_permission(inode, cred, abi.W_OK)
    owns = cred.fsuid == inode.uid
    may_chown = cred.capable(CAP_CHOWN)
    if attributes.uid is not None and not (may_chown or (owns and attributes.uid == inode.uid)):
        raise oserror(errno.EPERM)
    if attributes.gid is not None and not (
        may_chown or (owns and (attributes.gid == inode.gid or cred.in_group(attributes.gid)))
    ):
        raise oserror(errno.EPERM)
    if attributes.mode is not None:
        if not owner_or_capable(inode, cred):
            raise oserror(errno.EPERM)
        group = inode.gid if attributes.gid is None else attributes.gid
        if not cred.in_group(group) and not cred.capable(CAP_FSETID):
            attributes.mode &= ~abi.S_ISGID
    if explicit_times and not owner_or_capable(inode, cred):
        raise oserror(errno.EPERM)
