"""Inodes that know their path, for mounts whose options speak of paths."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from fsimpl.passthrough.allowlist import FULL, NONE, TRAVERSE, PathAllowlist
from fsimpl.passthrough.directory import PassthroughDirectory
from fsimpl.passthrough.dynamic import PathXattrs
from fsimpl.passthrough.inode import PassthroughInode
from fsimpl.passthrough.owner_rules import OwnerRule, OwnerRules
from vfs import abi
from vfs.credentials import Credentials
from vfs.errors import oserror

if TYPE_CHECKING:
    from fsimpl.passthrough.filesystem import PassthroughSuperblock
    from fsimpl.passthrough.handle import HostHandle
    from fsimpl.passthrough.options import PassthroughOptions
    from vfs.dentry import Dentry
    from vfs.file import DirectoryEntry, FileDescription
    from vfs.inode import Inode, SetAttributes
    from vfs.mount import Mount

_DEPTH_MAX: Final = 4096
"""Directories above an inode; one that the host moves may seem to be above itself."""

Place = tuple["PlacedInode", bytes]


class PathPolicy:
    """What a mount's options say of paths. ``allowlist`` is None if all of them may be seen;
    ``fixed`` says that names stay as they are, for the directory is not shared, but one file of it.
    ``coming`` is the place of the inode that is made next.
    """

    __slots__ = ("allowlist", "coming", "fixed", "owners", "xattrs")

    def __init__(self, options: PassthroughOptions) -> None:
        self.fixed = options.only is not None
        self.allowlist = PathAllowlist() if options.allowlist or self.fixed else None
        if self.allowlist is not None and options.only is not None:
            self.allowlist.add([options.only])
        self.owners = OwnerRules(options.owner_rules, options.max_dynamic_perm)
        self.xattrs = PathXattrs(options.max_dynamic_xattr)
        self.coming: Place | None = None


class PlacedDirectory(PassthroughDirectory):
    """An open directory that lists what may be seen."""

    __slots__ = ()
    inode: PlacedInode

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        entries = super().iterate(cookie)
        allowlist = self.inode.policy.allowlist
        visible = None if allowlist is None else allowlist.visible(self.inode.path())
        if visible is None:
            return entries
        shown = visible
        return (entry for entry in entries if entry[0] in shown or entry[0] in (b".", b".."))


class PlacedInode(PassthroughInode):
    """An inode with its place: the directory that it was last found in, and its name there.

    The place follows what is renamed through us; what the host renames is found again where it is
    looked up. An inode that is held and was moved by the host is taken to be where it was.
    ``host_mode`` is the host's, where a rule tells the client another.
    """

    __slots__ = ("host_mode", "place")
    directory_class: ClassVar[type[PassthroughDirectory]] = PlacedDirectory

    def __init__(self, superblock: PassthroughSuperblock, handle: HostHandle, raw: bytes) -> None:
        assert superblock.paths is not None
        self.host_mode = 0
        self.place, superblock.paths.coming = superblock.paths.coming, None
        super().__init__(superblock, handle, raw)

    @property
    def policy(self) -> PathPolicy:
        assert self.superblock.paths is not None
        return self.superblock.paths

    def path(self) -> list[bytes] | None:
        """The names from the mount's root; None where nobody knows."""
        names: list[bytes] = []
        place = self.place
        for _ in range(_DEPTH_MAX):
            if place is None:
                names.reverse()
                return names
            names.append(place[1])
            place = place[0].place
        return None

    def child_path(self, name: bytes) -> list[bytes] | None:
        """The path of ``name`` in this directory."""
        names = self.path()
        return None if names is None else [*names, name]

    def _settle(self, directory: PlacedInode, name: bytes) -> None:
        if self.place is None or self.place[0] is not directory or self.place[1] != name:
            if self is self.superblock.root_inode:
                return
            self.place = directory, name
            self._absorb(self.superblock.stat.of(self.handle.descriptor()))

    # The allow-list. Whoever may not see a name does not find it; what is held by a client when it
    # is taken off the list is refused.

    def _level(self, name: bytes | None = None) -> int:
        allowlist = self.policy.allowlist
        if allowlist is None:
            return FULL
        return allowlist.level(self.path() if name is None else self.child_path(name))

    def _require(self, level: int, name: bytes | None = None) -> None:
        if name is not None and self.policy.fixed:
            raise oserror(errno.EROFS)
        if self._level(name) < level:
            raise oserror(errno.EACCES)

    def lookup(self, name: bytes) -> Inode | None:
        if self._level(name) == NONE:
            return None
        self.policy.coming = self, name
        inode = super().lookup(name)
        if isinstance(inode, PlacedInode):
            inode._settle(self, name)
        return inode

    def revalidate(self, dentry: Dentry) -> bool:
        if self._level(dentry.name) == NONE:
            return dentry.inode is None
        return super().revalidate(dentry)

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        if self._level() < FULL:
            writes = flags & (abi.O_ACCMODE | abi.O_TRUNC) != abi.O_RDONLY
            if writes or not (self.is_dir or self._level()):
                raise oserror(errno.EACCES)
        return super().open(mount, dentry, flags, cred)

    def readlink(self) -> bytes:
        self._require(TRAVERSE)
        return super().readlink()

    def unlink(self, name: bytes, inode: Inode) -> None:
        self._require(FULL, name)
        super().unlink(name, inode)

    def rmdir(self, name: bytes, inode: Inode) -> None:
        self._require(FULL, name)
        super().rmdir(name, inode)

    def link(self, name: bytes, inode: Inode, source: Dentry) -> None:
        assert isinstance(inode, PlacedInode)
        inode._require(FULL)
        self._require(FULL, name)
        super().link(name, inode, source)
        inode._settle(self, name)

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
        assert isinstance(inode, PlacedInode)
        assert isinstance(new_dir, PlacedInode)
        self._require(FULL, name)
        new_dir._require(FULL, new_name)
        made = super().rename(
            name, inode, new_dir, new_name, new_inode, flags, self._maker(cred, name)
        )
        inode._settle(new_dir, new_name)
        if flags & abi.RENAME_EXCHANGE and isinstance(new_inode, PlacedInode):
            new_inode._settle(self, name)
        return made

    # Owners by rule

    def _absorb(self, raw: bytes) -> None:
        super()._absorb(raw)
        self.host_mode = self.mode
        rule = self._rule()
        if rule is not None:
            self.uid, self.gid = rule.guest_uid, rule.guest_gid
            self.mode = self.mode & abi.S_IFMT | 0o777 & ~rule.umask

    def mode_on_host(self) -> int:
        return self.host_mode

    def _rule(self) -> OwnerRule | None:
        return self.policy.owners.find(self.path())

    def _maker(self, cred: Credentials, name: bytes) -> Credentials:
        """Who makes ``name`` in this directory. Raises: EPERM if this process cannot be him."""
        rule = self.policy.owners.find(self.child_path(name))
        if rule is None:
            return cred
        identity = self.superblock.identity
        own = (identity.fsuid, identity.fsgid)
        if not identity.switches and (rule.host_uid, rule.host_gid) != own:
            raise oserror(errno.EPERM)
        return Credentials(rule.host_uid, rule.host_gid, frozenset(), caps=cred.caps)

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        self._require(FULL)
        rule = self._rule()
        if rule is not None:
            # What the client sees is the rule's, and stays so; it leaves the host's alone.
            if attributes.uid == rule.guest_uid:
                attributes.uid = None
            if attributes.gid == rule.guest_gid:
                attributes.gid = None
        super().setattr(attributes, cred)

    def _begin(self, cred: Credentials, name: bytes) -> Credentials:
        self._require(FULL, name)
        self.policy.coming = self, name
        return self._maker(cred, name)

    def create(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        return super().create(name, mode, self._begin(cred, name))

    def atomic_open(self, name: bytes, mode: int, flags: int, cred: Credentials) -> Inode:
        return super().atomic_open(name, mode, flags, self._begin(cred, name))

    def tmpfile(self, mode: int, cred: Credentials) -> Inode:
        self._require(FULL)
        return super().tmpfile(mode, self._begin(cred, b"."))

    def mkdir(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        return super().mkdir(name, mode, self._begin(cred, name))

    def mknod(self, name: bytes, mode: int, rdev: int, cred: Credentials) -> Inode:
        return super().mknod(name, mode, rdev, self._begin(cred, name))

    def symlink(self, name: bytes, target: bytes, cred: Credentials) -> Inode:
        return super().symlink(name, target, self._begin(cred, name))

    # Extended attributes

    def getxattr(self, name: bytes) -> bytes:
        self._require(TRAVERSE)
        value = self.policy.xattrs.find(self.path(), name)
        return super().getxattr(name) if value is None else value

    def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        self._require(FULL)
        # As crosvm: done, as far as the client can tell, and the host's is left alone.
        if self.policy.xattrs.find(self.path(), name) is None:
            super().setxattr(name, value, flags)

    def removexattr(self, name: bytes) -> None:
        self._require(FULL)
        super().removexattr(name)

    def listxattr(self) -> list[bytes]:
        self._require(TRAVERSE)
        return super().listxattr()
