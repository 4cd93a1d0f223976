"""When a file's times move. Linux: ``touch_atime`` and ``file_update_time`` in fs/inode.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfs import abi

if TYPE_CHECKING:
    from vfs.inode import Inode
    from vfs.mount import Mount

_DAY_NS = 24 * 60 * 60 * 10**9
_NO_ATIME = abi.MS_NOATIME | abi.MS_RDONLY


def touch_atime(mount: Mount, inode: Inode) -> None:
    """Note an access, as the mount's noatime, nodiratime and relatime say."""
    flags = mount.flags
    superblock = mount.superblock
    if (flags | superblock.flags) & _NO_ATIME or inode.host_managed:
        return
    if inode.flags & abi.FS_NOATIME_FL or (flags & abi.MS_NODIRATIME and inode.is_dir):
        return
    now = superblock.vfs.clock.now_ns()
    atime = inode.atime_ns
    if (
        flags & abi.MS_RELATIME
        and atime > inode.mtime_ns
        and atime > inode.ctime_ns
        and now - atime < _DAY_NS
    ):
        return
    if atime != now:
        inode.atime_ns = now
        inode.wire = None


def modified(inode: Inode) -> None:
    """The content changed: mtime and ctime are now."""
    if not inode.host_managed:
        inode.mtime_ns = inode.ctime_ns = inode.superblock.vfs.clock.now_ns()
        inode.wire = None
