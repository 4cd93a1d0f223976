"""From a dentry back to a path. Linux: fs/d_path.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfs.dentry import Dentry
    from vfs.mount import VirtualDentry


def prepend_path(path: VirtualDentry, root: VirtualDentry) -> tuple[bytes, bool]:
    """Linux: ``prepend_path``. The path of ``path`` as seen from ``root``, and whether ``root`` was
    met on the way up. Without that the path is the one from the top of its own tree.
    """
    names: list[bytes] = []
    mount = path.mount
    dentry: Dentry = path.dentry
    reached = True
    while not (mount is root.mount and dentry is root.dentry):
        if dentry is mount.root:
            if mount.mountpoint is None:
                reached = False
                break
            dentry = mount.mountpoint
            mount = mount.parent
            continue
        if dentry.is_root:
            # Moved out of what the mount shows ("escaped", Linux says "/"), or O_TMPFILE's.
            names = [] if dentry is dentry.superblock.root else [dentry.name]
            reached = False
            break
        names.append(dentry.name)
        dentry = dentry.parent
    return b"/" + b"/".join(reversed(names)), reached


def is_unlinked(path: VirtualDentry) -> bool:
    """Linux: ``d_unlinked``."""
    return not path.dentry.hashed


def d_path(path: VirtualDentry, root: VirtualDentry) -> bytes:
    """Linux: ``d_path``, as /proc/PID/fd shows it: "(deleted)" behind what has no name any more,
    and a name of its own ("mnt:[4026531841]") for what never had a place.
    """
    if path.dentry is not path.mount.root:
        shown = path.dentry.superblock.dname(path.dentry)
        if shown is not None:
            return shown
    text, _ = prepend_path(path, root)
    return text + b" (deleted)" if is_unlinked(path) else text


def getcwd_path(path: VirtualDentry, root: VirtualDentry) -> bytes:
    """Linux: getcwd(2)'s text: "(unreachable)" before what ``root`` does not lead to."""
    text, reached = prepend_path(path, root)
    return text if reached else b"(unreachable)" + text
