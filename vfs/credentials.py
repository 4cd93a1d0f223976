"""Who asks: user and group ids, supplementary groups, capabilities. Linux: struct cred."""

from __future__ import annotations

import errno
from typing import Self

from vfs.errors import oserror

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SETGID = 6
CAP_SETUID = 7
CAP_LINUX_IMMUTABLE = 9
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_MKNOD = 27
CAP_LEASE = 28
CAP_SETFCAP = 31
CAP_LAST_CAP = 40

CAP_FULL_SET = (1 << (CAP_LAST_CAP + 1)) - 1
# What setfsuid(2) takes away when it leaves 0, and gives back (CAP_FS_MASK in linux/capability.h).
CAP_FS_SET = (
    1 << CAP_CHOWN
    | 1 << CAP_DAC_OVERRIDE
    | 1 << CAP_DAC_READ_SEARCH
    | 1 << CAP_FOWNER
    | 1 << CAP_FSETID
    | 1 << CAP_LINUX_IMMUTABLE
    | 1 << CAP_MKNOD
    | 1 << 32  # CAP_MAC_OVERRIDE
)


class Credentials:
    """Linux: ``struct cred``. Immutable: a change of identity is a new object.

    ``fsuid`` and ``fsgid`` decide access; ``uid`` and ``gid`` (the real ids) are what access(2)
    asks about. ``caps`` is the effective set as a bit mask, ``permitted`` what may be raised.
    """

    __slots__ = ("caps", "fsgid", "fsuid", "gid", "groups", "permitted", "uid")

    def __init__(
        self,
        uid: int = 0,
        gid: int = 0,
        groups: frozenset[int] | tuple[int, ...] = frozenset(),
        *,
        fsuid: int | None = None,
        fsgid: int | None = None,
        caps: int | None = None,
        permitted: int | None = None,
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.fsuid = uid if fsuid is None else fsuid
        self.fsgid = gid if fsgid is None else fsgid
        self.groups = frozenset(groups)
        self.caps = (CAP_FULL_SET if self.fsuid == 0 else 0) if caps is None else caps
        self.permitted = self.caps if permitted is None else permitted

    @classmethod
    def root(cls) -> Self:
        """The credentials of the first process: ids 0 and every capability."""
        return cls()

    def capable(self, cap: int) -> bool:
        """Linux: ``capable``. Whether the effective set has ``cap``."""
        return bool(self.caps >> cap & 1)

    def in_group(self, gid: int) -> bool:
        """Linux: ``in_group_p``. The file-system group and the supplementary ones count."""
        return gid == self.fsgid or gid in self.groups

    def require(self, cap: int, number: int = errno.EPERM) -> None:
        """Raises: OSError ``number`` (EPERM) unless capable of ``cap``."""
        if not self.caps >> cap & 1:
            raise oserror(number)

    def for_access(self) -> Credentials:
        """As access(2) sees it: real ids, and capabilities only if the real user is root.

        Linux: ``access_override_creds`` in fs/open.c.
        """
        caps = self.permitted if self.uid == 0 else 0
        return Credentials(self.uid, self.gid, self.groups, caps=caps, permitted=self.permitted)

    def __repr__(self) -> str:
        groups = ",".join(map(str, sorted(self.groups)))
        return f"Credentials({self.fsuid}:{self.fsgid} groups=[{groups}] caps={self.caps:#x})"
