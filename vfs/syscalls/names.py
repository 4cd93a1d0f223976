"""Making, linking, renaming, removing and listing names."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from vfs import abi
from vfs.credentials import CAP_DAC_READ_SEARCH
from vfs.errors import oserror
from vfs.namei import EMPTY, FOLLOW, get_name
from vfs.operations import (
    may_mknod,
    vfs_iterate,
    vfs_link,
    vfs_mkdir,
    vfs_mknod,
    vfs_open,
    vfs_readlink,
    vfs_rename,
    vfs_rmdir,
    vfs_symlink,
    vfs_unlink,
)
from vfs.syscalls.base import Path, SyscallBase


class DirectoryRecord(NamedTuple):
    """Linux: ``struct linux_dirent64``. ``d_off`` is the cookie to go on from after this entry."""

    d_ino: int
    d_off: int
    d_type: int
    d_name: bytes


class NameSyscalls(SyscallBase):
    """Linux: the second half of fs/namei.c, and fs/readdir.c."""

    def mkdirat(self, dirfd: int, path: Path, mode: int) -> None:
        """mkdirat(2). Raises: as ``Walk`` and ``vfs_mkdir``."""
        with self.lock:
            parent, name, _ = self._parent(dirfd, path)
            with parent:
                vfs_mkdir(parent, name, mode & ~self.fs.umask, self.cred).put()

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """mkdir(2)."""
        self.mkdirat(abi.AT_FDCWD, path, mode)

    def mknodat(self, dirfd: int, path: Path, mode: int, dev: int = 0) -> None:
        """mknodat(2). Raises: as ``Walk`` and ``vfs_mknod``."""
        may_mknod(mode)
        with self.lock:
            parent, name, trailing = self._parent(dirfd, path)
            with parent:
                umask = self.fs.umask
                vfs_mknod(parent, name, mode, dev, self.cred, trailing, umask).put()

    def mknod(self, path: Path, mode: int, dev: int = 0) -> None:
        """mknod(2)."""
        self.mknodat(abi.AT_FDCWD, path, mode, dev)

    def symlinkat(self, target: Path, dirfd: int, path: Path) -> None:
        """symlinkat(2). Raises: as ``Walk`` and ``vfs_symlink``."""
        text = os.fsencode(target)
        get_name(text)
        with self.lock:
            parent, name, trailing = self._parent(dirfd, path)
            with parent:
                vfs_symlink(parent, name, text, self.cred, trailing).put()

    def symlink(self, target: Path, path: Path) -> None:
        """symlink(2)."""
        self.symlinkat(target, abi.AT_FDCWD, path)

    def readlinkat(self, dirfd: int, path: Path) -> bytes:
        """readlinkat(2), whole; an empty path reads the link that ``dirfd`` is.

        Raises: EINVAL (no symlink), ENOENT (an empty path and no symlink), and as ``Walk``.
        """
        name = os.fsencode(path)
        with self.lock, self._lookup(dirfd, name, EMPTY) as found:
            if not name and not found.inode.is_symlink:
                raise oserror(errno.ENOENT)
            return vfs_readlink(found.mount, found.dentry, self.cred)

    def readlink(self, path: Path) -> bytes:
        """readlink(2)."""
        get_name(os.fsencode(path))
        return self.readlinkat(abi.AT_FDCWD, path)

    def linkat(
        self, old_dirfd: int, old_path: Path, new_dirfd: int, new_path: Path, flags: int = 0
    ) -> None:
        """linkat(2); AT_EMPTY_PATH names the file behind ``old_dirfd`` (CAP_DAC_READ_SEARCH, or
        the credentials that opened it). Raises: EINVAL, and as ``Walk`` and ``vfs_link``.
        """
        lookup = self._at_flags(flags, abi.AT_SYMLINK_FOLLOW | abi.AT_EMPTY_PATH, False)
        with self.lock:
            name = os.fsencode(old_path)
            relative = old_dirfd != abi.AT_FDCWD and not name.startswith(b"/")
            if flags & abi.AT_EMPTY_PATH and relative:
                opener = self.files.get_file(old_dirfd).cred
                if opener is not self.cred and not self.cred.capable(CAP_DAC_READ_SEARCH):
                    raise oserror(errno.ENOENT)
            with self._lookup(old_dirfd, old_path, lookup) as source:
                parent, name, trailing = self._parent(new_dirfd, new_path)
                with parent:
                    vfs_link(source, parent, name, self.cred, trailing).put()

    def link(self, old_path: Path, new_path: Path) -> None:
        """link(2): the last component's symlink is not followed."""
        self.linkat(abi.AT_FDCWD, old_path, abi.AT_FDCWD, new_path)

    def unlinkat(self, dirfd: int, path: Path, flags: int = 0) -> None:
        """unlinkat(2). Raises: EINVAL, and as ``Walk``, ``vfs_unlink`` or ``vfs_rmdir``."""
        if flags & ~abi.AT_REMOVEDIR:
            raise oserror(errno.EINVAL)
        with self.lock:
            parent, name, trailing = self._parent(dirfd, path)
            with parent:
                if flags & abi.AT_REMOVEDIR:
                    vfs_rmdir(parent, name, self.cred)
                else:
                    vfs_unlink(parent, name, self.cred, trailing)

    def unlink(self, path: Path) -> None:
        """unlink(2)."""
        self.unlinkat(abi.AT_FDCWD, path)

    def rmdir(self, path: Path) -> None:
        """rmdir(2)."""
        self.unlinkat(abi.AT_FDCWD, path, abi.AT_REMOVEDIR)

    def renameat2(
        self, old_dirfd: int, old_path: Path, new_dirfd: int, new_path: Path, flags: int = 0
    ) -> None:
        """renameat2(2). Raises: as ``Walk`` and ``vfs_rename``."""
        known = abi.RENAME_NOREPLACE | abi.RENAME_EXCHANGE | abi.RENAME_WHITEOUT
        exclusive = abi.RENAME_NOREPLACE | abi.RENAME_WHITEOUT
        if flags & ~known or (flags & abi.RENAME_EXCHANGE and flags & exclusive):
            raise oserror(errno.EINVAL)
        with self.lock:
            old_parent, old_name, old_trailing = self._parent(old_dirfd, old_path)
            with old_parent:
                new_parent, new_name, new_trailing = self._parent(new_dirfd, new_path)
                with new_parent:
                    vfs_rename(
                        old_parent, old_name, new_parent, new_name, flags, self.cred,
                        old_trailing, new_trailing,
                    )  # fmt: skip

    def rename(self, old_path: Path, new_path: Path) -> None:
        """rename(2)."""
        self.renameat2(abi.AT_FDCWD, old_path, abi.AT_FDCWD, new_path)

    def getdents64(self, fd: int, size: int = 32768) -> list[DirectoryRecord]:
        """getdents64(2): the next entries, as many as a buffer of ``size`` bytes takes; [] at the
        end. lseek(2) to a ``d_off`` goes on after that entry.

        Raises: EBADF, ENOTDIR, ENOENT (the directory is deleted), EINVAL (``size`` too small).
        """
        records: list[DirectoryRecord] = []
        with self.lock:
            file = self._file(fd)
            for name, ino, kind, cookie in vfs_iterate(file, file.position):
                size -= 19 + len(name) + 8 & ~7  # d_ino, d_off, d_reclen, d_type, name, NUL
                if size < 0:
                    if not records:
                        raise oserror(errno.EINVAL)
                    break
                records.append(DirectoryRecord(ino, cookie, kind, name))
                file.position = cookie
        return records

    def listdir(self, path: Path) -> list[str]:
        """``os.listdir``: the names in a directory but "." and "..", in the directory's order."""
        with (
            self.lock,
            self._lookup(abi.AT_FDCWD, path, FOLLOW) as found,
            vfs_open(found.mount, found.dentry, abi.O_RDONLY | abi.O_DIRECTORY, self.cred) as file,
        ):
            names = [entry[0] for entry in vfs_iterate(file, 0)]
        return [os.fsdecode(name) for name in names if name not in (b".", b"..")]
