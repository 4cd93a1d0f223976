"""statmount and listmount: the table of mounts without text. Linux: the end of fs/namespace.c."""

from __future__ import annotations

import errno
import os
import re
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from vfs import abi
from vfs.credentials import CAP_SYS_ADMIN
from vfs.errors import oserror
from vfs.mount import Mount, VirtualDentry
from vfs.mountinfo import MountView, show_path
from vfs.syscalls.base import SyscallBase

if TYPE_CHECKING:
    from vfs.namespace import MountNamespace

_UNIQUE_ID_OFFSET = 1 << 31  # no unique id is this or less
_MAX_IDS = 1_000_000

_SUPPORTED = 0x7FFF  # every STATMOUNT_* above
_ATTRIBUTES = (
    (abi.MS_RDONLY, abi.MOUNT_ATTR_RDONLY),
    (abi.MS_NOSUID, abi.MOUNT_ATTR_NOSUID),
    (abi.MS_NODEV, abi.MOUNT_ATTR_NODEV),
    (abi.MS_NOEXEC, abi.MOUNT_ATTR_NOEXEC),
    (abi.MS_NODIRATIME, abi.MOUNT_ATTR_NODIRATIME),
    (abi.MS_NOSYMFOLLOW, abi.MOUNT_ATTR_NOSYMFOLLOW),
)
_SB_FLAGS = abi.MS_RDONLY | abi.MS_SYNCHRONOUS | abi.MS_DIRSYNC | abi.MS_LAZYTIME

_ESCAPE = re.compile(rb"\\([0-3]?[0-7]{1,2})")


class Statmount(NamedTuple):
    """Linux: ``struct statmount``, its strings without escapes. What ``mask`` does not say was
    answered is 0, None or ().
    """

    mask: int = 0
    sb_dev_major: int = 0
    sb_dev_minor: int = 0
    sb_magic: int = 0
    sb_flags: int = 0
    fs_type: bytes | None = None
    mnt_id: int = 0
    mnt_parent_id: int = 0
    mnt_id_old: int = 0
    mnt_parent_id_old: int = 0
    mnt_attr: int = 0
    mnt_propagation: int = 0
    mnt_peer_group: int = 0
    mnt_master: int = 0
    propagate_from: int = 0
    mnt_root: bytes | None = None
    mnt_point: bytes | None = None
    mnt_ns_id: int = 0
    fs_subtype: bytes | None = None
    sb_source: bytes | None = None
    mnt_opts: bytes | None = None
    opt_array: tuple[bytes, ...] = ()
    opt_sec_array: tuple[bytes, ...] = ()
    supported_mask: int = 0


class MountQuerySyscalls(SyscallBase):
    """Mounts by their unique ids. None of these needs a privilege for what the caller can reach."""

    def statmount(self, mnt_id: int, mask: int, mnt_ns_id: int = 0, flags: int = 0) -> Statmount:
        """statmount(2): what the STATMOUNT_* in ``mask`` ask about a mount of the caller's mount
        namespace, or of the one with id ``mnt_ns_id``. Bits that are unknown, or have no answer,
        are left out of the result's mask.

        Raises: EINVAL (``flags``; an id that cannot be one), ENOENT (no such namespace), EPERM
        (another namespace, without CAP_SYS_ADMIN over it), ENOENT (an empty namespace; no such
        mount), EPERM (a mount that the root does not lead to, likewise).
        """
        if flags or mnt_id <= _UNIQUE_ID_OFFSET:
            raise oserror(errno.EINVAL)
        with self.lock:
            namespace = self._requested_namespace(mnt_ns_id, errno.EPERM)
            mount = _find(namespace, mnt_id)
            view = MountView(self._requested_root(namespace))
            if not view.is_reachable(mount):
                self.cred.ns_require(namespace.user_ns, CAP_SYS_ADMIN)
            return _answer(mount, mask, view)

    def listmount(
        self,
        mnt_id: int,
        last_mnt_id: int = 0,
        count: int = _MAX_IDS,
        mnt_ns_id: int = 0,
        flags: int = 0,
    ) -> list[int]:
        """listmount(2): the unique ids of up to ``count`` mounts below the mount ``mnt_id``, or
        below the root and with it (LSMT_ROOT), that come after ``last_mnt_id``: in ascending order,
        or with LISTMOUNT_REVERSE in descending. The namespace is as for ``statmount``.

        Raises: EINVAL (``flags``), EOVERFLOW (``count``), EINVAL (an id that cannot be one), ENOENT
        (no such namespace, or one without CAP_SYS_ADMIN over it; an empty one; no such mount),
        EPERM (a mount that the root does not lead to, without CAP_SYS_ADMIN).
        """
        if flags & ~abi.LISTMOUNT_REVERSE:
            raise oserror(errno.EINVAL)
        if count > _MAX_IDS:
            raise oserror(errno.EOVERFLOW)
        if mnt_id <= _UNIQUE_ID_OFFSET or 0 < last_mnt_id <= _UNIQUE_ID_OFFSET:
            raise oserror(errno.EINVAL)
        with self.lock:
            namespace = self._requested_namespace(mnt_ns_id, errno.ENOENT)
            root = self._requested_root(namespace)
            if mnt_id == abi.LSMT_ROOT:
                start = root
            else:
                mount = _find(namespace, mnt_id)
                start = VirtualDentry(mount, mount.root)
                if not MountView(root).is_reachable(mount):
                    self.cred.ns_require(namespace.user_ns, CAP_SYS_ADMIN)
            view = MountView(start)
            reverse = bool(flags & abi.LISTMOUNT_REVERSE)
            found = (
                mount.unique_id
                for _, mount in sorted(namespace.mounts.items(), reverse=reverse)
                if mount.unique_id != mnt_id
                and _comes_after(mount.unique_id, last_mnt_id, reverse)
                and view.is_reachable(mount)
            )
            return list(islice(found, count))

    def _requested_namespace(self, mnt_ns_id: int, refusal: int) -> MountNamespace:
        """Linux: ``grab_requested_mnt_ns``; borrowed. 0 is the caller's own.

        Raises: ENOENT; ``refusal`` without CAP_SYS_ADMIN over it.
        """
        if mnt_ns_id in (0, self.namespace.id):
            return self.namespace
        for namespace in self.vfs.namespaces:
            if namespace.id == mnt_ns_id:
                self.cred.ns_require(namespace.user_ns, CAP_SYS_ADMIN, refusal)
                return namespace
        raise oserror(errno.ENOENT)

    def _requested_root(self, namespace: MountNamespace) -> VirtualDentry:
        """Linux: ``grab_requested_root``; borrowed: the caller's root, or in another namespace the
        mount on the absolute root.

        Raises: ENOENT (there is none).
        """
        if namespace is self.namespace:
            return self.fs.root
        base = namespace.root
        for _, mount in sorted(namespace.mounts.items()):
            if mount is not base and mount.parent is base:
                return VirtualDentry(mount, mount.root)
        raise oserror(errno.ENOENT)


def _find(namespace: MountNamespace, unique_id: int) -> Mount:
    """Linux: ``lookup_mnt_in_ns``; borrowed. Raises: ENOENT."""
    mount = namespace.mounts.get(unique_id - _UNIQUE_ID_OFFSET)
    if mount is None:
        raise oserror(errno.ENOENT)
    return mount


def _comes_after(unique_id: int, last: int, reverse: bool) -> bool:
    """0 is before everything, in either direction."""
    if not last:
        return True
    return unique_id < last if reverse else unique_id > last


def _answer(mount: Mount, mask: int, view: MountView) -> Statmount:
    """Linux: ``do_statmount``, once it is known that the caller may ask."""
    superblock = mount.superblock
    namespace = mount.namespace
    assert namespace is not None
    fields: dict[str, int | bytes | tuple[bytes, ...]] = {}
    answered = mask & (
        abi.STATMOUNT_SB_BASIC | abi.STATMOUNT_MNT_BASIC | abi.STATMOUNT_PROPAGATE_FROM
        | abi.STATMOUNT_MNT_NS_ID | abi.STATMOUNT_SUPPORTED_MASK
    )  # fmt: skip
    if mask & abi.STATMOUNT_SB_BASIC:
        fields["sb_dev_major"] = abi.major(superblock.dev)
        fields["sb_dev_minor"] = abi.minor(superblock.dev)
        fields["sb_magic"] = superblock.magic
        fields["sb_flags"] = superblock.flags & _SB_FLAGS
    if mask & abi.STATMOUNT_MNT_BASIC:
        fields["mnt_id"] = mount.unique_id
        fields["mnt_parent_id"] = mount.parent.unique_id
        fields["mnt_id_old"] = mount.id
        fields["mnt_parent_id_old"] = mount.parent.id
        fields["mnt_attr"] = _attributes(mount.flags)
        fields["mnt_propagation"] = _propagation(mount)
        fields["mnt_peer_group"] = mount.group_id
        fields["mnt_master"] = 0 if mount.master is None else mount.master.group_id
    if mask & abi.STATMOUNT_PROPAGATE_FROM:
        fields["propagate_from"] = view.dominating_id(mount)
    if mask & abi.STATMOUNT_MNT_NS_ID:
        fields["mnt_ns_id"] = namespace.id
    if mask & abi.STATMOUNT_SUPPORTED_MASK:
        fields["supported_mask"] = _SUPPORTED
    # An empty string is none. No filesystem here has a subtype, and there are no security modules.
    if mask & abi.STATMOUNT_FS_TYPE:
        fields["fs_type"] = superblock.type.name.encode()
        answered |= abi.STATMOUNT_FS_TYPE
    if mask & abi.STATMOUNT_MNT_ROOT:
        fields["mnt_root"] = show_path(mount.root)
        answered |= abi.STATMOUNT_MNT_ROOT
    if mask & abi.STATMOUNT_MNT_POINT and (place := view.mount_point(mount)) is not None:
        fields["mnt_point"] = place
        answered |= abi.STATMOUNT_MNT_POINT
    if mask & abi.STATMOUNT_SB_SOURCE and mount.source:
        fields["sb_source"] = mount.source
        answered |= abi.STATMOUNT_SB_SOURCE
    if mask & (abi.STATMOUNT_MNT_OPTS | abi.STATMOUNT_OPT_ARRAY):
        options = os.fsencode(superblock.show_options()).removeprefix(b",")
        if mask & abi.STATMOUNT_MNT_OPTS and options:
            fields["mnt_opts"] = options
            answered |= abi.STATMOUNT_MNT_OPTS
        if mask & abi.STATMOUNT_OPT_ARRAY and options:
            fields["opt_array"] = tuple(map(_unescape, options.split(b",")))
            answered |= abi.STATMOUNT_OPT_ARRAY
    fields["mask"] = answered
    return Statmount(**fields)  # type: ignore[arg-type]


def _attributes(flags: int) -> int:
    """Linux: ``mnt_to_attr_flags``."""
    attributes = 0
    for flag, attribute in _ATTRIBUTES:
        if flags & flag:
            attributes |= attribute
    if flags & abi.MS_NOATIME:
        return attributes | abi.MOUNT_ATTR_NOATIME
    if flags & abi.MS_RELATIME:
        return attributes | abi.MOUNT_ATTR_RELATIME
    return attributes | abi.MOUNT_ATTR_STRICTATIME


def _propagation(mount: Mount) -> int:
    """Linux: ``mnt_to_propagation_flags``."""
    propagation = 0
    if mount.is_shared:
        propagation |= abi.MS_SHARED
    if mount.is_slave:
        propagation |= abi.MS_SLAVE
    if mount.unbindable:
        propagation |= abi.MS_UNBINDABLE
    return propagation or abi.MS_PRIVATE


def _unescape(option: bytes) -> bytes:
    """Linux: ``string_unescape`` with UNESCAPE_OCTAL."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), option)
