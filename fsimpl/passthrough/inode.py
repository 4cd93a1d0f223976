"""Files of the host as inodes. Linux: what fs/fuse/dir.c is to a server, this is to the host."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, ClassVar, cast

from fsimpl.passthrough import oslib
from fsimpl.passthrough.directory import PassthroughDirectory
from fsimpl.passthrough.file import PassthroughFile
from fsimpl.passthrough.handle import HostHandle
from vfs import abi
from vfs.credentials import CAP_DAC_OVERRIDE, CAP_FOWNER
from vfs.errors import oserror
from vfs.inode import Inode, SetAttributes
from vfs.permission import generic_permission

if TYPE_CHECKING:
    from fsimpl.passthrough.filesystem import PassthroughSuperblock
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.file import FileDescription
    from vfs.mount import Mount

_statx = oslib.statx
_get_errno = ctypes.get_errno
_STATX_WANTED = oslib.STATX_WANTED
_unpack_statx = oslib.STATX.unpack
_NOFOLLOW = abi.AT_SYMLINK_NOFOLLOW

# Where struct statx has stx_ino, and from stx_dev_major to stx_mnt_id: who a file is.
_INO = slice(32, 40)
_DEV_AND_MOUNT = slice(136, 152)

_INODE_FLAGS = abi.FS_IMMUTABLE_FL | abi.FS_APPEND_FL | abi.FS_NODUMP_FL  # as STATX_ATTR_*
# O_DIRECT asks more of buffers than callers here promise, and is a mount option. O_APPEND is
# RWF_APPEND at each write, and O_SYNC and O_DSYNC are vfs_write's.
_OPEN_FLAGS = abi.O_ACCMODE | abi.O_NOATIME
_NEW_FILE = abi.O_CREAT | abi.O_EXCL | abi.O_NOFOLLOW | abi.O_CLOEXEC
_TMPFILE = abi.O_TMPFILE | abi.O_RDWR | abi.O_CLOEXEC


def identity_of(raw: bytes) -> bytes:
    """Which file ``raw`` (a struct statx) is about: inode number, device and host mount.

    The mount belongs to it: what is seen below a directory depends on the mount it is seen through.
    """
    return raw[_INO] + raw[_DEV_AND_MOUNT]


def _check_name(name: bytes) -> None:
    """The VFS passes single components only; here it is what confinement rests on."""
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise oserror(errno.EINVAL, name)


class PassthroughInode(Inode):
    """A file of the host, pinned by a handle. One per file: hard links meet here.

    ``raw`` is the host's answer that the attributes were unpacked from (b"": whatever the host
    says next is news). The handle keeps the file, hence its inode number, alive on the host.
    ``first`` is -1, or a descriptor for the first open: a process that is bound by permissions
    can write to a file that it made read-only (as git does) through the descriptor that made it,
    and no other.
    """

    __slots__ = ("first", "handle", "identity", "raw")
    host_managed: ClassVar[bool] = True
    superblock: PassthroughSuperblock

    def __init__(self, superblock: PassthroughSuperblock, handle: HostHandle, raw: bytes) -> None:
        """Takes over ``handle``; ``raw`` is its struct statx."""
        mode, ino = int.from_bytes(raw[28:30], "little"), int.from_bytes(raw[_INO], "little")
        super().__init__(superblock, mode, ino=ino)
        self.first = -1
        self.handle = handle
        self.identity = identity_of(raw)
        self.raw = b""
        self._absorb(raw)

    def evict(self) -> None:
        self.superblock.forget(self)
        self.handle.close()
        if self.first >= 0:
            os.close(self.first)

    # Attributes

    def _absorb(self, raw: bytes) -> None:
        """Take the attributes in ``raw``, which differs from what is known."""
        (
            _mask, _blksize, attributes, self.nlink, self.uid, self.gid, self.mode, _ino,
            self.size, self.blocks, _attributes_mask,
            atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
            rdev_major, rdev_minor, _dev_major, _dev_minor, _mount,
        ) = _unpack_statx(raw)  # fmt: skip
        self.flags = attributes & _INODE_FLAGS
        self.atime_ns = atime * 1_000_000_000 + atime_ns
        self.btime_ns = btime * 1_000_000_000 + btime_ns
        self.ctime_ns = ctime * 1_000_000_000 + ctime_ns
        self.mtime_ns = mtime * 1_000_000_000 + mtime_ns
        self.rdev = abi.makedev(rdev_major, rdev_minor)
        self.raw = raw
        self.changed()

    def refresh(self) -> None:
        raw = self.superblock.stat.of(self.handle.fd)
        if raw != self.raw:
            self._absorb(raw)

    def update(self, raw: bytes) -> None:
        """As ``refresh``, with the host's answer at hand."""
        if raw != self.raw:
            self._absorb(raw)

    def grown(self, size: int) -> None:
        """A write reached ``size``; needs no lock, since the next refresh asks the host anyway."""
        if size > self.size:
            self.size = size
        self.raw = b""
        self.changed()

    def permission(self, cred: Credentials, mask: int) -> None:
        """By mode bits where they tell everything, else by asking the host as ``cred``.

        A POSIX ACL has entries that the mode does not show, for everybody but the owner, and only
        while the group bits (the ACL's mask) are not all clear.
        """
        if not cred.capable(CAP_DAC_OVERRIDE):
            self.refresh()
            if cred.fsuid != self.uid and self.mode & abi.S_IRWXG and not self._has_no_acl():
                identity = self.superblock.identity
                if identity.can_be(cred):
                    with identity.assume(cred):
                        oslib.faccessat2(self.handle.fd, mask)
                    return
        generic_permission(self, cred, mask)

    def _has_no_acl(self) -> bool:
        """For sure: a file system without POSIX ACLs may have its own ways. Costs 2 µs; becoming
        the caller to ask costs 15.
        """
        try:
            self.handle.getxattr(b"system.posix_acl_access")
        except OSError as error:
            return error.errno == errno.ENODATA
        return False

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        """The process's own rights do it: the VFS has checked the caller's, set-id bits included.

        ``ctime_ns`` is the host's to choose.
        """
        handle = self.handle
        try:
            if attributes.size is not None:
                self._truncate(attributes.size, attributes.file)
            if attributes.uid is not None or attributes.gid is not None:
                handle.chown(attributes.uid, attributes.gid)
            if attributes.mode is not None:
                handle.chmod(attributes.mode)
            atime_ns, mtime_ns = attributes.atime_ns, attributes.mtime_ns
            if atime_ns is not None or mtime_ns is not None:
                touch = attributes.touch
                handle.utimens(_timespec(atime_ns, touch), _timespec(mtime_ns, touch))
        finally:
            self.refresh()

    def _truncate(self, size: int, file: FileDescription | None) -> None:
        if isinstance(file, PassthroughFile) and file.writable:
            os.ftruncate(file.fd, size)
            return
        self.refresh()
        # truncate(2) to the size that a file has leaves its times alone; ftruncate(2) would not.
        if size == self.size:
            return
        fd = self.superblock.open_handle(self.handle, abi.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    # Directory operations. What they change in a directory (times, size, link count) is left to its
    # next refresh: nothing decides anything by those.

    def lookup(self, name: bytes) -> Inode | None:
        _check_name(name)
        fd = self.superblock.open_child(self.handle, name)
        return None if fd < 0 else self.superblock.adopt(fd)

    def revalidate(self, dentry: Dentry) -> bool:
        # A LOOKUP of a known name is this and nothing else: one system call, and no object made
        # but the bytes to compare.
        stat = self.superblock.stat
        inode = cast("PassthroughInode | None", dentry.inode)
        if _statx(self.handle.fd, dentry.name, _NOFOLLOW, _STATX_WANTED, stat.pointer):
            if (number := _get_errno()) != errno.ENOENT:
                raise oserror(number)
            return inode is None
        if inode is None:
            return False
        raw = stat.view.raw
        if raw != inode.raw:
            if identity_of(raw) != inode.identity:
                return False
            inode._absorb(raw)
        return True

    def create(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        _check_name(name)
        superblock = self.superblock
        keep = self._must_keep(mode)
        flags = _NEW_FILE | (abi.O_RDWR if keep else abi.O_RDONLY)
        with superblock.identity.assume(cred):
            fd = superblock.with_descriptor(self._open_new, name, flags, mode)
        return self._finish_new(superblock.adopt_open(fd, keep), mode)

    def tmpfile(self, mode: int, cred: Credentials) -> Inode:
        superblock = self.superblock
        with superblock.identity.assume(cred):
            fd = superblock.with_descriptor(self._open_new, b".", _TMPFILE, mode)
        return self._finish_new(superblock.adopt_open(fd, self._must_keep(mode)), mode)

    def _must_keep(self, mode: int) -> bool:
        """Whether the process could not open for writing again what it makes with ``mode``."""
        return mode & 0o600 != 0o600 and not self.superblock.identity.capable(CAP_DAC_OVERRIDE)

    def _open_new(self, name: bytes, flags: int, mode: int) -> int:
        return os.open(name, flags, mode & abi.S_IALLUGO, dir_fd=self.handle.fd)

    def mkdir(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        _check_name(name)
        self.superblock.require_descriptor()
        with self.superblock.identity.assume(cred):
            os.mkdir(name, mode & abi.S_IALLUGO, dir_fd=self.handle.fd)
        return self._find_new(name, abi.S_IFDIR | mode & abi.S_IALLUGO)

    def mknod(self, name: bytes, mode: int, rdev: int, cred: Credentials) -> Inode:
        _check_name(name)
        self.superblock.require_descriptor()
        with self.superblock.identity.assume(cred):
            os.mknod(name, mode, rdev, dir_fd=self.handle.fd)
        return self._find_new(name, mode)

    def symlink(self, name: bytes, target: bytes, cred: Credentials) -> Inode:
        _check_name(name)
        self.superblock.require_descriptor()
        with self.superblock.identity.assume(cred):
            os.symlink(target, name, dir_fd=self.handle.fd)
        return self._find_new(name, abi.S_IFLNK | 0o777)

    def _find_new(self, name: bytes, mode: int) -> Inode:
        """The inode of what was just made. Raises: ENOENT, ESTALE if the host changed it since."""
        inode = self.lookup(name)
        if inode is None:
            raise oserror(errno.ENOENT, name)
        if (inode.mode ^ mode) & abi.S_IFMT:
            inode.put()
            raise oserror(errno.ESTALE, name)
        return self._finish_new(cast("PassthroughInode", inode), mode)

    def _finish_new(self, inode: PassthroughInode, mode: int) -> PassthroughInode:
        """Give back the bits that the *process's* umask took: the caller's is in ``mode`` already.

        The umask cannot be set for one thread, nor, in a library, for the process. A default ACL
        on the directory switches it off and takes bits of its own, which stay taken.
        """
        try:
            taken = mode & abi.S_IRWXUGO & ~inode.mode
            if taken and not inode.is_symlink and not self._has_default_acl():
                inode.handle.chmod(inode.mode & abi.S_IALLUGO | taken)
                inode.refresh()
        except BaseException:
            inode.put()
            raise
        return inode

    def _has_default_acl(self) -> bool:
        try:
            self.handle.getxattr(b"system.posix_acl_default")
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise
        return True

    def link(self, name: bytes, inode: Inode, source: Dentry) -> None:
        _check_name(name)
        assert isinstance(inode, PassthroughInode)
        inode.handle.link_as(self.handle, name)
        inode.refresh()

    def unlink(self, name: bytes, inode: Inode) -> None:
        _check_name(name)
        os.unlink(name, dir_fd=self.handle.fd)
        inode.refresh()

    def rmdir(self, name: bytes, inode: Inode) -> None:
        _check_name(name)
        os.rmdir(name, dir_fd=self.handle.fd)
        inode.refresh()

    def rename(
        self,
        name: bytes,
        inode: Inode,
        new_dir: Inode,
        new_name: bytes,
        new_inode: Inode | None,
        flags: int,
        cred: Credentials,
    ) -> Inode | None:
        _check_name(name)
        _check_name(new_name)
        assert isinstance(new_dir, PassthroughInode)
        old_fd, new_fd = self.handle.fd, new_dir.handle.fd
        whiteout = None
        if flags & abi.RENAME_WHITEOUT:
            # The whiteout is made here, so it is the caller's; moving needs no more than the VFS
            # has checked.
            self.superblock.require_descriptor()
            with self.superblock.identity.assume(cred):
                oslib.renameat2(old_fd, name, new_fd, new_name, flags)
            whiteout = self._find_new(name, abi.S_IFCHR)
        else:
            oslib.renameat2(old_fd, name, new_fd, new_name, flags)
        inode.refresh()
        if new_inode is not None:
            new_inode.refresh()
        return whiteout

    # Symlinks

    def readlink(self) -> bytes:
        if not self.is_symlink:
            raise oserror(errno.EINVAL)
        return self.handle.readlink()

    # Files

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        """With the process's own rights: the VFS has checked, and whoever creates a file with mode
        0 may write to it. Raises: ENXIO for what is neither a regular file nor a directory, which
        never is opened on the host; ENFILE.
        """
        superblock = self.superblock
        quiet = (mount.flags | superblock.flags) & (abi.MS_NOATIME | abi.MS_RDONLY)
        host_flags = flags & (_OPEN_FLAGS | superblock.extra_open_flags)
        if quiet and superblock.identity.capable(CAP_FOWNER):
            host_flags |= abi.O_NOATIME
        if self.is_regular:
            fd, self.first = self.first, -1
            if fd < 0:
                fd = superblock.open_handle(self.handle, host_flags)
            return _describe(PassthroughFile, fd, mount, dentry, flags, cred)
        if self.is_dir:
            host_flags = host_flags & abi.O_NOATIME | abi.O_DIRECTORY
            fd = superblock.open_handle(self.handle, host_flags)
            return _describe(PassthroughDirectory, fd, mount, dentry, flags, cred)
        raise oserror(errno.ENXIO)

    # Extended attributes

    def getxattr(self, name: bytes) -> bytes:
        return self.handle.getxattr(name)

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        self.handle.setxattr(name, value, flags)
        self.refresh()

    def removexattr(self, name: bytes) -> None:
        self.handle.removexattr(name)
        self.refresh()

    def listxattr(self) -> list[bytes]:
        return self.handle.listxattr()


def _timespec(time_ns: int | None, touch: bool) -> tuple[int, int]:
    if time_ns is None:
        return 0, abi.UTIME_OMIT
    return (0, abi.UTIME_NOW) if touch else divmod(time_ns, 1_000_000_000)


def _describe(
    kind: type[PassthroughFile | PassthroughDirectory],
    fd: int,
    mount: Mount,
    dentry: Dentry,
    flags: int,
    cred: Credentials,
) -> FileDescription:
    try:
        return kind(mount, dentry, flags, cred, fd)
    except BaseException:
        os.close(fd)
        raise
