"""What the classic and the descriptor-based mount calls share. Linux: fs/namespace.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi, propagation
from vfs.credentials import CAP_SYS_ADMIN
from vfs.errors import oserror
from vfs.mount import ATIME_FLAGS, MOUNT_FLAGS, Mount, VirtualDentry
from vfs.mount_tree import (
    attach_tree,
    clone_mount,
    contains_unbindable,
    copy_tree,
)
from vfs.namespace import MountNamespace
from vfs.nsfs import NamespaceInode
from vfs.syscalls.base import SyscallBase

if TYPE_CHECKING:
    from vfs.dentry import Dentry

PROPAGATION = abi.MS_SHARED | abi.MS_PRIVATE | abi.MS_SLAVE | abi.MS_UNBINDABLE


def mount_flags_of(flags: int) -> int:
    """mount(2)'s flags as per-mount flags; relatime unless another is chosen."""
    result = flags & MOUNT_FLAGS & ~abi.MS_RELATIME
    if not flags & abi.MS_NOATIME:
        result |= abi.MS_RELATIME
    if flags & abi.MS_STRICTATIME:
        result &= ~(abi.MS_RELATIME | abi.MS_NOATIME)
    return result


class MountBase(SyscallBase):
    """The rules about who may do what with which mount, and the operations under both families."""

    def _require_may_mount(self) -> None:
        """Linux: ``may_mount``. Raises: EPERM."""
        self.cred.ns_require(self.namespace.user_ns, CAP_SYS_ADMIN)

    def _is_ours(self, mount: Mount) -> bool:
        """Linux: ``check_mnt``."""
        return mount.namespace is self.namespace

    def _is_our_detached(self, mount: Mount) -> bool:
        """Linux: ``check_anonymous_mnt``: in a detached tree that was made from our namespace."""
        namespace = mount.namespace
        return (
            namespace is not None
            and namespace.anonymous
            and namespace.origin in (0, self.namespace.id)
        )

    def _may_use(self, mount: Mount) -> bool:
        """Linux: ``may_use_mount``."""
        return self._is_ours(mount) or self._is_our_detached(mount)

    def _place(self, where: VirtualDentry) -> tuple[Mount, Dentry]:
        """Linux: ``do_lock_mount``: the topmost place on ``where``. All borrowed.

        Raises: ENOENT (deleted, or in a tree that was unmounted).
        """
        mount, dentry = where.mount, where.dentry
        above = mount.children.get(dentry)
        if above is not None:
            mount = above.topmost_overmount()
            dentry = mount.root
        if not dentry.hashed or where.mount.namespace is None:
            raise oserror(errno.ENOENT)
        return mount, dentry

    def _graft(self, new: Mount, place: tuple[Mount, Dentry]) -> None:
        """Linux: ``graft_tree``. Takes over the caller's reference on ``new`` if it succeeds.

        Raises: ENOTDIR (a directory onto a file, or the other way), ENOSPC.
        """
        parent, mountpoint = place
        if _is_directory(mountpoint) != _is_directory(new.root):
            raise oserror(errno.ENOTDIR)
        attach_tree(new, parent, mountpoint, self.namespace.user_ns)

    def _is_namespace_loop(self, dentry: Dentry) -> bool:
        """Linux: ``mnt_ns_loop``: ``dentry`` is the file of a mount namespace that may hold ours
        alive, so that a mount of it here would keep both for ever.
        """
        inode = dentry.inode
        return (
            isinstance(inode, NamespaceInode)
            and isinstance(inode.namespace, MountNamespace)
            and self.namespace.id >= inode.namespace.id
        )

    def _copy_for_bind(self, old: VirtualDentry, recursive: bool) -> Mount:
        """Linux: ``__do_loopback``: the tree that a bind mount or open_tree(2) shows.

        Raises: EINVAL (unbindable; not ours to copy; it would uncover what is locked), EPERM.
        """
        mount = old.mount
        if mount.unbindable:
            raise oserror(errno.EINVAL)
        may_copy = self._may_use(mount) or isinstance(old.dentry.inode, NamespaceInode)
        if not may_copy or (not recursive and mount.has_locked_children(old.dentry)):
            raise oserror(errno.EINVAL)
        if not recursive:
            return clone_mount(mount, old.dentry)
        return copy_tree(mount, old.dentry)

    def _move_tree(self, old: VirtualDentry, where: VirtualDentry, beneath: bool = False) -> None:
        """Linux: ``do_move_mount``.

        Raises: EINVAL (the rules of move_mount(2)), ENOENT, ELOOP (into itself), ENOSPC.
        """
        moving = old.mount
        if not old.is_mount_root or _is_directory(where.dentry) != _is_directory(old.dentry):
            raise oserror(errno.EINVAL)
        covered = None
        if beneath:
            covered, parent, mountpoint = self._place_beneath(where)
        else:
            parent, mountpoint = self._place(where)
        if self._is_ours(moving):
            if not moving.is_attached or moving.locked or moving.parent.is_shared:
                raise oserror(errno.EINVAL)
            if not self._is_ours(parent):
                raise oserror(errno.EINVAL)
        else:
            namespace = moving.namespace
            if namespace is None or not namespace.anonymous or namespace.root is not moving:
                raise oserror(errno.EINVAL)
            if namespace is parent.namespace or not self._may_use(parent):
                raise oserror(errno.EINVAL)
        if covered is not None:
            self._check_beneath(moving, covered, parent, mountpoint)
        if parent.is_shared and contains_unbindable(moving):
            raise oserror(errno.EINVAL)
        if any(self._is_namespace_loop(mount.root) for mount in moving.tree()):
            raise oserror(errno.ELOOP)
        if moving.is_ancestor_of(parent):
            raise oserror(errno.ELOOP)
        attach_tree(moving, parent, mountpoint, self.namespace.user_ns)

    def _place_beneath(self, where: VirtualDentry) -> tuple[Mount, Mount, Dentry]:
        """The topmost mount at ``where``, and where it is mounted. Raises: EINVAL, ENOENT."""
        if not where.is_mount_root:
            raise oserror(errno.EINVAL)
        top = where.mount.topmost_overmount()
        mountpoint = top.mountpoint or top.root
        if not mountpoint.hashed or where.mount.namespace is None:
            raise oserror(errno.ENOENT)
        if not top.is_attached:
            raise oserror(errno.EINVAL)
        return top, top.parent, mountpoint

    def _check_beneath(
        self, moving: Mount, covered: Mount, parent: Mount, mountpoint: Dentry
    ) -> None:
        """Linux: ``can_move_mount_beneath``. Raises: EINVAL."""
        if (
            covered.locked
            or moving.overmount is not None
            or covered is self.fs.root.mount
            or parent is self.namespace.root
            or covered.is_ancestor_of(moving)
            or propagation.would_overmount(parent, covered, mountpoint)
            or (self._is_ours(moving) and propagation.would_overmount(parent, moving, mountpoint))
        ):
            raise oserror(errno.EINVAL)

    def _require_may_change_propagation(self, mount: Mount) -> None:
        """Linux: ``may_change_propagation``. Raises: EINVAL (not mounted), EPERM."""
        if mount.namespace is None:
            raise oserror(errno.EINVAL)
        self.cred.ns_require(mount.namespace.user_ns, CAP_SYS_ADMIN)


def set_mount_flags(mount: Mount, flags: int) -> None:
    """Linux: ``set_mount_attributes``."""
    mount.flags = flags
    if mount.namespace is not None:
        mount.namespace.touch()


def kept_atime(mount: Mount, flags: int) -> int:
    """mount(2)'s ``flags`` for a remount: if they say nothing of atime, the mount's stays."""
    new = mount_flags_of(flags)
    if not flags & (ATIME_FLAGS | abi.MS_STRICTATIME):
        new = new & ~ATIME_FLAGS | mount.flags & ATIME_FLAGS
    return new


def _is_directory(dentry: Dentry) -> bool:
    return dentry.inode is not None and dentry.inode.is_dir
