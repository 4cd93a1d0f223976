"""User namespaces: within what a task's capabilities hold. Linux: struct user_namespace.

Lite: there are no id maps. A uid or gid means the same in every namespace, as if each had the map
``0 0 4294967295``; what a namespace has is a parent, and an owner who may do anything in it.
"""

from __future__ import annotations

INITIAL_INUM = 0xEFFFFFFD  # PROC_USER_INIT_INO in linux/proc_ns.h


class UserNamespace:
    """Linux: ``struct user_namespace``. Immutable, so it is shared freely and not counted.

    ``level`` is the distance from the initial one; ``owner_uid`` and ``owner_gid`` are the
    effective ids of who made it; ``inum`` is its number, as /proc/PID/ns/user shows it.
    """

    __slots__ = ("__weakref__", "inum", "level", "owner_gid", "owner_uid", "parent")

    def __init__(
        self, parent: UserNamespace | None, owner_uid: int, owner_gid: int, inum: int
    ) -> None:
        self.parent = parent
        self.level: int = 0 if parent is None else parent.level + 1
        self.owner_uid = owner_uid
        self.owner_gid = owner_gid
        self.inum = inum

    def is_at_or_below(self, ancestor: UserNamespace) -> bool:
        """Linux: ``in_userns``."""
        namespace: UserNamespace | None = self
        while namespace is not None and namespace.level > ancestor.level:
            namespace = namespace.parent
        return namespace is ancestor

    def __repr__(self) -> str:
        return f"UserNamespace({self.inum} level={self.level} owner={self.owner_uid})"


INITIAL_USER_NAMESPACE = UserNamespace(None, 0, 0, INITIAL_INUM)
