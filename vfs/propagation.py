"""How mounts and unmounts spread over peer groups and from masters to slaves. Linux: fs/pnode.c.

An event at a mount point of one mount happens at the same dentry of every mount that *receives*
from it: its peers, their slaves, the peers of those, and so on down. Documentation: sharedsubtree
and propagate_umount in the kernel's Documentation/filesystems.

Functions here change the graph and the tree of mounts; who may ask for it is ``vfs.syscalls``'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from vfs import abi

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.mount import Mount, VirtualDentry
    from vfs.namespace import MountNamespace


# Who receives


def _next_receiver(mount: Mount, origin: Mount, below: bool = True) -> Mount | None:
    """The mount after ``mount`` in the depth-first order of those that receive from ``origin``.

    ``below`` False leaves out the slaves of ``mount``. Linux: ``propagation_next``.
    """
    if below and mount.namespace is not None and mount.first_slave is not None:
        return mount.first_slave
    while True:
        if mount.master is origin.master:
            following = mount.next_peer
            return None if following is origin else following
        if mount.next_slave is not None:
            return mount.next_slave
        assert mount.master is not None
        mount = mount.master


def receivers(origin: Mount) -> Iterator[Mount]:
    """Every mount to which an event on ``origin`` spreads; masters come before their slaves."""
    mount = _next_receiver(origin, origin)
    while mount is not None:
        yield mount
        mount = _next_receiver(mount, origin)


def _receiving_groups(origin: Mount) -> Iterator[list[Mount]]:
    """The same by peer group: first the other peers of ``origin``, then depth first the groups of
    slaves (one that is not shared makes a group of its own). Linux: ``next_group``.
    """
    yield [peer for peer in origin.peers() if peer is not origin]
    stack = [_slave_groups(origin.peers())]
    while stack:
        group = next(stack[-1], None)
        if group is None:
            stack.pop()
        else:
            yield group
            stack.append(_slave_groups(iter(group)))


def _slave_groups(masters: Iterator[Mount]) -> Iterator[list[Mount]]:
    for master in masters:
        group: list[Mount] = []
        for slave in master.slaves():
            if group and not slave.is_peer_of(group[0]):
                yield group
                group = []
            group.append(slave)
        if group:
            yield group


def would_overmount(origin: Mount, mount: Mount, mountpoint: Dentry) -> bool:
    """Linux: ``propagation_would_overmount``: whether what is mounted on ``mountpoint`` of
    ``origin`` would come to lie on ``mount`` too, because that shows ``mountpoint`` as its root.
    """
    if not origin.is_shared or mount.root is not mountpoint:
        return False
    node: Mount | None = mount
    while node is not None:
        if node.is_peer_of(origin):
            return True
        node = node.master
    return False


def is_reachable(mount: Mount, dentry: Dentry, root: VirtualDentry) -> bool:
    """Linux: ``is_path_reachable``: whether ``root`` is at or above (mount, dentry)."""
    while mount is not root.mount and mount.mountpoint is not None:
        dentry = mount.mountpoint
        mount = mount.parent
    return mount is root.mount and dentry.is_descendant_of(root.dentry)


# Changing the type of a mount


def change_type(mount: Mount, kind: int) -> None:
    """Linux: ``change_mnt_propagation``. ``kind`` is MS_SHARED, _SLAVE, _PRIVATE or _UNBINDABLE."""
    if kind == abi.MS_SHARED:
        make_shared(mount)
        return
    master = mount.master
    if mount.is_shared:
        if mount.next_peer is not mount:
            master = mount.next_peer
        mount.leave_group()
        _hand_over_slaves(mount, master)
    mount.leave_slaves()
    if kind != abi.MS_SLAVE:
        mount.unbindable = kind == abi.MS_UNBINDABLE
    elif master is not None:
        mount.join_slaves(master)


def make_shared(mount: Mount) -> bool:
    """The only member of a new peer group, if it is in none. Returns whether it was in none."""
    mount.unbindable = False
    if mount.group_id:
        return False
    mount.group_id = mount.superblock.vfs.peer_group_ids.allocate()
    return True


def _hand_over_slaves(mount: Mount, master: Mount | None) -> None:
    """Linux: ``transfer_propagation``: slaves of ``mount`` become the first of ``master``."""
    slaves = list(mount.slaves())
    for slave in reversed(slaves):
        slave.leave_slaves()
        if master is not None:
            slave.join_slaves(master)


def make_all_private(dying: list[Mount]) -> None:
    """Linux: ``bulk_make_private``: ``dying``, all of them marked so, leave the graph.

    Their slaves go to the next peer that stays, or else to the next master up that does; found
    once for each, because a large group often dies as a whole.
    """
    heirs: dict[Mount, Mount | None] = {}
    for start in dying:
        trail: list[Mount] = []
        mount: Mount | None = start
        while mount is not None and mount.dying and mount not in heirs:
            trail.append(mount)
            heirs[mount] = None
            following = mount.master if mount.next_peer is mount else mount.next_peer
            mount.leave_group()
            mount.leave_slaves()
            mount = following
        heir = heirs[mount] if mount is not None and mount.dying else mount
        for mount in trail:
            heirs[mount] = heir
    for mount in dying:
        if mount.first_slave is not None:
            _hand_over_slaves(mount, heirs[mount])


# Mounting


def make_copies(
    origin: Mount,
    mountpoint: Dentry,
    source: Mount,
    copy: Callable[[Mount, bool, bool], Mount],
    count: Callable[[MountNamespace, Mount], None],
    newly_shared: Collection[Mount],
    made: list[tuple[Mount, Mount]],
) -> None:
    """Linux: ``propagate_mnt``: what must be mounted elsewhere when the tree ``source``, made
    shared, is mounted on ``mountpoint`` of ``origin``. ``made`` receives (copy, the mount it goes
    on), nothing of it attached yet; the copies are the caller's, also those made before an error.

    ``copy(tree, slave, shared)`` makes one (``slave``: of its model, not its peer) and ``count``
    raises when a namespace has no room for it. ``newly_shared`` are those of ``source`` that this
    event makes shared: a tree that moves to its own master receives as it was.
    """
    # By group: the newest copy there, of which the copies for slaves of the group become slaves.
    newest = {origin.group_id: source}
    for group in list(_receiving_groups(origin)):
        model = newest.get(group[0].group_id) if group else None
        for mount in group:
            namespace = mount.namespace
            if namespace is None or namespace.anonymous:
                continue
            if not mountpoint.is_descendant_of(mount.root):
                continue
            shared = mount.is_shared and mount not in newly_shared
            if model is None:
                model = copy(_newest_above(mount, newest), True, shared)
            else:
                model = copy(model, False, True)
            made.append((model, mount))
            count(namespace, model)
            if shared:
                newest[mount.group_id] = model


def _newest_above(mount: Mount, newest: dict[int, Mount]) -> Mount:
    """The newest copy in the closest group above ``mount`` that has one. Linux: ``find_master``."""
    master = mount.master
    while True:
        assert master is not None
        found = newest.get(master.group_id)
        if found is not None:
            return found
        master = master.master


# Unmounting


def is_busy(mount: Mount, references: int) -> bool:
    """Linux: ``propagate_mount_busy``: whether ``mount`` has children or more than ``references``
    users, or one of the mounts that would go with it is in use.

    A copy that has something mounted below it stays anyway, so it may be in use; what covers a
    copy as a whole does not keep it.
    """
    if mount.children or mount.count > references:
        return True
    if not mount.is_attached:
        return False
    assert mount.mountpoint is not None
    for parent in receivers(mount.parent):
        child = parent.children.get(mount.mountpoint)
        if child is None:
            continue
        if child.children and (len(child.children) > 1 or child.overmount is None):
            continue
        if child.count > 1:
            return True
    return False


def unlock(mount: Mount) -> None:
    """Linux: ``propagate_mount_unlock``: who may unmount ``mount`` lets its copies go as well."""
    if mount.mountpoint is None:
        return
    for parent in receivers(mount.parent):
        child = parent.children.get(mount.mountpoint)
        if child is not None:
            child.locked = False


class _Unmounting:
    """Linux: ``propagate_umount``. Which mounts go along when a set of mounts is unmounted.

    Candidates are what lies at the same places of the receivers. Those stay which have a child
    that stays and does not cover them whole; and those which are locked to a parent that stays,
    because taking them off would reveal what they cover.
    """

    def __init__(self) -> None:
        self.candidates: dict[Mount, None] = {}  # undecided; the Linux list, backwards
        self.possible: set[Mount] = set()  # candidates that nothing speaks against so far
        self.trimmed: set[Mount] = set()
        self.going: list[Mount] = []

    def gather(self, dying: list[Mount]) -> None:
        seen: set[Mount] = set()
        for mount in dying:
            mountpoint = mount.mountpoint
            if mount in seen or mountpoint is None:
                continue
            seen.add(mount)
            parent = mount.parent
            receiver = _next_receiver(parent, parent)
            while receiver is not None:
                child = receiver.children.get(mountpoint)
                if child is None:
                    receiver = _next_receiver(receiver, parent)
                elif child in seen:
                    # What receives from here was found when ``child`` was.
                    receiver = _after_subtree(receiver, parent)
                else:
                    seen.add(child)
                    self.candidates[child] = None
                    receiver = _next_receiver(receiver, parent)
        self.possible.update(self.candidates)

    def trim(self, mount: Mount) -> None:
        """Linux: ``trim_one``: ``mount`` and those above it may have to stay for its children."""
        if mount not in self.possible:
            del self.candidates[mount]
            return
        staying = [child for child in mount.children.values() if child not in self.possible]
        if staying:
            self._keep_ancestors(mount)
            if any(child is not mount.overmount for child in staying):
                self._drop(mount)
        elif not mount.locked and not mount.children:
            self._drop(mount)
            self._take(mount)

    def _keep_ancestors(self, mount: Mount) -> None:
        """Linux: ``trim_ancestors``: something on ``mount`` stays, so everything stays that it does
        not cover whole.
        """
        parent = mount.parent
        while parent in self.possible:
            if mount in self.trimmed:
                return
            self.trimmed.add(mount)
            if mount is not parent.overmount:
                self.possible.discard(parent)
            mount, parent = parent, parent.parent

    def decide_locked(self, mount: Mount) -> None:
        """Linux: ``handle_locked``: a chain of candidates goes from the topmost that is not locked
        on down, or from its top if the parent goes.
        """
        if mount not in self.possible:
            del self.candidates[mount]
            return
        end = mount
        node = mount
        while node in self.possible:
            self._drop(node)
            if not node.locked:
                end = node.parent
            node = node.parent
        if node.dying:
            end = node
        while mount is not end:
            self._take(mount)
            mount = mount.parent

    def _drop(self, mount: Mount) -> None:
        self.possible.discard(mount)
        self.candidates.pop(mount, None)

    def _take(self, mount: Mount) -> None:
        mount.dying = True
        mount.hide()
        self.going.append(mount)


def _after_subtree(mount: Mount, origin: Mount) -> Mount | None:
    """The next receiver that receives nothing from ``mount``."""
    following = _next_receiver(mount, origin, below=False)
    while following is not None and following.is_peer_of(mount):
        following = _next_receiver(following, origin, below=False)
    return following


def unmount_elsewhere(dying: list[Mount]) -> list[Mount]:
    """Linux: ``propagate_umount``: the mounts that go with ``dying``, which are marked and hidden
    already. They are marked and hidden too; what covers one of them and stays slides down to
    where the lowest of its stack was.
    """
    plan = _Unmounting()
    plan.gather(dying)
    for mount in reversed(list(plan.candidates)):
        plan.trim(mount)
    while plan.candidates:
        plan.decide_locked(next(reversed(plan.candidates)))
    for mount in plan.going:
        over = mount.overmount
        if over is not None:
            place = mount
            while place.parent.dying:
                place = place.parent
            assert place.mountpoint is not None
            over.move(place.parent, place.mountpoint)
    return plan.going
