"""Extended attributes kept in memory. Linux: ``simple_xattrs`` in fs/xattr.c."""

from __future__ import annotations

import errno
from typing import Final

from vfs import abi
from vfs.errors import oserror

PREFIXES: Final = (b"security.", b"trusted.", b"user.")


def xattr_space(name: bytes, value: bytes) -> int:
    """Bytes of inode space that an attribute costs. Linux: ``simple_xattr_space``."""
    return 40 + len(name) + len(value)


def check_name(name: bytes) -> None:
    """Linux: ``xattr_resolve_name`` with shmem's handlers.

    Raises: EINVAL (a prefix and nothing after it), EOPNOTSUPP (a prefix that tmpfs does not have).
    """
    if name in PREFIXES:
        raise oserror(errno.EINVAL)
    if not name.startswith(PREFIXES):
        raise oserror(errno.EOPNOTSUPP)


class SimpleXattrs:
    """Linux: ``struct simple_xattrs``. Whole names to values."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self._values

    def get(self, name: bytes) -> bytes:
        """Raises: ENODATA."""
        value = self._values.get(name)
        if value is None:
            raise oserror(errno.ENODATA)
        return value

    def set(self, name: bytes, value: bytes, flags: int) -> int:
        """Returns the space that the replaced value had. Raises: EEXIST, ENODATA."""
        old = self._values.get(name)
        if old is None:
            if flags & abi.XATTR_REPLACE:
                raise oserror(errno.ENODATA)
        elif flags & abi.XATTR_CREATE:
            raise oserror(errno.EEXIST)
        self._values[name] = bytes(value)
        return 0 if old is None else xattr_space(name, old)

    def remove(self, name: bytes) -> int:
        """Returns the space that is free again. Raises: ENODATA."""
        value = self._values.pop(name, None)
        if value is None:
            raise oserror(errno.ENODATA)
        return xattr_space(name, value)

    def names(self) -> list[bytes]:
        """In Linux's order, which is its tree's: backwards."""
        return sorted(self._values, reverse=True)

    @property
    def space(self) -> int:
        return sum(xattr_space(name, value) for name, value in self._values.items())
