"""Making names and taking them away. Linux: the ``vfs_*`` half of fs/namei.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi
from vfs.credentials import CAP_MKNOD
from vfs.errors import oserror
from vfs.inode import Inode
from vfs.mount import Mount, VirtualDentry
from vfs.mount_tree import detach_mounts
from vfs.namei import step
from vfs.permission import (
    inode_permission,
    may_create,
    may_delete,
    owner_or_capable,
    prepare_mode,
)
from vfs.user_namespace import INITIAL_USER_NAMESPACE

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry


def _check_name(name: bytes) -> None:
    """Raises: EINVAL for what cannot be a name; ENAMETOOLONG."""
    if not name or 0 in name or 0x2F in name:
        raise oserror(errno.EINVAL)
    if len(name) > abi.NAME_MAX:
        raise oserror(errno.ENAMETOOLONG)


def _directory(parent: VirtualDentry) -> Inode:
    inode = parent.inode
    if not inode.is_dir:
        raise oserror(errno.ENOTDIR)
    return inode


# Making names


def _filename_create(
    parent: VirtualDentry, name: bytes, trailing: bool, absent: bool = False
) -> Inode:
    """Linux: ``filename_create`` after its walk: ``name`` is free and may be written to disk.

    ``absent``: the caller has just looked. Returns the directory. Raises: ENOTDIR, EEXIST, EINVAL,
    ENAMETOOLONG, ENOENT (``trailing``: slashes after the name of what is no directory), EROFS.
    """
    directory = _directory(parent)
    if name in (b"", b".", b".."):
        raise oserror(errno.EEXIST)
    _check_name(name)
    existing = None if absent else step(parent.dentry, name)
    if existing is not None:
        existing.put()
        raise oserror(errno.EEXIST)
    if trailing:
        raise oserror(errno.ENOENT)
    parent.mount.want_write()
    return directory


def _start_creating(
    parent: VirtualDentry,
    name: bytes,
    cred: Credentials,
    trailing: bool = False,
    absent: bool = False,
) -> Inode:
    """``_filename_create``, then Linux's ``may_create``. Returns the directory.

    Raises: as ``_filename_create``; ENOENT (a deleted directory), EACCES, EPERM.
    """
    directory = _filename_create(parent, name, trailing, absent)
    may_create(parent.dentry, cred)
    return directory


def instantiate(parent: Dentry, name: bytes, inode: Inode) -> Dentry:
    """Give ``name`` its new ``inode`` in the cache; the dentry is held for the caller."""
    dcache = parent.superblock.vfs.dcache
    negative = dcache.find(parent, name)
    if negative is None:
        return dcache.add(parent, name, inode)
    dcache.hold(negative)
    dcache.instantiate(negative, inode)
    return negative


def vfs_create(
    parent: VirtualDentry,
    name: bytes,
    mode: int,
    flags: int,
    cred: Credentials,
    umask: int = 0,
    absent: bool = False,
) -> Dentry:
    """A new regular file, which the caller opens next, with the open(2) ``flags``.

    ``mode``: permission bits; ``umask`` takes some of them away. ``absent`` says that the caller,
    holding the lock ever since, found no such name; where others make names too, they may have
    made this one, and the filesystem finds out.

    Raises: ENOTDIR, EEXIST, EINVAL, ENAMETOOLONG, EROFS, ENOENT, EACCES; the filesystem's.
    """
    directory = _start_creating(parent, name, cred, absent=absent)
    mode = prepare_mode(directory, abi.S_IFREG | mode & abi.S_IALLUGO, cred, umask)
    return instantiate(parent.dentry, name, directory.atomic_open(name, mode, flags, cred))


def vfs_mkdir(parent: VirtualDentry, name: bytes, mode: int, cred: Credentials) -> Dentry:
    """A new directory; of ``mode`` the permission and sticky bits count.

    Raises: as ``vfs_create``.
    """
    directory = _start_creating(parent, name, cred)
    mode = abi.S_IFDIR | mode & (abi.S_IRWXUGO | abi.S_ISVTX)
    return instantiate(parent.dentry, name, directory.mkdir(name, mode, cred))


def may_mknod(mode: int) -> None:
    """Linux: ``may_mknod``, before the walk. Raises: EPERM (a directory), EINVAL (no such type)."""
    kind = mode & abi.S_IFMT
    if kind == abi.S_IFDIR:
        raise oserror(errno.EPERM)
    if kind not in (0, abi.S_IFREG, abi.S_IFCHR, abi.S_IFBLK, abi.S_IFIFO, abi.S_IFSOCK):
        raise oserror(errno.EINVAL)


def vfs_mknod(
    parent: VirtualDentry,
    name: bytes,
    mode: int,
    rdev: int,
    cred: Credentials,
    trailing: bool = False,
    umask: int = 0,
) -> Dentry:
    """A node of the type in ``mode``; 0 and S_IFREG make a regular file.

    Raises: EPERM (a directory; a device without CAP_MKNOD, but for 0:0 whiteouts), EINVAL (no such
    type); as ``vfs_create``.
    """
    may_mknod(mode)
    kind = mode & abi.S_IFMT
    directory = _start_creating(parent, name, cred, trailing)
    mode = prepare_mode(directory, (kind or abi.S_IFREG) | mode & abi.S_IALLUGO, cred, umask)
    if kind in (0, abi.S_IFREG):
        return instantiate(parent.dentry, name, directory.create(name, mode, cred))
    is_whiteout = kind == abi.S_IFCHR and rdev == 0
    if kind in (abi.S_IFCHR, abi.S_IFBLK) and not is_whiteout:
        cred.ns_require(INITIAL_USER_NAMESPACE, CAP_MKNOD)
    rdev = rdev if kind in (abi.S_IFCHR, abi.S_IFBLK) else 0
    return instantiate(parent.dentry, name, directory.mknod(name, mode, rdev, cred))


def vfs_symlink(
    parent: VirtualDentry, name: bytes, target: bytes, cred: Credentials, trailing: bool = False
) -> Dentry:
    """Raises: ENOENT (empty target), ENAMETOOLONG; as ``vfs_create``."""
    if not target:
        raise oserror(errno.ENOENT)
    if len(target) >= abi.PATH_MAX:
        raise oserror(errno.ENAMETOOLONG)
    directory = _start_creating(parent, name, cred, trailing)
    return instantiate(parent.dentry, name, directory.symlink(name, target, cred))


def _may_hardlink(vfs_protects: int, inode: Inode, cred: Credentials) -> None:
    """Linux: ``may_linkat`` (fs.protected_hardlinks). Raises: EPERM."""
    if not vfs_protects or owner_or_capable(inode, cred):
        return
    both = abi.S_ISGID | abi.S_IXGRP
    if inode.is_regular and not inode.mode & abi.S_ISUID and inode.mode & both != both:
        try:
            inode_permission(inode, cred, abi.R_OK | abi.W_OK)
            return
        except OSError:
            pass
    raise oserror(errno.EPERM)


def vfs_link(
    source: VirtualDentry,
    parent: VirtualDentry,
    name: bytes,
    cred: Credentials,
    trailing: bool = False,
) -> Dentry:
    """A further name for ``source``.

    Raises: EEXIST, ENOENT, EROFS, EXDEV (another mount), EPERM (fs.protected_hardlinks; a
    directory; immutable or append-only), EACCES; ENOENT for a file whose last name is gone.
    """
    inode = source.inode
    directory = _filename_create(parent, name, trailing)
    if source.mount is not parent.mount:
        raise oserror(errno.EXDEV)
    _may_hardlink(inode.superblock.vfs.protected_hardlinks, inode, cred)
    may_create(parent.dentry, cred)
    if inode.superblock is not directory.superblock:
        raise oserror(errno.EXDEV)
    if inode.flags & (abi.FS_APPEND_FL | abi.FS_IMMUTABLE_FL) or inode.is_dir:
        raise oserror(errno.EPERM)
    if not inode.nlink and not inode.linkable:
        raise oserror(errno.ENOENT)
    directory.link(name, inode, source.dentry)
    inode.linkable = False
    return instantiate(parent.dentry, name, inode.get())


def vfs_tmpfile(
    parent: VirtualDentry, mode: int, cred: Credentials, linkable: bool = True, umask: int = 0
) -> Dentry:
    """An unnamed regular file in ``parent``'s filesystem (O_TMPFILE), as a disconnected dentry.

    Raises: ENOTDIR, EROFS, EACCES, EOPNOTSUPP; the filesystem's.
    """
    directory = _directory(parent)
    parent.mount.want_write()
    inode_permission(directory, cred, abi.W_OK | abi.X_OK)
    mode = prepare_mode(directory, abi.S_IFREG | mode & abi.S_IALLUGO, cred, umask)
    inode = directory.tmpfile(mode, cred)
    inode.linkable = linkable
    superblock = directory.superblock
    return superblock.vfs.dcache.disconnected(superblock, b"#%d" % inode.ino, inode)


# Taking names away


def _find_victim(parent: VirtualDentry, name: bytes) -> Dentry:
    _directory(parent)
    parent.mount.want_write()
    _check_name(name)
    victim = step(parent.dentry, name)
    if victim is None:
        raise oserror(errno.ENOENT)
    return victim


def _refuse_mountpoint(mount: Mount, dentry: Dentry) -> None:
    """Linux: ``is_local_mountpoint``. Raises: EBUSY if the caller's namespace has a mount on
    ``dentry``; a caller that is no task sees what ``mount`` is in.
    """
    if dentry.mounted:
        vfs = dentry.superblock.vfs
        namespace = mount.namespace if vfs.current is None else vfs.current.namespace
        if namespace and any(on.namespace is namespace for on in vfs.mountpoints[dentry]):
            raise oserror(errno.EBUSY)


def _forget_name(dentry: Dentry) -> None:
    """The name is gone from the filesystem: mounts elsewhere leave it, the cache forgets it."""
    if dentry.mounted:
        detach_mounts(dentry)
    dentry.superblock.vfs.dcache.delete(dentry)


def vfs_unlink(
    parent: VirtualDentry, name: bytes, cred: Credentials, trailing: bool = False
) -> None:
    """Raises: EISDIR ("." and ".."), EROFS, ENOENT, ENOTDIR (``trailing`` after a file), EACCES,
    EPERM, EISDIR (a directory), EBUSY (a mount point of this namespace).
    """
    if name in (b"", b".", b".."):
        raise oserror(errno.EISDIR)
    with _find_victim(parent, name) as victim:
        inode = victim.inode
        assert inode is not None
        if trailing:
            raise oserror(errno.EISDIR if inode.is_dir else errno.ENOTDIR)
        may_delete(parent.dentry, victim, cred, is_dir=False)
        _refuse_mountpoint(parent.mount, victim)
        parent.inode.unlink(name, inode)
        _forget_name(victim)


def vfs_rmdir(parent: VirtualDentry, name: bytes, cred: Credentials) -> None:
    """Raises: EBUSY (the root), EINVAL ("."), ENOTEMPTY (".."), EROFS, ENOENT, EACCES, EPERM,
    ENOTDIR, EBUSY (a mount point of this namespace), ENOTEMPTY.
    """
    if name in (b"", b".", b".."):
        raise oserror({b"": errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}[name])
    with _find_victim(parent, name) as victim:
        may_delete(parent.dentry, victim, cred, is_dir=True)
        _refuse_mountpoint(parent.mount, victim)
        inode = victim.inode
        assert inode is not None
        parent.inode.rmdir(name, inode)
        _forget_name(victim)


def vfs_rename(
    old_parent: VirtualDentry,
    old_name: bytes,
    new_parent: VirtualDentry,
    new_name: bytes,
    flags: int,
    cred: Credentials,
    old_trailing: bool = False,
    new_trailing: bool = False,
) -> None:
    """Linux: ``do_renameat2`` after its walks, and ``vfs_rename``.

    Raises: EINVAL (flags that exclude each other), EXDEV (another mount), EBUSY ("." and ".."),
    EROFS, ENOENT, EEXIST (NOREPLACE), ENOTDIR, EINVAL (into itself), ENOTEMPTY, EACCES, EPERM,
    EISDIR, EBUSY (a mount point of this namespace); the filesystem's.
    """
    if flags & ~(abi.RENAME_NOREPLACE | abi.RENAME_EXCHANGE | abi.RENAME_WHITEOUT) or (
        flags & abi.RENAME_EXCHANGE and flags & (abi.RENAME_NOREPLACE | abi.RENAME_WHITEOUT)
    ):
        raise oserror(errno.EINVAL)
    if old_parent.mount is not new_parent.mount:
        raise oserror(errno.EXDEV)
    if old_name in (b"", b".", b".."):
        raise oserror(errno.EBUSY)
    if new_name in (b"", b".", b".."):
        raise oserror(errno.EEXIST if flags & abi.RENAME_NOREPLACE else errno.EBUSY)
    _directory(new_parent)
    with _find_victim(old_parent, old_name) as old:
        _check_name(new_name)
        new = step(new_parent.dentry, new_name)
        try:
            _rename(
                old_parent, old, new_parent, new_name, new, flags, cred, old_trailing, new_trailing
            )
        finally:
            if new is not None:
                new.put()


def _rename(
    old_parent: VirtualDentry,
    old: Dentry,
    new_parent: VirtualDentry,
    new_name: bytes,
    new: Dentry | None,
    flags: int,
    cred: Credentials,
    old_trailing: bool,
    new_trailing: bool,
) -> None:
    exchange = flags & abi.RENAME_EXCHANGE
    old_inode, new_inode = old.inode, None if new is None else new.inode
    assert old_inode is not None
    if new_inode is not None and flags & abi.RENAME_NOREPLACE:
        raise oserror(errno.EEXIST)
    if exchange:
        if new_inode is None:
            raise oserror(errno.ENOENT)
        if new_trailing and not new_inode.is_dir:
            raise oserror(errno.ENOTDIR)
    if not old_inode.is_dir and (old_trailing or (new_trailing and not exchange)):
        raise oserror(errno.ENOTDIR)
    if new_parent.dentry.is_descendant_of(old):
        raise oserror(errno.EINVAL)
    if new is not None and old_parent.dentry.is_descendant_of(new):
        raise oserror(errno.EINVAL if exchange else errno.ENOTEMPTY)
    if old_inode is new_inode:
        return
    old_directory, new_directory = old_parent.inode, new_parent.inode
    may_delete(old_parent.dentry, old, cred, old_inode.is_dir)
    if new is None or new_inode is None:
        may_create(new_parent.dentry, cred)
    else:
        is_dir = new_inode.is_dir if exchange else old_inode.is_dir
        may_delete(new_parent.dentry, new, cred, is_dir)
    if new_directory is not old_directory:
        # A directory's ".." changes with its parent.
        if old_inode.is_dir:
            inode_permission(old_inode, cred, abi.W_OK)
        if exchange and new_inode is not None and new_inode.is_dir:
            inode_permission(new_inode, cred, abi.W_OK)
    for dentry in filter(None, (old, new)):
        _refuse_mountpoint(old_parent.mount, dentry)
    old_name = old.name
    whiteout = old_directory.rename(
        old_name, old_inode, new_directory, new_name, new_inode, flags, cred
    )
    dcache = old.superblock.vfs.dcache
    if exchange:
        assert new is not None
        dcache.exchange(old, new)
        return
    if new is not None:
        _forget_name(new)
    else:
        negative = dcache.find(new_parent.dentry, new_name)
        if negative is not None:
            dcache.drop(negative)
    dcache.move(old, new_parent.dentry, new_name)
    if whiteout is not None:
        instantiate(old_parent.dentry, old_name, whiteout).put()
