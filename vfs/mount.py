"""Mounts: dentry trees grafted onto each other, and the place a walk stands. Linux: fs/namespace.c.

Who holds a reference on what: a mount holds its superblock and its root dentry; while attached it
holds its mount point's dentry and its parent mount, and the namespace holds one on it (given by
``attach``, taken back by ``detach``). Whoever stands on a mount (a VirtualDentry, an open file)
holds the mount and the dentry, and gives the dentry back first.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from vfs import abi
from vfs.errors import InvariantViolation, oserror
from vfs.refs import RefCounted

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.namespace import MountNamespace
    from vfs.superblock import Superblock

# Per-mount flags, with mount(2)'s values (Linux keeps them as MNT_*).
MOUNT_FLAGS = (
    abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC | abi.MS_NOATIME
    | abi.MS_NODIRATIME | abi.MS_RELATIME | abi.MS_NOSYMFOLLOW
)  # fmt: skip
ATIME_FLAGS = abi.MS_NOATIME | abi.MS_NODIRATIME | abi.MS_RELATIME


class VirtualDentry:
    """Linux: ``struct path``. A dentry seen through a mount; where a walk stands.

    The constructor borrows; ``get`` takes both references and ``put`` (or leaving ``with``) gives
    them back, dentry first.
    """

    __slots__ = ("dentry", "mount")

    def __init__(self, mount: Mount, dentry: Dentry) -> None:
        self.mount = mount
        self.dentry = dentry

    @property
    def inode(self) -> Inode:
        """The inode of a positive dentry. Raises: ENOENT for a negative one."""
        inode = self.dentry.inode
        if inode is None:
            raise oserror(errno.ENOENT)
        return inode

    def get(self) -> Self:
        """Take references on both (the dentry may be unused, on the LRU)."""
        self.mount.get()
        self.dentry.superblock.vfs.dcache.hold(self.dentry)
        return self

    def put(self) -> None:
        """Give both back. The object must not be used afterwards."""
        self.dentry.put()
        self.mount.put()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.put()

    def same(self, other: VirtualDentry) -> bool:
        """Linux: ``path_equal``."""
        return self.mount is other.mount and self.dentry is other.dentry

    def __repr__(self) -> str:
        return f"VirtualDentry({self.mount.id}, {self.dentry.name!r})"


class Mount(RefCounted):
    """Linux: ``struct mount``. ``root`` is the dentry it shows at its mount point.

    ``children`` maps mount point dentries *of this mount* to the mount on top of them. ``writers``
    counts descriptions open for writing (a remount read-only is EBUSY while there are any).
    ``expiring`` is MNT_EXPIRE's mark, which any use takes off (Linux: ``mnt_expiry_mark``).
    """

    __slots__ = (
        "children", "expiring", "flags", "id", "mountpoint", "namespace", "parent", "root",
        "source", "superblock", "writers",
    )  # fmt: skip

    def __init__(
        self, superblock: Superblock, source: bytes, flags: int = 0, root: Dentry | None = None
    ) -> None:
        """Takes its own references on ``superblock`` and ``root`` (default: the superblock's)."""
        vfs = superblock.vfs
        super().__init__(vfs.ledger)
        self.id = vfs.allocate_mount_id()
        self.superblock = superblock.get()
        shown = superblock.root if root is None else root
        assert shown is not None
        self.root: Dentry = vfs.dcache.hold(shown)
        self.source = source
        self.flags = flags & MOUNT_FLAGS
        self.parent: Mount = self
        self.mountpoint: Dentry | None = None
        self.children: dict[Dentry, Mount] = {}
        self.namespace: MountNamespace | None = None
        self.writers = 0
        self.expiring = False

    def put(self) -> None:
        """Linux: ``mntput``: whoever leaves has used the mount."""
        if self.expiring:
            self.expiring = False
        super().put()

    def put_no_expire(self) -> None:
        """Linux: ``mntput_no_expire``."""
        super().put()

    @property
    def read_only(self) -> bool:
        """Linux: ``__mnt_is_readonly``: the mount or its superblock."""
        return bool((self.flags | self.superblock.flags) & abi.MS_RDONLY)

    def want_write(self) -> None:
        """Linux: ``mnt_want_write``. Raises: EROFS."""
        if (self.flags | self.superblock.flags) & abi.MS_RDONLY:
            raise oserror(errno.EROFS)

    @property
    def is_attached(self) -> bool:
        return self.parent is not self

    def attach(self, parent: Mount, mountpoint: Dentry, namespace: MountNamespace | None) -> None:
        """Linux: ``mnt_set_mountpoint`` + ``commit_tree`` for one mount.

        Takes references on ``parent`` and ``mountpoint``; the caller's reference on this mount
        becomes the tree's.
        """
        if mountpoint in parent.children:
            raise InvariantViolation(f"{mountpoint!r} of mount {parent.id} is covered already")
        self.parent = parent.get()
        self.mountpoint = self.superblock.vfs.dcache.hold(mountpoint)
        mountpoint.mounted += 1
        parent.children[mountpoint] = self
        self.namespace = namespace
        if namespace is not None:
            namespace.add(self)

    def detach(self) -> None:
        """Linux: ``umount_mnt``: leave parent and namespace; the tree's reference is the caller's.

        The root mount of a namespace has no parent and leaves the namespace only.
        """
        if self.namespace is not None:
            self.namespace.remove(self)
            self.namespace = None
        mountpoint = self.mountpoint
        if mountpoint is None:
            return
        parent, self.parent = self.parent, self
        self.mountpoint = None
        del parent.children[mountpoint]
        mountpoint.mounted -= 1
        mountpoint.put()
        parent.put()

    def tree(self) -> Iterator[Mount]:
        """This mount and all below, parents first, siblings in the order they were attached."""
        stack = [self]
        while stack:
            mount = stack.pop()
            yield mount
            stack.extend(reversed(mount.children.values()))

    def clone(self, root: Dentry | None = None) -> Mount:
        """Linux: ``clone_mnt``: the same superblock, flags and source shown from ``root``.

        The caller receives the reference; the clone is attached nowhere.
        """
        return Mount(self.superblock, self.source, self.flags, root or self.root)

    def copy_tree(self, root: Dentry) -> Mount:
        """Linux: ``copy_tree``: clone this mount from ``root`` and every mount below that point."""
        top = self.clone(root)
        copies = {self: top}
        for mount in self.tree():
            if mount is self or mount.parent not in copies:
                continue
            assert mount.mountpoint is not None
            if mount.parent is self and not mount.mountpoint.is_descendant_of(root):
                continue
            copies[mount] = copy = mount.clone()
            copy.attach(copies[mount.parent], mount.mountpoint, None)
        return top

    def dissolve(self) -> None:
        """Linux: ``umount_tree``: detach this mount and everything below, dropping the tree's refs.

        Mounts that somebody still stands on live on, alone, until they are left.
        """
        for mount in reversed(list(self.tree())):
            mount.detach()
            mount.put()

    def release(self) -> None:
        if self.children or self.mountpoint is not None:
            raise InvariantViolation(f"{self!r} dies while attached")
        super().release()
        # Unattached, a mount is its own parent: a cycle that would wait for the collector.
        del self.parent
        self.root.put()
        self.superblock.put()

    def __repr__(self) -> str:
        return f"Mount({self.id} {self.superblock.type.name} root={self.root.name!r})"
