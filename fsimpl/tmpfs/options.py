"""tmpfs's mount options, read as the kernel reads them. Linux: ``shmem_parse_one``."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Final

from fsimpl.tmpfs.store import PAGE_SHIFT, PAGE_SIZE
from vfs.errors import oserror

INODE_SPACE: Final = 1024  # bytes of "inode space" an inode costs. Linux: BOGO_INODE_SIZE
_U64: Final = (1 << 64) - 1
_LONG_MAX: Final = (1 << 63) - 1
_HUGE: Final = ("never", "always", "within_size", "advise")
_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*)|")


def _leading_number(text: str) -> tuple[int, str]:
    """A number in C's notation (0 if there is none), and what follows it."""
    match = _NUMBER.match(text)
    assert match is not None
    digits, base = match["hex"], 16
    if match["octal"] is not None:
        digits, base = match["octal"], 8
    elif match["decimal"] is not None:
        digits, base = match["decimal"], 10
    return (int(digits, base) if digits else 0), text[match.end() :]


def memparse(text: str) -> tuple[int, str]:
    """A number with one of the suffixes K M G T P E, and what follows. Linux: ``memparse``.

    Too large a number wraps at 64 bits, as there.
    """
    value, rest = _leading_number(text)
    power = "KMGTPE".find(rest[:1].upper()) + 1 if rest[:1].isascii() and rest else 0
    return value << 10 * power & _U64, rest[1:] if power else rest


def _unsigned(text: str, octal: bool) -> int:
    """Linux: ``kstrtouint``, which forgives a plus sign and a final newline. Raises: EINVAL."""
    digits = text.removeprefix("+").removesuffix("\n")
    if octal:
        value, rest = (int(digits, 8), "") if re.fullmatch("[0-7]+", digits) else (0, "?")
    else:
        value, rest = _leading_number(digits)
        rest = rest if digits else "?"
    if rest or value >= 1 << 32:
        raise oserror(errno.EINVAL)
    return value


class TmpfsOptions:
    """Linux: ``shmem_options``. What was asked for; None where nothing was.

    ``blocks`` and ``inodes`` are limits, 0 for none; ``huge`` and ``inode64`` are accepted and
    shown, and change nothing: there are no huge pages here, and inode numbers never wrap.
    """

    __slots__ = ("blocks", "gid", "huge", "inode64", "inodes", "mode", "noswap", "uid")

    def __init__(self) -> None:
        self.blocks: int | None = None
        self.inodes: int | None = None
        self.mode: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.huge: str | None = None
        self.inode64: bool | None = None
        self.noswap = False

    @classmethod
    def parse(cls, options: Iterable[tuple[str, str | None]], ram_pages: int) -> TmpfsOptions:
        """``ram_pages`` is what ``size=...%`` is a part of.

        Raises: EINVAL for an unknown option, a bad value, a missing one or one too many.
        """
        parsed = cls()
        for key, value in options:
            if key in ("inode32", "inode64", "noswap"):
                if value is not None:
                    raise oserror(errno.EINVAL)
                if key == "noswap":
                    parsed.noswap = True
                else:
                    parsed.inode64 = key == "inode64"
                continue
            if not value:
                raise oserror(errno.EINVAL)
            parsed._parse_value(key, value, ram_pages)
        return parsed

    def _parse_value(self, key: str, value: str, ram_pages: int) -> None:
        if key == "size":
            size, rest = memparse(value)
            if rest.startswith("%"):
                size = ((size << PAGE_SHIFT) * ram_pages & _U64) // 100
                rest = rest[1:]
            # DIV_ROUND_UP in 64 bits: 2^64 - 1 is 0, and that is no limit.
            self.blocks = (size + PAGE_SIZE - 1 & _U64) >> PAGE_SHIFT
        elif key == "nr_blocks":
            self.blocks, rest = memparse(value)
            if self.blocks > _LONG_MAX:
                raise oserror(errno.EINVAL)
        elif key == "nr_inodes":
            self.inodes, rest = memparse(value)
            if self.inodes > _U64 // INODE_SPACE:
                raise oserror(errno.EINVAL)
        elif key == "mode":
            self.mode, rest = _unsigned(value, octal=True) & 0o7777, ""
        elif key in ("uid", "gid"):
            number, rest = _unsigned(value, octal=False), ""
            if number == (1 << 32) - 1:
                raise oserror(errno.EINVAL)
            if key == "uid":
                self.uid = number
            else:
                self.gid = number
        elif key == "huge" and value in _HUGE:
            self.huge, rest = value, ""
        else:
            raise oserror(errno.EINVAL)
        if rest:
            raise oserror(errno.EINVAL)
