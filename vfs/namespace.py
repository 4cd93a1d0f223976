"""Mount namespaces: which tree of mounts a task sees. Linux: mnt_namespace."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs.errors import InvariantViolation, oserror
from vfs.mount_tree import copy_tree, lock_tree, unmount_tree
from vfs.refs import RefCounted
from vfs.wait import WaitQueue

if TYPE_CHECKING:
    from vfs.mount import Mount
    from vfs.user_namespace import UserNamespace
    from vfs.virtual_filesystem import VirtualFilesystem


class MountNamespace(RefCounted):
    """Linux: ``struct mnt_namespace``. Holds a reference on every mount in it, through the tree.

    ``mounts`` are its mounts by id, in the order in which they joined. ``user_ns`` is the user
    namespace in which one needs CAP_SYS_ADMIN to change it. An ``anonymous`` one holds a detached
    tree, which was copied from the namespace with id ``origin`` (0: from none). ``event`` counts
    the changes of its table; ``poll_queue`` wakes at each.
    """

    __slots__ = (
        "anonymous", "event", "id", "inum", "mounts", "origin", "poll_queue", "root", "user_ns",
        "vfs",
    )  # fmt: skip

    def __init__(
        self,
        vfs: VirtualFilesystem,
        root: Mount,
        user_ns: UserNamespace,
        anonymous: bool = False,
        origin: int = 0,
    ) -> None:
        """Takes over the caller's reference on ``root``, and adds the mounts below it."""
        super().__init__(vfs.ledger)
        self.vfs = vfs
        self.id = vfs.allocate_namespace_id()
        self.inum = vfs.allocate_namespace_inum()
        self.root = root
        self.user_ns = user_ns
        self.anonymous = anonymous
        self.origin = origin
        self.mounts: dict[int, Mount] = {}
        self.event = 0
        self.poll_queue = WaitQueue()
        for mount in root.tree():
            self.add(mount)
        if not anonymous:
            vfs.namespaces.append(self)

    def add(self, mount: Mount) -> None:
        """``mount`` joins; whether there is room was asked before (``require_room``)."""
        mount.namespace = self
        self.mounts[mount.id] = mount

    def remove(self, mount: Mount) -> None:
        mount.namespace = None
        del self.mounts[mount.id]

    def touch(self) -> None:
        """Linux: ``touch_mnt_namespace``: who polls the table is told that it changed."""
        self.event += 1
        self.poll_queue.wake_all()

    def require_room(self, count: int) -> None:
        """Linux: ``count_mounts``. Raises: ENOSPC if ``count`` more mounts pass fs.mount-max."""
        if len(self.mounts) + count > self.vfs.mount_max:
            raise oserror(errno.ENOSPC)

    def clone(self, user_ns: UserNamespace) -> tuple[MountNamespace, dict[Mount, Mount]]:
        """Linux: ``copy_mnt_ns``: a copy of the whole tree, and which mount became which.

        For another user namespace the copies are slaves, and locked. The caller receives one
        reference on the namespace.
        """
        foreign = user_ns is not self.user_ns
        root = self.root
        top = copy_tree(root, root.root, slave=foreign, unbindable=True, namespace_files=False)
        if foreign:
            lock_tree(top)
        namespace = MountNamespace(self.vfs, top, user_ns)
        pairs: dict[Mount, Mount] = {}
        stack = [(root, top)]
        while stack:
            mount, copy = stack.pop()
            pairs[mount] = copy
            for mountpoint, child in copy.children.items():
                stack.append((mount.children[mountpoint], child))
        return namespace, pairs

    def release(self) -> None:
        """The last task left: the tree comes apart."""
        if self.mounts:
            unmount_tree(self.root, connected=self.anonymous)
        if not self.anonymous:
            self.vfs.namespaces.remove(self)
        super().release()

    def check(self) -> None:
        """Raises InvariantViolation on the first broken rule of the mount tree."""
        seen = list(self.root.tree())
        if {mount.id for mount in seen} != set(self.mounts):
            raise InvariantViolation(f"namespace {self.id}: its tree and its list differ")
        for mount in seen:
            if mount.namespace is not self or mount.dying:
                raise InvariantViolation(f"{mount!r} is not of the namespace in whose tree it is")
            if mount.count < 1:
                raise InvariantViolation(f"{mount!r} has fewer references than holders")
            if (mount is self.root) != (mount.parent is mount):
                raise InvariantViolation(f"{mount!r}: only the namespace's root has no parent")
            for mountpoint, child in mount.children.items():
                if child.parent is not mount or child.mountpoint is not mountpoint:
                    raise InvariantViolation(f"{child!r} is not where {mount!r} has it")
                if child not in self.vfs.mountpoints.get(mountpoint, ()):
                    raise InvariantViolation(f"{mountpoint!r} does not know that it is covered")
            _check_graph(mount)


def _check_graph(mount: Mount) -> None:
    """The rules of peer groups and slave lists around ``mount``."""
    if mount.next_peer.previous_peer is not mount or mount.previous_peer.next_peer is not mount:
        raise InvariantViolation(f"{mount!r}: the ring of its peer group is broken")
    for peer in mount.next_peer, mount.previous_peer:
        if peer is not mount and (not mount.is_peer_of(peer) or peer.master is not mount.master):
            raise InvariantViolation(f"{mount!r} and its peer {peer!r} differ in group or master")
    if mount.unbindable and mount.is_shared:
        raise InvariantViolation(f"{mount!r} is shared and unbindable")
    if mount.first_slave is not None and not mount.is_shared:
        raise InvariantViolation(f"{mount!r} has slaves and is not shared")
    previous = None
    for slave in mount.slaves():
        if slave.master is not mount or slave.previous_slave is not previous:
            raise InvariantViolation(f"{slave!r} is not where the list of {mount!r} has it")
        if slave.namespace is None:
            raise InvariantViolation(f"{slave!r} was unmounted and still receives")
        previous = slave
    master = mount.master
    if master is not None and all(slave is not mount for slave in master.slaves()):
        raise InvariantViolation(f"{mount!r} is no slave of its master {master!r}")
