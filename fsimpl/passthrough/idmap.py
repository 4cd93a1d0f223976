"""User and group ids that differ between client and host.

Two ways to say how: virtiofsd's ``--translate-uid``, rules of ranges with the identity for the
rest; and maps as a user namespace has them (crosvm's ``uidmap``), where the rest does not exist.
"""

from __future__ import annotations

import bisect
import errno
import re
import struct
from collections.abc import Callable
from typing import Final

from vfs.credentials import Credentials
from vfs.errors import oserror

_Convert = Callable[[int], int | None]

_IDS: Final = 1 << 32
_NO_ID: Final = _IDS - 1
OVERFLOW_ID: Final = 65534  # what Linux shows for an id that a user namespace does not have
_RULE: Final = re.compile(r"([A-Za-z0-9_-]+)([^A-Za-z0-9_-].*)", re.DOTALL)
_FIELDS: Final = {
    "guest": 3, "host": 3, "squash-guest": 3, "squash-host": 3, "map": 3, "forbid-guest": 2,
}  # fmt: skip

_SHIFT: Final = 0
_SQUASH: Final = 1
_FORBID: Final = 2


class _Ranges:
    """One direction: disjoint ranges of ids, each with where it leads."""

    __slots__ = ("_entries", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._entries: list[tuple[int, int, int, int]] = []  # first, end, target, what

    def add(self, first: int, count: int, target: int, what: int) -> None:
        """Raises: ValueError if an id would be mapped twice."""
        at = bisect.bisect_left(self._starts, first)
        end = first + count
        before = self._entries[at - 1] if at else None
        after = self._entries[at] if at < len(self._entries) else None
        if (before and before[1] > first) or (after and after[0] < end):
            raise ValueError(f"ids {first} to {end - 1} overlap with an earlier range")
        self._starts.insert(at, first)
        self._entries.insert(at, (first, end, target, what))

    def find(self, number: int) -> tuple[int, int] | None:
        """(where ``number`` leads, what the range does), or None."""
        at = bisect.bisect_right(self._starts, number) - 1
        if at < 0:
            return None
        first, end, target, what = self._entries[at]
        if number >= end:
            return None
        return (target + number - first if what == _SHIFT else target), what


class IdTable:
    """How ids of one kind are translated. ``total`` False leaves ids without a range alone; True
    says that they do not exist on the other side.
    """

    __slots__ = ("_to_guest", "_to_host", "total")

    def __init__(self, total: bool = False) -> None:
        self.total = total
        self._to_host = _Ranges()
        self._to_guest = _Ranges()

    def translate(self, rule: str) -> None:
        """Add a rule of virtiofsd's: ``map:GUEST:HOST:COUNT`` and the like, with any separator.

        ``guest`` and ``host`` translate in one direction, from the side they name; ``squash-guest``
        and ``squash-host`` to one single id; ``forbid-guest:GUEST:COUNT`` refuses.

        Raises: ValueError.
        """
        match = _RULE.fullmatch(rule)
        kind = match[1].lower() if match else rule
        if match is None or kind not in _FIELDS:
            raise ValueError(f"'{rule}' is none of {', '.join(_FIELDS)} with its ids")
        separator = match[2][0]
        fields = match[2][1:].split(separator)
        if len(fields) != _FIELDS[kind]:
            raise ValueError(f"'{rule}': {kind} takes {_FIELDS[kind]} numbers")
        numbers = [_number(field, rule) for field in fields]
        first, count = numbers[0], numbers[-1]
        target = numbers[1] if len(numbers) == 3 else 0
        squash = kind.startswith("squash")
        _check_range(first, count, rule)
        _check_range(target, 1 if squash else count, rule)
        what = _SQUASH if squash else _FORBID if kind == "forbid-guest" else _SHIFT
        try:
            if kind in ("map", "guest", "squash-guest", "forbid-guest"):
                self._to_host.add(first, count, target, what)
            if kind in ("host", "squash-host"):
                self._to_guest.add(first, count, target, what)
            if kind == "map":
                self._to_guest.add(target, count, first, what)
        except ValueError as error:
            raise ValueError(f"'{rule}': {error}") from None

    def map_extent(self, inside: int, outside: int, count: int) -> None:
        """Add an extent of a user namespace's map. Raises: ValueError."""
        extent = f"{inside} {outside} {count}"
        _check_range(inside, count, extent)
        _check_range(outside, count, extent)
        self._to_host.add(inside, count, outside, _SHIFT)
        self._to_guest.add(outside, count, inside, _SHIFT)

    def to_host(self, number: int) -> int | None:
        """The host's id for the client's ``number``; None if there is none (``total`` only).

        Raises: EPERM for a forbidden one.
        """
        found = self._to_host.find(number)
        if found is None:
            return None if self.total else number
        if found[1] == _FORBID:
            raise oserror(errno.EPERM)
        return found[0]

    def to_guest(self, number: int) -> int | None:
        """The client's id for the host's ``number``; None if there is none (``total`` only)."""
        found = self._to_guest.find(number)
        if found is None:
            return None if self.total else number
        return found[0]


def parse_extents(text: str, table: IdTable) -> None:
    """Extents ``INSIDE OUTSIDE COUNT``, separated by commas or semicolons. Raises: ValueError."""
    for extent in re.split("[,;]", text):
        fields = extent.split()
        if len(fields) != 3:
            raise ValueError(f"'{extent}': an extent is 'INSIDE OUTSIDE COUNT'")
        inside, outside, count = (_number(field, extent) for field in fields)
        table.map_extent(inside, outside, count)


def _number(field: str, rule: str) -> int:
    if not (field.isascii() and field.isdigit()) or int(field) >= _IDS:
        raise ValueError(f"'{rule}': '{field}' is no 32-bit number")
    return int(field)


def _check_range(first: int, count: int, rule: str) -> None:
    if not count:
        raise ValueError(f"'{rule}': a range of no ids")
    if first + count > _NO_ID + 1:
        raise ValueError(f"'{rule}': the range ends beyond the last id")


_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_VERSION: Final = 2
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08

# struct vfs_ns_cap_data of linux/capability.h: without and with the id of the namespace's root.
_CAP_V2: Final = 20
_CAP_V3: Final = 24
_CAP_REVISION_MASK: Final = 0xFF000000
_CAP_REVISION_2: Final = 0x02000000
_CAP_REVISION_3: Final = 0x03000000


class IdMap:
    """How a mount's client and the host name each other's users and groups.

    Linux: an idmapped mount, where it has whole maps; virtiofsd's "soft" map, where it has rules.
    ``root_uid`` and ``root_gid`` are who the client's root is for what it makes, in its own ids.
    """

    __slots__ = ("gids", "root_gid", "root_uid", "uids")

    def __init__(self, uids: IdTable, gids: IdTable, root_uid: int = 0, root_gid: int = 0) -> None:
        self.uids = uids
        self.gids = gids
        self.root_uid = root_uid
        self.root_gid = root_gid

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """A host file's owner as the client sees it."""
        uid_inside, gid_inside = self.uids.to_guest(uid), self.gids.to_guest(gid)
        return (
            OVERFLOW_ID if uid_inside is None else uid_inside,
            OVERFLOW_ID if gid_inside is None else gid_inside,
        )

    def host_uid(self, uid: int | None) -> int | None:
        """For chown(2), None being None. Raises: EPERM (forbidden), EINVAL (no such id)."""
        return None if uid is None else _existing(self.uids.to_host(uid))

    def host_gid(self, gid: int | None) -> int | None:
        """As ``host_uid``."""
        return None if gid is None else _existing(self.gids.to_host(gid))

    def credentials(self, cred: Credentials) -> Credentials:
        """``cred`` on the host: who makes a file, and whose permissions are asked for there.

        Supplementary groups that the host does not have are left out. Raises: EPERM (forbidden),
        EOVERFLOW (no such id).
        """
        fsuid = self.uids.to_host(cred.fsuid or self.root_uid)
        fsgid = self.gids.to_host(cred.fsgid or self.root_gid)
        if fsuid is None or fsgid is None:
            raise oserror(errno.EOVERFLOW)
        groups = []
        for gid in cred.groups:
            outside = self.gids.to_host(gid)
            if outside is not None:
                groups.append(outside)
        return Credentials(fsuid, fsgid, frozenset(groups), caps=cred.caps)

    def acl_to_host(self, value: bytes) -> bytes:
        """Raises: EINVAL for an id that the host does not have, or what is no ACL."""
        return _convert_acl(value, self.host_uid, self.host_gid)

    def acl_to_guest(self, value: bytes) -> bytes:
        """An id that the client does not have becomes -1, not 65534 as an owner's does."""
        return _convert_acl(value, self.uids.to_guest, self.gids.to_guest)

    def capability_to_host(self, value: bytes) -> bytes:
        """A file capability that the client's root gives holds for whom the host knows as that.
        Linux: ``cap_convert_nscap``. Raises: EINVAL.
        """
        if not self.uids.total:
            return value
        if len(value) not in (_CAP_V2, _CAP_V3):
            raise oserror(errno.EINVAL)
        root = int.from_bytes(value[_CAP_V2:], "little")
        outside = _existing(self.uids.to_host(root))
        return _capability(value, _CAP_REVISION_3, outside.to_bytes(4, "little"))

    def capability_to_guest(self, value: bytes) -> bytes:
        """Linux: ``cap_inode_getsecurity``. Raises: EOVERFLOW if its root is nobody of the
        client's.
        """
        if not self.uids.total or len(value) not in (_CAP_V2, _CAP_V3):
            return value
        outside = int.from_bytes(value[_CAP_V2:], "little")
        root = self.uids.to_guest(outside)
        if root is None and outside:
            raise oserror(errno.EOVERFLOW)
        # The host's own root is somebody to everybody.
        if not root:
            return _capability(value, _CAP_REVISION_2, b"")
        return _capability(value, _CAP_REVISION_3, root.to_bytes(4, "little"))


def _capability(value: bytes, revision: int, root: bytes) -> bytes:
    flags = int.from_bytes(value[:4], "little") & ~_CAP_REVISION_MASK
    return (revision | flags).to_bytes(4, "little") + value[4:_CAP_V2] + root


def _existing(number: int | None) -> int:
    if number is None:
        raise oserror(errno.EINVAL)
    return number


def _convert_acl(value: bytes, uid_of: _Convert, gid_of: _Convert) -> bytes:
    if not value:
        return value
    size = len(value) - _ACL_HEADER.size
    if size < 0 or size % _ACL_ENTRY.size or _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        raise oserror(errno.EINVAL)
    converted = bytearray(value[: _ACL_HEADER.size])
    for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]):
        if tag == _ACL_USER:
            number = uid_of(number)
        elif tag == _ACL_GROUP:
            number = gid_of(number)
        converted += _ACL_ENTRY.pack(tag, permissions, _NO_ID if number is None else number)
    return bytes(converted)
