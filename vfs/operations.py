"""What a system call does once its paths are resolved. Linux: the ``vfs_*`` functions.

Both the syscalls and the FUSE server end here, so a rule stands once: who may, in which order the
errors come, what happens to the dentry cache and to mounts, set-id bits and times. Every function
needs the VFS lock, except ``vfs_read``, ``vfs_write`` and ``vfs_fsync``, which take it themselves
where the file wants it. Names are single components. Dentries that are returned are held.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vfs import abi
from vfs.credentials import CAP_MKNOD
from vfs.errors import oserror
from vfs.file import DirectoryEntry, FileDescription
from vfs.inode import Inode, SetAttributes
from vfs.mount import Mount, VirtualDentry
from vfs.namei import step
from vfs.permission import (
    inode_permission,
    is_dead_directory,
    may_create,
    may_delete,
    mode_after_write,
    owner_or_capable,
    prepare_mode,
    setattr_prepare,
    sgid_is_dropped,
)
from vfs.pipe import open_fifo
from vfs.times import modified, touch_atime

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.superblock import Statfs


def _check_name(name: bytes) -> None:
    """Raises: EINVAL for what cannot be a name; ENAMETOOLONG."""
    if not name or b"\0" in name or b"/" in name:
        raise oserror(errno.EINVAL)
    if len(name) > abi.NAME_MAX:
        raise oserror(errno.ENAMETOOLONG)


def _directory(parent: VirtualDentry) -> Inode:
    inode = parent.inode
    if not inode.is_dir:
        raise oserror(errno.ENOTDIR)
    return inode


# Making names


def _start_creating(
    parent: VirtualDentry, name: bytes, cred: Credentials, trailing: bool = False
) -> Inode:
    """Linux: ``filename_create`` after its walk, then ``may_create``. Returns the directory.

    Raises: EEXIST, ENOENT (``trailing``: slashes after the name of what is no directory), EROFS,
    EACCES, EPERM.
    """
    directory = _directory(parent)
    if name in (b"", b".", b".."):
        raise oserror(errno.EEXIST)
    _check_name(name)
    existing = step(parent.dentry, name)
    if existing is not None:
        existing.put()
        raise oserror(errno.EEXIST)
    if trailing:
        raise oserror(errno.ENOENT)
    parent.mount.want_write()
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
    parent: VirtualDentry, name: bytes, mode: int, cred: Credentials, umask: int = 0
) -> Dentry:
    """A new regular file. ``mode``: permission bits; ``umask`` takes some of them away.

    Raises: ENOTDIR, EEXIST, EINVAL, ENAMETOOLONG, EROFS, ENOENT, EACCES; the filesystem's.
    """
    directory = _start_creating(parent, name, cred)
    mode = prepare_mode(directory, abi.S_IFREG | mode & abi.S_IALLUGO, cred, umask)
    return instantiate(parent.dentry, name, directory.create(name, mode, cred))


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
        cred.require(CAP_MKNOD)
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
    directory = _directory(parent)
    if name in (b"", b".", b".."):
        raise oserror(errno.EEXIST)
    _check_name(name)
    existing = step(parent.dentry, name)
    if existing is not None:
        existing.put()
        raise oserror(errno.EEXIST)
    if trailing:
        raise oserror(errno.ENOENT)
    parent.mount.want_write()
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


def _is_local_mountpoint(mount: Mount, dentry: Dentry) -> bool:
    """Linux: ``is_local_mountpoint``: whether the caller's namespace has a mount on ``dentry``."""
    namespace = mount.namespace
    if not dentry.mounted or namespace is None:
        return False
    return any(dentry in other.children for other in namespace.mounts.values())


def _forget_name(dentry: Dentry) -> None:
    """The name is gone from the filesystem: mounts elsewhere leave it, the cache forgets it."""
    vfs = dentry.superblock.vfs
    if dentry.mounted:
        vfs.detach_mounts(dentry)
    vfs.dcache.delete(dentry)


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
        if _is_local_mountpoint(parent.mount, victim):
            raise oserror(errno.EBUSY)
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
        if _is_local_mountpoint(parent.mount, victim):
            raise oserror(errno.EBUSY)
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
    if _is_local_mountpoint(old_parent.mount, old) or (
        new is not None and _is_local_mountpoint(old_parent.mount, new)
    ):
        raise oserror(errno.EBUSY)
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


# Attributes


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
    if mask & abi.W_OK and mount.read_only and not _is_special(inode):
        raise oserror(errno.EROFS)


def _is_special(inode: Inode) -> bool:
    """Linux: ``special_file``: writing to it does not write to its filesystem."""
    return inode.mode & abi.S_IFMT in (abi.S_IFCHR, abi.S_IFBLK, abi.S_IFIFO, abi.S_IFSOCK)


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


# Opening


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
    elif kind in (abi.S_IFCHR, abi.S_IFBLK) and mount.flags & abi.MS_NODEV:
        raise oserror(errno.EACCES)
    if flags & abi.O_ACCMODE != abi.O_RDONLY and not _is_special(inode):
        mount.want_write()
    vfs = inode.superblock.vfs
    if flags & abi.O_DIRECT and kind in (abi.S_IFCHR, abi.S_IFIFO):
        raise oserror(errno.EINVAL)
    if kind in (abi.S_IFCHR, abi.S_IFBLK):
        file = vfs.devices.open(mount, dentry, flags, cred)
    elif kind == abi.S_IFIFO:
        file = open_fifo(mount, dentry, flags, cred)
    elif kind == abi.S_IFSOCK:
        raise oserror(errno.ENXIO)
    else:
        file = inode.open(mount, dentry, flags, cred)
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
    # Access mode 3 asks for both and gives neither, as for ioctls on Linux.
    mask = (abi.R_OK, abi.W_OK, abi.R_OK | abi.W_OK, abi.R_OK | abi.W_OK)[access]
    if flags & abi.O_TRUNC:
        mask |= abi.W_OK
    kind = inode.mode & abi.S_IFMT
    if kind == abi.S_IFLNK:
        raise oserror(errno.ELOOP)
    if kind == abi.S_IFDIR:
        if mask & abi.W_OK:
            raise oserror(errno.EISDIR)
    elif kind in (abi.S_IFCHR, abi.S_IFBLK) and mount.flags & abi.MS_NODEV:
        raise oserror(errno.EACCES)
    inode_permission(inode, cred, mask)
    if inode.flags & abi.FS_APPEND_FL and (
        (access != abi.O_RDONLY and not flags & abi.O_APPEND) or flags & abi.O_TRUNC
    ):
        raise oserror(errno.EPERM)
    if flags & abi.O_NOATIME and not owner_or_capable(inode, cred):
        raise oserror(errno.EPERM)


# Reading and writing


def verify_area(buffers: Sequence[memoryview], offset: int) -> None:
    """Linux: ``rwverify_area``. Raises: EINVAL for an end beyond what an offset can say."""
    if offset < 0 or offset + sum(map(len, buffers)) > abi.MAX_LFS_FILESIZE:
        raise oserror(errno.EINVAL)


def _content_changed(file: FileDescription, cred: Credentials | None) -> None:
    """Linux: ``file_modified``: set-id bits, security.capability and times after a change that
    ``cred`` made (None: the opener).
    """
    inode = file.inode
    if inode.host_managed:
        return
    kept = mode_after_write(inode, cred or file.cred)
    if kept is not None:
        inode.mode = inode.mode & abi.S_IFMT | kept
    inode.killpriv()
    modified(inode)


def vfs_read(
    file: FileDescription, buffers: Sequence[memoryview], offset: int, flags: int = 0
) -> int:
    """Read at ``offset`` (bytes) into ``buffers``; returns the bytes read. Not under the VFS lock.

    Raises: EBADF (not open for reading), EISDIR, EINVAL, WouldBlock; the filesystem's.
    """
    if not file.readable:
        raise oserror(errno.EBADF)
    verify_area(buffers, offset)
    if file.unlocked_io:
        return file.read(buffers, offset, flags)
    inode = file.inode
    with inode.superblock.vfs.lock:
        count = file.read(buffers, offset, flags)
        if not file.flags & abi.O_NOATIME:
            touch_atime(file.mount, inode)
        return count


def vfs_write(
    file: FileDescription,
    buffers: Sequence[memoryview],
    offset: int,
    flags: int = 0,
    cred: Credentials | None = None,
) -> int:
    """Write ``buffers`` at ``offset``, or at the end for O_APPEND; returns the bytes written.

    Drops set-id bits as ``cred`` says (the writer; None: the opener), moves times, syncs for O_SYNC
    and O_DSYNC.
    Not under the VFS lock. Raises: EBADF, EFBIG, ENOSPC, WouldBlock; the filesystem's.
    """
    if not file.writable:
        raise oserror(errno.EBADF)
    verify_area(buffers, offset)
    if file.flags & abi.O_APPEND and not flags & abi.RWF_NOAPPEND:
        flags |= abi.RWF_APPEND
    inode = file.inode
    superblock = inode.superblock
    if file.unlocked_io:
        count = file.write(buffers, offset, flags)
    else:
        with superblock.vfs.lock:
            start = inode.size if flags & abi.RWF_APPEND else offset
            if inode.is_regular and start >= superblock.max_bytes:
                raise oserror(errno.EFBIG)
            count = file.write(buffers, offset, flags)
            if count and inode.is_regular:
                _content_changed(file, cred)
    if not inode.is_regular:
        return count
    if file.flags & abi.O_DSYNC or flags & (abi.RWF_DSYNC | abi.RWF_SYNC):
        vfs_fsync(file, not (file.flags & abi.O_SYNC == abi.O_SYNC or flags & abi.RWF_SYNC))
    return count


def vfs_fsync(file: FileDescription, datasync: bool) -> None:
    """Not under the VFS lock. Raises: EINVAL for what cannot be synced; EIO."""
    if file.unlocked_io:
        file.fsync(datasync)
        return
    with file.inode.superblock.vfs.lock:
        file.fsync(datasync)


def vfs_iterate(file: FileDescription, cookie: int) -> Iterator[DirectoryEntry]:
    """Linux: ``iterate_dir``. Raises: ENOTDIR, ENOENT (the directory is deleted)."""
    if not file.inode.is_dir:
        raise oserror(errno.ENOTDIR)
    if is_dead_directory(file.dentry):
        raise oserror(errno.ENOENT)
    if not file.flags & abi.O_NOATIME:
        touch_atime(file.mount, file.inode)
    return file.iterate(cookie)


def vfs_llseek(file: FileDescription, offset: int, whence: int) -> int:
    """Where a seek from ``file.position`` leads; the caller stores it.

    Raises: EINVAL, ESPIPE, ENXIO (SEEK_DATA and SEEK_HOLE outside of the file).
    """
    if not abi.SEEK_SET <= whence <= abi.SEEK_HOLE:
        raise oserror(errno.EINVAL)
    if not file.seekable:
        raise oserror(errno.ESPIPE)
    return file.llseek(offset, whence)


_FALLOCATE_MODES = (
    abi.FALLOC_FL_KEEP_SIZE | abi.FALLOC_FL_PUNCH_HOLE | abi.FALLOC_FL_COLLAPSE_RANGE
    | abi.FALLOC_FL_ZERO_RANGE | abi.FALLOC_FL_INSERT_RANGE | abi.FALLOC_FL_UNSHARE_RANGE
    | abi.FALLOC_FL_WRITE_ZEROES
)  # fmt: skip


def vfs_fallocate(
    file: FileDescription, mode: int, offset: int, length: int, cred: Credentials | None = None
) -> None:
    """Linux: ``vfs_fallocate``, by ``cred`` (None: the opener).

    Raises: EINVAL, EOPNOTSUPP, EBADF, EPERM, ESPIPE, EISDIR, ENODEV, EFBIG; the filesystem's.
    """
    inode = file.inode
    if offset < 0 or length <= 0:
        raise oserror(errno.EINVAL)
    punch = mode & abi.FALLOC_FL_PUNCH_HOLE
    if mode & ~_FALLOCATE_MODES or (punch and not mode & abi.FALLOC_FL_KEEP_SIZE):
        raise oserror(errno.EOPNOTSUPP)
    if not file.writable:
        raise oserror(errno.EBADF)
    if mode & ~abi.FALLOC_FL_KEEP_SIZE and inode.flags & abi.FS_APPEND_FL:
        raise oserror(errno.EPERM)
    if inode.flags & abi.FS_IMMUTABLE_FL:
        raise oserror(errno.EPERM)
    kind = inode.mode & abi.S_IFMT
    if kind == abi.S_IFIFO:
        raise oserror(errno.ESPIPE)
    if kind == abi.S_IFDIR:
        raise oserror(errno.EISDIR)
    if kind not in (abi.S_IFREG, abi.S_IFBLK):
        raise oserror(errno.ENODEV)
    if offset + length > inode.superblock.max_bytes:
        raise oserror(errno.EFBIG)
    file.fallocate(mode, offset, length)
    _content_changed(file, cred)


_COPY_CHUNK = 1 << 20


def _copyable(a: Inode, offset: int, b: Inode, target_offset: int, length: int) -> int:
    """Linux: ``generic_copy_file_checks``: how much of ``length`` there is to copy.

    Raises: EOVERFLOW (an end beyond 64 bits), EFBIG, EINVAL (overlap; a negative offset).
    """
    wrap = 1 << 64
    if offset % wrap + length >= wrap or target_offset % wrap + length >= wrap:
        raise oserror(errno.EOVERFLOW)
    a.refresh()
    length = max(0, min(length, a.size - offset))
    limit = b.superblock.max_bytes
    if target_offset >= limit:
        raise oserror(errno.EFBIG)
    length = min(length, limit - target_offset, abi.MAX_RW_COUNT)
    if a is b and offset < target_offset + length and target_offset < offset + length:
        raise oserror(errno.EINVAL)
    if offset < 0 or target_offset < 0:
        raise oserror(errno.EINVAL)
    return length


def vfs_copy_file_range(
    source: FileDescription,
    offset: int,
    target: FileDescription,
    target_offset: int,
    length: int,
    cred: Credentials | None = None,
) -> int:
    """Linux: ``vfs_copy_file_range``, by ``cred`` (None: the opener of ``target``).

    Returns the bytes copied. Not under the VFS lock.

    Raises: EISDIR, EINVAL (not regular files), EBADF, EOVERFLOW, EFBIG, EINVAL (overlapping ranges
    of one file; a negative offset); what reading and writing raise, if nothing was copied.
    """
    a, b = source.inode, target.inode
    if a.is_dir or b.is_dir:
        raise oserror(errno.EISDIR)
    if not a.is_regular or not b.is_regular:
        raise oserror(errno.EINVAL)
    if not source.readable or not target.writable or target.flags & abi.O_APPEND:
        raise oserror(errno.EBADF)
    with a.superblock.vfs.lock:
        length = _copyable(a, offset, b, target_offset, length)
    if not length:
        return 0
    if a.superblock is b.superblock:
        with a.superblock.vfs.lock:
            copied = source.copy_range(offset, target, target_offset, length)
            if copied is not None:
                if copied:
                    _content_changed(target, cred)
                return copied
    done = 0
    buffer = memoryview(bytearray(min(length, _COPY_CHUNK)))
    while done < length:
        try:
            count = vfs_read(source, [buffer[: length - done]], offset + done)
            if not count:
                break
            written = vfs_write(target, [buffer[:count]], target_offset + done, 0, cred)
        except OSError:
            if done:
                break
            raise
        done += written
        if written < count:
            break
    return done
