"""What a client may keep of what we told it, and for how long."""

from __future__ import annotations

from typing import Final, NamedTuple

from fsimpl.passthrough import ExportPolicy, PassthroughSuperblock
from fsimpl.passthrough.inode import PassthroughInode
from harness.fuse import abi
from vfs.dentry import Dentry
from vfs.superblock import Superblock

_SECOND_NS: Final = 10**9


class CachePolicy(NamedTuple):
    """How a client may cache one filesystem type. libfuse: ``entry_timeout`` and its relatives.

    Timeouts are nanoseconds; ``negative_ns`` is for names that do not exist, 0 for not at all.
    ``file_flags`` and ``directory_flags`` are FOPEN_* given with every open. ``keep_unchanged``
    adds FOPEN_KEEP_CACHE where the client's attributes are provably current, which needs a
    filesystem that changes through our VFS alone. ``direct_io`` hands a client's O_DIRECT to the
    filesystem.
    """

    entry_ns: int
    attr_ns: int
    negative_ns: int
    file_flags: int
    directory_flags: int
    keep_unchanged: bool
    direct_io: bool = False


_DAY_NS: Final = 86400 * _SECOND_NS
_KEEP_DIRECTORY: Final = abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR

NEVER: Final = CachePolicy(0, 0, 0, abi.FOPEN_DIRECT_IO, 0, False)
METADATA: Final = CachePolicy(_DAY_NS, _DAY_NS, 0, abi.FOPEN_DIRECT_IO, _KEEP_DIRECTORY, False)
# Others (a shell, a second mount, the host) may change what the client caches, for a second.
AUTO: Final = CachePolicy(_SECOND_NS, _SECOND_NS, 0, 0, 0, True)
ALWAYS: Final = CachePolicy(_DAY_NS, _DAY_NS, 0, abi.FOPEN_KEEP_CACHE, _KEEP_DIRECTORY, False)

POLICIES: Final = {"never": NEVER, "metadata": METADATA, "auto": AUTO, "always": ALWAYS}


def export_policy(superblock: Superblock) -> ExportPolicy | None:
    """What the mount's options say about its export, if its filesystem has such options."""
    return superblock.policy if isinstance(superblock, PassthroughSuperblock) else None


def adapted(policy: CachePolicy, superblock: Superblock) -> CachePolicy:
    """``policy``, where the mount's options do not say otherwise."""
    export = export_policy(superblock)
    if export is None:
        return policy
    if export.cache is not None:
        policy = POLICIES[export.cache]
    entry_ns = policy.entry_ns if export.entry_ns is None else export.entry_ns
    attr_ns = policy.attr_ns if export.attr_ns is None else export.attr_ns
    return policy._replace(
        entry_ns=entry_ns,
        attr_ns=attr_ns,
        negative_ns=export.negative_ns or policy.negative_ns,
        direct_io=export.allow_direct_io,
    )


def has_no_xattrs(superblock: Superblock) -> bool:
    """Whether the mount was told to know no extended attributes."""
    export = export_policy(superblock)
    return export is not None and not export.xattr


def is_host_submount(dentry: Dentry) -> bool:
    """Whether the host has another file system there than in the directory above, which is to be
    told.
    """
    inode, above = dentry.inode, dentry.parent.inode
    return (
        isinstance(inode, PassthroughInode)
        and isinstance(above, PassthroughInode)
        and inode.host_mount != above.host_mount
        and inode.superblock.policy.announce_submounts is not False
    )


def wanted_flags(flags: int, superblock: Superblock) -> int:
    """The INIT flags to ask for, of which ``flags`` are the server's own wishes. A session has one
    set of them, so the options of what is mounted at its root decide.
    """
    export = export_policy(superblock)
    if export is None:
        return flags
    for wish, bits in (
        (export.readdirplus, abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO),
        (export.allow_mmap, abi.DIRECT_IO_ALLOW_MMAP),
        (export.killpriv_v2, abi.HANDLE_KILLPRIV_V2),
    ):
        if wish is not None:
            flags = flags | bits if wish else flags & ~bits
    if export.announce_submounts is False:
        flags &= ~abi.SUBMOUNTS
    if export.writeback:
        flags |= abi.WRITEBACK_CACHE
    if export.posix_acl:
        flags |= abi.POSIX_ACL | abi.DONT_MASK
    if export.security_label:
        flags |= abi.SECURITY_CTX
    return flags
