"""Owners by path: who files belong to for the client, and who makes them on the host. crosvm:
``PermissionData``, of ``ugid_map`` and of an ioctl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fsimpl.passthrough.allowlist import split_path

_ID_MAX = 0xFFFFFFFE


class OwnerRule(NamedTuple):
    """For a path and what is below: owner and mode (0o777 without ``umask``'s bits) as the client
    is told them, and whom the host takes for the maker of new files.
    """

    guest_uid: int
    guest_gid: int
    host_uid: int
    host_gid: int
    umask: int
    names: tuple[bytes, ...]

    def covers(self, names: Sequence[bytes]) -> bool:
        """Whether the path ``names`` is the rule's, or below."""
        return tuple(names[: len(self.names)]) == self.names


def parse_owner_rules(text: str) -> tuple[OwnerRule, ...]:
    """Rows ``GUID GGID HUID HGID UMASK PATH`` with semicolons between them; numbers are decimal,
    the mask too, as crosvm reads it. Raises: ValueError.
    """
    return tuple(_parse_row(row.strip()) for row in text.split(";"))


def _parse_row(row: str) -> OwnerRule:
    fields = row.split(" ", 5)
    if len(fields) != 6:
        raise ValueError(f"'{row}': write it as 'GUID GGID HUID HGID UMASK PATH'")
    numbers = []
    for field in fields[:5]:
        if not (field.isascii() and field.isdigit()) or int(field) > _ID_MAX:
            raise ValueError(f"'{row}': '{field}' is no id")
        numbers.append(int(field))
    if numbers[4] > 0o777:
        raise ValueError(f"'{row}': {numbers[4]} is no mask of a mode (it is decimal)")
    return make_rule(*numbers, path=fields[5].encode("utf-8", "surrogateescape"))


def make_rule(
    guest_uid: int, guest_gid: int, host_uid: int, host_gid: int, umask: int, *, path: bytes
) -> OwnerRule:
    """Raises: ValueError for a path that is not absolute, or leads above the root."""
    names = split_path(path)
    if names is None or not path.startswith(b"/"):
        raise ValueError(f"'{path.decode(errors='replace')}' is no path from the shared directory")
    return OwnerRule(guest_uid, guest_gid, host_uid, host_gid, umask & 0o777, names)


class OwnerRules:
    """The rules of one mount: of those given with it the first that covers a path, but the root's
    own after all others; of those that the client adds, the last, before all of these.
    """

    __slots__ = ("_added", "_given", "room")

    def __init__(self, given: Sequence[OwnerRule], room: int) -> None:
        """``room`` is how many the client may add."""
        self._given = sorted(given, key=lambda rule: not rule.names)
        self._added: list[OwnerRule] = []
        self.room = room

    def add(self, rule: OwnerRule) -> bool:
        """Add the client's; False if there is no room."""
        if len(self._added) >= self.room:
            return False
        self._added.insert(0, rule)
        return True

    def find(self, names: Sequence[bytes] | None) -> OwnerRule | None:
        """The rule for a path, if there is one."""
        if names is not None:
            for rule in (*self._added, *self._given):
                if rule.covers(names):
                    return rule
        return None
