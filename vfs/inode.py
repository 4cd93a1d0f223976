"""A file's attributes and the operations a filesystem gives it. Linux: inode, inode_operations.

A filesystem subclasses ``Inode``; every operation it leaves out answers with the errno that Linux's
VFS gives for a missing method. Operations are called with the VFS lock held, after the checks that
belong to all filesystems (permission, read-only, existence, mount points, name length), so an
implementation does only its own part.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from vfs import abi
from vfs.errors import InvariantViolation, oserror
from vfs.permission import generic_permission

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.file import FileDescription
    from vfs.mount import Mount, VirtualDentry
    from vfs.superblock import Superblock


class SetAttributes:
    """Linux: ``struct iattr``. What a setattr changes; ``None`` leaves a field alone.

    ``mode`` carries permission bits only (07777). Times are nanoseconds since the epoch. ``touch``
    says that the times are "now" for both, which whoever may write may ask for (ATTR_TOUCH).
    ``file`` is the open description a truncate came through, if any. ``chown`` says that set-id
    bits go although neither id may change (ATTR_KILL_SUID).
    """

    __slots__ = (
        "atime_ns", "chown", "ctime_ns", "file", "gid", "mode", "mtime_ns", "size", "touch", "uid",
    )  # fmt: skip

    def __init__(
        self,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        touch: bool = False,
        file: FileDescription | None = None,
        chown: bool = False,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.touch = touch
        self.file = file
        self.chown = chown


class Inode:
    """Linux: ``struct inode``.

    ``mode`` holds type and permissions. ``blocks`` counts 512-byte units. ``flags`` are FS_*_FL.
    ``linkable`` lets linkat(2) name a file that has no name (O_TMPFILE without O_EXCL).
    ``count`` is the number of holders (dentries, mostly): at zero ``evict`` runs, once.
    ``wire`` is the transport's packed copy of the attributes: whoever changes an attribute calls
    ``changed()``, which drops it.
    """

    __slots__ = (
        "atime_ns", "blocks", "btime_ns", "count", "ctime_ns", "flags", "generation", "gid", "ino",
        "linkable", "mode", "mtime_ns", "nlink", "rdev", "size", "superblock", "uid", "wire",
    )  # fmt: skip

    def __init__(
        self,
        superblock: Superblock,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        ino: int | None = None,
    ) -> None:
        self.superblock = superblock
        self.ino = superblock.allocate_ino() if ino is None else ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.nlink = 2 if mode & abi.S_IFMT == abi.S_IFDIR else 1
        self.size = 0
        self.blocks = 0
        self.flags = 0
        self.generation = 0
        self.linkable = False
        now = superblock.vfs.clock.now_ns()
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = now
        self.count = 1
        self.wire: bytes | None = None
        superblock.vfs.ledger.born(self)

    # True where the store below keeps times and set-id bits itself, so that the VFS leaves them be.
    host_managed: ClassVar[bool] = False
    # Whether statx(2) tells ``flags``, too, where their meaning is obeyed in any case.
    shows_flags: ClassVar[bool] = True

    @property
    def is_dir(self) -> bool:
        return self.mode & abi.S_IFMT == abi.S_IFDIR

    @property
    def is_symlink(self) -> bool:
        return self.mode & abi.S_IFMT == abi.S_IFLNK

    @property
    def is_regular(self) -> bool:
        return self.mode & abi.S_IFMT == abi.S_IFREG

    @property
    def is_special(self) -> bool:
        """Linux: ``special_file``: writing to it does not write to its filesystem."""
        return self.mode & abi.S_IFMT in (abi.S_IFCHR, abi.S_IFBLK, abi.S_IFIFO, abi.S_IFSOCK)

    @property
    def has_magic_link(self) -> bool:
        """Whether following this symlink jumps (``follow_magic_link``) instead of walking text."""
        return False

    def changed(self) -> None:
        """An attribute changed: drop the packed copy."""
        self.wire = None

    def get(self) -> Inode:
        """Linux: ``ihold``."""
        self.count += 1
        return self

    def put(self) -> None:
        """Linux: ``iput``: the last holder evicts."""
        self.count -= 1
        if self.count < 0:
            raise InvariantViolation(f"{self!r}: inode count below zero")
        if not self.count:
            self.evict()
            self.superblock.vfs.ledger.died(self)

    def evict(self) -> None:
        """Nobody holds the inode: give up descriptors, caches and, if ``nlink`` is 0, storage."""

    # Attributes

    def refresh(self) -> None:
        """Bring the attribute fields up to date (Linux: ``getattr``). Nothing to do in memory."""

    def permission(self, cred: Credentials, mask: int) -> None:
        """Linux: ``i_op->permission`` or ``generic_permission``. ``mask`` is R_OK|W_OK|X_OK.

        Raises: EACCES.
        """
        generic_permission(self, cred, mask)

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        """Apply a change that ``vfs.permission.setattr_prepare`` allowed.

        The default sets fields, which is right for memory-only filesystems without data; those
        with data handle ``size`` first (Linux: ``simple_setattr``).
        """
        if attributes.size is not None:
            raise oserror(errno.EINVAL)
        self.copy_attributes(attributes)

    def copy_attributes(self, attributes: SetAttributes) -> None:
        """Linux: ``setattr_copy``. Everything but size."""
        if attributes.uid is not None:
            self.uid = attributes.uid
        if attributes.gid is not None:
            self.gid = attributes.gid
        if attributes.mode is not None:
            self.mode = self.mode & abi.S_IFMT | attributes.mode & abi.S_IALLUGO
        if attributes.atime_ns is not None:
            self.atime_ns = attributes.atime_ns
        if attributes.mtime_ns is not None:
            self.mtime_ns = attributes.mtime_ns
        if attributes.ctime_ns is not None:
            self.ctime_ns = attributes.ctime_ns
        self.changed()

    def killpriv(self) -> None:
        """Drop security.capability, if there is one (Linux: ``security_inode_killpriv``)."""

    # Directory operations. Each returns or takes inodes; the VFS keeps the dentries. A returned
    # inode carries one reference, which the caller receives. Times, nlink and sizes of the
    # directory are the filesystem's to update.

    def lookup(self, name: bytes) -> Inode | None:
        """The inode behind ``name``, or None. Not called for DCACHE_PINNED superblocks."""
        raise oserror(errno.ENOTDIR)

    def revalidate(self, dentry: Dentry) -> bool:
        """DCACHE_REVALIDATE: whether the cached child ``dentry`` (of this directory) still holds.

        A positive dentry that holds has its inode's attributes refreshed on the way.
        """
        return True

    def create(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        """A new regular file (``mode`` with type bits, umask applied, set-id rules applied)."""
        raise oserror(errno.EACCES)

    def atomic_open(self, name: bytes, mode: int, flags: int, cred: Credentials) -> Inode:
        """As ``create``, by one who opens the file next, with the open(2) ``flags``. Linux's makes
        the description, too; here ``open`` does, with what this has kept for it.
        """
        return self.create(name, mode, cred)

    def mkdir(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        raise oserror(errno.EPERM)

    def mknod(self, name: bytes, mode: int, rdev: int, cred: Credentials) -> Inode:
        """A device, FIFO or socket node; ``mode`` carries the type."""
        raise oserror(errno.EPERM)

    def symlink(self, name: bytes, target: bytes, cred: Credentials) -> Inode:
        raise oserror(errno.EPERM)

    def link(self, name: bytes, inode: Inode, source: Dentry) -> None:
        """A second name for ``inode`` (which ``source`` names); bumps its nlink and ctime."""
        raise oserror(errno.EPERM)

    def unlink(self, name: bytes, inode: Inode) -> None:
        raise oserror(errno.EPERM)

    def rmdir(self, name: bytes, inode: Inode) -> None:
        """Raises: ENOTEMPTY."""
        raise oserror(errno.EPERM)

    def rename(
        self,
        name: bytes,
        inode: Inode,
        new_dir: Inode,
        new_name: bytes,
        new_inode: Inode | None,
        flags: int,
        cred: Credentials,
    ) -> Inode | None:
        """Move ``name`` to ``new_dir/new_name``, replacing or (RENAME_EXCHANGE) swapping with
        ``new_inode``. With RENAME_WHITEOUT returns the whiteout's inode, left at ``name``.

        Raises: EINVAL for flags it does not know; ENOTEMPTY.
        """
        raise oserror(errno.EPERM)

    def tmpfile(self, mode: int, cred: Credentials) -> Inode:
        """An unnamed regular file with nlink 0 (O_TMPFILE)."""
        raise oserror(errno.EOPNOTSUPP)

    # Symlinks

    def readlink(self) -> bytes:
        """The target's text."""
        raise oserror(errno.EINVAL)

    def follow_magic_link(self, cred: Credentials) -> VirtualDentry:
        """Where a magic link (/proc/self/fd/3) leads; the caller receives the references."""
        raise oserror(errno.EINVAL)

    # Files

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        """A description of this regular file or directory (devices and FIFOs are the VFS's).

        ``FileDescription.__init__`` takes its own references on ``mount`` and ``dentry``.
        O_CREAT, O_EXCL, O_TRUNC and permissions are already dealt with.
        """
        raise oserror(errno.ENXIO)

    # Extended attributes; ``name`` is whole ("user.a"). Prefix permissions are checked by the VFS.

    def getxattr(self, name: bytes) -> bytes:
        """Raises: ENODATA, EOPNOTSUPP."""
        raise oserror(errno.EOPNOTSUPP)

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Raises: EEXIST (XATTR_CREATE), ENODATA (XATTR_REPLACE), ENOSPC, EOPNOTSUPP."""
        raise oserror(errno.EOPNOTSUPP)

    def removexattr(self, name: bytes) -> None:
        """Raises: ENODATA, EOPNOTSUPP."""
        raise oserror(errno.EOPNOTSUPP)

    def listxattr(self) -> list[bytes]:
        """The names, whole. Trusted ones are hidden by the VFS from those without CAP_SYS_ADMIN."""
        return []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.superblock.type.name}:{self.ino} {self.mode:06o})"
