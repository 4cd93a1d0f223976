"""Mounts: the tree of a namespace, peer groups, and what a mount would do elsewhere."""

from __future__ import annotations

import os
from typing import Any

from vfs import abi
from vfs.mount import Mount, VirtualDentry
from vfs.mountinfo import MountView, show_path
from vfs.namei import FOLLOW, filename_lookup
from vfs.propagation import receivers
from vfs.task import Task

_FLAGS = (
    (abi.MS_RDONLY, "ro"),
    (abi.MS_NOSUID, "nosuid"),
    (abi.MS_NODEV, "nodev"),
    (abi.MS_NOEXEC, "noexec"),
    (abi.MS_NOATIME, "noatime"),
    (abi.MS_NODIRATIME, "nodiratime"),
    (abi.MS_RELATIME, "relatime"),
    (abi.MS_NOSYMFOLLOW, "nosymfollow"),
)


def find(task: Task, path: str, follow: bool = True) -> VirtualDentry:
    """The place of `path` for `task`, held for the caller. Raises: as stat(2)."""
    name = os.fsencode(path)
    start = task.fs.root if name.startswith(b"/") else task.fs.cwd
    return filename_lookup(
        task.vfs, task.cred, task.fs.root, start, name or b".", FOLLOW if follow else 0
    )


def flags_of(mount: Mount) -> list[str]:
    """The mount's own flags, as mountinfo names them."""
    return [name for flag, name in _FLAGS if mount.flags & flag]


def mounts(task: Task, path: str | None = None) -> list[dict[str, Any]]:
    """The mounts of the task's namespace, parents first; with `path` the one that it is on, and
    those below. ``mountpoint`` is None for what the root does not lead to. ``hidden`` is under
    another mount's root, or below what is. ``peers`` and ``slaves`` are ids of mounts, also in
    other namespaces.
    """
    view = MountView(task.fs.root)
    top = task.namespace.root
    if path is not None:
        with find(task, path) as place:
            top = place.mount
    below_covered: set[Mount] = set()
    found = []
    for mount in top.tree():
        above = mount.parent
        covered = above.overmount is not None and above.overmount is not mount
        if mount is not top and (above in below_covered or covered):
            below_covered.add(mount)
        place_name = view.mount_point(mount)
        found.append(
            {
                "id": mount.id,
                "parent": mount.parent.id if mount.is_attached else None,
                "mountpoint": None if place_name is None else os.fsdecode(place_name),
                "type": mount.superblock.type.name,
                "source": os.fsdecode(mount.source),
                "shows": os.fsdecode(show_path(mount.root)),
                "flags": flags_of(mount),
                "group": mount.group_id or None,
                "master": None if mount.master is None else mount.master.group_id,
                "peers": [peer.id for peer in mount.peers() if peer is not mount],
                "slaves": [slave.id for slave in mount.slaves()],
                "unbindable": mount.unbindable,
                "locked": mount.locked,
                "hidden": mount in below_covered or mount.overmount is not None,
                "references": mount.count,
                "writers": mount.writers,
            }
        )
    return found


def propagate(task: Task, target: str, source: str | None = None) -> list[dict[str, Any]]:
    """Where else something mounted on `target` would appear, and why; with `source`, a bind of it.

    The first row is `target` itself. ``relation`` is how the mount there hears of it; ``copy`` is
    what the copy would be: shared, slave, shared and slave, or private.

    Raises: as stat(2) of both paths.
    """
    with find(task, target) as place:
        parent, mountpoint = place.mount, place.dentry
        bound = None
        if source is not None:
            with find(task, source) as origin:
                bound = origin.mount
        shared = parent.is_shared or (bound is not None and bound.is_shared)
        rows = [_row(task, parent, place, "target", "shared" if shared else "private")]
        for receiver in receivers(parent) if parent.is_shared else ():
            namespace = receiver.namespace
            if namespace is None or namespace.anonymous:
                continue
            if not mountpoint.is_descendant_of(receiver.root):
                continue
            if receiver.is_peer_of(parent):
                relation, copy = f"peer in group {parent.group_id}", "shared"
            else:
                assert receiver.master is not None
                relation = f"slave of group {receiver.master.group_id}"
                copy = "shared and slave" if receiver.is_shared else "slave"
            there = VirtualDentry(receiver, mountpoint)
            rows.append(_row(task, receiver, there, relation, copy))
        return rows


def _row(
    task: Task, mount: Mount, place: VirtualDentry, relation: str, copy: str
) -> dict[str, Any]:
    """The path as the root of the mount's own namespace leads to it."""
    namespace = mount.namespace
    assert namespace is not None
    mine = namespace is task.namespace
    top = namespace.root.overmount or namespace.root
    root = task.fs.root if mine else VirtualDentry(top, top.root)
    view = MountView(root)
    names = []
    dentry = place.dentry
    while dentry is not mount.root and not dentry.is_root:
        names.append(dentry.name)
        dentry = dentry.parent
    start = view.mount_point(mount)
    path = None
    if start is not None:
        path = os.fsdecode(b"/".join([start.rstrip(b"/"), *reversed(names)]) or b"/")
    return {
        "namespace": namespace.id,
        "own": mine,
        "mount": mount.id,
        "path": path,
        "relation": relation,
        "copy": copy,
    }
