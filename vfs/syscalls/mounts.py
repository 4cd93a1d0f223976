"""mount, umount2, pivot_root. Propagation and the descriptor-based mount calls have their own place
below ``vfs.propagation`` when they come; here every mount is private.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vfs import abi
from vfs.credentials import CAP_SYS_ADMIN
from vfs.errors import oserror
from vfs.mount import ATIME_FLAGS, MOUNT_FLAGS, Mount, VirtualDentry
from vfs.namei import DIRECTORY, FOLLOW, traverse_mounts
from vfs.superblock import SB_FLAGS, FilesystemContext
from vfs.syscalls.base import Path, SyscallBase

if TYPE_CHECKING:
    from vfs.dentry import Dentry

_PROPAGATION = abi.MS_SHARED | abi.MS_PRIVATE | abi.MS_SLAVE | abi.MS_UNBINDABLE
_ATIME_CHOICES = abi.MS_NOATIME | abi.MS_NODIRATIME | abi.MS_RELATIME | abi.MS_STRICTATIME


def mount_flags_of(flags: int) -> int:
    """mount(2)'s flags as per-mount flags; relatime unless another is chosen."""
    result = flags & MOUNT_FLAGS
    if not flags & abi.MS_NOATIME:
        result |= abi.MS_RELATIME
    if flags & abi.MS_STRICTATIME:
        result &= ~(abi.MS_RELATIME | abi.MS_NOATIME)
    return result


class MountSyscalls(SyscallBase):
    """Linux: fs/namespace.c."""

    def mount(
        self,
        source: Path | None,
        target: Path,
        fstype: str | None = None,
        flags: int = 0,
        data: str | None = None,
    ) -> None:
        """mount(2).

        Raises: EPERM (no CAP_SYS_ADMIN), EINVAL, ENODEV (unknown type), ENOTDIR, EBUSY, ENOENT,
        ENOSPC (fs.mount-max); as ``Walk``; the filesystem's.
        """
        with self.vfs.lock, self._lookup(abi.AT_FDCWD, target, FOLLOW) as where:
            self.cred.require(CAP_SYS_ADMIN)
            if flags & abi.MS_REMOUNT:
                if flags & abi.MS_BIND:
                    self._reconfigure_mount(where, flags)
                else:
                    self._remount(where, flags, data or "")
            elif flags & abi.MS_BIND:
                self._bind(source, where, flags)
            elif flags & _PROPAGATION:
                self._change_type(where, flags)
            elif flags & abi.MS_MOVE:
                self._move(source, where)
            else:
                self._new_mount(source, where, fstype, flags, data or "")

    def _is_ours(self, mount: Mount) -> bool:
        """Linux: ``check_mnt``."""
        return mount.namespace is self.namespace

    def _mountpoint(self, where: VirtualDentry) -> tuple[Mount, Dentry]:
        """Linux: ``do_lock_mount``: the topmost place on ``where``.

        Raises: ENOENT (deleted, or in a tree that was unmounted), EINVAL (another namespace's).
        """
        mount, dentry = traverse_mounts(where.mount, where.dentry)
        if not dentry.hashed or mount.namespace is None:
            raise oserror(errno.ENOENT)
        if not self._is_ours(mount):
            raise oserror(errno.EINVAL)
        return mount, dentry

    def _graft(self, new: Mount, where: VirtualDentry) -> None:
        """Linux: ``graft_tree``: put the tree at ``new`` on top of ``where``, all or nothing.

        Takes over the caller's reference on ``new`` if it succeeds. Raises: ENOENT, EINVAL,
        ENOTDIR (a directory onto a file, or the other way), ENOSPC.
        """
        parent, mountpoint = self._mountpoint(where)
        assert mountpoint.inode is not None and new.root.inode is not None
        if mountpoint.inode.is_dir != new.root.inode.is_dir:
            raise oserror(errno.ENOTDIR)
        joining = list(new.tree())
        self.namespace.require_room(len(joining))
        new.attach(parent, mountpoint, self.namespace)
        for mount in joining[1:]:
            mount.namespace = self.namespace
            self.namespace.add(mount)

    def _new_mount(
        self, source: Path | None, where: VirtualDentry, fstype: str | None, flags: int, data: str
    ) -> None:
        """Linux: ``do_new_mount``."""
        if not fstype:
            raise oserror(errno.EINVAL)
        kind = self.vfs.filesystem_type(fstype)
        name = b"none" if source is None else os.fsencode(source)
        options = FilesystemContext.parse_options(data)
        context = FilesystemContext(self.vfs, kind, self.cred, name, flags & SB_FLAGS, options)
        with kind.mount(context) as superblock:
            if superblock is where.mount.superblock and where.dentry is where.mount.root:
                raise oserror(errno.EBUSY)
            new = Mount(superblock, name, mount_flags_of(flags))
            try:
                self._graft(new, where)
            except BaseException:
                new.put()
                raise

    def _bind(self, source: Path | None, where: VirtualDentry, flags: int) -> None:
        """Linux: ``do_loopback``. A bind copies the source mount's flags."""
        if source is None or not os.fsencode(source):
            raise oserror(errno.EINVAL)
        with self._lookup(abi.AT_FDCWD, source, FOLLOW) as old:
            self._mountpoint(where)
            if not self._is_ours(old.mount):
                raise oserror(errno.EINVAL)
            if flags & abi.MS_REC:
                new = old.mount.copy_tree(old.dentry)
            else:
                new = old.mount.clone(old.dentry)
            try:
                self._graft(new, where)
            except BaseException:
                new.dissolve()
                raise

    def _change_type(self, where: VirtualDentry, flags: int) -> None:
        """Linux: ``do_change_type``, where only "private" is true of a mount so far."""
        kind = flags & ~(abi.MS_REC | abi.MS_SILENT)
        if kind != abi.MS_PRIVATE or where.dentry is not where.mount.root:
            raise oserror(errno.EINVAL)
        if not self._is_ours(where.mount):
            raise oserror(errno.EINVAL)

    def _move(self, source: Path | None, where: VirtualDentry) -> None:
        """Linux: ``do_move_mount``. Raises: EINVAL, ENOTDIR, ELOOP (into itself)."""
        if source is None or not os.fsencode(source):
            raise oserror(errno.EINVAL)
        with self._lookup(abi.AT_FDCWD, source, FOLLOW) as old:
            moving = old.mount
            if old.dentry is not moving.root:
                raise oserror(errno.EINVAL)
            parent, mountpoint = self._mountpoint(where)
            if not moving.is_attached or not self._is_ours(moving):
                raise oserror(errno.EINVAL)
            assert mountpoint.inode is not None and moving.root.inode is not None
            if mountpoint.inode.is_dir != moving.root.inode.is_dir:
                raise oserror(errno.EINVAL)
            above: Mount = parent
            while above is not moving and above.is_attached:
                above = above.parent
            if above is moving:
                raise oserror(errno.ELOOP)
            namespace = moving.namespace
            moving.detach()
            moving.attach(parent, mountpoint, namespace)

    def _reconfigure_mount(self, where: VirtualDentry, flags: int) -> None:
        """Linux: ``do_reconfigure_mnt``: this mount's flags, not the superblock's.

        Raises: EINVAL (no mount's root; another namespace's), EBUSY (open for writing).
        """
        mount = where.mount
        if not self._is_ours(mount) or where.dentry is not mount.root:
            raise oserror(errno.EINVAL)
        new = self._kept_atime(mount, flags)
        if new & ~mount.flags & abi.MS_RDONLY and mount.writers:
            raise oserror(errno.EBUSY)
        mount.flags = new

    @staticmethod
    def _kept_atime(mount: Mount, flags: int) -> int:
        """A remount that says nothing of atime keeps what the mount has."""
        new = mount_flags_of(flags)
        if not flags & _ATIME_CHOICES:
            new = new & ~ATIME_FLAGS | mount.flags & ATIME_FLAGS
        return new

    def _remount(self, where: VirtualDentry, flags: int, data: str) -> None:
        """Linux: ``do_remount``: the superblock's flags and options, and the mount's flags."""
        mount = where.mount
        if not self._is_ours(mount) or where.dentry is not mount.root:
            raise oserror(errno.EINVAL)
        superblock = mount.superblock
        context = FilesystemContext(
            self.vfs,
            superblock.type,
            self.cred,
            superblock.source,
            flags & SB_FLAGS,
            FilesystemContext.parse_options(data),
        )
        if context.flags & ~superblock.flags & abi.MS_RDONLY:
            self._require_no_writers(mount)
        superblock.reconfigure(context)
        # The superblock is read-only now if that was asked; the mount's own bit is set with bind.
        mount.flags = self._kept_atime(mount, flags)

    def _require_no_writers(self, mount: Mount) -> None:
        """Linux: ``sb_prepare_remount_readonly``. Raises: EBUSY."""
        for namespace in self.vfs.namespaces:
            for other in namespace.mounts.values():
                if other.superblock is mount.superblock and other.writers:
                    raise oserror(errno.EBUSY)

    def umount2(self, target: Path, flags: int = 0) -> None:
        """umount2(2).

        Raises: EINVAL (flags; no mount's root; another namespace's; the root without a parent),
        EPERM, EBUSY (in use, or mounts below), EAGAIN (MNT_EXPIRE's first call).
        """
        known = abi.MNT_FORCE | abi.MNT_DETACH | abi.MNT_EXPIRE | abi.UMOUNT_NOFOLLOW
        if flags & ~known:
            raise oserror(errno.EINVAL)
        lookup = 0 if flags & abi.UMOUNT_NOFOLLOW else FOLLOW
        with self.vfs.lock:
            where = self._lookup(abi.AT_FDCWD, target, lookup)
            # Linux: LOOKUP_MOUNTPOINT: what is stacked on one's root or cwd is meant too.
            mount, dentry = traverse_mounts(where.mount, where.dentry)
            is_root = dentry is mount.root
            # The walk's own dentry reference must not count; its mount reference does.
            mount.get()
            where.dentry.put()
            where.mount.put_no_expire()
            try:
                self.cred.require(CAP_SYS_ADMIN)
                if not is_root or not self._is_ours(mount):
                    raise oserror(errno.EINVAL)
                self._umount(mount, flags)
            finally:
                mount.put_no_expire()

    def _umount(self, mount: Mount, flags: int) -> None:
        """Linux: ``do_umount``."""
        busy_count = 2  # the tree's reference and the walk's
        if flags & abi.MNT_EXPIRE:
            if mount is self.fs.root.mount or flags & (abi.MNT_FORCE | abi.MNT_DETACH):
                raise oserror(errno.EINVAL)
            if mount.count != busy_count:
                raise oserror(errno.EBUSY)
            if not mount.expiring:
                mount.expiring = True
                raise oserror(errno.EAGAIN)
        if mount is self.fs.root.mount and not flags & abi.MNT_DETACH:
            # Unmounting one's root means making it read-only (Linux: do_umount_root).
            if not mount.superblock.read_only:
                self._require_no_writers(mount)
                mount.superblock.flags |= abi.MS_RDONLY
            return
        if not mount.is_attached:
            raise oserror(errno.EINVAL)
        if not flags & abi.MNT_DETACH and (mount.children or mount.count > busy_count):
            raise oserror(errno.EBUSY)
        mount.dissolve()

    def pivot_root(self, new_root: Path, put_old: Path) -> None:
        """pivot_root(2), with ``.`` ``.`` too.

        Raises: EPERM, ENOENT (``new_root`` is deleted), EBUSY (either is on the current root
        mount), EINVAL (the rules of the man page), and as ``Walk``.
        """
        self.cred.require(CAP_SYS_ADMIN)
        lookup = FOLLOW | DIRECTORY
        with (
            self.vfs.lock,
            self._lookup(abi.AT_FDCWD, new_root, lookup) as new,
            self._lookup(abi.AT_FDCWD, put_old, lookup) as old,
        ):
            root = self.fs.root
            old_mount, old_mountpoint = traverse_mounts(old.mount, old.dentry)
            new_mount, root_mount = new.mount, root.mount
            if old_mount.namespace is None:
                raise oserror(errno.ENOENT)
            if not all(map(self._is_ours, (root_mount, new_mount, old_mount))):
                raise oserror(errno.EINVAL)
            if not new.dentry.hashed:
                raise oserror(errno.ENOENT)
            if root_mount in (new_mount, old_mount):
                raise oserror(errno.EBUSY)
            if (
                root.dentry is not root_mount.root
                or not root_mount.is_attached
                or new.dentry is not new_mount.root
                or not new_mount.is_attached
            ):
                raise oserror(errno.EINVAL)
            if not _reachable(old_mount, old_mountpoint, new) or not _reachable(
                new_mount, new.dentry, root
            ):
                raise oserror(errno.EINVAL)
            self._swap_roots(root, new, old_mount, old_mountpoint)

    def _swap_roots(
        self, root: VirtualDentry, new: VirtualDentry, old_mount: Mount, old_mountpoint: Dentry
    ) -> None:
        root_parent, root_mountpoint = root.mount.parent, root.mount.mountpoint
        assert root_mountpoint is not None
        namespace = self.namespace
        old_root = VirtualDentry(root.mount, root.dentry).get()
        new.mount.detach()
        root.mount.detach()
        # "." "." stacks the old root on the new one's own root.
        root.mount.attach(old_mount, old_mountpoint, namespace)
        new.mount.attach(root_parent, root_mountpoint, namespace)
        for task in self.vfs.tasks:
            if task.fs.root.same(old_root):
                task.fs.set_root(VirtualDentry(new.mount, new.dentry).get())
            if task.fs.cwd.same(old_root):
                task.fs.set_cwd(VirtualDentry(new.mount, new.dentry).get())
        old_root.put()


def _reachable(mount: Mount, dentry: Dentry, root: VirtualDentry) -> bool:
    """Linux: ``is_path_reachable``: whether ``root`` is at or above (mount, dentry)."""
    while mount is not root.mount and mount.mountpoint is not None:
        dentry = mount.mountpoint
        mount = mount.parent
    return mount is root.mount and dentry.is_descendant_of(root.dentry)
