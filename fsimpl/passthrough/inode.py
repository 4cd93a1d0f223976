"""Files of the host as inodes. Linux: what fs/fuse/dir.c is to a server, this is to the host."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, ClassVar, cast

from fsimpl.passthrough import oslib
from fsimpl.passthrough.casefold import FoldedNames
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
_STATX_WANTED = oslib.STATX_WANTED
_unpack_statx = oslib.STATX.unpack
_NOFOLLOW = abi.AT_SYMLINK_NOFOLLOW
_EMPTY_PATH = abi.AT_EMPTY_PATH

# Where struct statx has stx_ino, and from stx_dev_major to stx_mnt_id: who a file is.
_INO = slice(32, 40)
_DEV_AND_MOUNT = slice(136, 152)

_INODE_FLAGS = abi.FS_IMMUTABLE_FL | abi.FS_APPEND_FL | abi.FS_NODUMP_FL  # as STATX_ATTR_*
# O_EXCL does not follow symlinks.
_NEW_FILE = abi.O_CREAT | abi.O_EXCL | abi.O_CLOEXEC | abi.O_NONBLOCK
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
    ``first`` is -1, or a descriptor for the first open, the one that made the file: opening it anew
    would cost more, and a process that is bound by permissions can write to a file that it made
    read-only (as git does) through that one, and no other. ``folded`` is a directory's cache of
    names whatever their case (ascii_casefold).
    """

    __slots__ = ("first", "folded", "handle", "identity", "raw")
    host_managed: ClassVar[bool] = True
    directory_class: ClassVar[type[PassthroughDirectory]] = PassthroughDirectory
    superblock: PassthroughSuperblock

    def __init__(self, superblock: PassthroughSuperblock, handle: HostHandle, raw: bytes) -> None:
        """Takes over ``handle``; ``raw`` is its struct statx."""
        mode, ino = int.from_bytes(raw[28:30], "little"), int.from_bytes(raw[_INO], "little")
        super().__init__(superblock, mode, ino=ino)
        self.first = -1
        self.folded: FoldedNames | None = None
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
        idmap = self.superblock.idmap
        if idmap is not None:
            self.uid, self.gid = idmap.owner(self.uid, self.gid)
        self.flags = attributes & _INODE_FLAGS
        self.atime_ns = atime * 1_000_000_000 + atime_ns
        self.btime_ns = btime * 1_000_000_000 + btime_ns
        self.ctime_ns = ctime * 1_000_000_000 + ctime_ns
        self.mtime_ns = mtime * 1_000_000_000 + mtime_ns
        self.rdev = abi.makedev(rdev_major, rdev_minor)
        self.raw = raw
        self.changed()

    @property
    def host_mount(self) -> bytes:
        """Which file system and mount of the host the file is on."""
        return self.identity[8:]

    def mode_on_host(self) -> int:
        """The mode, even if the client is told another."""
        return self.mode

    def refresh(self) -> None:
        # ``StatBuffer.of`` and ``HostHandle.descriptor`` in place: a GETATTR is little else.
        stat, handle = self.superblock.stat, self.handle
        fd = handle.fd
        if fd < 0:
            fd = handle.descriptor()
        else:
            handle.used = True
        if _statx(fd, b"", _EMPTY_PATH, _STATX_WANTED, stat.pointer):
            stat.of(fd)
        raw = stat.view.raw
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
            # A file system without POSIX ACLs may have its own ways. To ask costs 3 µs; to become
            # the caller, who is told, 10.
            if (
                cred.fsuid != self.uid
                and self.mode & abi.S_IRWXG
                and not self.handle.lacks_xattr(b"system.posix_acl_access")
            ):
                identity = self.superblock.identity
                host_cred = self.superblock.host_cred(cred)
                if identity.can_be(host_cred):
                    fd = self.handle.descriptor()
                    with identity.assume(host_cred):
                        oslib.faccessat2(fd, mask)
                    return
        generic_permission(self, cred, mask)

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        """The process's own rights do it: the VFS has checked the caller's, set-id bits included.

        ``ctime_ns`` is the host's to choose.
        """
        handle, idmap = self.handle, self.superblock.idmap
        uid, gid = attributes.uid, attributes.gid
        if idmap is not None:
            uid, gid = idmap.host_uid(uid), idmap.host_gid(gid)
        changes_owner = uid is not None or gid is not None
        try:
            if attributes.size is not None:
                self._truncate(attributes.size, attributes.file)
            if changes_owner:
                handle.chown(uid, gid)
            if changes_owner or attributes.chown or attributes.size is not None:
                self.drop_capability()
            if attributes.mode is not None:
                handle.chmod(attributes.mode)
            atime_ns, mtime_ns = attributes.atime_ns, attributes.mtime_ns
            if atime_ns is not None or mtime_ns is not None:
                touch = attributes.touch
                handle.utimens(_timespec(atime_ns, touch), _timespec(mtime_ns, touch))
        finally:
            self.refresh()

    def drop_capability(self) -> None:
        """The file changes: its capabilities go, also those that the host does not know as such."""
        name = self.superblock.xattrs.capability
        if name is not None:
            try:
                self.handle.removexattr(name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise

    def _truncate(self, size: int, file: FileDescription | None) -> None:
        if isinstance(file, PassthroughFile) and file.writable:
            os.ftruncate(file.fd, size)
            return
        self.refresh()
        # truncate(2) to the size that a file has leaves its times alone; ftruncate(2) would not.
        if size == self.size:
            return
        fd = self.superblock.budget.open(self.handle, abi.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    # Directory operations. What they change in a directory (times, size, link count) is left to its
    # next refresh: nothing decides anything by those.

    def lookup(self, name: bytes) -> Inode | None:
        _check_name(name)
        superblock = self.superblock
        found = superblock.find_child(self.handle, name)
        if found is None and superblock.casefold_ns is not None:
            real = self._folded_name(name)
            if real is not None:
                found = superblock.find_child(self.handle, real)
        return found

    def _names(self) -> FoldedNames:
        if self.folded is None:
            assert self.superblock.casefold_ns is not None
            self.folded = FoldedNames(self.superblock.casefold_ns)
        return self.folded

    def _folded_name(self, name: bytes) -> bytes | None:
        """Another spelling of ``name`` that the host has in this directory."""
        real = self._names().find(name, self.handle, self.superblock.budget)
        return None if real == name else real

    def _real_name(self, name: bytes) -> bytes:
        """What the host calls ``name``, which exists."""
        if self.superblock.casefold_ns is None:
            return name
        try:
            os.lstat(name, dir_fd=self.handle.descriptor())
        except FileNotFoundError:
            return self._folded_name(name) or name
        return name

    def _note_new(self, name: bytes) -> None:
        if self.folded is not None:
            self.folded.add(name)

    def _note_gone(self, name: bytes) -> None:
        if self.folded is not None:
            self.folded.discard(name)

    def revalidate(self, dentry: Dentry) -> bool:
        # A LOOKUP of a known name is this and nothing else: one system call, and no object made
        # but the bytes to compare.
        stat = self.superblock.stat
        inode = cast("PassthroughInode | None", dentry.inode)
        handle = self.handle
        fd = handle.fd
        if fd < 0:
            fd = handle.descriptor()
        else:
            handle.used = True
        name = dentry.name
        if _statx(fd, name, _NOFOLLOW, _STATX_WANTED, stat.pointer) and not stat.find(fd, name):
            if self.superblock.casefold_ns is None:
                return inode is None
            return self._revalidate_folded(dentry)
        if inode is None:
            return False
        raw = stat.view.raw
        if raw != inode.raw:
            if identity_of(raw) != inode.identity:
                return False
            if inode.handle.fd < 0 and not inode.handle.is_file(fd, name):
                return False
            inode._absorb(raw)
        return True

    def _revalidate_folded(self, dentry: Dentry) -> bool:
        """As ``revalidate``, for a name that the host spells otherwise, if it has it at all."""
        found = self.lookup(dentry.name)
        if found is None:
            return dentry.inode is None
        found.put()
        return found is dentry.inode

    def create(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        return self._create(name, mode, cred, False)

    def atomic_open(self, name: bytes, mode: int, flags: int, cred: Credentials) -> Inode:
        # Not for reading only: an executable that is open for writing cannot be run.
        writes = flags & abi.O_ACCMODE in (abi.O_WRONLY, abi.O_RDWR)
        return self._create(name, mode, cred, writes)

    def _create(self, name: bytes, mode: int, cred: Credentials, writes: bool) -> Inode:
        _check_name(name)
        superblock = self.superblock
        keep = self._must_keep(mode)
        flags = _NEW_FILE | (abi.O_RDWR if keep or writes else abi.O_RDONLY)
        fd = self._make_file(name, flags, mode, cred)
        self._note_new(name)
        keep = keep or (writes and fd < superblock.budget.ceiling)
        return self._finish_new(superblock.adopt_open(fd, keep), mode)

    def tmpfile(self, mode: int, cred: Credentials) -> Inode:
        superblock = self.superblock
        fd = self._make_file(b".", _TMPFILE, mode, cred)
        return self._finish_new(superblock.adopt_open(fd, self._must_keep(mode)), mode)

    def _must_keep(self, mode: int) -> bool:
        """Whether the process could not open for writing again what it makes with ``mode``."""
        return mode & 0o600 != 0o600 and not self.superblock.identity.capable(CAP_DAC_OVERRIDE)

    def _make_file(self, name: bytes, flags: int, mode: int, cred: Credentials) -> int:
        with self.handle.pinned() as directory:
            return self.superblock.budget.make(
                self._open_new, directory, name, flags, mode & abi.S_IALLUGO, cred
            )

    def _open_new(
        self, directory: int, name: bytes, flags: int, mode: int, cred: Credentials
    ) -> int:
        # The identity is for the one call: room for the descriptor is made with our own.
        with self.superblock.assume(cred):
            return os.open(name, flags, mode, dir_fd=directory)

    def mkdir(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        _check_name(name)
        superblock = self.superblock
        superblock.budget.require()
        with self.handle.pinned() as fd, superblock.assume(cred):
            os.mkdir(name, mode & abi.S_IALLUGO, dir_fd=fd)
        return self._find_new(name, abi.S_IFDIR | mode & abi.S_IALLUGO)

    def mknod(self, name: bytes, mode: int, rdev: int, cred: Credentials) -> Inode:
        _check_name(name)
        superblock = self.superblock
        superblock.budget.require()
        with self.handle.pinned() as fd, superblock.assume(cred):
            os.mknod(name, mode, rdev, dir_fd=fd)
        return self._find_new(name, mode)

    def symlink(self, name: bytes, target: bytes, cred: Credentials) -> Inode:
        _check_name(name)
        superblock = self.superblock
        superblock.budget.require()
        with self.handle.pinned() as fd, superblock.assume(cred):
            os.symlink(target, name, dir_fd=fd)
        return self._find_new(name, abi.S_IFLNK | 0o777)

    def _find_new(self, name: bytes, mode: int) -> Inode:
        """The inode of what was just made. Raises: ENOENT, ESTALE if the host changed it since."""
        self._note_new(name)
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
            made = inode.mode_on_host()
            taken = mode & abi.S_IRWXUGO & ~made
            if taken and not inode.is_symlink and not self._has_default_acl():
                inode.handle.chmod(made & abi.S_IALLUGO | taken)
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
        self._note_new(name)
        inode.refresh()

    def unlink(self, name: bytes, inode: Inode) -> None:
        _check_name(name)
        assert isinstance(inode, PassthroughInode)
        # A descriptor of the file, because by its file handle it could not be found afterwards.
        with inode.handle.pinned():
            real = self._real_name(name)
            os.unlink(real, dir_fd=self.handle.descriptor())
            self._note_gone(real)
        # Its link count is left to its next refresh, too: nothing decides by it but the host.

    def rmdir(self, name: bytes, inode: Inode) -> None:
        _check_name(name)
        assert isinstance(inode, PassthroughInode)
        # A descriptor of the file, because by its file handle it could not be found afterwards.
        with inode.handle.pinned():
            real = self._real_name(name)
            os.rmdir(real, dir_fd=self.handle.descriptor())
            self._note_gone(real)
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
        assert isinstance(inode, PassthroughInode)
        assert new_inode is None or isinstance(new_inode, PassthroughInode)
        with (
            self.handle.pinned() as old_fd,
            new_dir.handle.pinned() as new_fd,
            inode.handle.pinned() if new_inode is None else new_inode.handle.pinned(),
        ):
            name = self._real_name(name)
            if new_inode is not None:
                new_name = new_dir._real_name(new_name)
            if flags & abi.RENAME_WHITEOUT:
                # The whiteout is made here, so it is the caller's; moving needs no more than the
                # VFS has checked.
                self.superblock.budget.require()
                with self.superblock.assume(cred):
                    oslib.renameat2(old_fd, name, new_fd, new_name, flags)
            else:
                oslib.renameat2(old_fd, name, new_fd, new_name, flags)
            if not flags & (abi.RENAME_WHITEOUT | abi.RENAME_EXCHANGE):
                self._note_gone(name)
            new_dir._note_new(new_name)
            inode.refresh()
            if new_inode is not None:
                new_inode.refresh()
        return self._find_new(name, abi.S_IFCHR) if flags & abi.RENAME_WHITEOUT else None

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
        # O_APPEND is RWF_APPEND at each write, and O_SYNC and O_DSYNC are vfs_write's.
        host_flags = flags & (abi.O_ACCMODE | superblock.extra_open_flags)
        if quiet and superblock.identity.capable(CAP_FOWNER):
            host_flags |= abi.O_NOATIME
        if self.is_regular:
            fd, self.first = self.first, -1
            if fd < 0:
                fd = superblock.budget.open(self.handle, host_flags)
            elif host_flags & ~abi.O_ACCMODE:
                _set_flags(fd, host_flags & ~abi.O_ACCMODE)
            return _describe(PassthroughFile, fd, mount, dentry, flags, cred)
        if self.is_dir:
            host_flags = host_flags & abi.O_NOATIME | abi.O_DIRECTORY
            fd = superblock.budget.open(self.handle, host_flags)
            return _describe(self.directory_class, fd, mount, dentry, flags, cred)
        raise oserror(errno.ENXIO)

    # Extended attributes

    def getxattr(self, name: bytes) -> bytes:
        return self.superblock.xattrs.get(self.handle, name)

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        self.superblock.xattrs.set(self.handle, name, value, flags)
        self.refresh()

    def removexattr(self, name: bytes) -> None:
        self.superblock.xattrs.remove(self.handle, name)
        self.refresh()

    def listxattr(self) -> list[bytes]:
        return self.superblock.xattrs.list(self.handle)


def _set_flags(fd: int, flags: int) -> None:
    """Have ``fd`` (closed on failure) behave as one opened with ``flags``: O_DIRECT, O_NOATIME."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | abi.O_NONBLOCK)
    except BaseException:
        os.close(fd)
        raise


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
