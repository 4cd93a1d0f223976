"""What an image shall be like."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Final

from fsimpl.passthrough.idmap import OVERFLOW_ID, IdMap, IdTable

BLOCK_SIZE: Final = 4096
"""Always: it is the page size, without which nothing could be mapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """``size`` in bytes, of which the last few may be in no group; None: as small as can be.
    ``blocks_per_group`` (a multiple of 8, 256 to 32768) and ``inodes_per_group`` (1 to 32768,
    rounded up to 16) are computed if None.

    ``uids`` and ``gids`` say which id of the source is which in the image, a total table as a user
    namespace's; ``uid`` and ``gid`` own what they don't name, and everything without a table.
    ``mapping_min`` is the least number of bytes worth a mapping; below it content is copied.
    """

    size: int | None = None
    blocks_per_group: int | None = None
    inodes_per_group: int | None = None
    label: bytes = b""
    uuid: uuid.UUID = field(default_factory=uuid.uuid4)
    uids: IdTable | None = None
    gids: IdTable | None = None
    uid: int | None = None
    gid: int | None = None
    htree: bool = False
    mapping_min: int = BLOCK_SIZE


class Owners:
    """Who owns a file in the image, with ACLs and capabilities likewise."""

    __slots__ = ("_cache", "_gid", "_map", "_root", "_uid")

    def __init__(self, options: BuildOptions) -> None:
        self._map = IdMap(
            options.uids or IdTable(total=options.uid is not None),
            options.gids or IdTable(total=options.gid is not None),
        )
        self._uid = OVERFLOW_ID if options.uid is None else options.uid
        self._gid = OVERFLOW_ID if options.gid is None else options.gid
        self._root = (options.uid or 0, options.gid or 0)
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        found = self._cache.get((uid, gid))
        if found is None:
            inside = self._map.uids.to_guest(uid), self._map.gids.to_guest(gid)
            found = self._cache[uid, gid] = (
                self._uid if inside[0] is None else inside[0],
                self._gid if inside[1] is None else inside[1],
            )
        return found

    def root(self) -> tuple[int, int]:
        """Who owns what no source has."""
        return self._root

    def acl(self, value: bytes) -> bytes:
        """Raises: EINVAL, for what is no ACL."""
        return self._map.acl_to_guest(value)

    def capability(self, value: bytes) -> bytes:
        """Raises: EOVERFLOW, if they hold for a root that the image knows nothing of."""
        return self._map.capability_to_guest(value)
