"""Extended attributes: whose they are and who may touch which. Linux: fs/xattr.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi
from vfs.credentials import CAP_SETFCAP, CAP_SYS_ADMIN
from vfs.errors import oserror
from vfs.permission import inode_permission, owner_or_capable
from vfs.user_namespace import INITIAL_USER_NAMESPACE

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.mount import Mount


def _inode(dentry: Dentry, name: bytes) -> Inode:
    if dentry.inode is None:
        raise oserror(errno.ENOENT)
    if not 0 < len(name) <= abi.XATTR_NAME_MAX:
        raise oserror(errno.ERANGE)
    return dentry.inode


def xattr_permission(inode: Inode, name: bytes, mask: int, cred: Credentials) -> None:
    """Linux: ``xattr_permission``. Raises: EPERM, ENODATA (reading what one may not know of),
    EACCES, EROFS.
    """
    writing = mask & abi.W_OK
    if writing and inode.flags & (abi.FS_IMMUTABLE_FL | abi.FS_APPEND_FL):
        raise oserror(errno.EPERM)
    if name.startswith((b"security.", b"system.")):
        return
    if name.startswith(b"trusted."):
        if not cred.ns_capable(INITIAL_USER_NAMESPACE, CAP_SYS_ADMIN):
            raise oserror(errno.EPERM if writing else errno.ENODATA)
        return
    if name.startswith(b"user."):
        if not inode.is_regular and not inode.is_dir:
            raise oserror(errno.EPERM if writing else errno.ENODATA)
        if (
            inode.is_dir
            and inode.mode & abi.S_ISVTX
            and writing
            and not owner_or_capable(inode, cred)
        ):
            raise oserror(errno.EPERM)
    inode_permission(inode, cred, mask)


def _may_change(inode: Inode, name: bytes, cred: Credentials) -> None:
    """Linux: ``cap_inode_setxattr``, and ``vfs_set_acl``'s question. Raises: EPERM."""
    if name in (b"system.posix_acl_access", b"system.posix_acl_default"):
        if not owner_or_capable(inode, cred):
            raise oserror(errno.EPERM)
    elif name == b"security.capability":
        cred.require(CAP_SETFCAP)
    elif name.startswith(b"security."):
        cred.ns_require(inode.superblock.user_ns, CAP_SYS_ADMIN)


def vfs_getxattr(dentry: Dentry, name: bytes, cred: Credentials) -> bytes:
    """Raises: ERANGE (a bad name), EACCES, ENODATA, EOPNOTSUPP."""
    inode = _inode(dentry, name)
    xattr_permission(inode, name, abi.R_OK, cred)
    return inode.getxattr(name)


def vfs_setxattr(
    mount: Mount, dentry: Dentry, name: bytes, value: bytes, flags: int, cred: Credentials
) -> None:
    """Raises: EINVAL, ERANGE, E2BIG, EROFS, EPERM, EACCES, EEXIST, ENODATA, ENOSPC, EOPNOTSUPP."""
    if flags & ~(abi.XATTR_CREATE | abi.XATTR_REPLACE):
        raise oserror(errno.EINVAL)
    inode = _inode(dentry, name)
    if len(value) > abi.XATTR_SIZE_MAX:
        raise oserror(errno.E2BIG)
    mount.want_write()
    xattr_permission(inode, name, abi.W_OK, cred)
    _may_change(inode, name, cred)
    inode.setxattr(name, value, flags)


def vfs_removexattr(mount: Mount, dentry: Dentry, name: bytes, cred: Credentials) -> None:
    """Raises: ERANGE, EROFS, EPERM, EACCES, ENODATA, EOPNOTSUPP."""
    inode = _inode(dentry, name)
    mount.want_write()
    xattr_permission(inode, name, abi.W_OK, cred)
    _may_change(inode, name, cred)
    inode.removexattr(name)


def vfs_listxattr(dentry: Dentry, cred: Credentials) -> list[bytes]:
    """The names that ``cred`` may know of."""
    if dentry.inode is None:
        raise oserror(errno.ENOENT)
    names = dentry.inode.listxattr()
    if cred.ns_capable(INITIAL_USER_NAMESPACE, CAP_SYS_ADMIN):
        return names
    return [name for name in names if not name.startswith(b"trusted.")]
