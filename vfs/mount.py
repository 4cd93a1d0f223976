"""Mounts: dentry trees grafted onto each other, and the place a walk stands. Linux: struct mount.

Who holds a reference on what: a mount holds its superblock and its root dentry; while attached it
holds its mount point's dentry, and whatever tree it is in holds one reference on it. A child holds
none on its parent. Whoever stands on a mount (a VirtualDentry, an open file) holds the mount and
the dentry, and gives the dentry back first.

What trees of mounts do is in ``vfs.mount_tree``, what they do to each other in ``vfs.propagation``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
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
# What a less privileged namespace may not clear once it is set (Linux: MNT_LOCK_*). MS_RELATIME
# among ``locked_flags`` stands for "the atime flags may not change".
LOCKABLE_FLAGS = abi.MS_RDONLY | abi.MS_NODEV | abi.MS_NOSUID | abi.MS_NOEXEC
LOCKED_ATIME = abi.MS_RELATIME


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

    @property
    def is_mount_root(self) -> bool:
        """Linux: ``path_mounted``."""
        return self.dentry is self.mount.root

    def get(self) -> Self:
        """Take references on both (the dentry may be unused, on the LRU)."""
        self.mount.get()
        dentry = self.dentry
        if dentry.count:
            dentry.get()
        else:
            dentry.superblock.vfs.dcache.hold(dentry)
        return self

    def put(self) -> None:
        """Give both back. The object must not be used afterwards."""
        self.dentry.put()
        self.mount.put()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dentry.put()
        self.mount.put()

    def same(self, other: VirtualDentry) -> bool:
        """Linux: ``path_equal``."""
        return self.mount is other.mount and self.dentry is other.dentry

    def __repr__(self) -> str:
        return f"VirtualDentry({self.mount.id}, {self.dentry.name!r})"


class Mount(RefCounted):
    """Linux: ``struct mount``. ``root`` is the dentry it shows at its mount point.

    ``id`` is mountinfo's, ``unique_id`` statmount's; neither is used again. ``namespace`` is None
    for a mount that is in no tree that anybody sees: one that is being made, or was unmounted.
    ``children`` maps mount point dentries *of this mount* to the mount on top of them. ``writers``
    counts descriptions open for writing (a remount read-only is EBUSY while there are any).
    ``expiring`` is MNT_EXPIRE's mark, which any use takes off. ``locked`` is MNT_LOCKED: it may not
    be taken off what it covers. ``dying`` is MNT_UMOUNT: it was unmounted.

    The peer group is a ring through ``next_peer`` and ``previous_peer``, named by ``group_id``
    (0: none); the slaves of a mount are a list through ``first_slave`` and ``next_slave``. Peers
    that are slaves have the same ``master`` and stand side by side in its list. Lists, because
    their order is the order in which copies are made, and that is the order of mountinfo.
    """

    __slots__ = (
        "children", "dying", "expiring", "first_slave", "flags", "group_id", "id", "locked",
        "locked_flags", "master", "mountpoint", "namespace", "next_peer", "next_slave", "parent",
        "pins", "previous_peer", "previous_slave", "root", "source", "superblock", "unbindable",
        "writers",
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
        self.locked_flags = 0
        self.locked = False
        self.dying = False
        self.parent: Mount = self
        self.mountpoint: Dentry | None = None
        self.children: dict[Dentry, Mount] = {}
        self.namespace: MountNamespace | None = None
        self.group_id = 0
        self.next_peer: Mount = self
        self.previous_peer: Mount = self
        self.master: Mount | None = None
        self.first_slave: Mount | None = None
        self.next_slave: Mount | None = None
        self.previous_slave: Mount | None = None
        self.unbindable = False
        self.writers = 0
        self.expiring = False
        self.pins: list[Callable[[], None]] = []
        superblock.mounts[self] = None

    @property
    def unique_id(self) -> int:
        """Linux: ``mnt_id_unique``, which starts where no old id can be."""
        return self.id + (1 << 31)

    def put(self) -> None:
        """Linux: ``mntput``: whoever leaves has used the mount."""
        if self.expiring:
            self.expiring = False
        RefCounted.put(self)

    def put_no_expire(self) -> None:
        """Linux: ``mntput_no_expire``."""
        super().put()

    def pin(self, kill: Callable[[], None]) -> None:
        """Linux: ``pin_insert``: use the mount without keeping it busy. When it dies, ``kill`` is
        called once, under the VFS lock, and gives back all dentries held because of the pin.
        """
        self.pins.append(kill)

    def unpin(self, kill: Callable[[], None]) -> None:
        """Linux: ``pin_remove``: the pin ends before the mount does."""
        self.pins.remove(kill)

    # Flags

    @property
    def read_only(self) -> bool:
        """Linux: ``__mnt_is_readonly``: the mount or its superblock."""
        return bool((self.flags | self.superblock.flags) & abi.MS_RDONLY)

    def want_write(self) -> None:
        """Linux: ``mnt_want_write``. Raises: EROFS."""
        if (self.flags | self.superblock.flags) & abi.MS_RDONLY:
            raise oserror(errno.EROFS)

    def require_changeable(self, flags: int) -> None:
        """Linux: ``can_change_locked_flags``: whether ``flags`` may replace the mount's.

        Raises: EPERM if a locked one would be cleared.
        """
        locked = self.locked_flags
        if locked & LOCKABLE_FLAGS & ~flags or (
            locked & LOCKED_ATIME and (flags ^ self.flags) & ATIME_FLAGS
        ):
            raise oserror(errno.EPERM)

    def lock_flags(self) -> None:
        """A less privileged namespace may not undo what is set now."""
        self.locked_flags |= self.flags & LOCKABLE_FLAGS | LOCKED_ATIME

    # Trees

    @property
    def is_attached(self) -> bool:
        """Linux: ``mnt_has_parent``."""
        return self.parent is not self

    @property
    def overmount(self) -> Mount | None:
        """What is mounted on the root of this mount."""
        return self.children.get(self.root)

    def topmost_overmount(self) -> Mount:
        """The top of the stack of mounts that cover each other, from here up."""
        mount = self
        while (over := mount.children.get(mount.root)) is not None:
            mount = over
        return mount

    def set_mountpoint(self, parent: Mount, mountpoint: Dentry) -> None:
        """Linux: ``mnt_set_mountpoint``: it knows where it goes, but walks do not find it yet."""
        vfs = self.superblock.vfs
        self.parent = parent
        self.mountpoint = vfs.dcache.hold(mountpoint)
        mountpoint.mounted += 1
        vfs.mountpoints.setdefault(mountpoint, {})[self] = None

    def make_visible(self) -> None:
        """Linux: ``make_visible``: walks find it from now on."""
        parent, mountpoint = self.parent, self.mountpoint
        assert mountpoint is not None
        if mountpoint in parent.children:
            raise InvariantViolation(f"{mountpoint!r} of mount {parent.id} is covered already")
        parent.children[mountpoint] = self
        if parent.namespace is not None:
            self.superblock.vfs.notify_mount(parent, mountpoint)

    def attach(self, parent: Mount, mountpoint: Dentry) -> None:
        """Linux: ``attach_mnt``. The caller's reference on this mount becomes the tree's."""
        self.set_mountpoint(parent, mountpoint)
        self.make_visible()

    def hide(self) -> None:
        """Walks find it no more; it still knows where it was."""
        mountpoint = self.mountpoint
        if mountpoint is not None and self.parent.children.get(mountpoint) is self:
            del self.parent.children[mountpoint]
            if self.parent.namespace is not None:
                self.superblock.vfs.notify_mount(self.parent, mountpoint)

    def detach(self) -> None:
        """Linux: ``umount_mnt``: leave the parent; the tree's reference is the caller's."""
        self.hide()
        mountpoint = self.mountpoint
        if mountpoint is None:
            return
        self.parent = self
        self.mountpoint = None
        mountpoint.mounted -= 1
        mountpoints = self.superblock.vfs.mountpoints
        here = mountpoints[mountpoint]
        del here[self]
        if not here:
            del mountpoints[mountpoint]
        mountpoint.put()

    def move(self, parent: Mount, mountpoint: Dentry) -> None:
        """Linux: ``mnt_change_mountpoint``: the same mount at another place."""
        self.detach()
        self.attach(parent, mountpoint)

    def tree(self) -> Iterator[Mount]:
        """This mount and all below, parents first, siblings in the order they were attached.

        Linux: ``next_mnt``.
        """
        stack = [self]
        while stack:
            mount = stack.pop()
            yield mount
            if mount.children:
                stack.extend(reversed(mount.children.values()))

    def is_ancestor_of(self, mount: Mount) -> bool:
        """Linux: ``mount_is_ancestor``: whether it is ``mount`` or above it."""
        while mount is not self and mount.is_attached:
            mount = mount.parent
        return mount is self

    def children_below(self, dentry: Dentry) -> Iterator[Mount]:
        """The mounts directly on this one whose mount points lie at or below ``dentry``."""
        if dentry is self.root:
            yield from self.children.values()
            return
        for mountpoint, child in self.children.items():
            if mountpoint.is_descendant_of(dentry):
                yield child

    def has_locked_children(self, dentry: Dentry) -> bool:
        """Linux: ``has_locked_children``: whether something at or below ``dentry`` must stay
        covered.
        """
        return any(child.locked for child in self.children_below(dentry))

    # The propagation graph

    @property
    def is_shared(self) -> bool:
        """Linux: ``IS_MNT_SHARED``."""
        return self.group_id != 0

    @property
    def is_slave(self) -> bool:
        """Linux: ``IS_MNT_SLAVE``."""
        return self.master is not None

    def is_peer_of(self, other: Mount) -> bool:
        """Linux: ``peers``: same group; nobody is a peer of anybody without one."""
        return self.group_id != 0 and self.group_id == other.group_id

    def peers(self) -> Iterator[Mount]:
        """The peer group, from this mount on; only itself if it is not shared."""
        mount = self
        while True:
            yield mount
            mount = mount.next_peer
            if mount is self:
                return

    def slaves(self) -> Iterator[Mount]:
        """The mounts whose ``master`` this is."""
        slave = self.first_slave
        while slave is not None:
            yield slave
            slave = slave.next_slave

    def join_group(self, peer: Mount) -> None:
        """Become a member of ``peer``'s group, next to it in the ring."""
        self.group_id = peer.group_id
        self.previous_peer, self.next_peer = peer, peer.next_peer
        peer.next_peer.previous_peer = self
        peer.next_peer = self

    def leave_group(self) -> None:
        """Leave the ring; the last member gives the group's id back."""
        if self.next_peer is self:
            if self.group_id:
                self.superblock.vfs.peer_group_ids.free(self.group_id)
        else:
            self.previous_peer.next_peer = self.next_peer
            self.next_peer.previous_peer = self.previous_peer
            self.next_peer = self.previous_peer = self
        self.group_id = 0

    def join_slaves(self, master: Mount, behind: Mount | None = None) -> None:
        """Become a slave of ``master``, right ``behind`` another slave of it, or the first."""
        self.master = master
        self.previous_slave = behind
        if behind is None:
            self.next_slave, master.first_slave = master.first_slave, self
        else:
            self.next_slave, behind.next_slave = behind.next_slave, self
        if self.next_slave is not None:
            self.next_slave.previous_slave = self

    def leave_slaves(self) -> None:
        """Leave the master's list. ``master`` becomes None."""
        master = self.master
        if master is None:
            return
        if self.previous_slave is None:
            master.first_slave = self.next_slave
        else:
            self.previous_slave.next_slave = self.next_slave
        if self.next_slave is not None:
            self.next_slave.previous_slave = self.previous_slave
        self.master = self.next_slave = self.previous_slave = None

    def release(self) -> None:
        """Linux: ``cleanup_mnt``. What stayed stuck to an unmounted mount comes off with it."""
        if self.namespace is not None or self.mountpoint is not None:
            raise InvariantViolation(f"{self!r} dies while attached")
        if self.next_peer is not self or self.master or self.first_slave or self.group_id:
            raise InvariantViolation(f"{self!r} dies with peers, a master or slaves")
        pins, self.pins = self.pins, []
        for kill in pins:
            kill()
        stuck = list(self.children.values())
        for child in stuck:
            child.detach()
        super().release()
        # Unattached, a mount is its own parent and peer: cycles that would wait for the collector.
        del self.parent, self.next_peer, self.previous_peer
        vfs = self.superblock.vfs
        del self.superblock.mounts[self]
        self.root.put()
        self.superblock.put()
        # A queue, because a stack of mounts can be higher than Python's.
        queue = vfs.unstuck_mounts
        queue.extend(stuck)
        if len(queue) == len(stuck):
            while queue:
                queue[0].put()
                queue.popleft()

    def __repr__(self) -> str:
        return f"Mount({self.id} {self.superblock.type.name} root={self.root.name!r})"
