"""The passthrough's type and superblock. Linux: file_system_type, super_block."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

from fsimpl.passthrough import oslib
from fsimpl.passthrough.handle import HostHandle
from fsimpl.passthrough.identity import HostIdentity
from fsimpl.passthrough.inode import PassthroughInode, identity_of
from vfs import abi
from vfs.dentry import Dentry
from vfs.errors import oserror
from vfs.superblock import (
    DCACHE_REVALIDATE,
    FilesystemContext,
    FilesystemType,
    Statfs,
    Superblock,
)

if TYPE_CHECKING:
    from vfs.inode import Inode

P = ParamSpec("P")

_ROOT_FLAGS = abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC
# How many unused dentries go at once when descriptors run out.
_RECLAIM_BATCH = 64


class PassthroughSuperblock(Superblock):
    """A directory of the host, mounted. Also keeps the budget of descriptors.

    ``inodes`` finds the inode of a file that is known already, by ``identity_of``; an inode is in
    it until it is evicted. ``stat`` is the statx(2) buffer, for holders of the VFS lock.

    Every inode costs a descriptor. ``ceiling`` is the descriptor number from which on unused
    dentries are given up for each new inode, so that some are left for sockets and open files; the
    kernel gives out the lowest free number, so the latest one, ``newest``, tells how full it is.
    """

    __slots__ = (
        "allow_direct_io", "ceiling", "extra_open_flags", "identity", "inodes", "links", "newest",
        "stat",
    )  # fmt: skip

    def __init__(self, context: FilesystemContext, root: int, allow_direct_io: bool) -> None:
        """``root`` (borrowed) is a descriptor of the shared directory."""
        figures = oslib.fstatfs(root)
        links = HostHandle.open_links()
        super().__init__(context, magic=figures[0], dcache=DCACHE_REVALIDATE)
        self.links = links
        self.block_size = figures[1]
        self.identity = HostIdentity()
        self.inodes: dict[bytes, PassthroughInode] = {}
        self.stat = oslib.StatBuffer()
        self.allow_direct_io = allow_direct_io
        self.extra_open_flags = abi.O_DIRECT if allow_direct_io else 0
        self.newest = 0
        self.ceiling = _descriptor_ceiling()

    # Inodes

    def adopt(self, fd: int) -> PassthroughInode:
        """The one inode of the file that the O_PATH descriptor ``fd`` (taken over) stands for.

        The caller receives a reference.
        """
        try:
            raw = self.stat.of(fd)
        except BaseException:
            os.close(fd)
            raise
        known = self.inodes.get(identity_of(raw))
        if known is not None:
            os.close(fd)
            known.update(raw)
            known.get()
            return known
        inode = PassthroughInode(self, HostHandle(fd, self.links), raw)
        self.inodes[inode.identity] = inode
        if fd > self.newest:
            self.newest = fd
        return inode

    def adopt_open(self, fd: int, keep: bool) -> PassthroughInode:
        """As ``adopt``, for a new file that ``fd`` (taken over) has open; ``keep`` leaves it to the
        inode for its first open.
        """
        try:
            inode = self.adopt(self.with_descriptor(HostHandle.open_path_of, fd, self.links))
        except BaseException:
            os.close(fd)
            raise
        if keep:
            inode.first = fd
        else:
            os.close(fd)
        return inode

    def forget(self, inode: PassthroughInode) -> None:
        """``inode`` is evicted and closes its descriptor."""
        del self.inodes[inode.identity]
        if inode.handle.fd < self.newest:
            self.newest = inode.handle.fd

    # Descriptors

    def open_child(self, directory: HostHandle, name: bytes) -> int:
        """``oslib.open_child`` within the budget. Raises: ENFILE."""
        return self.with_descriptor(oslib.open_child, directory.fd, name)

    def open_handle(self, handle: HostHandle, flags: int) -> int:
        """``handle.open(flags)`` within the budget. Raises: ENFILE."""
        while True:
            fd = self.with_descriptor(handle.open, flags)
            if fd < self.ceiling:
                return fd
            self.ceiling = _descriptor_ceiling()
            if fd < self.ceiling:
                return fd
            os.close(fd)
            if not self._reclaim():
                raise oserror(errno.ENFILE)

    def with_descriptor(self, make: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
        """The descriptor that ``make(...)`` gives, after making room for it where that is needed.

        Raises: ENFILE when nothing unused is left to give up; what ``make`` raises.
        """
        self.require_descriptor()
        while True:
            try:
                return make(*args, **kwargs)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
            if not self._reclaim():
                raise oserror(errno.ENFILE)

    def require_descriptor(self) -> None:
        """Raises: ENFILE if the budget is used up, before anything is changed on the host."""
        if self.newest < self.ceiling:
            return
        self.ceiling = _descriptor_ceiling()
        if self.newest >= self.ceiling and not self._reclaim():
            raise oserror(errno.ENFILE)

    def _reclaim(self) -> bool:
        """Drop the oldest unused names, with their inodes; whether there were any."""
        dcache = self.vfs.dcache
        unused = (d for d in dcache.lru if d.superblock is self and d.inode is not None)
        oldest = list(itertools.islice(unused, _RECLAIM_BATCH))
        for dentry in oldest:
            dcache.drop(dentry)
        return bool(oldest)

    # The superblock's operations

    @property
    def root_inode(self) -> PassthroughInode:
        assert self.root is not None
        inode: Inode | None = self.root.inode
        assert isinstance(inode, PassthroughInode)
        return inode

    def statfs(self) -> Statfs:
        """The figures of the host file system that the shared directory is on."""
        figures = oslib.fstatfs(self.root_inode.handle.fd)
        kind, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen, frsize = figures
        return Statfs(
            kind, bsize, blocks, bfree, bavail, files, ffree, namelen, frsize or bsize, fsid
        )

    def sync(self) -> None:
        """syncfs(2) on the shared directory's file system; not on others mounted inside it."""
        fd = self.open_handle(self.root_inode.handle, abi.O_RDONLY | abi.O_DIRECTORY)
        try:
            oslib.syncfs(fd)
        finally:
            os.close(fd)

    def reconfigure(self, context: FilesystemContext) -> None:
        """Raises: EINVAL. ``allow_direct_io`` counts for files opened from now on."""
        allow_direct_io = _parse(context) or self.allow_direct_io
        self.flags = context.flags
        self.allow_direct_io = allow_direct_io
        self.extra_open_flags = abi.O_DIRECT if allow_direct_io else 0

    def show_options(self) -> str:
        return ",allow_direct_io" if self.allow_direct_io else ""

    def release(self) -> None:
        super().release()
        os.close(self.links)


class PassthroughType(FilesystemType):
    """``passthrough``: ``source`` is a directory of the host, by a path as the process sees it.

    Option ``allow_direct_io``: O_DIRECT is passed to the host; without it, it is ignored. Whoever
    can mount this type can reach every directory that the process can, so a task that may mount
    is as trusted as the process.
    """

    name = "passthrough"

    def mount(self, context: FilesystemContext) -> Superblock:
        """Raises: EINVAL (an unknown option), ENOENT, EACCES, ENOTDIR for a source that is no
        directory.
        """
        allow_direct_io = _parse(context)
        root = os.open(context.source, _ROOT_FLAGS)
        try:
            superblock = PassthroughSuperblock(context, root, allow_direct_io)
        except BaseException:
            os.close(root)
            raise
        try:
            superblock.root = Dentry.make_root(superblock, superblock.adopt(root))
        except BaseException:
            superblock.put()
            raise
        return superblock


def _parse(context: FilesystemContext) -> bool:
    """Whether ``allow_direct_io`` is among the options. Raises: EINVAL for any other."""
    for option in context.options:
        if option != ("allow_direct_io", None):
            raise oserror(errno.EINVAL)
    return bool(context.options)


def _descriptor_ceiling() -> int:
    """Leaves a sixteenth of RLIMIT_NOFILE, and at least 16, to others."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return abi.MAX_LFS_FILESIZE
    return limit - max(16, limit // 16)
