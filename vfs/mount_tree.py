"""What is done to trees of mounts as a whole: copy, attach, unmount, lock. Linux: fs/namespace.c.

Each operation checks first and changes then, so that a tree appears everywhere or nowhere. None of
them asks who the caller is.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING

from vfs import propagation
from vfs.errors import oserror
from vfs.mount import Mount
from vfs.nsfs import NamespaceInode
from vfs.user_namespace import UserNamespace

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.namespace import MountNamespace


def clone_mount(old: Mount, root: Dentry, *, slave: bool = False, shared: bool = False) -> Mount:
    """Linux: ``clone_mnt``: the same superblock, flags and source shown from ``root``.

    The clone is a peer of ``old`` if that is shared, and a slave of the same master; with ``slave``
    it is a slave of ``old`` if that is shared. ``shared`` puts it into a group if it has none. It
    is never unbindable. The caller receives the reference.
    """
    new = Mount(old.superblock, old.source, old.flags, root)
    new.locked_flags = old.locked_flags
    if old.is_shared and not slave:
        new.join_group(old)
    elif shared:
        propagation.make_shared(new)
    if slave and old.is_shared:
        new.join_slaves(old)
    elif old.master is not None:
        new.join_slaves(old.master, behind=old)
    return new


def is_mount_namespace_file(dentry: Dentry) -> bool:
    """Linux: ``is_mnt_ns_file``."""
    inode = dentry.inode
    return isinstance(inode, NamespaceInode) and not isinstance(inode.namespace, UserNamespace)


def copy_tree(
    old: Mount,
    root: Dentry,
    *,
    slave: bool = False,
    shared: bool = False,
    unbindable: bool = False,
    namespace_files: bool = True,
) -> Mount:
    """Linux: ``copy_tree``: clone ``old`` from ``root`` and every mount below that.

    Unbindable mounts are left out with what is below them, unless ``unbindable``; so are mounts of
    mount namespaces' files, unless ``namespace_files``. The caller receives a tree that is attached
    nowhere.

    Raises: EINVAL (``old`` itself may not be copied), EPERM (unbindable, but locked in its place).
    """
    if not unbindable and old.unbindable:
        raise oserror(errno.EINVAL)
    if not namespace_files and is_mount_namespace_file(root):
        raise oserror(errno.EINVAL)
    top = clone_mount(old, root, slave=slave, shared=shared)
    # Pairs of a mount whose clone is attached, and that clone; children in their order.
    stack = [(child, top) for child in reversed(list(old.children_below(root)))]
    while stack:
        mount, parent = stack.pop()
        if not unbindable and mount.unbindable:
            if mount.locked:
                unmount_tree(top, sync=True)
                raise oserror(errno.EPERM)
            continue
        if not namespace_files and is_mount_namespace_file(mount.root):
            continue
        assert mount.mountpoint is not None
        clone = clone_mount(mount, mount.root, slave=slave, shared=shared)
        clone.locked = mount.locked
        clone.attach(parent, mount.mountpoint)
        stack.extend((child, clone) for child in reversed(mount.children.values()))
    return top


def lock_tree(top: Mount) -> None:
    """Linux: ``lock_mnt_tree``: who is less privileged may neither weaken the flags of these mounts
    nor see what they cover.
    """
    for mount in top.tree():
        mount.lock_flags()
        if mount is not top:
            mount.locked = True


def contains_unbindable(top: Mount) -> bool:
    """Linux: ``tree_contains_unbindable``."""
    return any(mount.unbindable for mount in top.tree())


def attach_tree(source: Mount, parent: Mount, mountpoint: Dentry, user_ns: UserNamespace) -> None:
    """Linux: ``attach_recursive_mnt``: put the tree ``source`` on ``mountpoint`` of ``parent``, and
    copies of it wherever that spreads; all or nothing.

    ``source`` is new, and the caller's reference becomes the tree's; or it is attached in the same
    namespace, and moves; or it is the root of an anonymous namespace, and takes that one's
    reference along. What is mounted there already comes to lie on top. ``user_ns`` is the one of
    the caller's mount namespace: in those of others the copies are locked. A tree that is made
    shared has no unbindable mounts.

    Raises: ENOENT (what ``source`` shows was deleted), ENOSPC (fs.mount-max, in any namespace that
    receives a copy).
    """
    namespace = parent.namespace
    assert namespace is not None
    covering = source.topmost_overmount().root
    if not covering.hashed:
        raise oserror(errno.ENOENT)
    moving = source.is_attached
    joining: Counter[MountNamespace] = Counter()

    def count(receiver: MountNamespace, tree: Mount) -> None:
        joining[receiver] += sum(1 for _ in tree.tree())
        receiver.require_room(joining[receiver])

    def copy(model: Mount, slave: bool, shared: bool) -> Mount:
        return copy_tree(model, model.root, slave=slave, shared=shared, namespace_files=False)

    if not moving:
        count(namespace, source)
    copies: list[tuple[Mount, Mount]] = []
    if parent.is_shared:
        grouped = {mount for mount in source.tree() if propagation.make_shared(mount)}
        try:
            propagation.make_copies(parent, mountpoint, source, copy, count, grouped, copies)
        except BaseException:
            for made, _ in copies:
                unmount_tree(made, sync=True)
            for mount in grouped:
                mount.leave_group()
            raise
    if moving:
        source.detach()
    elif source.namespace is not None:
        emptied = source.namespace
        for mount in source.tree():
            emptied.remove(mount)
        emptied.put()
    for tree, place in [(source, parent), *copies]:
        _commit(tree, place, mountpoint, covering, user_ns)


def _commit(
    tree: Mount, place: Mount, mountpoint: Dentry, covering: Dentry, user_ns: UserNamespace
) -> None:
    """Make ``tree`` visible on ``mountpoint`` of ``place``, under what is mounted there.

    ``covering`` is the dentry on top of the tree, on which that comes to lie.
    """
    namespace = place.namespace
    assert namespace is not None
    if namespace.user_ns is not user_ns:
        lock_tree(tree)
    above = place.children.get(mountpoint)
    if above is not None:
        above.detach()
    tree.attach(place, mountpoint)
    if tree.namespace is None:
        for mount in tree.tree():
            namespace.add(mount)
    if above is not None:
        above.attach(tree.topmost_overmount(), covering)
    namespace.touch()


def unmount_tree(
    top: Mount, *, propagate: bool = False, sync: bool = False, connected: bool = False
) -> None:
    """Linux: ``umount_tree``: take this mount and everything below it off, and drop the tree's
    references.

    ``propagate`` takes off what lies at the same places of those that receive. Mounts in use live
    on, alone; unless ``sync``, those that are locked or all (``connected``) keep what is mounted on
    them until they die.
    """
    if propagate:
        propagation.unlock(top)
    dying = list(top.tree())
    for mount in dying:
        mount.dying = True
    for mount in dying:
        mount.hide()
    if propagate:
        dying += propagation.unmount_elsewhere(dying)
    propagation.make_all_private(dying)
    released = []
    for mount in dying:
        namespace = mount.namespace
        if namespace is not None:
            namespace.remove(mount)
            namespace.touch()
        stays = (
            not sync and mount.is_attached and mount.parent.dying and (connected or mount.locked)
        )
        if stays:
            mount.make_visible()
        else:
            mount.detach()
            released.append(mount)
    for mount in released:
        mount.put()


def detach_mounts(dentry: Dentry) -> None:
    """Linux: ``__detach_mounts``: ``dentry`` loses its name, so what is mounted on it, in any
    namespace, is unmounted lazily.
    """
    vfs = dentry.superblock.vfs
    while here := vfs.mountpoints.get(dentry):
        mount = next(iter(here))
        if mount.dying:
            mount.detach()
            mount.put()
        else:
            unmount_tree(mount, connected=True)
