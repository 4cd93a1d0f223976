"""Dentries as records: which file is meant, and how the other side finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from fsimpl.passthrough import PassthroughSuperblock
from fsimpl.tmpfs import TmpfsSuperblock
from fsimpl.tmpfs.inode import TmpfsInode
from harness.migration.host import HANDLE_MAX, HostPaths
from harness.migration.mounts import path_of
from harness.migration.options import FILE_HANDLES, MigrationOptions
from harness.migration.stream import Packer, StateError, Unpacker
from vfs import abi
from vfs.dentry import Dentry
from vfs.namei import step
from vfs.superblock import Superblock

NOTHING: Final = 0xFFFFFFFF
"""The number of no dentry, mount or superblock."""
DENTRIES_MAX: Final = 1 << 24

# How a dentry is found.
ROOT: Final = 0  # the root of its superblock
NAMED: Final = 1  # by its name in its parent; ``ino`` is a tmpfs's, ``handle`` to be compared
ORPHAN: Final = 2  # on a tmpfs, without a name: by ``ino``
HANDLE: Final = 3  # by ``handle`` on the host mount of the directory ``anchor``
LOST: Final = 4  # not at all


class DentryRecord(NamedTuple):
    """One dentry. Parents and anchors come before it."""

    superblock: int
    how: int
    is_dir: bool = False
    parent: int = NOTHING
    name: bytes = b""
    ino: int = 0
    handle: bytes = b""
    anchor: int = NOTHING

    def pack(self) -> Packer:
        out = Packer()
        out.u32(self.superblock)
        out.u8(self.how)
        out.u8(self.is_dir)
        out.u32(self.parent)
        out.blob(self.name)
        out.u64(self.ino)
        out.blob(self.handle)
        out.u32(self.anchor)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> DentryRecord:
        superblock, how, is_dir, parent = data.u32(), data.u8(), data.u8(), data.u32()
        name, ino, handle = data.blob(abi.NAME_MAX), data.u64(), data.blob(HANDLE_MAX)
        return cls(superblock, how, bool(is_dir), parent, name, ino, handle, data.u32())


class DentryWriter:
    """Describes dentries, each once. Needs the VFS lock, until ``close``."""

    def __init__(self, superblocks: dict[Superblock, int], options: MigrationOptions) -> None:
        self.records: list[DentryRecord] = []
        self._numbers: dict[Dentry, int] = {}
        self._superblocks = superblocks
        self._options = options
        self._hosts: dict[Superblock, HostPaths] = {}

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def number(self, dentry: Dentry) -> int:
        """The number of ``dentry``, which is described with all above it. Raises: StateError."""
        numbers = self._numbers
        chain = []
        node = dentry
        while node not in numbers:
            chain.append(node)
            if node.parent is node:
                break
            node = node.parent
        for node in reversed(chain):
            numbers[node] = self._describe(node)
        return numbers[dentry]

    def _add(self, record: DentryRecord) -> int:
        self.records.append(record)
        return len(self.records) - 1

    def _describe(self, dentry: Dentry) -> int:
        superblock, inode = dentry.superblock, dentry.inode
        number = self._superblocks.get(superblock, NOTHING)
        if number == NOTHING or inode is None:
            return self._lost(dentry, number, "its file system is unmounted")
        if dentry is superblock.root:
            return self._add(DentryRecord(number, ROOT, True))
        if isinstance(superblock, PassthroughSuperblock):
            return self._describe_host(dentry, superblock, number)
        parent = NOTHING if dentry.parent is dentry else self._numbers[dentry.parent]
        ino = 0
        if isinstance(inode, TmpfsInode):
            ino = inode.ino
        elif not dentry.hashed:
            return self._lost(dentry, number, "it has no name any more")
        how = NAMED if dentry.hashed else ORPHAN
        return self._add(DentryRecord(number, how, inode.is_dir, parent, dentry.name, ino))

    def _lost(self, dentry: Dentry, superblock: int, reason: str) -> int:
        self._options.lost(f"/{_shown(dentry)}: {reason}")
        return self._add(DentryRecord(superblock, LOST))

    def _describe_host(self, dentry: Dentry, superblock: PassthroughSuperblock, number: int) -> int:
        options = self._options
        host = self._hosts.get(superblock)
        if host is None:
            host = HostPaths(superblock, options.confirm_paths)
            self._hosts[superblock] = host
        by_handle = options.mode == FILE_HANDLES
        place = host.place(dentry, search=not by_handle)
        if place is not None and place is not dentry:
            return self.number(place)
        if not by_handle:
            if place is None:
                return self._lost(dentry, number, "it has no name any more, or cannot be found")
            return self._describe_named(host, dentry, number)
        top = host.mount_top(dentry)
        if top is dentry:
            if place is None:
                return self._lost(dentry, number, "it is a mount of the host that is gone")
            return self._describe_named(host, dentry, number)
        try:
            handle = host.file_handle(dentry)
        except OSError as error:
            return self._lost(dentry, number, f"no file handle: {error.strerror}")
        assert dentry.inode is not None
        parent, anchor = self._numbers[dentry.parent], self._numbers[top]
        is_dir = dentry.inode.is_dir
        return self._add(
            DentryRecord(number, HANDLE, is_dir, parent, dentry.name, 0, handle, anchor)
        )

    def _describe_named(self, host: HostPaths, dentry: Dentry, number: int) -> int:
        handle = b""
        if self._options.verify_handles:
            try:
                handle = host.file_handle(dentry)
            except OSError as error:
                return self._lost(dentry, number, f"no file handle: {error.strerror}")
        assert dentry.inode is not None
        parent = self._numbers[dentry.parent]
        return self._add(
            DentryRecord(number, NAMED, dentry.inode.is_dir, parent, dentry.name, 0, handle)
        )


class DentryReader:
    """Finds the dentries that are described, and holds them until ``close``. Needs the VFS lock.

    ``tmpfs`` has the inodes of each tmpfs among ``superblocks``, by their numbers.
    """

    def __init__(
        self,
        superblocks: list[Superblock],
        tmpfs: Mapping[int, Mapping[int, TmpfsInode]],
        options: MigrationOptions,
    ) -> None:
        self.dentries: list[Dentry | None] = []
        self._superblocks = superblocks
        self._tmpfs = tmpfs
        self._options = options
        self._hosts: dict[int, HostPaths] = {}

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()
        dentries, self.dentries = self.dentries, []
        for dentry in reversed(dentries):
            if dentry is not None:
                dentry.put()

    def find(self, number: int) -> Dentry | None:
        """The dentry of that number, borrowed; None if it is lost. Raises: StateError."""
        if number >= len(self.dentries):
            raise StateError(f"there is no dentry {number}")
        return self.dentries[number]

    def add(self, record: DentryRecord) -> None:
        """Find the next one. Raises: StateError."""
        dentry = self._found(record)
        self.dentries.append(dentry)
        if dentry is not None and dentry.inode is not None and record.how != ROOT:
            if dentry.inode.is_dir == record.is_dir:
                return
            self.dentries[-1] = None
            dentry.put()
            self._lost(record, "it is a directory on one side only")

    def _lost(self, record: DentryRecord, reason: str) -> None:
        parent = None if record.parent == NOTHING else self.dentries[record.parent]
        path = record.name if parent is None else path_of(parent) + b"/" + record.name
        self._options.lost(f"/{path.decode(errors='replace')}: {reason}")

    def _found(self, record: DentryRecord) -> Dentry | None:
        if record.how == LOST:
            self._lost(record, "the other side has lost it")
            return None
        if record.superblock >= len(self._superblocks):
            raise StateError(f"there is no superblock {record.superblock}")
        superblock = self._superblocks[record.superblock]
        if record.how == ROOT:
            assert superblock.root is not None
            root: Dentry = superblock.vfs.dcache.hold(superblock.root)
            return root
        if record.name in (b"", b".", b"..") or b"/" in record.name or b"\0" in record.name:
            raise StateError(f"{record.name!r} is no name")
        parent = None
        if record.parent != NOTHING or record.how != ORPHAN:
            parent = self.find(record.parent)
            if parent is None:
                self._lost(record, "its directory is lost")
                return None
            if parent.superblock is not superblock or not parent.inode or not parent.inode.is_dir:
                raise StateError(f"{record.name!r} is in no directory")
        if isinstance(superblock, TmpfsSuperblock):
            return self._found_tmpfs(record, superblock, parent)
        assert parent is not None
        try:
            if record.how == NAMED:
                return self._found_named(record, parent)
            if record.how == HANDLE and isinstance(superblock, PassthroughSuperblock):
                return self._found_by_handle(record, superblock, parent)
        except OSError as error:
            self._lost(record, error.strerror or str(error))
            return None
        raise StateError(f"dentry of kind {record.how} on {superblock.type.name}")

    def _found_tmpfs(
        self, record: DentryRecord, superblock: TmpfsSuperblock, parent: Dentry | None
    ) -> Dentry:
        inode = self._tmpfs.get(record.superblock, {}).get(record.ino)
        if inode is None:
            raise StateError(f"{record.name!r}: there is no inode {record.ino}")
        if record.how == ORPHAN:
            return Dentry(superblock, parent, record.name, inode.get())
        dentry = None if parent is None else superblock.vfs.dcache.find(parent, record.name)
        if record.how != NAMED or dentry is None or dentry.inode is not inode:
            raise StateError(f"{record.name!r} is not inode {record.ino}")
        return superblock.vfs.dcache.hold(dentry)

    def _found_named(self, record: DentryRecord, parent: Dentry) -> Dentry | None:
        dentry = step(parent, record.name)
        if dentry is None:
            self._lost(record, "there is no such file")
            return None
        if record.handle:
            try:
                if not isinstance(dentry.superblock, PassthroughSuperblock):
                    raise StateError(f"{record.name!r}: a file handle, and no file of a host")
                handle = self._host(record.superblock, dentry.superblock).file_handle(dentry)
                if handle != record.handle:
                    self._lost(record, "it is another file than there")
                    dentry.put()
                    return None
            except BaseException:
                dentry.put()
                raise
        return dentry

    def _host(self, number: int, superblock: PassthroughSuperblock) -> HostPaths:
        host = self._hosts.get(number)
        if host is None:
            host = self._hosts[number] = HostPaths(superblock)
        return host

    def _found_by_handle(
        self, record: DentryRecord, superblock: PassthroughSuperblock, parent: Dentry
    ) -> Dentry | None:
        """What the handle names, if the directory that is shared has it: a forged handle can name
        any file of the file system.
        """
        anchor = self.find(record.anchor)
        if anchor is None:
            self._lost(record, "the mount of the host that it is on is lost")
            return None
        if anchor.superblock is not superblock or not anchor.inode or not anchor.inode.is_dir:
            raise StateError("a file handle is tied to no directory")
        host = self._host(record.superblock, superblock)
        inode = host.open_handle(anchor, record.handle)
        try:
            dentry = step(parent, record.name)
            if dentry is not None:
                if dentry.inode is inode:
                    return dentry
                dentry.put()
            names = host.names(inode)
            place = None if names is None else host.walk(names, inode)
            if place is not None:
                return place.get()
            if host.is_deleted_here(inode):
                return Dentry(superblock, parent, record.name, inode.get())
        finally:
            inode.put()
        self._lost(record, "its file handle leads out of the shared directory")
        return None


def _shown(dentry: Dentry) -> str:
    return path_of(dentry).decode(errors="replace")
