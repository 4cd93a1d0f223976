"""Mount namespaces: which tree of mounts a task sees. Linux: mnt_namespace."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs.errors import InvariantViolation, oserror
from vfs.refs import RefCounted

if TYPE_CHECKING:
    from vfs.mount import Mount
    from vfs.virtual_filesystem import VirtualFilesystem


class MountNamespace(RefCounted):
    """Linux: ``struct mnt_namespace``. Holds a reference on every mount in it, through the tree.

    ``mounts`` keeps the order in which mounts joined, by id.
    """

    __slots__ = ("id", "mounts", "root", "vfs")

    def __init__(self, vfs: VirtualFilesystem, root: Mount) -> None:
        """Takes over the caller's reference on ``root``, and adds the mounts below it."""
        super().__init__(vfs.ledger)
        self.vfs = vfs
        self.id = vfs.allocate_namespace_id()
        self.root = root
        self.mounts: dict[int, Mount] = {}
        for mount in root.tree():
            mount.namespace = self
            self.add(mount)
        vfs.namespaces.append(self)

    def add(self, mount: Mount) -> None:
        """``mount`` joins; whether there is room was asked before (``require_room``)."""
        self.mounts[mount.id] = mount

    def remove(self, mount: Mount) -> None:
        del self.mounts[mount.id]

    def require_room(self, count: int) -> None:
        """Linux: ``count_mounts``. Raises: ENOSPC if ``count`` more mounts pass fs.mount-max."""
        if len(self.mounts) + count > self.vfs.mount_max:
            raise oserror(errno.ENOSPC)

    def clone(self) -> tuple[MountNamespace, dict[Mount, Mount]]:
        """Linux: ``copy_mnt_ns``: a copy of the whole tree, and which mount became which.

        The caller receives one reference on the namespace.
        """
        top = self.root.copy_tree(self.root.root)
        pairs = dict(zip(self.root.tree(), top.tree(), strict=True))
        return MountNamespace(self.vfs, top), pairs

    def release(self) -> None:
        """The last task left: the tree comes apart."""
        self.root.dissolve()
        self.vfs.namespaces.remove(self)
        super().release()

    def check(self) -> None:
        """Raises InvariantViolation on the first broken rule of the mount tree."""
        seen = list(self.root.tree())
        if {mount.id for mount in seen} != set(self.mounts):
            raise InvariantViolation(f"namespace {self.id}: its tree and its list differ")
        for mount in seen:
            if mount.namespace is not self:
                raise InvariantViolation(f"{mount!r} is in the tree of another namespace")
            if mount.count < 1 + len(mount.children):
                raise InvariantViolation(f"{mount!r} has fewer references than holders")
            if (mount is self.root) != (mount.parent is mount):
                raise InvariantViolation(f"{mount!r}: only the namespace's root has no parent")
            for mountpoint, child in mount.children.items():
                if child.parent is not mount or child.mountpoint is not mountpoint:
                    raise InvariantViolation(f"{child!r} is not where {mount!r} has it")
                if not mountpoint.mounted:
                    raise InvariantViolation(f"{mountpoint!r} does not know that it is covered")
                if not mountpoint.is_descendant_of(mount.root):
                    raise InvariantViolation(f"{mountpoint!r} lies outside of {mount!r}")
