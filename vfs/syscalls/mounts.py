"""mount, umount2, pivot_root. Linux: fs/namespace.c."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vfs import abi
from vfs.credentials import CAP_SYS_ADMIN
from vfs.errors import oserror
from vfs.fs_context import REMOUNT_FLAGS, FilesystemContext
from vfs.mount import Mount, VirtualDentry
from vfs.mount_tree import unmount_tree
from vfs.namei import DIRECTORY, FOLLOW, traverse_mounts
from vfs.propagation import change_type, is_busy, is_reachable
from vfs.syscalls.base import Path
from vfs.syscalls.mount_base import (
    PROPAGATION,
    MountBase,
    kept_atime,
    mount_flags_of,
    set_mount_flags,
)

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.superblock import Superblock


class MountSyscalls(MountBase):
    """The calls that name places by path."""

    def mount(
        self,
        source: Path | None,
        target: Path,
        fstype: str | None = None,
        flags: int = 0,
        data: str | None = None,
    ) -> None:
        """mount(2).

        Raises: as ``Walk``; EINVAL (MS_NOUSER), EPERM (no CAP_SYS_ADMIN over the namespace), and as
        the operation that ``flags`` ask for: MS_REMOUNT goes before MS_BIND, that before a change
        of propagation, that before MS_MOVE.
        """
        if flags & abi.MS_MGC_MSK == abi.MS_MGC_VAL:
            flags &= ~abi.MS_MGC_MSK
        with self.lock, self._lookup(abi.AT_FDCWD, target, FOLLOW) as where:
            if flags & abi.MS_NOUSER:
                raise oserror(errno.EINVAL)
            self._require_may_mount()
            if flags & abi.MS_REMOUNT:
                if flags & abi.MS_BIND:
                    self._reconfigure_mount(where, flags)
                else:
                    self._remount(where, flags, data or "")
            elif flags & abi.MS_BIND:
                self._bind(source, where, flags)
            elif flags & PROPAGATION:
                self._change_type(where, flags)
            elif flags & abi.MS_MOVE:
                self._move(source, where)
            else:
                self._new_mount(source, where, fstype, flags, data or "")

    def _new_mount(
        self, source: Path | None, where: VirtualDentry, fstype: str | None, flags: int, data: str
    ) -> None:
        """Linux: ``do_new_mount``.

        Raises: EINVAL, ENODEV (unknown type), EPERM, EBUSY (the same filesystem there already),
        ENOTDIR, ENOSPC; the filesystem's.
        """
        if fstype is None:
            raise oserror(errno.EINVAL)
        kind = self.vfs.filesystem_type(fstype)
        with FilesystemContext(self.vfs, kind, self.cred, flags) as context:
            context.old_api = True
            if source is not None:
                context.parse_string("source", os.fsencode(source))
            context.parse_monolithic(data)
            if not context.mount_capable():
                raise oserror(errno.EPERM)
            with context.get_tree() as superblock:
                self._add_mount(superblock, context.source, mount_flags_of(flags), where)

    def _add_mount(
        self, superblock: Superblock, source: bytes, flags: int, where: VirtualDentry
    ) -> None:
        """Linux: ``do_add_mount``."""
        place = parent, mountpoint = self._place(where)
        if not self._is_ours(parent):
            raise oserror(errno.EINVAL)
        if parent.superblock is superblock and parent.root is mountpoint:
            raise oserror(errno.EBUSY)
        new = Mount(superblock, source, flags)
        try:
            self._graft(new, place)
        except BaseException:
            new.put()
            raise

    def _bind(self, source: Path | None, where: VirtualDentry, flags: int) -> None:
        """Linux: ``do_loopback``.

        Raises: EINVAL (no source; another namespace's; unbindable; it would uncover something
        locked), as ``Walk``; ENOENT, ENOTDIR, ENOSPC.
        """
        with self._source(source) as old:
            if self._is_namespace_loop(old.dentry):
                raise oserror(errno.EINVAL)
            place = self._place(where)
            if not self._is_ours(place[0]):
                raise oserror(errno.EINVAL)
            new = self._copy_for_bind(old, bool(flags & abi.MS_REC))
            try:
                self._graft(new, place)
            except BaseException:
                unmount_tree(new, sync=True)
                raise

    def _source(self, source: Path | None) -> VirtualDentry:
        """The path that MS_BIND and MS_MOVE start from. Raises: EINVAL; as ``Walk``."""
        if source is None or not os.fsencode(source):
            raise oserror(errno.EINVAL)
        return self._lookup(abi.AT_FDCWD, source, FOLLOW)

    def _change_type(self, where: VirtualDentry, flags: int) -> None:
        """Linux: ``do_change_type``.

        Raises: EINVAL (no mount's root; other flags, or two types at once), EPERM.
        """
        kind = flags & ~(abi.MS_REC | abi.MS_SILENT)
        if not where.is_mount_root or kind & ~PROPAGATION or kind & (kind - 1):
            raise oserror(errno.EINVAL)
        top = where.mount
        self._require_may_change_propagation(top)
        for mount in list(top.tree()) if flags & abi.MS_REC else [top]:
            change_type(mount, kind)
        assert top.namespace is not None
        top.namespace.touch()

    def _move(self, source: Path | None, where: VirtualDentry) -> None:
        """Linux: ``do_move_mount_old``. Raises: EINVAL; as ``Walk`` and ``_move_tree``."""
        with self._source(source) as old:
            self._move_tree(old, where)

    def _own_mount(self, where: VirtualDentry) -> Mount:
        """The mount whose root ``where`` is. Raises: EINVAL (another namespace's; not the root)."""
        if not self._is_ours(where.mount) or not where.is_mount_root:
            raise oserror(errno.EINVAL)
        return where.mount

    def _reconfigure_mount(self, where: VirtualDentry, flags: int) -> None:
        """Linux: ``do_reconfigure_mnt``: this mount's flags, not the superblock's.

        Raises: EINVAL, EPERM (a locked flag), EBUSY (open for writing).
        """
        mount = self._own_mount(where)
        new = kept_atime(mount, flags)
        mount.require_changeable(new)
        if new & abi.MS_RDONLY and not mount.read_only and mount.writers:
            raise oserror(errno.EBUSY)
        set_mount_flags(mount, new)

    def _remount(self, where: VirtualDentry, flags: int, data: str) -> None:
        """Linux: ``do_remount``: the superblock's flags and options, and the mount's flags.

        Raises: EINVAL, EPERM (a locked flag; no CAP_SYS_ADMIN over the superblock), EBUSY (open for
        writing); the filesystem's.
        """
        mount = self._own_mount(where)
        new = kept_atime(mount, flags)
        mount.require_changeable(new)
        with FilesystemContext.for_reconfigure(
            mount.superblock, self.cred, flags, REMOUNT_FLAGS
        ) as context:
            context.old_api = True
            context.parse_monolithic(data)
            context.reconfigure()
        set_mount_flags(mount, new)

    def umount2(self, target: Path, flags: int = 0) -> None:
        """umount2(2).

        Raises: EINVAL (flags), as ``Walk``; EPERM, EINVAL (no mount's root; another namespace's;
        locked; the root without a parent), EBUSY (in use, or mounts below), EAGAIN (MNT_EXPIRE's
        first call).
        """
        known = abi.MNT_FORCE | abi.MNT_DETACH | abi.MNT_EXPIRE | abi.UMOUNT_NOFOLLOW
        if flags & ~known:
            raise oserror(errno.EINVAL)
        lookup = 0 if flags & abi.UMOUNT_NOFOLLOW else FOLLOW
        with self.lock:
            where = self._lookup(abi.AT_FDCWD, target, lookup)
            # Linux: LOOKUP_MOUNTPOINT: what is stacked on one's root or cwd is meant too.
            mount, dentry = traverse_mounts(where.mount, where.dentry)
            is_root = dentry is mount.root
            # The walk's own dentry reference must not count; its mount reference does.
            mount.get()
            where.dentry.put()
            where.mount.put_no_expire()
            try:
                self._require_may_mount()
                if not is_root or not self._is_ours(mount) or mount.locked:
                    raise oserror(errno.EINVAL)
                if flags & abi.MNT_FORCE:
                    self.cred.ns_require(mount.superblock.user_ns, CAP_SYS_ADMIN)
                self._umount(mount, flags)
            finally:
                mount.put_no_expire()

    def _umount(self, mount: Mount, flags: int) -> None:
        """Linux: ``do_umount``."""
        is_own_root = mount is self.fs.root.mount
        references = 2  # the tree's and the walk's
        if flags & abi.MNT_EXPIRE:
            if is_own_root or flags & (abi.MNT_FORCE | abi.MNT_DETACH):
                raise oserror(errno.EINVAL)
            if mount.children or mount.count != references:
                raise oserror(errno.EBUSY)
            if not mount.expiring:
                mount.expiring = True
                raise oserror(errno.EAGAIN)
        if is_own_root and not flags & abi.MNT_DETACH:
            # Unmounting one's root means making it read-only (Linux: do_umount_root).
            self.cred.ns_require(mount.superblock.user_ns, CAP_SYS_ADMIN)
            if not mount.superblock.read_only:
                with FilesystemContext.for_reconfigure(
                    mount.superblock, self.cred, abi.MS_RDONLY, abi.MS_RDONLY
                ) as context:
                    context.reconfigure()
            return
        if not mount.is_attached:
            raise oserror(errno.EINVAL)
        lazy = bool(flags & abi.MNT_DETACH)
        if not lazy and is_busy(mount, references):
            raise oserror(errno.EBUSY)
        unmount_tree(mount, propagate=True, sync=not lazy)

    def pivot_root(self, new_root: Path, put_old: Path) -> None:
        """pivot_root(2), with ``.`` ``.`` too.

        Raises: EPERM, as ``Walk``, ENOENT (``put_old`` or ``new_root`` is deleted), EINVAL (shared,
        another namespace's, locked), EBUSY (either is on the current root mount), EINVAL (the other
        rules of the man page).
        """
        self._require_may_mount()
        lookup = FOLLOW | DIRECTORY
        with (
            self.lock,
            self._lookup(abi.AT_FDCWD, new_root, lookup) as new,
            self._lookup(abi.AT_FDCWD, put_old, lookup) as old,
        ):
            root = self.fs.root
            old_mount, old_mountpoint = self._place(old)
            new_mount, root_mount = new.mount, root.mount
            if old_mount.is_shared or new_mount.parent.is_shared or root_mount.parent.is_shared:
                raise oserror(errno.EINVAL)
            if not self._is_ours(root_mount) or not self._is_ours(new_mount) or new_mount.locked:
                raise oserror(errno.EINVAL)
            if not new.dentry.hashed:
                raise oserror(errno.ENOENT)
            if root_mount in (new_mount, old_mount):
                raise oserror(errno.EBUSY)
            if (
                not root.is_mount_root
                or not root_mount.is_attached
                or not new.is_mount_root
                or not new_mount.is_attached
                or not is_reachable(old_mount, old_mountpoint, new)
                or not is_reachable(new_mount, new.dentry, root)
            ):
                raise oserror(errno.EINVAL)
            self._swap_roots(root, new, old_mount, old_mountpoint)

    def _swap_roots(
        self, root: VirtualDentry, new: VirtualDentry, old_mount: Mount, old_mountpoint: Dentry
    ) -> None:
        root_parent, root_mountpoint = root.mount.parent, root.mount.mountpoint
        assert root_mountpoint is not None
        old_root = VirtualDentry(root.mount, root.dentry).get()
        new.mount.detach()
        root.mount.detach()
        if root.mount.locked:
            new.mount.locked = True
            root.mount.locked = False
        # "." "." stacks the old root on the new one's own root.
        new.mount.attach(root_parent, root_mountpoint)
        root.mount.attach(old_mount, old_mountpoint)
        self.namespace.touch()
        for task in self.vfs.tasks:
            if task.fs.root.same(old_root):
                task.fs.set_root(VirtualDentry(new.mount, new.dentry).get())
            if task.fs.cwd.same(old_root):
                task.fs.set_cwd(VirtualDentry(new.mount, new.dentry).get())
        old_root.put()
