"""What a task changes about itself: cwd, root, umask, what it shares with others."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfs import abi
from vfs.credentials import CAP_SYS_ADMIN, CAP_SYS_CHROOT
from vfs.dpath import getcwd_path, is_unlinked
from vfs.errors import oserror
from vfs.mount import Mount, VirtualDentry
from vfs.namei import DIRECTORY, FOLLOW
from vfs.permission import inode_permission
from vfs.syscalls.base import FilesystemState, Path, SyscallBase

CLONE_FS = 0x00000200
CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000


_Setter = Callable[[VirtualDentry], None]


class ProcessSyscalls(SyscallBase):
    """Linux: the chdir family of fs/open.c, fs/d_path.c (getcwd), kernel/fork.c (unshare)."""

    def chdir(self, path: Path) -> None:
        """chdir(2). Raises: ENOTDIR, EACCES, and as ``Walk``."""
        with self.vfs.lock:
            self._change(self._lookup(abi.AT_FDCWD, path, FOLLOW | DIRECTORY), self.fs.set_cwd)

    def fchdir(self, fd: int) -> None:
        """fchdir(2); an O_PATH descriptor will do. Raises: EBADF, ENOTDIR, EACCES."""
        with self.vfs.lock:
            file = self.files.get_file(fd)
            if not file.inode.is_dir:
                raise oserror(errno.ENOTDIR)
            self._change(VirtualDentry(file.mount, file.dentry).get(), self.fs.set_cwd)

    def chroot(self, path: Path) -> None:
        """chroot(2); the cwd stays. Raises: EACCES, EPERM (no CAP_SYS_CHROOT), and as ``Walk``."""
        with self.vfs.lock:
            target = self._lookup(abi.AT_FDCWD, path, FOLLOW | DIRECTORY)
            if not self.cred.capable(CAP_SYS_CHROOT):
                with target:
                    inode_permission(target.inode, self.cred, abi.X_OK)
                raise oserror(errno.EPERM)
            self._change(target, self.fs.set_root)

    def _change(self, target: VirtualDentry, setter: _Setter) -> None:
        try:
            inode_permission(target.inode, self.cred, abi.X_OK)
        except OSError:
            target.put()
            raise
        setter(target)

    def getcwd(self) -> bytes:
        """getcwd(2): "(unreachable)" comes first if the root does not lead there.

        Raises: ENOENT (deleted).
        """
        with self.vfs.lock:
            if is_unlinked(self.fs.cwd):
                raise oserror(errno.ENOENT)
            return getcwd_path(self.fs.cwd, self.fs.root)

    def umask(self, mask: int) -> int:
        """umask(2): sets the mask and returns the one before."""
        with self.vfs.lock:
            old, self.fs.umask = self.fs.umask, mask & abi.S_IRWXUGO
            return old

    def unshare(self, flags: int) -> None:
        """unshare(2) with CLONE_FS, CLONE_FILES and CLONE_NEWNS (which implies CLONE_FS).

        Raises: EINVAL, EPERM (CLONE_NEWNS without CAP_SYS_ADMIN).
        """
        if flags & ~(CLONE_FS | CLONE_FILES | CLONE_NEWNS):
            raise oserror(errno.EINVAL)
        if flags & CLONE_NEWNS:
            self.cred.require(CAP_SYS_ADMIN)
            flags |= CLONE_FS
        with self.vfs.lock:
            if flags & CLONE_FILES and self.files.count > 1:
                old, self.files = self.files, self.files.copy()
                old.put()
            if flags & CLONE_FS and self.fs.users > 1:
                shared = self.fs
                self.fs = FilesystemState(shared.root, shared.cwd, shared.umask)
                shared.put()
            if flags & CLONE_NEWNS:
                self._new_namespace()

    def _new_namespace(self) -> None:
        """Linux: ``copy_mnt_ns``: a copy of the tree, with root and cwd moved onto the copies."""
        self.namespace.require_room(0)
        namespace, copies = self.namespace.clone()

        def moved(path: VirtualDentry) -> VirtualDentry:
            mount: Mount = copies.get(path.mount, path.mount)
            return VirtualDentry(mount, path.dentry).get()

        self.fs.set_root(moved(self.fs.root))
        self.fs.set_cwd(moved(self.fs.cwd))
        old, self.namespace = self.namespace, namespace
        old.put()
