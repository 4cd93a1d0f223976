"""open_tree, open_tree_attr, move_mount, fsmount, mount_setattr: the calls that hold mounts by
descriptor. Linux: fs/namespace.c.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from vfs import abi
from vfs.errors import oserror
from vfs.file import FileDescription
from vfs.fs_context import AWAITING_MOUNT
from vfs.mount import Mount, VirtualDentry
from vfs.namei import EMPTY, FOLLOW
from vfs.namespace import MountNamespace
from vfs.operations.opening import vfs_open
from vfs.propagation import change_type
from vfs.syscalls.base import Path
from vfs.syscalls.fs_context import context_of
from vfs.syscalls.mount_base import PROPAGATION, MountBase

_FSMOUNT_ATTRIBUTES = (
    abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOEXEC
    | abi.MOUNT_ATTR__ATIME | abi.MOUNT_ATTR_NODIRATIME | abi.MOUNT_ATTR_NOSYMFOLLOW
)  # fmt: skip
_ATTRIBUTES = {
    abi.MOUNT_ATTR_RDONLY: abi.MS_RDONLY,
    abi.MOUNT_ATTR_NOSUID: abi.MS_NOSUID,
    abi.MOUNT_ATTR_NODEV: abi.MS_NODEV,
    abi.MOUNT_ATTR_NOEXEC: abi.MS_NOEXEC,
    abi.MOUNT_ATTR_NODIRATIME: abi.MS_NODIRATIME,
    abi.MOUNT_ATTR_NOSYMFOLLOW: abi.MS_NOSYMFOLLOW,
}
_ATIME = {
    abi.MOUNT_ATTR_RELATIME: abi.MS_RELATIME,
    abi.MOUNT_ATTR_NOATIME: abi.MS_NOATIME,
    abi.MOUNT_ATTR_STRICTATIME: 0,
}

# struct mount_attr: attr_set, attr_clr, propagation, userns_fd
MountAttributes = tuple[int, int, int, int]


class _Change(NamedTuple):
    """Linux: ``struct mount_kattr``: mount(2)'s flags to clear and to set, then the type."""

    clear: int
    set: int
    propagation: int


class DetachedTree(FileDescription):
    """An O_PATH description of the root of a detached tree, which comes apart when the last
    descriptor is closed, if it was not mounted by then. Linux: FMODE_NEED_UNMOUNT.
    """

    __slots__ = ()

    def release(self) -> None:
        """Linux: ``dissolve_on_fput``."""
        mount = self.mount
        namespace = mount.namespace
        if namespace is not None and namespace.anonymous and namespace.root is mount:
            namespace.put()
        super().release()


class MountApiSyscalls(MountBase):
    """The mount calls that take and give descriptors."""

    def open_tree(self, dirfd: int, path: Path, flags: int) -> int:
        """open_tree(2).

        Raises: EINVAL (flags; what may not be copied), EPERM, as ``Walk``; EMFILE.
        """
        with self.lock:
            file = self._open_tree(dirfd, path, flags)
            return self._install_tree(file, bool(flags & abi.OPEN_TREE_CLOEXEC))

    def open_tree_attr(
        self, dirfd: int, path: Path, flags: int, attr: MountAttributes | None
    ) -> int:
        """open_tree_attr(2): open_tree(2), then mount_setattr(2) on what it opened.

        Raises: as those two.
        """
        with self.lock:
            file = self._open_tree(dirfd, path, flags)
            try:
                change = None if attr is None else self._change_of(attr)
                if change is not None:
                    opened = VirtualDentry(file.mount, file.dentry)
                    self._set_attributes(opened, change, bool(flags & abi.AT_RECURSIVE))
            except BaseException:
                file.put()
                raise
            return self._install_tree(file, bool(flags & abi.OPEN_TREE_CLOEXEC))

    def _install_tree(self, file: FileDescription, cloexec: bool) -> int:
        try:
            return self.files.install(file, cloexec)
        except OSError:
            file.put()
            raise

    def _open_tree(self, dirfd: int, path: Path, flags: int) -> FileDescription:
        """Linux: ``vfs_open_tree``. The caller receives the description."""
        clone = flags & abi.OPEN_TREE_CLONE
        known = (
            abi.AT_EMPTY_PATH | abi.AT_NO_AUTOMOUNT | abi.AT_RECURSIVE | abi.AT_SYMLINK_NOFOLLOW
            | abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC
        )  # fmt: skip
        if flags & ~known or (flags & abi.AT_RECURSIVE and not clone):
            raise oserror(errno.EINVAL)
        if clone:
            self._require_may_mount()
        with self._lookup(dirfd, path, _walk_flags(flags)) as found:
            if not clone:
                return vfs_open(found.mount, found.dentry, abi.O_PATH, self.cred)
            source = found.mount.namespace
            origin = 0
            if source is not None:
                origin = source.origin if source.anonymous else source.id
            tree = self._copy_for_bind(found, bool(flags & abi.AT_RECURSIVE))
            return self._open_detached(tree, origin)

    def _open_detached(self, tree: Mount, origin: int = 0) -> FileDescription:
        """Linux: ``open_detached_copy``. Takes over the caller's reference on ``tree``."""
        MountNamespace(self.vfs, tree, self.namespace.user_ns, anonymous=True, origin=origin)
        return DetachedTree(tree, tree.root, abi.O_PATH, self.cred)

    def fsmount(self, fd: int, flags: int, attr_flags: int) -> int:
        """fsmount(2): a detached mount of the superblock that the context ``fd`` has created.

        Raises: EPERM, EINVAL (flags, attributes), EBADF, EINVAL (no context; nothing created yet),
        EBUSY (mounted already), EMFILE.
        """
        with self.lock:
            self._require_may_mount()
            if flags & ~abi.FSMOUNT_CLOEXEC:
                raise oserror(errno.EINVAL)
            atime = _ATIME.get(attr_flags & abi.MOUNT_ATTR__ATIME)
            if attr_flags & ~_FSMOUNT_ATTRIBUTES or atime is None:
                raise oserror(errno.EINVAL)
            context = context_of(self._file(fd))
            if context is None or context.superblock is None:
                raise oserror(errno.EINVAL)
            if context.phase != AWAITING_MOUNT:
                raise oserror(errno.EBUSY)
            mount = Mount(context.superblock, context.source, _flags_of(attr_flags) | atime)
            context.clean()
            file = self._open_detached(mount)
            return self._install_tree(file, bool(flags & abi.FSMOUNT_CLOEXEC))

    def move_mount(
        self, from_dirfd: int, from_path: Path, to_dirfd: int, to_path: Path, flags: int
    ) -> None:
        """move_mount(2): attach a detached tree, move an attached one, or (MOVE_MOUNT_SET_GROUP)
        put the target into the source's peer group.

        Raises: EPERM, EINVAL (flags), as ``Walk``, first for the target; as ``_move_tree``.
        """
        known = (
            abi.MOVE_MOUNT_F_SYMLINKS | abi.MOVE_MOUNT_F_AUTOMOUNTS | abi.MOVE_MOUNT_F_EMPTY_PATH
            | abi.MOVE_MOUNT_T_SYMLINKS | abi.MOVE_MOUNT_T_AUTOMOUNTS | abi.MOVE_MOUNT_T_EMPTY_PATH
            | abi.MOVE_MOUNT_SET_GROUP | abi.MOVE_MOUNT_BENEATH
        )  # fmt: skip
        with self.lock:
            self._require_may_mount()
            both = abi.MOVE_MOUNT_SET_GROUP | abi.MOVE_MOUNT_BENEATH
            if flags & ~known or flags & both == both:
                raise oserror(errno.EINVAL)
            walk = _move_flags(flags, abi.MOVE_MOUNT_T_SYMLINKS, abi.MOVE_MOUNT_T_EMPTY_PATH)
            with self._lookup(to_dirfd, to_path, walk) as target:
                walk = _move_flags(flags, abi.MOVE_MOUNT_F_SYMLINKS, abi.MOVE_MOUNT_F_EMPTY_PATH)
                with self._lookup(from_dirfd, from_path, walk) as source:
                    if flags & abi.MOVE_MOUNT_SET_GROUP:
                        self._set_group(source, target)
                    else:
                        beneath = bool(flags & abi.MOVE_MOUNT_BENEATH)
                        self._move_tree(source, target, beneath)

    def _set_group(self, source: VirtualDentry, target: VirtualDentry) -> None:
        """Linux: ``do_set_group``. Raises: EINVAL, EPERM."""
        giver, taker = source.mount, target.mount
        self._require_may_change_propagation(giver)
        self._require_may_change_propagation(taker)
        if (
            not source.is_mount_root
            or not target.is_mount_root
            or giver.superblock is not taker.superblock
            or not taker.root.is_descendant_of(giver.root)
            or giver.has_locked_children(taker.root)
            or taker.is_shared
            or taker.is_slave
            or not (giver.is_shared or giver.is_slave)
        ):
            raise oserror(errno.EINVAL)
        if giver.master is not None:
            taker.join_slaves(giver.master, behind=giver)
        if giver.is_shared:
            taker.unbindable = False
            taker.join_group(giver)
        assert taker.namespace is not None
        taker.namespace.touch()

    def mount_setattr(
        self, dirfd: int, path: Path, flags: int, attr: MountAttributes | None
    ) -> None:
        """mount_setattr(2): for one mount or (AT_RECURSIVE) a whole tree, all or nothing. None is a
        structure of no size.

        Idmapped mounts are not known here: MOUNT_ATTR_IDMAP is EINVAL, as on a filesystem that
        cannot have them.

        Raises: EINVAL (flags, no size), EPERM, EINVAL (attributes), as ``Walk``; EINVAL (no mount's
        root; another namespace's), EPERM (a locked flag), EBUSY (open for writing).
        """
        known = abi.AT_EMPTY_PATH | abi.AT_RECURSIVE | abi.AT_SYMLINK_NOFOLLOW | abi.AT_NO_AUTOMOUNT
        with self.lock:
            if flags & ~known or attr is None:
                raise oserror(errno.EINVAL)
            change = self._change_of(attr)
            if change is None:
                return
            with self._lookup(dirfd, path, _walk_flags(flags)) as found:
                self._set_attributes(found, change, bool(flags & abi.AT_RECURSIVE))

    def _change_of(self, attr: MountAttributes) -> _Change | None:
        """Linux: ``wants_mount_setattr``. None if nothing is asked. Raises: EPERM, EINVAL."""
        self._require_may_mount()
        raised, cleared, kind, _ = attr
        if not raised and not cleared and not kind:
            return None
        known = _FSMOUNT_ATTRIBUTES
        if kind & ~PROPAGATION or kind & (kind - 1) or (raised | cleared) & ~known:
            raise oserror(errno.EINVAL)
        clear, add = _flags_of(cleared), _flags_of(raised)
        atime = raised & abi.MOUNT_ATTR__ATIME
        if cleared & abi.MOUNT_ATTR__ATIME:
            if cleared & abi.MOUNT_ATTR__ATIME != abi.MOUNT_ATTR__ATIME or atime not in _ATIME:
                raise oserror(errno.EINVAL)
            clear |= abi.MS_RELATIME | abi.MS_NOATIME
            add |= _ATIME[atime]
        elif atime:
            raise oserror(errno.EINVAL)
        return _Change(clear, add, kind)

    def _set_attributes(self, where: VirtualDentry, change: _Change, recursive: bool) -> None:
        """Linux: ``do_mount_setattr``."""
        top = where.mount
        if not where.is_mount_root:
            raise oserror(errno.EINVAL)
        namespace = top.namespace
        if namespace is None or not (
            namespace is self.namespace or (namespace.anonymous and namespace.root is top)
        ):
            raise oserror(errno.EINVAL)
        mounts = list(top.tree()) if recursive else [top]
        for mount in mounts:
            new = mount.flags & ~change.clear | change.set
            mount.require_changeable(new)
            if change.set & ~mount.flags & abi.MS_RDONLY and mount.writers:
                raise oserror(errno.EBUSY)
        for mount in mounts:
            mount.flags = mount.flags & ~change.clear | change.set
            if change.propagation:
                change_type(mount, change.propagation)
        namespace.touch()


def _flags_of(attributes: int) -> int:
    """Linux: ``attr_flags_to_mnt_flags``."""
    return sum(flag for bit, flag in _ATTRIBUTES.items() if attributes & bit)


def _walk_flags(flags: int) -> int:
    walk = 0 if flags & abi.AT_SYMLINK_NOFOLLOW else FOLLOW
    return walk | EMPTY if flags & abi.AT_EMPTY_PATH else walk


def _move_flags(flags: int, symlinks: int, empty: int) -> int:
    return (FOLLOW if flags & symlinks else 0) | (EMPTY if flags & empty else 0)
