"""open, openat, openat2, creat, close, dup and the descriptor side of fcntl."""

from __future__ import annotations

import errno
import os

from vfs import abi
from vfs.errors import oserror
from vfs.fdtable import close_file
from vfs.file import FileDescription
from vfs.mount import VirtualDentry
from vfs.namei import DIRECTORY, FOLLOW, Walk, get_name
from vfs.operations import vfs_create, vfs_open, vfs_tmpfile
from vfs.permission import owner_or_capable
from vfs.pipe import PipeFile
from vfs.syscalls.base import Path, SyscallBase


class OpenSyscalls(SyscallBase):
    """Linux: fs/open.c, and the fd half of fs/fcntl.c."""

    def openat(self, dirfd: int, path: Path, flags: int, mode: int = 0) -> int:
        """openat(2): a descriptor. Flags that Linux does not know are ignored, as openat does.

        Raises: EINVAL, ENAMETOOLONG, EBADF, and as ``Walk`` and ``vfs_open``; EMFILE.
        """
        flags &= abi.VALID_OPEN_FLAGS
        if flags & abi.O_PATH:
            flags &= abi.O_DIRECTORY | abi.O_NOFOLLOW | abi.O_PATH | abi.O_CLOEXEC
        if not flags & (abi.O_CREAT | abi.O_TMPFILE_BIT):
            mode = 0
        return self._do_open(dirfd, path, flags, mode & abi.S_IALLUGO, 0)

    def openat2(
        self, dirfd: int, path: Path, flags: int = 0, mode: int = 0, resolve: int = 0
    ) -> int:
        """openat2(2) with ``struct open_how`` spread out; unknown flags are refused.

        Raises: EINVAL (a flag unknown or out of place; a mode without O_CREAT), EXDEV, ELOOP,
        EAGAIN (RESOLVE_CACHED), and as ``openat``.
        """
        if flags & ~abi.VALID_OPEN_FLAGS or resolve & ~abi.VALID_RESOLVE_FLAGS:
            raise oserror(errno.EINVAL)
        if resolve & abi.RESOLVE_BENEATH and resolve & abi.RESOLVE_IN_ROOT:
            raise oserror(errno.EINVAL)
        if flags & (abi.O_CREAT | abi.O_TMPFILE_BIT):
            if mode & ~abi.S_IALLUGO:
                raise oserror(errno.EINVAL)
        elif mode:
            raise oserror(errno.EINVAL)
        allowed_with_path = abi.O_DIRECTORY | abi.O_NOFOLLOW | abi.O_PATH | abi.O_CLOEXEC
        if flags & abi.O_PATH and flags & ~allowed_with_path:
            raise oserror(errno.EINVAL)
        if resolve & abi.RESOLVE_CACHED and flags & (abi.O_TRUNC | abi.O_CREAT | abi.O_TMPFILE_BIT):
            raise oserror(errno.EAGAIN)
        return self._do_open(dirfd, path, flags, mode, resolve)

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        """open(2)."""
        return self.openat(abi.AT_FDCWD, path, flags, mode)

    def creat(self, path: Path, mode: int) -> int:
        """creat(2)."""
        return self.open(path, abi.O_CREAT | abi.O_WRONLY | abi.O_TRUNC, mode)

    def _do_open(self, dirfd: int, path: Path, flags: int, mode: int, resolve: int) -> int:
        """Linux: ``build_open_flags`` and ``do_filp_open``, then a descriptor."""
        # O_CREAT with O_DIRECTORY asks for two things at once, and O_TMPFILE must be whole.
        if flags & (abi.O_DIRECTORY | abi.O_CREAT) == abi.O_DIRECTORY | abi.O_CREAT:
            raise oserror(errno.EINVAL)
        read_only = flags & abi.O_ACCMODE == abi.O_RDONLY
        if flags & abi.O_TMPFILE_BIT and (read_only or not flags & abi.O_DIRECTORY):
            raise oserror(errno.EINVAL)
        if flags & abi.O_SYNC == abi.O_SYNC & ~abi.O_DSYNC:
            flags |= abi.O_DSYNC
        # Every open by name is a large-file open on a 64-bit kernel.
        flags |= abi.O_LARGEFILE
        name = os.fsencode(path)
        get_name(name)
        with self.lock:
            self.files.unused()  # EMFILE comes before anything is created
            file = self._open_file(dirfd, name, flags, mode, resolve)
        try:
            if isinstance(file, PipeFile):
                self._wait(False, file.wait_open)
            with self.lock:
                return self.files.install(file, bool(flags & abi.O_CLOEXEC))
        except BaseException:
            with self.lock:
                file.put()
            raise

    def _open_file(
        self, dirfd: int, path: bytes, flags: int, mode: int, resolve: int
    ) -> FileDescription:
        """Linux: ``path_openat``. The caller receives the description."""
        start = self._start(dirfd, path, resolve)
        walk = Walk(self.vfs, self.cred, self.fs.root, start, resolve)
        try:
            if flags & abi.O_TMPFILE_BIT:
                return self._open_tmpfile(walk, path, flags, mode)
            if flags & abi.O_CREAT:
                return self._open_create(walk, path, flags, mode)
            lookup = 0 if flags & abi.O_NOFOLLOW else FOLLOW
            if flags & abi.O_DIRECTORY:
                lookup |= DIRECTORY
            walk.descend(path)
            walk.finish(lookup)
            return vfs_open(walk.mount, walk.dentry, flags, self.cred)
        except OSError as error:
            if error.filename is None:
                error.filename = os.fsdecode(path)
            raise
        finally:
            walk.abandon()

    def _open_tmpfile(self, walk: Walk, path: bytes, flags: int, mode: int) -> FileDescription:
        """Linux: ``do_tmpfile``."""
        walk.descend(path)
        walk.finish(DIRECTORY if flags & abi.O_NOFOLLOW else FOLLOW | DIRECTORY)
        parent = VirtualDentry(walk.mount, walk.dentry)
        linkable = not flags & abi.O_EXCL
        with vfs_tmpfile(parent, mode, self.cred, linkable, self.fs.umask) as dentry:
            # There is nothing to truncate, so O_TRUNC costs no set-id bits either.
            rest = flags & ~(abi.O_TMPFILE | abi.O_TRUNC)
            file = vfs_open(walk.mount, dentry, rest, self.cred, check=False)
            file.flags |= abi.O_TMPFILE
            return file

    def _open_create(self, walk: Walk, path: bytes, flags: int, mode: int) -> FileDescription:
        """Linux: ``open_last_lookups`` and ``lookup_open`` for O_CREAT."""
        walk.descend(path)
        while True:
            if not walk.last or walk.last in (b".", b".."):
                walk.finish(FOLLOW)
                raise oserror(errno.EEXIST if flags & abi.O_EXCL else errno.EISDIR)
            if walk.trailing:
                raise oserror(errno.EISDIR)
            found = walk.peek_last()
            if found is None:
                return self._create_and_open(walk, flags, mode)
            with found:
                inode = found.inode
                assert inode is not None
                if flags & abi.O_EXCL:
                    raise oserror(errno.EEXIST)
                if inode.is_symlink and flags & abi.O_NOFOLLOW:
                    raise oserror(errno.ELOOP)
                parent = walk.inode
                if walk.follow_last(found):
                    continue
            if walk.inode.is_dir:
                raise oserror(errno.EISDIR)
            self._may_create_in_sticky(parent.mode, parent.uid, walk)
            return vfs_open(walk.mount, walk.dentry, flags, self.cred)

    def _create_and_open(self, walk: Walk, flags: int, mode: int) -> FileDescription:
        parent = VirtualDentry(walk.mount, walk.dentry)
        with vfs_create(
            parent, walk.last, mode, flags, self.cred, self.fs.umask, absent=True
        ) as dentry:
            return vfs_open(walk.mount, dentry, flags & ~abi.O_TRUNC, self.cred, check=False)

    def _may_create_in_sticky(self, dir_mode: int, dir_uid: int, walk: Walk) -> None:
        """Linux: ``may_create_in_sticky`` (fs.protected_fifos, fs.protected_regular).

        Raises: EACCES for O_CREAT of another's FIFO or file in a sticky directory that others
        may write to.
        """
        inode = walk.inode
        kind = inode.mode & abi.S_IFMT
        level = {
            abi.S_IFIFO: self.vfs.protected_fifos,
            abi.S_IFREG: self.vfs.protected_regular,
        }.get(kind, 0)
        if not level or not dir_mode & abi.S_ISVTX:
            return
        if inode.uid in (dir_uid, self.cred.fsuid):
            return
        if dir_mode & 0o002 or (dir_mode & 0o020 and level >= 2):
            raise oserror(errno.EACCES)

    def close(self, fd: int) -> None:
        """close(2). The number is free whatever flush reports. Raises: EBADF; flush's errors."""
        with self.lock:
            file = self.files.remove(fd)
            close_file(file)

    def close_range(self, first: int, last: int, flags: int = 0) -> None:
        """close_range(2). Raises: EINVAL."""
        if flags & ~(abi.CLOSE_RANGE_UNSHARE | abi.CLOSE_RANGE_CLOEXEC) or not 0 <= first <= last:
            raise oserror(errno.EINVAL)
        with self.lock:
            if flags & abi.CLOSE_RANGE_UNSHARE and self.files.count > 1:
                old, self.files = self.files, self.files.copy()
                old.put()
            for fd in self.files.numbers():
                if not first <= fd <= last:
                    continue
                if flags & abi.CLOSE_RANGE_CLOEXEC:
                    self.files.set_cloexec(fd, True)
                else:
                    self.close(fd)

    def dup(self, fd: int) -> int:
        """dup(2). Raises: EBADF, EMFILE."""
        return self._dup_from(fd, 0, False)

    def _dup_from(self, fd: int, lowest: int, cloexec: bool) -> int:
        with self.lock:
            file = self.files.get_file(fd).get()
            try:
                return self.files.install(file, cloexec, lowest)
            except OSError:
                file.put()
                raise

    def dup2(self, fd: int, new_fd: int) -> int:
        """dup2(2). Raises: EBADF."""
        with self.lock:
            self.files.get_file(fd)
            return new_fd if fd == new_fd else self.dup3(fd, new_fd, 0)

    def dup3(self, fd: int, new_fd: int, flags: int) -> int:
        """dup3(2). Raises: EINVAL (other flags than O_CLOEXEC; the same number), EBADF."""
        if flags & ~abi.O_CLOEXEC or fd == new_fd:
            raise oserror(errno.EINVAL)
        with self.lock:
            file = self.files.get_file(fd).get()
            try:
                old = self.files.install_at(new_fd, file, bool(flags & abi.O_CLOEXEC))
            except OSError:
                file.put()
                raise
            if old is not None:
                close_file(old)
            return new_fd

    def fcntl(self, fd: int, command: int, argument: int = 0) -> int:
        """fcntl(2): F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL.

        Raises: EBADF, EINVAL (F_DUPFD beyond the limit; an unknown command), EMFILE, EPERM
        (clearing O_APPEND of an append-only file).
        """
        with self.lock:
            file = self.files.get_file(fd)
            if command in (abi.F_DUPFD, abi.F_DUPFD_CLOEXEC):
                if not 0 <= argument < self.files.limit:
                    raise oserror(errno.EINVAL)
                return self._dup_from(fd, argument, command == abi.F_DUPFD_CLOEXEC)
            if command == abi.F_GETFD:
                return abi.FD_CLOEXEC if self.files.cloexec(fd) else 0
            if command == abi.F_SETFD:
                self.files.set_cloexec(fd, bool(argument & abi.FD_CLOEXEC))
                return 0
            if command == abi.F_GETFL:
                return file.flags
            if file.flags & abi.O_PATH:
                raise oserror(errno.EBADF)
            if command == abi.F_SETFL:
                settable = abi.O_APPEND | abi.O_NONBLOCK | abi.O_DIRECT | abi.O_NOATIME | abi.FASYNC
                if file.inode.flags & abi.FS_APPEND_FL and not argument & abi.O_APPEND:
                    raise oserror(errno.EPERM)
                gains_noatime = argument & abi.O_NOATIME and not file.flags & abi.O_NOATIME
                if gains_noatime and not owner_or_capable(file.inode, self.cred):
                    raise oserror(errno.EPERM)
                file.flags = file.flags & ~settable | argument & settable
                return 0
        raise oserror(errno.EINVAL)
