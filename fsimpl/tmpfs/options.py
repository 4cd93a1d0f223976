"""tmpfs's mount options, read as the kernel reads them. Linux: ``shmem_parse_one``."""

from __future__ import annotations

from typing import Final

from fsimpl.tmpfs.store import PAGE_SHIFT, PAGE_SIZE
from vfs.credentials import CAP_SYS_ADMIN
from vfs.fs_context import FilesystemContext, Parameter
from vfs.fs_parser import (
    bad_value,
    leading_number,
    parse_enum,
    parse_flag,
    parse_id,
    parse_string,
    parse_u32,
)
from vfs.user_namespace import INITIAL_USER_NAMESPACE

INODE_SPACE: Final = 1024  # bytes of "inode space" an inode costs. Linux: BOGO_INODE_SIZE
_U64: Final = (1 << 64) - 1
_LONG_MAX: Final = (1 << 63) - 1
_HUGE: Final = ("never", "always", "within_size", "advise")


def memparse(text: str) -> tuple[int, str]:
    """A number with one of the suffixes K M G T P E, and what follows. Linux: ``memparse``.

    Too large a number wraps at 64 bits, as there.
    """
    value, rest = leading_number(text)
    power = "KMGTPE".find(rest[:1].upper()) + 1 if rest[:1].isascii() and rest else 0
    return value << 10 * power & _U64, rest[1:] if power else rest


class TmpfsOptions:
    """Linux: ``shmem_options``, a context's ``fs_private``. What was asked for; None where nothing
    was.

    ``blocks`` and ``inodes`` are limits, 0 for none; ``huge`` and ``inode64`` are accepted and
    shown, and change nothing: there are no huge pages here, and inode numbers never wrap.
    ``ram_pages`` is what ``size=...%`` is a part of.
    """

    __slots__ = ("blocks", "gid", "huge", "inode64", "inodes", "mode", "noswap", "ram_pages", "uid")

    def __init__(self, ram_pages: int) -> None:
        self.ram_pages = ram_pages
        self.blocks: int | None = None
        self.inodes: int | None = None
        self.mode: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.huge: str | None = None
        self.inode64: bool | None = None
        self.noswap = False

    @staticmethod
    def of(context: FilesystemContext) -> TmpfsOptions:
        """The options in ``context``."""
        assert isinstance(context.fs_private, TmpfsOptions)
        return context.fs_private

    def parse(self, context: FilesystemContext, parameter: Parameter) -> bool:
        """Take ``parameter``; False for one that tmpfs does not know.

        Raises: EINVAL for a bad value, a missing one or one too many; for noswap without
        CAP_SYS_ADMIN in the initial user namespace.
        """
        key = parameter.key
        if key in ("inode32", "inode64"):
            parse_flag(context, parameter)
            self.inode64 = key == "inode64"
        elif key == "noswap":
            parse_flag(context, parameter)
            if not context.cred.ns_capable(INITIAL_USER_NAMESPACE, CAP_SYS_ADMIN):
                raise context.invalfc("Turning off swap in unprivileged tmpfs mounts unsupported")
            self.noswap = True
        elif key == "mode":
            self.mode = parse_u32(context, parameter, octal=True) & 0o7777
        elif key == "uid":
            self.uid = parse_id(context, parameter)
        elif key == "gid":
            self.gid = parse_id(context, parameter)
        elif key == "huge":
            self.huge = parse_enum(context, parameter, _HUGE)
        elif key in ("size", "nr_blocks", "nr_inodes"):
            if not self._parse_limit(key, parse_string(context, parameter)):
                raise bad_value(context, parameter)
        else:
            return False
        return True

    def _parse_limit(self, key: str, text: str) -> bool:
        """Whether ``text`` is a limit, which is then the one for ``key``."""
        number, rest = memparse(text)
        if key == "size" and rest.startswith("%"):
            number = ((number << PAGE_SHIFT) * self.ram_pages & _U64) // 100
            rest = rest[1:]
        if rest:
            return False
        if key == "size":
            # DIV_ROUND_UP in 64 bits: 2^64 - 1 is 0, and that is no limit.
            self.blocks = (number + PAGE_SIZE - 1 & _U64) >> PAGE_SHIFT
        elif key == "nr_blocks":
            if number > _LONG_MAX:
                return False
            self.blocks = number
        else:
            if number > _U64 // INODE_SPACE:
                return False
            self.inodes = number
        return True
