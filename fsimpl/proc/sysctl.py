"""/proc/sys: numbers that can be set. Linux: fs/proc/proc_sysctl.c, kernel/sysctl.c."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from fsimpl.proc.base import ProcDirectory
from fsimpl.pseudo import PseudoDirectory, PseudoFile, Row, Table, directory
from vfs import abi
from vfs.device import scatter, total_length
from vfs.errors import oserror
from vfs.file import Buffers, FileDescription
from vfs.superblock import Superblock

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.mount import Mount

INT_MAX = (1 << 31) - 1
# As much of a write as is looked at; a number has to be shorter than that (kernel/sysctl.c).
_LONGEST_WRITE = abi.PAGE_SIZE - 1
_TOO_LONG = 21
_NUMBER = re.compile(
    rb"(?P<sign>-?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))"
    rb"(?=[ \t\n]|\Z)"
)


def sysctl_permission(inode: Inode, cred: Credentials, mask: int) -> None:
    """Linux: ``proc_sys_permission``: the mode counts for everybody; capabilities open nothing,
    and being root, or of its group, is all that makes an owner.

    Raises: EACCES.
    """
    mode = inode.mode
    if mask & abi.X_OK and inode.is_regular:
        raise oserror(errno.EACCES)
    if cred.fsuid == 0:
        mode >>= 6
    elif cred.in_group(0):
        mode >>= 3
    if mask & ~mode & 7:
        raise oserror(errno.EACCES)


class SysctlDirectory(ProcDirectory):
    """A directory of /proc/sys."""

    __slots__ = ()

    def __init__(
        self,
        above: PseudoDirectory | Superblock,
        entries: Table | None = None,
        mode: int | None = None,
    ) -> None:
        super().__init__(above, entries, mode)
        self.nlink = 1

    def permission(self, cred: Credentials, mask: int) -> None:
        sysctl_permission(self, cred, mask)


class IntegerSysctl(PseudoFile):
    """A number on the VirtualFilesystem. Linux: ``proc_dointvec_minmax``."""

    __slots__ = ("attribute", "maximum", "minimum")
    default_mode = 0o644

    def __init__(
        self, above: PseudoDirectory | Superblock, attribute: str, minimum: int, maximum: int
    ) -> None:
        super().__init__(above)
        self.attribute = attribute
        self.minimum = minimum
        self.maximum = maximum

    def permission(self, cred: Credentials, mask: int) -> None:
        sysctl_permission(self, cred, mask)

    def show(self) -> bytes:
        return b"%d\n" % getattr(self.superblock.vfs, self.attribute)

    def store(self, data: bytes, cred: Credentials) -> int:
        """Take the first number; returns how far it and the space behind it reach.

        Raises: EINVAL for no number (decimal, octal or hexadecimal as in C), one that is too long
        or out of range, or one with something else right behind it.
        """
        looked_at = data[:_LONGEST_WRITE]
        start = len(looked_at) - len(looked_at.lstrip(b" \t\n\v\f\r"))
        match = _NUMBER.match(looked_at, start)
        if match is None or match.end() - start >= _TOO_LONG:
            raise oserror(errno.EINVAL)
        value = int(match["hex"] or match["octal"] or match["decimal"], _base(match))
        if match["sign"]:
            value = -value
        if not self.minimum <= value <= self.maximum:
            raise oserror(errno.EINVAL)
        setattr(self.superblock.vfs, self.attribute, value)
        return len(data) - len(looked_at[match.end() :].lstrip(b" \t\n\v\f\r"))

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return SysctlFile(mount, dentry, flags, cred)


def _base(match: re.Match[bytes]) -> int:
    if match["hex"]:
        return 16
    return 8 if match["octal"] else 10


class SysctlFile(FileDescription):
    """An open sysctl: it is read, and written, at offset 0 only, and with one call.

    Linux: ``proc_sys_call_handler``; fs.sysctl_writes_strict is on.
    """

    __slots__ = ()
    generated = True
    inode: IntegerSysctl

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        return 0 if offset else scatter(self.inode.show(), buffers)

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        """A write elsewhere is taken and ignored, and O_APPEND is no place.

        Raises: EACCES, EINVAL.
        """
        self.inode.permission(self.cred, abi.W_OK)
        length = total_length(buffers)
        if offset or not length:
            return length
        return self.inode.store(b"".join(buffers), self.cred)


def _number(attribute: str, minimum: int, maximum: int) -> Row:
    return Row(abi.S_IFREG, lambda above: IntegerSysctl(above, attribute, minimum, maximum))


SYS = directory(
    {
        b"fs": directory(
            {
                b"mount-max": _number("mount_max", 1, INT_MAX),
                b"protected_fifos": _number("protected_fifos", 0, 2),
                b"protected_hardlinks": _number("protected_hardlinks", 0, 1),
                b"protected_regular": _number("protected_regular", 0, 2),
                b"protected_symlinks": _number("protected_symlinks", 0, 1),
            },
            base=SysctlDirectory,
        )
    },
    base=SysctlDirectory,
)
