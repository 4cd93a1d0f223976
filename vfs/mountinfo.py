"""/proc/PID/mountinfo, mounts and mountstats. Linux: fs/proc_namespace.c.

Mounts appear in the order in which they were made, each at its path from the task's root; those
that the root does not lead to are left out of all three.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vfs import abi

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.mount import Mount, VirtualDentry
    from vfs.namespace import MountNamespace
    from vfs.superblock import Superblock

_MOUNT_OPTIONS: Final = (
    (abi.MS_NOSUID, b",nosuid"),
    (abi.MS_NODEV, b",nodev"),
    (abi.MS_NOEXEC, b",noexec"),
    (abi.MS_NOATIME, b",noatime"),
    (abi.MS_NODIRATIME, b",nodiratime"),
    (abi.MS_RELATIME, b",relatime"),
    (abi.MS_NOSYMFOLLOW, b",nosymfollow"),
)
_SUPERBLOCK_OPTIONS: Final = (
    (abi.MS_SYNCHRONOUS, b",sync"),
    (abi.MS_DIRSYNC, b",dirsync"),
    (abi.MS_MANDLOCK, b",mand"),
    (abi.MS_LAZYTIME, b",lazytime"),
)

_IN_PATHS = re.compile(rb"[ \t\n\\]")
# A line that starts with "#" would be a comment in fstab(5), from which the format comes.
_IN_NAMES = re.compile(rb"[ \t\n\\#]")


def _octal(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def dentry_path(dentry: Dentry) -> bytes:
    """The path within the filesystem, "//deleted" behind what has lost its name.

    Linux: ``dentry_path``.
    """
    names = [b""] if dentry.hashed or dentry.is_root else [b"//deleted"]
    while not dentry.is_root:
        names.append(dentry.name)
        names.append(b"/")
        dentry = dentry.parent
    return b"".join(reversed(names)) or b"/"


def show_path(root: Dentry) -> bytes:
    """What of its filesystem a mount shows, as text without escapes. Linux: ``show_path``."""
    shown = root.superblock.show_path(root)
    return dentry_path(root) if shown is None else shown


class MountView:
    """What can be seen of mounts from ``root`` (borrowed). Linux: ``seq_path_root``,
    ``is_path_reachable`` and ``get_dominating_id`` with the same ``root``.

    Remembers its answers, so that a whole table costs little more than the names in it. Good as
    long as the lock is held, and for the mounts of one namespace.
    """

    __slots__ = ("_dominating", "_places", "_reachable", "root")

    def __init__(self, root: VirtualDentry) -> None:
        self.root = root
        self._places: dict[Mount, bytes | None] = {}
        self._reachable: dict[Mount, bool] = {}
        self._dominating: dict[int, int] = {}
        self._reachable[root.mount] = root.mount.root.is_descendant_of(root.dentry)
        if root.is_mount_root:
            self._places[root.mount] = b""

    def mount_point(self, mount: Mount) -> bytes | None:
        """The path of ``mount``; None if the root does not lead there. Linux: ``__d_path``."""
        places = self._places
        below: list[tuple[Mount, bytes]] = []
        while mount not in places:
            if mount.mountpoint is None:
                places[mount] = None
                break
            names, reached = self._climb(mount.parent, mount.mountpoint)
            if names is None or reached:
                places[mount] = names
                break
            below.append((mount, names))
            mount = mount.parent
        place = places[mount]
        for upper, names in reversed(below):
            place = None if place is None else place + names
            places[upper] = place
        return place or (None if place is None else b"/")

    def _climb(self, mount: Mount, dentry: Dentry) -> tuple[bytes | None, bool]:
        """The path of ``dentry`` within ``mount``, or from the root (True) if that comes first.

        None for what was moved to where ``mount`` does not show it.
        """
        top = self.root.dentry if mount is self.root.mount else mount.root
        names: list[bytes] = []
        while dentry is not top and dentry is not mount.root:
            if dentry.is_root:
                return None, False
            names.append(dentry.name)
            names.append(b"/")
            dentry = dentry.parent
        return b"".join(reversed(names)), dentry is top and mount is self.root.mount

    def is_reachable(self, mount: Mount) -> bool:
        """Linux: ``is_path_reachable``, of the root of ``mount``."""
        known = self._reachable
        chain = []
        while mount not in known:
            chain.append(mount)
            if mount.mountpoint is None:
                answer = False
                break
            if mount.parent is self.root.mount:
                answer = mount.mountpoint.is_descendant_of(self.root.dentry)
                break
            mount = mount.parent
        else:
            answer = known[mount]
        for member in chain:
            known[member] = answer
        return answer

    def dominating_id(self, mount: Mount) -> int:
        """The closest peer group from which ``mount`` receives that has a member in view; 0 if
        none has. Linux: ``get_dominating_id``.
        """
        known = self._dominating
        chain = []
        master = mount.master
        while master is not None and master.group_id not in known:
            chain.append(master.group_id)
            if any(
                peer.namespace is mount.namespace and self.is_reachable(peer)
                for peer in master.peers()
            ):
                known[master.group_id] = master.group_id
                break
            master = master.master
        found = 0 if master is None else known[master.group_id]
        for group_id in chain:
            known[group_id] = found
        return found


def show_mountinfo(namespace: MountNamespace, root: VirtualDentry) -> bytes:
    """The text of /proc/PID/mountinfo: the mounts of ``namespace`` that ``root`` leads to."""
    return _show(namespace, root, _mountinfo_line)


def show_mounts(namespace: MountNamespace, root: VirtualDentry) -> bytes:
    """The text of /proc/PID/mounts: the mounts of ``namespace`` that ``root`` leads to."""
    return _show(namespace, root, _mounts_line)


def show_mountstats(namespace: MountNamespace, root: VirtualDentry) -> bytes:
    """The text of /proc/PID/mountstats: the mounts of ``namespace`` that ``root`` leads to."""
    return _show(namespace, root, _mountstats_line)


def _show(
    namespace: MountNamespace,
    root: VirtualDentry,
    line: Callable[[Mount, bytes, MountView], bytes],
) -> bytes:
    with namespace.vfs.lock:
        view = MountView(root)
        lines = []
        for _, mount in sorted(namespace.mounts.items()):
            place = view.mount_point(mount)
            if place is not None:
                lines.append(line(mount, _IN_PATHS.sub(_octal, place), view))
        return b"".join(lines)


def _mountinfo_line(mount: Mount, place: bytes, view: MountView) -> bytes:
    superblock = mount.superblock
    return b"%d %d %d:%d %s %s %s%s%s - %s %s %s%s\n" % (
        mount.id,
        mount.parent.id,
        abi.major(superblock.dev),
        abi.minor(superblock.dev),
        _IN_PATHS.sub(_octal, show_path(mount.root)),
        place,
        b"ro" if mount.flags & abi.MS_RDONLY else b"rw",
        _named(mount.flags, _MOUNT_OPTIONS),
        _propagation(mount, view),
        _type(superblock),
        _IN_NAMES.sub(_octal, mount.source),
        b"ro" if superblock.read_only else b"rw",
        _superblock_options(superblock) + _own_options(superblock),
    )


def _mounts_line(mount: Mount, place: bytes, view: MountView) -> bytes:
    superblock = mount.superblock
    return b"%s %s %s %s%s%s%s 0 0\n" % (
        _IN_NAMES.sub(_octal, mount.source),
        place,
        _type(superblock),
        b"ro" if mount.read_only else b"rw",
        _superblock_options(superblock),
        _named(mount.flags, _MOUNT_OPTIONS),
        _own_options(superblock),
    )


def _mountstats_line(mount: Mount, place: bytes, view: MountView) -> bytes:
    source = _IN_NAMES.sub(_octal, mount.source)
    return b"device %s mounted on %s with fstype %s\n" % (source, place, _type(mount.superblock))


def _propagation(mount: Mount, view: MountView) -> bytes:
    fields = b""
    if mount.is_shared:
        fields += b" shared:%d" % mount.group_id
    if mount.master is not None:
        master = mount.master.group_id
        fields += b" master:%d" % master
        dominating = view.dominating_id(mount)
        if dominating not in (0, master):
            fields += b" propagate_from:%d" % dominating
    if mount.unbindable:
        fields += b" unbindable"
    return fields


def _named(flags: int, options: tuple[tuple[int, bytes], ...]) -> bytes:
    return b"".join([text for flag, text in options if flags & flag])


def _superblock_options(superblock: Superblock) -> bytes:
    return _named(superblock.flags, _SUPERBLOCK_OPTIONS)


def _own_options(superblock: Superblock) -> bytes:
    return os.fsencode(superblock.show_options())


def _type(superblock: Superblock) -> bytes:
    return _IN_NAMES.sub(_octal, superblock.type.name.encode())
