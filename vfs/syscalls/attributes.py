"""stat and its family, chmod, chown, utimensat, access, statfs, extended attributes."""

from __future__ import annotations

import errno
from typing import NamedTuple

from vfs import abi
from vfs.errors import oserror
from vfs.inode import Inode, SetAttributes
from vfs.mount import Mount, VirtualDentry
from vfs.namei import FOLLOW
from vfs.operations import vfs_access, vfs_setattr, vfs_statfs
from vfs.superblock import Statfs
from vfs.syscalls.base import Path, SyscallBase
from vfs.xattr import vfs_getxattr, vfs_listxattr, vfs_removexattr, vfs_setxattr


class Stat(NamedTuple):
    """Linux: ``struct stat``, with the names of ``os.stat_result``. Times in nanoseconds."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_blocks: int
    st_blksize: int
    st_rdev: int


class Statx(NamedTuple):
    """Linux: ``struct statx``, as far as the VFS knows it. Times in nanoseconds."""

    stx_mask: int
    stx_attributes: int
    stx_attributes_mask: int
    stx_mode: int
    stx_ino: int
    stx_nlink: int
    stx_uid: int
    stx_gid: int
    stx_size: int
    stx_blocks: int
    stx_blksize: int
    stx_atime_ns: int
    stx_btime_ns: int
    stx_ctime_ns: int
    stx_mtime_ns: int
    stx_rdev: int
    stx_dev: int
    stx_mnt_id: int


class StatfsResult(NamedTuple):
    """Linux: ``struct statfs``: the superblock's figures and the mount's ST_* flags."""

    f_type: int
    f_bsize: int
    f_blocks: int
    f_bfree: int
    f_bavail: int
    f_files: int
    f_ffree: int
    f_fsid: int
    f_namelen: int
    f_frsize: int
    f_flags: int


_STATX_ATTRIBUTES = (
    (abi.FS_IMMUTABLE_FL, abi.STATX_ATTR_IMMUTABLE),
    (abi.FS_APPEND_FL, abi.STATX_ATTR_APPEND),
    (abi.FS_NODUMP_FL, abi.STATX_ATTR_NODUMP),
)
_ST_FLAGS = (
    (abi.MS_RDONLY, abi.ST_RDONLY),
    (abi.MS_NOSUID, abi.ST_NOSUID),
    (abi.MS_NODEV, abi.ST_NODEV),
    (abi.MS_NOEXEC, abi.ST_NOEXEC),
    (abi.MS_SYNCHRONOUS, abi.ST_SYNCHRONOUS),
    (abi.MS_MANDLOCK, abi.ST_MANDLOCK),
    (abi.MS_NOATIME, abi.ST_NOATIME),
    (abi.MS_NODIRATIME, abi.ST_NODIRATIME),
    (abi.MS_RELATIME, abi.ST_RELATIME),
    (abi.MS_NOSYMFOLLOW, abi.ST_NOSYMFOLLOW),
)


def stat_of(inode: Inode) -> Stat:
    """Fresh attributes as stat(2) shows them."""
    inode.refresh()
    return Stat(
        inode.mode, inode.ino, inode.superblock.dev, inode.nlink, inode.uid, inode.gid,
        inode.size, inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.blocks,
        inode.superblock.block_size, inode.rdev,
    )  # fmt: skip


class AttributeSyscalls(SyscallBase):
    """Linux: fs/stat.c, fs/statfs.c, fs/utimes.c, fs/xattr.c, the attributes in fs/open.c."""

    def newfstatat(self, dirfd: int, path: Path, flags: int = 0) -> Stat:
        """fstatat(2). Raises: EINVAL, and as ``Walk``."""
        lookup = self._at_flags(
            flags, abi.AT_SYMLINK_NOFOLLOW | abi.AT_NO_AUTOMOUNT | abi.AT_EMPTY_PATH
        )
        with self.lock, self._lookup(dirfd, path, lookup) as found:
            return stat_of(found.inode)

    def stat(self, path: Path) -> Stat:
        """stat(2)."""
        return self.newfstatat(abi.AT_FDCWD, path)

    def lstat(self, path: Path) -> Stat:
        """lstat(2)."""
        return self.newfstatat(abi.AT_FDCWD, path, abi.AT_SYMLINK_NOFOLLOW)

    def fstat(self, fd: int) -> Stat:
        """fstat(2). Raises: EBADF."""
        with self.lock:
            return stat_of(self.files.get_file(fd).inode)

    def statx(
        self, dirfd: int, path: Path, flags: int = 0, mask: int = abi.STATX_BASIC_STATS
    ) -> Statx:
        """statx(2).

        Raises: EINVAL (a reserved mask bit; contradicting sync flags), and as ``Walk``.
        """
        if mask & abi.STATX__RESERVED or (flags & abi.AT_STATX_SYNC_TYPE == abi.AT_STATX_SYNC_TYPE):
            raise oserror(errno.EINVAL)
        lookup = self._at_flags(
            flags & ~abi.AT_STATX_SYNC_TYPE,
            abi.AT_SYMLINK_NOFOLLOW | abi.AT_NO_AUTOMOUNT | abi.AT_EMPTY_PATH,
        )
        with self.lock, self._lookup(dirfd, path, lookup) as found:
            return self._statx_of(found, mask)

    def _statx_of(self, path: VirtualDentry, mask: int) -> Statx:
        inode = path.inode
        stat = stat_of(inode)
        attributes = abi.STATX_ATTR_MOUNT_ROOT if path.is_mount_root else 0
        known = abi.STATX_ATTR_AUTOMOUNT | abi.STATX_ATTR_MOUNT_ROOT | abi.STATX_ATTR_DAX
        if inode.shows_flags:
            for inode_flag, statx_flag in _STATX_ATTRIBUTES:
                known |= statx_flag
                if inode.flags & inode_flag:
                    attributes |= statx_flag
        answered = abi.STATX_BASIC_STATS
        if not mask & (abi.STATX_MTIME | abi.STATX_CTIME):
            # Linux answers neither then, so as not to mark them as seen (fill_mg_cmtime).
            answered &= ~(abi.STATX_MTIME | abi.STATX_CTIME)
        if inode.btime_ns and mask & abi.STATX_BTIME:
            answered |= abi.STATX_BTIME
        if mask & abi.STATX_MNT_ID_UNIQUE:
            answered |= abi.STATX_MNT_ID_UNIQUE
            mount_id = path.mount.unique_id
        else:
            answered |= abi.STATX_MNT_ID
            mount_id = path.mount.id
        return Statx(
            answered, attributes, known, stat.st_mode, stat.st_ino, stat.st_nlink, stat.st_uid,
            stat.st_gid, stat.st_size, stat.st_blocks, stat.st_blksize, stat.st_atime_ns,
            inode.btime_ns, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_rdev, stat.st_dev,
            mount_id,
        )  # fmt: skip

    def statfs(self, path: Path) -> StatfsResult:
        """statfs(2)."""
        with self.lock, self._lookup(abi.AT_FDCWD, path) as found:
            return self._statfs_of(found.mount, vfs_statfs(found.mount, found.dentry))

    def fstatfs(self, fd: int) -> StatfsResult:
        """fstatfs(2). Raises: EBADF."""
        with self.lock:
            file = self.files.get_file(fd)
            return self._statfs_of(file.mount, vfs_statfs(file.mount, file.dentry))

    @staticmethod
    def _statfs_of(mount: Mount, figures: Statfs) -> StatfsResult:
        flags = abi.ST_VALID
        both = mount.flags | mount.superblock.flags
        for mount_flag, st_flag in _ST_FLAGS:
            if both & mount_flag:
                flags |= st_flag
        return StatfsResult(
            figures.type, figures.bsize, figures.blocks, figures.bfree, figures.bavail,
            figures.files, figures.ffree, figures.fsid, figures.namelen, figures.frsize, flags,
        )  # fmt: skip

    def _setattr_at(self, dirfd: int, path: Path, lookup: int, attributes: SetAttributes) -> None:
        with self.lock, self._lookup(dirfd, path, lookup) as found:
            vfs_setattr(found.mount, found.dentry, attributes, self.cred)

    def _setattr_fd(self, fd: int, attributes: SetAttributes) -> None:
        with self.lock:
            file = self._file(fd)
            vfs_setattr(file.mount, file.dentry, attributes, self.cred)

    def fchmodat2(self, dirfd: int, path: Path, mode: int, flags: int = 0) -> None:
        """fchmodat2(2). Raises: EINVAL, EOPNOTSUPP (a symlink's mode), and as ``vfs_setattr``."""
        lookup = self._at_flags(flags, abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH)
        with self.lock, self._lookup(dirfd, path, lookup) as found:
            if found.inode.is_symlink:
                found.mount.want_write()
                raise oserror(errno.EOPNOTSUPP)
            attributes = SetAttributes(mode=mode & abi.S_IALLUGO)
            vfs_setattr(found.mount, found.dentry, attributes, self.cred)

    def chmod(self, path: Path, mode: int) -> None:
        """chmod(2)."""
        self.fchmodat2(abi.AT_FDCWD, path, mode)

    def fchmod(self, fd: int, mode: int) -> None:
        """fchmod(2). Raises: EBADF."""
        self._setattr_fd(fd, SetAttributes(mode=mode & abi.S_IALLUGO))

    def fchownat(self, dirfd: int, path: Path, uid: int, gid: int, flags: int = 0) -> None:
        """fchownat(2); -1 leaves an id alone."""
        lookup = self._at_flags(flags, abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH)
        self._setattr_at(dirfd, path, lookup, _owner(uid, gid))

    def chown(self, path: Path, uid: int, gid: int) -> None:
        """chown(2)."""
        self.fchownat(abi.AT_FDCWD, path, uid, gid)

    def lchown(self, path: Path, uid: int, gid: int) -> None:
        """lchown(2)."""
        self.fchownat(abi.AT_FDCWD, path, uid, gid, abi.AT_SYMLINK_NOFOLLOW)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        """fchown(2). Raises: EBADF."""
        self._setattr_fd(fd, _owner(uid, gid))

    def utimensat(
        self,
        dirfd: int,
        path: Path | None,
        times: tuple[tuple[int, int], tuple[int, int]] | None,
        flags: int = 0,
    ) -> None:
        """utimensat(2): ``times`` is ((atime s, ns), (mtime s, ns)), with UTIME_NOW and UTIME_OMIT
        as nanoseconds; None is now for both. A ``path`` of None means ``dirfd`` itself.

        Raises: EINVAL, EBADF, EACCES, EPERM, and as ``Walk``.
        """
        if times is not None and times[0][1] == times[1][1] == abi.UTIME_OMIT:
            return
        if path is None:
            if dirfd == abi.AT_FDCWD:
                raise oserror(errno.EFAULT)
            if flags:
                raise oserror(errno.EINVAL)
            with self.lock:
                file = self._file(dirfd)
                vfs_setattr(file.mount, file.dentry, self._times(times), self.cred)
            return
        lookup = self._at_flags(flags, abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH)
        with self.lock, self._lookup(dirfd, path, lookup) as found:
            vfs_setattr(found.mount, found.dentry, self._times(times), self.cred)

    def _times(self, times: tuple[tuple[int, int], tuple[int, int]] | None) -> SetAttributes:
        """Raises: EINVAL, which comes after the errors of the walk."""
        attributes = SetAttributes(touch=True)
        now = self.vfs.clock.now_ns()
        if times is None:
            attributes.atime_ns = attributes.mtime_ns = now
        else:
            attributes.atime_ns = _timespec(times[0], now)
            attributes.mtime_ns = _timespec(times[1], now)
            attributes.touch = times[0][1] == times[1][1] == abi.UTIME_NOW
        return attributes

    def faccessat2(self, dirfd: int, path: Path, mode: int, flags: int = 0) -> None:
        """faccessat2(2): as the real ids, or with AT_EACCESS as the file-system ids.

        Raises: EINVAL, EACCES, EROFS, and as ``Walk``.
        """
        if mode & ~(abi.R_OK | abi.W_OK | abi.X_OK):
            raise oserror(errno.EINVAL)
        allowed = abi.AT_EACCESS | abi.AT_SYMLINK_NOFOLLOW | abi.AT_EMPTY_PATH
        if flags & ~allowed:
            raise oserror(errno.EINVAL)
        lookup = self._at_flags(flags & ~abi.AT_EACCESS, allowed)
        cred = self.cred if flags & abi.AT_EACCESS else self.cred.for_access()
        with self.lock, self._lookup(dirfd, path, lookup, cred) as found:
            vfs_access(found.mount, found.dentry, mode, cred)

    def access(self, path: Path, mode: int) -> None:
        """access(2)."""
        self.faccessat2(abi.AT_FDCWD, path, mode)

    # Extended attributes: ``path`` may be a descriptor number, for the f* forms; ``follow`` False
    # makes the l* forms.

    def _xattr_target(self, path: Path | int, follow: bool) -> VirtualDentry:
        if isinstance(path, int):
            file = self._file(path)
            return VirtualDentry(file.mount, file.dentry).get()
        return self._lookup(abi.AT_FDCWD, path, FOLLOW if follow else 0)

    def getxattr(self, path: Path | int, name: str | bytes, *, follow: bool = True) -> bytes:
        """getxattr(2). Raises: ENODATA, ERANGE, EOPNOTSUPP, and as ``Walk``."""
        key = _xattr_name(name)
        with self.lock, self._xattr_target(path, follow) as found:
            return vfs_getxattr(found.dentry, key, self.cred)

    def setxattr(
        self,
        path: Path | int,
        name: str | bytes,
        value: bytes,
        flags: int = 0,
        *,
        follow: bool = True,
    ) -> None:
        """setxattr(2). Raises: as ``vfs_setxattr``."""
        if flags & ~(abi.XATTR_CREATE | abi.XATTR_REPLACE):
            raise oserror(errno.EINVAL)
        key = _xattr_name(name)
        if len(value) > abi.XATTR_SIZE_MAX:
            raise oserror(errno.E2BIG)
        with self.lock, self._xattr_target(path, follow) as found:
            vfs_setxattr(found.mount, found.dentry, key, value, flags, self.cred)

    def removexattr(self, path: Path | int, name: str | bytes, *, follow: bool = True) -> None:
        """removexattr(2). Raises: as ``vfs_removexattr``."""
        key = _xattr_name(name)
        with self.lock, self._xattr_target(path, follow) as found:
            vfs_removexattr(found.mount, found.dentry, key, self.cred)

    def listxattr(self, path: Path | int, *, follow: bool = True) -> list[bytes]:
        """listxattr(2), as a list of names."""
        with self.lock, self._xattr_target(path, follow) as found:
            return vfs_listxattr(found.dentry, self.cred)


def _xattr_name(name: str | bytes) -> bytes:
    """Linux: ``import_xattr_name``, before the path is walked. Raises: ERANGE."""
    key = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    if not 0 < len(key) <= abi.XATTR_NAME_MAX:
        raise oserror(errno.ERANGE)
    return key


def _owner(uid: int, gid: int) -> SetAttributes:
    """Ids as chown(2) takes them: -1 (or its 32-bit form) leaves one alone."""
    nobody = (-1, 0xFFFFFFFF)
    return SetAttributes(
        uid=None if uid in nobody else uid, gid=None if gid in nobody else gid, chown=True
    )


def _timespec(time: tuple[int, int], now: int) -> int | None:
    """Raises: EINVAL for nanoseconds out of range."""
    seconds, nanoseconds = time
    if nanoseconds == abi.UTIME_OMIT:
        return None
    if nanoseconds == abi.UTIME_NOW:
        return now
    if not 0 <= nanoseconds < 10**9:
        raise oserror(errno.EINVAL)
    return seconds * 10**9 + nanoseconds
