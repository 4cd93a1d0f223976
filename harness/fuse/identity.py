"""Whose request it is: from the header's ids to ``Credentials``."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from harness.fuse.abi import EXT_GROUPS, EXT_HEADER, MAX_NR_SECCTX, SECCTX
from vfs.credentials import CAP_FULL_SET, Credentials
from vfs.errors import oserror

# More identities than this in a session, and the cache starts again.
_CACHE_LIMIT = 4096
# Linux sends one group at most. Longer lists are not remembered: 4096 of the longest would be
# gigabytes.
_CACHED_GROUPS = 32


class Identities:
    """Linux: what ``fuse_fill_creds`` sends, as the VFS wants it.

    With ``default_permissions`` the client's kernel has checked already, with knowledge of groups,
    capabilities and user namespaces that does not travel; so the caller gets every capability
    here, and its ids decide only whom new files belong to. Without, the checks are ours, and
    groups and capabilities are read from /proc, which is right for a mount on this host only.
    """

    __slots__ = ("_cache", "_user_namespace", "default_permissions", "plain")

    def __init__(self, default_permissions: bool) -> None:
        self.default_permissions = default_permissions
        # Those of requests without groups, by uid and gid, while ids are all that counts.
        self.plain: dict[tuple[int, int], Credentials] = {}
        self._cache: dict[tuple[int, int, frozenset[int]], Credentials] = {}
        self._user_namespace = "" if default_permissions else os.readlink("/proc/self/ns/user")

    def of(self, uid: int, gid: int, pid: int, groups: frozenset[int]) -> Credentials:
        """The credentials of a request. ``groups`` are those that came with it."""
        if not self.default_permissions:
            return self._of_process(uid, gid, pid)
        if len(groups) > _CACHED_GROUPS:
            return Credentials(uid, gid, groups, caps=CAP_FULL_SET)
        key = (uid, gid, groups)
        cred = self._cache.get(key)
        if cred is None:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
                self.plain.clear()
            cred = self._cache[key] = Credentials(uid, gid, groups, caps=CAP_FULL_SET)
            if not groups:
                self.plain[uid, gid] = cred
        return cred

    def _of_process(self, uid: int, gid: int, pid: int) -> Credentials:
        groups: list[int] = []
        caps = 0
        try:
            with open(f"/proc/{pid}/status", "rb") as status:
                for line in status:
                    if line.startswith(b"Groups:"):
                        groups = [int(group) for group in line.split()[1:]]
                    elif line.startswith(b"CapEff:"):
                        caps = int(line.split()[1], 16)
            # Capabilities in another user namespace mean nothing in ours.
            if os.readlink(f"/proc/{pid}/ns/user") != self._user_namespace:
                caps = 0
        except OSError:
            # The caller is gone, or in a pid namespace out of our sight: its ids alone count.
            groups, caps = [], 0
        return Credentials(uid, gid, frozenset(groups), caps=caps)


def supplementary_groups(extensions: bytes) -> frozenset[int]:
    """The groups in a request's extensions (FUSE_EXT_GROUPS); unknown extensions are skipped.

    Raises: EINVAL for extensions that do not fit.
    """
    groups: frozenset[int] = frozenset()
    for kind, body in _extensions(extensions):
        if kind == EXT_GROUPS:
            count = int.from_bytes(body[:4], "little")
            if len(body) < 4 or count > (len(body) - 4) // 4:
                raise oserror(errno.EINVAL)
            groups = frozenset(memoryview(body)[4 : 4 + 4 * count].cast("I"))
    return groups


def security_contexts(extensions: bytes) -> list[tuple[bytes, bytes]]:
    """The labels in a request's extensions (FUSE_SECURITY_CTX), as (attribute, value).

    Raises: EINVAL for extensions that do not fit, and for attributes that are no labels.
    """
    labels: list[tuple[bytes, bytes]] = []
    for kind, body in _extensions(extensions):
        if kind > MAX_NR_SECCTX:
            continue
        at = 0
        for _ in range(kind):
            if len(body) - at < SECCTX.size:
                raise oserror(errno.EINVAL)
            size, _ = SECCTX.unpack_from(body, at)
            start = at + SECCTX.size
            end = body.find(0, start)
            value = body[end + 1 : end + 1 + size]
            name = body[start:end]
            if end < 0 or len(value) != size or not name.startswith(b"security."):
                raise oserror(errno.EINVAL)
            labels.append((name, value))
            at = end + 1 + size + 7 & ~7
    return labels


def _extensions(extensions: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each. Raises: EINVAL."""
    at = 0
    while at < len(extensions):
        if len(extensions) - at < EXT_HEADER.size:
            raise oserror(errno.EINVAL)
        size, kind = EXT_HEADER.unpack_from(extensions, at)
        if size < EXT_HEADER.size or size > len(extensions) - at:
            raise oserror(errno.EINVAL)
        yield kind, extensions[at + EXT_HEADER.size : at + size]
        at += size + 7 & ~7
