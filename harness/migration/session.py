"""A FUSE session as records: what was agreed, nodes, handles, locks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from fsimpl.tmpfs.directory import TmpfsDirectoryFile
from harness.fuse import abi as fuse
from harness.fuse.handles import HandleTable
from harness.fuse.support import flag_names
from harness.migration.dentries import NOTHING, DentryReader, DentryWriter
from harness.migration.mounts import MountTable, path_of
from harness.migration.options import MigrationOptions
from harness.migration.stream import Packer, StateError, Unpacker
from vfs import abi
from vfs.operations import vfs_open

if TYPE_CHECKING:
    from harness.fuse.nodes import Node, NodeTable
    from harness.fuse.server import FuseServer
    from vfs.dentry import Dentry
    from vfs.file import FileDescription
    from vfs.mount import Mount

_ID_MAX: Final = 1 << 62
_GROUPS_MAX: Final = 65536
# What may be among the flags of an open file.
_FILE_FLAGS: Final = (
    abi.O_ACCMODE | abi.O_APPEND | abi.O_NONBLOCK | abi.O_SYNC | abi.O_DIRECT | abi.O_LARGEFILE
    | abi.O_DIRECTORY | abi.O_NOFOLLOW | abi.O_NOATIME
)  # fmt: skip


class SessionRecord(NamedTuple):
    """What was agreed at INIT, and what comes next. ``minor`` 0: there was no session."""

    minor: int = 0
    flags: int = 0
    generation: int = 0
    root_lookups: int = 1
    next_node: int = 2
    next_handle: int = 1

    def pack(self) -> Packer:
        out = Packer()
        for value in self:
            out.u64(value)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> SessionRecord:
        return cls(*(data.u64() for _ in cls._fields))


class NodeRecord(NamedTuple):
    """One node id; without a dentry it is stale."""

    nodeid: int
    nlookup: int
    mount: int = NOTHING
    dentry: int = NOTHING

    def pack(self) -> Packer:
        out = Packer()
        out.u64(self.nodeid)
        out.u64(self.nlookup)
        out.u32(self.mount)
        out.u32(self.dentry)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> NodeRecord:
        return cls(data.u64(), data.u64(), data.u32(), data.u32())


class HandleRecord(NamedTuple):
    """One open file or directory. ``end`` is where the listing of a tmpfs's directory ends."""

    fh: int
    mount: int
    dentry: int
    flags: int
    uid: int
    gid: int
    groups: frozenset[int]
    end: int

    def pack(self) -> Packer:
        out = Packer()
        out.u64(self.fh)
        out.u32(self.mount)
        out.u32(self.dentry)
        out.u32(self.flags)
        out.u32(self.uid)
        out.u32(self.gid)
        out.u32(len(self.groups))
        for group in sorted(self.groups):
            out.u32(group)
        out.u64(self.end)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> HandleRecord:
        fh, mount, dentry, flags = data.u64(), data.u32(), data.u32(), data.u32()
        uid, gid, count = data.u32(), data.u32(), data.u32()
        if count > _GROUPS_MAX:
            raise StateError(f"somebody in {count} groups")
        groups = frozenset(data.u32() for _ in range(count))
        return cls(fh, mount, dentry, flags, uid, gid, groups, data.u64())


class LockRecord(NamedTuple):
    """One lock, taken through ``fh``. ``is_flock`` locks have no range and no pid."""

    fh: int
    owner: int
    is_flock: bool
    kind: int
    start: int = 0
    end: int = 0
    pid: int = 0

    def pack(self) -> Packer:
        out = Packer()
        out.u64(self.fh)
        out.u64(self.owner)
        out.u8(self.is_flock)
        out.u8(self.kind)
        out.u64(self.start)
        out.u64(self.end)
        out.u32(self.pid)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> LockRecord:
        fh, owner, is_flock, kind = data.u64(), data.u64(), data.u8(), data.u8()
        return cls(fh, owner, bool(is_flock), kind, data.u64(), data.u64(), data.u32())


class HeldRecord(NamedTuple):
    """A request that waits, by the head of its chain on a ring."""

    ring: int
    head: int

    def pack(self) -> Packer:
        out = Packer()
        out.u32(self.ring)
        out.u32(self.head)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> HeldRecord:
        return cls(data.u32(), data.u32())


class SessionWriter:
    """Describes the session of ``server``. Needs the VFS lock."""

    def __init__(
        self,
        server: FuseServer,
        mounts: MountTable,
        dentries: DentryWriter,
        options: MigrationOptions,
    ) -> None:
        """Raises: StateError for what cannot be carried over, with ``abort``."""
        self.session = SessionRecord()
        self.nodes: list[NodeRecord] = []
        self.handles: list[HandleRecord] = []
        self.locks: list[LockRecord] = []
        self._server = server
        self._mounts = mounts.mounts
        self._dentries = dentries
        self._options = options
        root = server.nodes.root
        if root is None:
            return
        self.session = SessionRecord(
            server.minor, server.flags, server.nodes.generation, root.nlookup,
            server.nodes.next_id, server.handles.next,
        )  # fmt: skip
        self.nodes = [self._node(node) for node in server.nodes.by_id.values() if node is not root]
        self.nodes += [NodeRecord(*pair) for pair in server.nodes.stale.items()]
        handles = server.handles
        files = list(handles.files.items())
        files += [(fh, handle.file) for fh, handle in handles.directories.items()]
        for fh, file in files:
            self._add_handle(fh, file)

    def _node(self, node: Node) -> NodeRecord:
        mount = self._mount(node.mount, path_of(node.dentry))
        if mount == NOTHING:
            return NodeRecord(node.nodeid, node.nlookup)
        return NodeRecord(node.nodeid, node.nlookup, mount, self._dentries.number(node.dentry))

    def _mount(self, mount: Mount, path: bytes) -> int:
        number = self._mounts.get(mount, NOTHING)
        if number == NOTHING:
            where = path.decode(errors="replace")
            self._options.lost(f"/{where}: it is in use on a mount that is in no tree any more")
        return number

    def _add_handle(self, fh: int, file: FileDescription) -> None:
        path = path_of(file.dentry)
        mount = self._mount(file.mount, path)
        if mount == NOTHING:
            return
        if file.inode.mode & abi.S_IFMT not in (abi.S_IFREG, abi.S_IFDIR):
            where = path.decode(errors="replace")
            self._options.lost(f"/{where}: an open device is here, and cannot be had elsewhere")
            return
        cred = file.cred
        end = file.end if isinstance(file, TmpfsDirectoryFile) else 0
        number = self._dentries.number(file.dentry)
        self.handles.append(
            HandleRecord(
                fh, mount, number, file.flags, cred.fsuid, cred.fsgid, frozenset(cred.groups), end
            )
        )
        self.locks += self._locks(fh, file)

    def _locks(self, fh: int, file: FileDescription) -> Iterator[LockRecord]:
        if self._server.locks is None:
            return
        records, flocks = self._server.locks.held_through(file.inode, file)
        for lock in records:
            owner = _number_of(lock.owner)
            yield LockRecord(fh, owner, False, lock.kind, lock.start, lock.end, lock.pid)
        for name, kind in flocks.items():
            yield LockRecord(fh, _number_of(name), True, kind)


def _number_of(owner: object) -> int:
    """The client's number of an owner that the server made of it."""
    assert isinstance(owner, tuple)
    return int(owner[1])


class SessionReader:
    """Makes a session from its description, beside the one that ``server`` has. Needs the VFS lock.

    To be ended by ``resume`` or ``close``.
    """

    def __init__(
        self,
        server: FuseServer,
        mounts: list[Mount],
        dentries: DentryReader,
        options: MigrationOptions,
    ) -> None:
        self._server = server
        self._mounts = mounts
        self._dentries = dentries
        self._options = options
        self._minor = 0
        self._flags = 0
        self._nodes: NodeTable | None = None
        self._handles = HandleTable()

    def begin(self, session: SessionRecord) -> None:
        """Raises: StateError for what is not supported here."""
        server = self._server
        self._minor, self._flags = session.minor, session.flags
        if not session.minor:
            return
        if not fuse.MINIMUM_MINOR_VERSION <= session.minor <= fuse.KERNEL_MINOR_VERSION:
            raise StateError(f"the guest speaks FUSE 7.{session.minor}")
        unknown = session.flags & ~server.wanted_flags
        if unknown:
            names = ", ".join(flag_names(unknown)) or hex(unknown)
            raise StateError(f"the guest was granted {names} there: start both sides alike")
        if not 0 < session.root_lookups < _ID_MAX or session.generation >= _ID_MAX:
            raise StateError("a count is out of range")
        if not 1 < session.next_node < _ID_MAX or not 0 < session.next_handle < _ID_MAX:
            raise StateError("ids are used up")
        nodes = self._nodes = server.prepare_nodes(session.flags, session.generation)
        assert nodes.root is not None
        nodes.root.nlookup = session.root_lookups
        nodes.next_id = session.next_node
        self._handles.next = session.next_handle

    def add_node(self, record: NodeRecord) -> None:
        """Raises: StateError."""
        try:
            nodes = self._require_session()
            mount, number = record.mount, record.dentry
            dentry = None if number == NOTHING else self._dentries.find(number)
            if dentry is None:
                nodes.restore_stale(record.nodeid, record.nlookup)
            else:
                nodes.restore(record.nodeid, record.nlookup, self._mount(mount, dentry), dentry)
        except OSError:
            raise StateError(f"node {record.nodeid} cannot be") from None

    def _require_session(self) -> NodeTable:
        if self._nodes is None:
            raise StateError("nodes or handles without a session")
        return self._nodes

    def _mount(self, number: int, dentry: Dentry) -> Mount:
        if number >= len(self._mounts):
            raise StateError(f"there is no mount {number}")
        mount = self._mounts[number]
        if dentry.superblock is not mount.superblock:
            raise StateError("a file is on another mount than its directory")
        # What never had a name is above and below nothing.
        nowhere = dentry.is_root and not dentry.hashed
        if not nowhere and not dentry.is_descendant_of(mount.root):
            raise StateError("a file is outside of the mount that it was found on")
        return mount

    def add_handle(self, record: HandleRecord) -> None:
        """Raises: StateError."""
        self._require_session()
        dentry = self._dentries.find(record.dentry)
        if dentry is None:
            # The guest was told, or will be: a handle that is not there is EBADF.
            return
        mount, inode = self._mount(record.mount, dentry), dentry.inode
        assert inode is not None
        if record.flags & ~_FILE_FLAGS:
            raise StateError(f"a file is open with the flags {record.flags:#o}")
        if inode.mode & abi.S_IFMT not in (abi.S_IFREG, abi.S_IFDIR):
            raise StateError("something is open that cannot be opened")
        writes = record.flags & abi.O_ACCMODE != abi.O_RDONLY
        if inode.is_dir and writes:
            raise StateError("a directory is open for writing")
        cred = self._server.identities.of(record.uid, record.gid, 0, record.groups)
        try:
            file = vfs_open(mount, dentry, record.flags, cred, check=False)
        except OSError as error:
            path = path_of(dentry).decode(errors="replace")
            self._options.lost(f"/{path}: it was open: {error.strerror}")
            return
        if isinstance(file, TmpfsDirectoryFile):
            file.end = min(record.end, file.end)
        try:
            self._handles.restore(record.fh, file)
        except OSError:
            file.put()
            raise StateError(f"handle {record.fh} cannot be") from None

    def add_lock(self, record: LockRecord) -> None:
        """Raises: StateError, also where somebody else has such a lock here."""
        handles, locks, fh = self._handles, self._server.locks, record.fh
        if locks is None:
            raise StateError("the guest's locks were ours there: start both sides alike")
        if fh in handles.files:
            file = handles.files[fh]
        elif fh in handles.directories:
            file = handles.directories[fh].file
        else:
            # Its file is lost, and the lock with it.
            return
        owner = self._server, record.owner
        try:
            if record.is_flock:
                locks.set_flock(file.inode, owner, file, record.kind)
            else:
                locks.set_record(
                    file.inode, owner, file, record.kind, record.start, record.end, record.pid
                )
        except OSError as error:
            path = path_of(file.dentry).decode(errors="replace")
            raise StateError(f"/{path}: a lock cannot be had: {error.strerror}") from None

    def resume(self) -> None:
        """The server goes on with it, in place of what it had."""
        server, nodes, handles = self._server, self._nodes, self._handles
        if nodes is None:
            return
        nodes.check()
        handles.check()
        self._nodes, self._handles = None, HandleTable()
        server.resume_session(self._minor, self._flags, nodes, handles)

    def close(self) -> None:
        """Give back what is not in use."""
        if self._server.locks is not None:
            for file in self._handles.descriptions():
                self._server.locks.release(file.inode, file)
        self._handles.clear()
        if self._nodes is not None:
            self._nodes.clear()
            self._nodes = None
