"""The passthrough's type and superblock. Linux: file_system_type, super_block."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from fsimpl.passthrough import oslib
from fsimpl.passthrough.casefold import DEFAULT_TIMEOUT_NS
from fsimpl.passthrough.descriptors import DescriptorBudget, MountAnchor
from fsimpl.passthrough.handle import HostHandle, open_link
from fsimpl.passthrough.identity import HostIdentity
from fsimpl.passthrough.inode import PassthroughInode, identity_of
from fsimpl.passthrough.options import (
    HANDLES_MANDATORY,
    HANDLES_NEVER,
    HANDLES_PREFER,
    PassthroughOptions,
    split_options,
)
from fsimpl.passthrough.placed import PathPolicy, PlacedInode
from fsimpl.passthrough.xattrs import XattrPolicy
from vfs import abi
from vfs.dentry import Dentry
from vfs.fs_context import FilesystemContext, Parameter
from vfs.superblock import (
    DCACHE_REVALIDATE,
    FilesystemType,
    Statfs,
    Superblock,
)

if TYPE_CHECKING:
    from fsimpl.passthrough.identity import Assumed, Own
    from vfs.credentials import Credentials
    from vfs.inode import Inode

_ROOT_FLAGS = abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC


class PassthroughSuperblock(Superblock):
    """A directory of the host, mounted.

    ``inodes`` finds the inode of a file that is known already, by ``identity_of``; an inode is in
    it until it is evicted. ``stat`` is the statx(2) buffer, for holders of the VFS lock. ``budget``
    keeps the descriptors. ``idmap`` translates ids, if they are translated; ``xattrs`` decides
    about extended attributes; ``policy`` is for the transport that exports the mount.
    ``paths`` is what the options say of paths, if they do, and ``inode_class`` minds it.
    ``casefold_ns`` is how long a directory's names by lower case are kept; None: case counts.
    """

    __slots__ = (
        "_capable_mounts", "anchor", "budget", "casefold_ns", "extra_open_flags", "handles",
        "identity", "idmap", "inode_class", "inodes", "options", "paths", "policy", "stat",
        "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        context: FilesystemContext,
        root: int,
        options: PassthroughOptions,
        budget: DescriptorBudget,
    ) -> None:
        """``root`` (borrowed) is a descriptor of the shared directory."""
        figures = oslib.fstatfs(root)
        identity = HostIdentity()
        budget.open_links()
        super().__init__(context, magic=figures[0], dcache=DCACHE_REVALIDATE)
        self.budget = budget
        budget.join(self)
        self.block_size = figures[1]
        self.identity = identity
        self.inodes: dict[bytes, PassthroughInode] = {}
        self.stat = oslib.StatBuffer()
        self.options = options
        self.handles = options.inode_file_handles or HANDLES_PREFER
        self.anchor: MountAnchor | None = None
        self._capable_mounts: set[bytes] = set()
        self.idmap = options.idmap
        self.xattrs = XattrPolicy(options, self.idmap)
        self.policy = options.policy
        self.paths = PathPolicy(options) if options.speaks_of_paths else None
        self.inode_class = PassthroughInode if self.paths is None else PlacedInode
        self.casefold_ns: int | None = None
        if options.ascii_casefold:
            timeout_ns = options.timeout_ns
            self.casefold_ns = DEFAULT_TIMEOUT_NS if timeout_ns is None else timeout_ns
        self.extra_open_flags = abi.O_NOATIME
        self._take_changeable(options)

    def _take_changeable(self, options: PassthroughOptions) -> None:
        if options.allow_direct_io:
            self.extra_open_flags |= abi.O_DIRECT
        if options.preserve_noatime:
            self.extra_open_flags |= abi.O_NOATIME
        elif options.preserve_noatime is False:
            self.extra_open_flags &= ~abi.O_NOATIME

    def find_anchor(self, root: int) -> None:
        """Have inodes be file handles, as far as they are to be; ``root`` is borrowed.

        Raises: EOPNOTSUPP, EPERM where they must be and cannot.
        """
        if self.handles == HANDLES_NEVER:
            return
        try:
            self.anchor = self.budget.anchor_root(root, identity_of(self.stat.of(root))[8:])
        except OSError as error:
            if self.handles == HANDLES_MANDATORY:
                raise
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
            # Without it nothing on this file system could be opened again; others may be mounted
            # on it, but they have no better claim.
            self.handles = HANDLES_NEVER

    # Inodes

    def adopt(self, fd: int) -> PassthroughInode:
        """The one inode of the file that the O_PATH descriptor ``fd`` (taken over) stands for.

        The caller receives a reference. Raises: EOPNOTSUPP (inode_file_handles=mandatory, and the
        file has none).
        """
        try:
            raw = self.stat.of(fd)
            identity = identity_of(raw)
            known = self.inodes.get(identity)
            if known is not None:
                handle = known.handle
                if handle.fd >= 0:
                    os.close(fd)
                elif handle.is_file(fd, b""):
                    self.budget.give(handle, fd)
                else:
                    # It is gone, and another file has its number.
                    del self.inodes[identity]
                    known = None
            if known is None and self.handles == HANDLES_MANDATORY:
                self._require_file_handle(fd, identity)
        except BaseException:
            os.close(fd)
            raise
        if known is not None:
            known.update(raw)
            known.count += 1
            return known
        is_dir = int.from_bytes(raw[28:30], "little") & abi.S_IFMT == abi.S_IFDIR
        handle = HostHandle(fd, identity[8:], self.budget, is_dir)
        inode = self.inode_class(self, handle, raw)
        self.inodes[identity] = inode
        self.budget.add(handle, self.handles != HANDLES_NEVER)
        return inode

    def _require_file_handle(self, fd: int, identity: bytes) -> None:
        mount = identity[8:]
        if mount not in self._capable_mounts:
            oslib.name_to_handle_at(fd, b"")
            self._capable_mounts.add(mount)

    def adopt_open(self, fd: int, keep: bool) -> PassthroughInode:
        """As ``adopt``, for a new file that ``fd`` (taken over) has open; ``keep`` leaves it to the
        inode for its first open.
        """
        budget = self.budget
        link, flags = b"%d" % fd, abi.O_PATH | abi.O_CLOEXEC
        try:
            inode = self.adopt(budget.make(open_link, link, flags, budget.links))
        except BaseException:
            os.close(fd)
            raise
        if keep:
            inode.first = fd
        else:
            os.close(fd)
        return inode

    def forget(self, inode: PassthroughInode) -> None:
        """``inode`` is evicted."""
        if self.inodes.get(inode.identity) is inode:
            del self.inodes[inode.identity]

    def find_child(self, directory: HostHandle, name: bytes) -> PassthroughInode | None:
        """The inode of ``name`` in ``directory``, with a reference; None if there is no such name.

        Looking costs 1 µs less than opening, and is in vain where there is something to open: a
        guess, by whether there was in the same directory last time. Raises: ENFILE; as ``adopt``.
        """
        if not directory.fruitful:
            stat = self.stat
            if not stat.find(directory.descriptor(), name):
                return None
            raw = stat.view.raw
            known = self.inodes.get(identity_of(raw))
            # Without a descriptor on it its number could be another file's by now.
            if known is not None and known.handle.fd >= 0:
                known.update(raw)
                known.count += 1
                return known
        fd = self.open_child(directory, name)
        directory.fruitful = fd >= 0
        return self.adopt(fd) if fd >= 0 else None

    def open_child(self, directory: HostHandle, name: bytes) -> int:
        """``oslib.open_child`` within the budget. Raises: ENFILE."""
        with directory.pinned() as fd:
            return self.budget.make(oslib.open_child, fd, name)

    # Identity

    def assume(self, cred: Credentials) -> Own | Assumed:
        """``HostIdentity.assume`` of whom the host takes ``cred`` for. Raises: EPERM, EOVERFLOW."""
        return self.identity.assume(self.host_cred(cred))

    def host_cred(self, cred: Credentials) -> Credentials:
        """Whom the host takes ``cred`` for. Raises: EPERM (forbidden), EOVERFLOW."""
        return cred if self.idmap is None else self.idmap.credentials(cred)

    # The superblock's operations

    @property
    def root_inode(self) -> PassthroughInode:
        assert self.root is not None
        inode: Inode | None = self.root.inode
        assert isinstance(inode, PassthroughInode)
        return inode

    def statfs(self) -> Statfs:
        """The figures of the host file system that the shared directory is on."""
        figures = oslib.fstatfs(self.root_inode.handle.descriptor())
        kind, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen, frsize = figures
        return Statfs(
            kind, bsize, blocks, bfree, bavail, files, ffree, namelen, frsize or bsize, fsid
        )

    def sync(self) -> None:
        """syncfs(2) on the shared directory's file system; not on others mounted inside it."""
        fd = self.budget.open(self.root_inode.handle, abi.O_RDONLY | abi.O_DIRECTORY)
        try:
            oslib.syncfs(fd)
        finally:
            os.close(fd)

    def reconfigure(self, context: FilesystemContext) -> None:
        """``allow_direct_io``, which cannot be taken back, and ``preserve_noatime`` count for files
        opened from now on. Raises: EINVAL for the others.
        """
        options = PassthroughOptions.of(context)
        options.require_changeable(context, self.options)
        self._take_changeable(options)
        self.options.take_shown(options)

    def show_options(self) -> str:
        return self.options.show()

    def release(self) -> None:
        super().release()
        if self.anchor is not None:
            self.budget.leave_anchor(self.anchor)
        self.budget.leave(self)


class PassthroughType(FilesystemType):
    """``passthrough``: ``source`` is a directory of the host, by a path as the process sees it.

    Options are ``PassthroughOptions``'. Whoever can mount this type can reach every directory that
    the process can, so a task that may mount is as trusted as the process.
    """

    name = "passthrough"

    def __init__(self, links: int | None = None) -> None:
        """``links``, if given, is a descriptor of /proc/self/fd (borrowed for good), for a process
        that does not see /proc where it is wont to be.
        """
        self.budget = DescriptorBudget(links)

    def init_context(self, context: FilesystemContext) -> None:
        context.fs_private = PassthroughOptions()

    def split_options(self, data: str) -> list[str]:
        return split_options(data)

    def parse_parameter(self, context: FilesystemContext, parameter: Parameter) -> bool:
        return PassthroughOptions.of(context).parse(context, parameter)

    def get_tree(self, context: FilesystemContext) -> Superblock:
        """Raises: EINVAL (no source; options that exclude each other), ENOENT, EACCES, ENOTDIR for
        a source that is no directory, EOPNOTSUPP, EPERM (inode_file_handles=mandatory, and the host
        does not let us).
        """
        options = PassthroughOptions.of(context)
        options.finish(context)
        root = os.open(context.require_source(), _ROOT_FLAGS)
        try:
            superblock = PassthroughSuperblock(context, root, options, self.budget)
        except BaseException:
            os.close(root)
            raise
        try:
            superblock.find_anchor(root)
        except BaseException:
            os.close(root)
            superblock.put()
            raise
        try:
            superblock.root = Dentry.make_root(superblock, superblock.adopt(root))
        except BaseException:
            superblock.put()
            raise
        return superblock
