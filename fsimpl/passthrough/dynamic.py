"""What a client sets for paths at run time, by two ioctls. crosvm: FS_IOC_SETPERMISSION and
FS_IOC_SETPATHXATTR, of Android's guests.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from fsimpl.passthrough.allowlist import split_path
from fsimpl.passthrough.owner_rules import make_rule
from vfs.credentials import CAP_SYS_ADMIN
from vfs.errors import oserror

if TYPE_CHECKING:
    from fsimpl.passthrough.ioctls import Argument, Open

FS_IOC_SETPERMISSION: Final = 0x40986601
FS_IOC_SETPATHXATTR: Final = 0x41806601

# guest_uid, guest_gid, host_uid, host_gid, umask, pad, perm_path
_PERMISSION: Final = struct.Struct("=5I4x128s")
# path, xattr_name, xattr_value
_PATH_XATTR: Final = struct.Struct("=128s128s128s")


class PathXattr(NamedTuple):
    """The value of one attribute for a path and what is below, in place of the host's."""

    names: tuple[bytes, ...]
    name: bytes
    value: bytes


class PathXattrs:
    """Those of one mount, the first that fits winning."""

    __slots__ = ("_rows", "room")

    def __init__(self, room: int) -> None:
        """``room`` is how many there may be."""
        self._rows: list[PathXattr] = []
        self.room = room

    def add(self, row: PathXattr) -> bool:
        """False if there is no room."""
        if len(self._rows) >= self.room:
            return False
        self._rows.append(row)
        return True

    def find(self, names: Sequence[bytes] | None, name: bytes) -> bytes | None:
        """The value of the attribute ``name`` for a path, if the host is not to be asked."""
        if names is not None:
            for row in self._rows:
                if row.name == name and tuple(names[: len(row.names)]) == row.names:
                    return row.value
        return None


def set_permission(file: Open, argument: Argument) -> bytes:
    """FS_IOC_SETPERMISSION. Raises: EPERM for who is not the client's root, and where there is no
    room; EINVAL for another size, or a path that is none from the root.
    """
    *numbers, path = _PERMISSION.unpack(_exactly(file, argument, _PERMISSION.size))
    try:
        rule = make_rule(*numbers, path=_text(path))
    except ValueError:
        raise oserror(errno.EINVAL) from None
    paths = file.inode.superblock.paths
    if paths is None or not paths.owners.add(rule):
        raise oserror(errno.EPERM)
    # What is known was told otherwise.
    for inode in file.inode.superblock.inodes.values():
        inode.raw = b""
    return b""


def set_path_xattr(file: Open, argument: Argument) -> bytes:
    """FS_IOC_SETPATHXATTR. Raises: as ``set_permission``."""
    path, name, value = map(_text, _PATH_XATTR.unpack(_exactly(file, argument, _PATH_XATTR.size)))
    names = split_path(path)
    if names is None or not path.startswith(b"/"):
        raise oserror(errno.EINVAL)
    paths = file.inode.superblock.paths
    if paths is None or not paths.xattrs.add(PathXattr(names, name, value)):
        raise oserror(errno.EPERM)
    return b""


def _exactly(file: Open, argument: Argument, size: int) -> bytes:
    # crosvm asks nobody who he is, and so lets every process of a guest choose owners.
    file.cred.require(CAP_SYS_ADMIN)
    if isinstance(argument, int) or len(argument) != size:
        raise oserror(errno.EINVAL)
    return bytes(argument)


def _text(field: bytes) -> bytes:
    text, end, _ = field.partition(b"\0")
    if not end:
        raise oserror(errno.EINVAL)
    return text
