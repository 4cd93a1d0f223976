"""What a task changes about itself: cwd, root, umask, what it shares with others."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfs import abi
from vfs.abi import CLONE_FILES, CLONE_FS, CLONE_NEWNS, CLONE_NEWUSER
from vfs.credentials import CAP_SYS_ADMIN, CAP_SYS_CHROOT, Credentials
from vfs.dpath import getcwd_path, is_unlinked
from vfs.errors import oserror
from vfs.mount import VirtualDentry
from vfs.namei import DIRECTORY, FOLLOW
from vfs.namespace import MountNamespace
from vfs.nsfs import namespace_of
from vfs.permission import inode_permission
from vfs.syscalls.base import FilesystemState, Path, SyscallBase
from vfs.user_namespace import UserNamespace

_DEEPEST_USER_NAMESPACE = 33  # levels below the initial one, in kernel/user_namespace.c
_Setter = Callable[[VirtualDentry], None]


class ProcessSyscalls(SyscallBase):
    """Linux: the chdir family of fs/open.c, fs/d_path.c (getcwd), kernel/fork.c (unshare)."""

    def chdir(self, path: Path) -> None:
        """chdir(2). Raises: ENOTDIR, EACCES, and as ``Walk``."""
        with self.lock:
            self._change(self._lookup(abi.AT_FDCWD, path, FOLLOW | DIRECTORY), self.fs.set_cwd)

    def fchdir(self, fd: int) -> None:
        """fchdir(2); an O_PATH descriptor will do. Raises: EBADF, ENOTDIR, EACCES."""
        with self.lock:
            file = self.files.get_file(fd)
            if not file.inode.is_dir:
                raise oserror(errno.ENOTDIR)
            self._change(VirtualDentry(file.mount, file.dentry).get(), self.fs.set_cwd)

    def chroot(self, path: Path) -> None:
        """chroot(2); the cwd stays. Raises: EACCES, EPERM (no CAP_SYS_CHROOT), and as ``Walk``."""
        with self.lock:
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
        with self.lock:
            if is_unlinked(self.fs.cwd):
                raise oserror(errno.ENOENT)
            return getcwd_path(self.fs.cwd, self.fs.root)

    def umask(self, mask: int) -> int:
        """umask(2): sets the mask and returns the one before."""
        with self.lock:
            old, self.fs.umask = self.fs.umask, mask & abi.S_IRWXUGO
            return old

    def unshare(self, flags: int) -> None:
        """unshare(2) with CLONE_FS, CLONE_FILES, CLONE_NEWNS and CLONE_NEWUSER, which both imply
        CLONE_FS. In a new user namespace the task has every capability.

        Raises: EINVAL, EPERM (CLONE_NEWUSER in a chroot; CLONE_NEWNS without CAP_SYS_ADMIN in the
        user namespace), ENOSPC (user namespaces nested too deeply; fs.mount-max).
        """
        if flags & ~(CLONE_FS | CLONE_FILES | CLONE_NEWNS | CLONE_NEWUSER):
            raise oserror(errno.EINVAL)
        with self.lock:
            cred = self._cred_for_new_user_namespace() if flags & CLONE_NEWUSER else self.cred
            namespace = None
            if flags & CLONE_NEWNS:
                cred.require(CAP_SYS_ADMIN)
                self.namespace.require_room(0)
                namespace, copies = self.namespace.clone(cred.user_ns)
            if flags & CLONE_FILES and self.files.count > 1:
                table, self.files = self.files, self.files.copy()
                table.put()
            if flags & (CLONE_FS | CLONE_NEWNS | CLONE_NEWUSER) and self.fs.users > 1:
                shared = self.fs
                self.fs = FilesystemState(shared.root, shared.cwd, shared.umask)
                shared.put()
            if namespace is not None:
                root, cwd = (
                    VirtualDentry(copies.get(path.mount, path.mount), path.dentry).get()
                    for path in (self.fs.root, self.fs.cwd)
                )
                self._enter_namespace(namespace, root, cwd)
            self.cred = cred

    def _cred_for_new_user_namespace(self) -> Credentials:
        """Linux: ``create_user_ns``. Raises: ENOSPC, EPERM."""
        cred = self.cred
        if cred.user_ns.level >= _DEEPEST_USER_NAMESPACE:
            raise oserror(errno.ENOSPC)
        if not self.fs.root.same(root_of(self.namespace)):
            raise oserror(errno.EPERM)
        inum = self.vfs.allocate_namespace_inum()
        user_ns = UserNamespace(cred.user_ns, cred.fsuid, cred.fsgid, inum)
        return cred.in_new_user_namespace(user_ns)

    def _enter_namespace(
        self, namespace: MountNamespace, root: VirtualDentry, cwd: VirtualDentry
    ) -> None:
        """Takes over the references on all three."""
        self.fs.set_root(root)
        self.fs.set_cwd(cwd)
        old, self.namespace = self.namespace, namespace
        old.put()

    def setns(self, fd: int, nstype: int) -> None:
        """setns(2) with the file of a mount or a user namespace. Entering a mount namespace moves
        root and cwd to its root.

        Raises: EBADF, EINVAL (no such file; not of type ``nstype``; the task shares its fs; its own
        user namespace again), EPERM.
        """
        with self.lock:
            namespace = namespace_of(self._file(fd))
            if namespace is None:
                raise oserror(errno.EINVAL)
            is_user = isinstance(namespace, UserNamespace)
            if nstype and nstype != (CLONE_NEWUSER if is_user else CLONE_NEWNS):
                raise oserror(errno.EINVAL)
            cred = self.cred
            if isinstance(namespace, UserNamespace):
                if namespace is cred.user_ns or self.fs.users > 1:
                    raise oserror(errno.EINVAL)
                cred.ns_require(namespace, CAP_SYS_ADMIN)
                self.cred = cred.in_new_user_namespace(namespace)
                return
            if namespace.anonymous:
                raise oserror(errno.EINVAL)
            cred.ns_require(namespace.user_ns, CAP_SYS_ADMIN)
            cred.require(CAP_SYS_CHROOT)
            cred.require(CAP_SYS_ADMIN)
            if self.fs.users > 1:
                raise oserror(errno.EINVAL)
            root = root_of(namespace)
            self._enter_namespace(namespace.get(), root.get(), root_of(namespace).get())


def root_of(namespace: MountNamespace) -> VirtualDentry:
    """What a task sees as the root of ``namespace``, borrowed: the top of what covers its base."""
    top = namespace.root.topmost_overmount()
    return VirtualDentry(top, top.root)
