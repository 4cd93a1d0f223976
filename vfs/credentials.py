"""Who asks: user and group ids, supplementary groups, capabilities. Linux: struct cred."""

from __future__ import annotations

import errno
from typing import Self

from vfs.errors import oserror
from vfs.user_namespace import INITIAL_USER_NAMESPACE, UserNamespace

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SETGID = 6
CAP_SETUID = 7
CAP_LINUX_IMMUTABLE = 9
CAP_SYS_CHROOT = 18
CAP_SYS_PTRACE = 19
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
    asks about. ``caps`` is the effective set as a bit mask, ``permitted`` what may be raised; they
    hold in ``user_ns`` and in the namespaces below it.
    """

    __slots__ = ("caps", "fsgid", "fsuid", "gid", "groups", "permitted", "uid", "user_ns")

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
        user_ns: UserNamespace = INITIAL_USER_NAMESPACE,
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.fsuid = uid if fsuid is None else fsuid
        self.fsgid = gid if fsgid is None else fsgid
        self.groups = frozenset(groups)
        self.caps = (CAP_FULL_SET if self.fsuid == 0 else 0) if caps is None else caps
        self.permitted = self.caps if permitted is None else permitted
        self.user_ns = user_ns

    @classmethod
    def root(cls) -> Self:
        """The credentials of the first process: ids 0 and every capability."""
        return cls()

    def capable(self, cap: int) -> bool:
        """Linux: ``capable_wrt_inode_uidgid``. Whether the effective set has ``cap``, which is
        what counts for a file, because every id is mapped in every user namespace here.
        """
        return bool(self.caps >> cap & 1)

    def ns_capable(self, user_ns: UserNamespace, cap: int) -> bool:
        """Linux: ``ns_capable``. Whether ``cap`` is held in ``user_ns``: by the effective set if
        that is one's own namespace or below it; all are by the owner, from the parent.
        """
        namespace = user_ns
        while namespace is not self.user_ns:
            if namespace.level <= self.user_ns.level:
                return False
            assert namespace.parent is not None
            if namespace.parent is self.user_ns and namespace.owner_uid == self.fsuid:
                return True
            namespace = namespace.parent
        return self.capable(cap)

    def ns_require(self, user_ns: UserNamespace, cap: int, number: int = errno.EPERM) -> None:
        """Raises: OSError ``number`` (EPERM) unless ``cap`` is held in ``user_ns``."""
        if not self.ns_capable(user_ns, cap):
            raise oserror(number)

    def in_new_user_namespace(self, user_ns: UserNamespace) -> Credentials:
        """The same ids with every capability, in ``user_ns``. Linux: ``set_cred_user_ns``."""
        return Credentials(
            self.uid,
            self.gid,
            self.groups,
            fsuid=self.fsuid,
            fsgid=self.fsgid,
            caps=CAP_FULL_SET,
            user_ns=user_ns,
        )

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
        return Credentials(
            self.uid,
            self.gid,
            self.groups,
            caps=caps,
            permitted=self.permitted,
            user_ns=self.user_ns,
        )

    def __repr__(self) -> str:
        groups = ",".join(map(str, sorted(self.groups)))
        return f"Credentials({self.fsuid}:{self.fsgid} groups=[{groups}] caps={self.caps:#x})"
