"""The node table: which dentry a node id means, and how often the client was told so.

Linux: the server's half of ``fuse_inode``. A node exists while the client's lookup count is above
zero; FORGET takes it down. A directory's node belongs to its dentry, any other file's to its
inode, so that hard links share a page cache in the client; both per mount.

What a client merely knows keeps no mount busy, as a cached dentry does not on Linux: the nodes of a
mount are pinned to it (Linux: ``fs_pin``) and end with it. Their ids then mean nothing any more
(ESTALE, upon which the client's kernel looks the name up again) until the client forgets them.
"""

from __future__ import annotations

import errno
import logging
from struct import Struct
from typing import TYPE_CHECKING

from harness.fuse import abi
from harness.fuse.cache import is_host_submount
from harness.fuse.handles import IdTable
from vfs.abi import S_IFBLK, S_IFCHR, S_IFDIR, S_IFMT, S_IFREG, major, minor
from vfs.dentry import Dentry
from vfs.errors import InvariantViolation, oserror
from vfs.inode import Inode
from vfs.mount import Mount, VirtualDentry
from vfs.namei import follow_up, traverse_mounts
from vfs.superblock import DCACHE_PINNED, DCACHE_REVALIDATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.fuse.cache import CachePolicy
    from vfs.superblock import Superblock

_log = logging.getLogger(__name__)
_U32 = Struct("<I")
_U64 = Struct("<Q")
_MASK64 = (1 << 64) - 1
# Above this bit a unique inode number carries its superblock's minor device number, which no other
# living one has (0: the root's), below it the file's own.
_INO_SHIFT = 48
# A file whose own number does not fit below gets one made of its node id, which has this bit.
_INO_OF_NODE = 1 << 63
_SECOND_NS = 10**9


def pack_attributes(inode: Inode) -> bytes:
    """The 88 bytes of ``fuse_attr``, kept in ``inode.wire`` until an attribute changes."""
    atime, atime_ns = divmod(inode.atime_ns, _SECOND_NS)
    mtime, mtime_ns = divmod(inode.mtime_ns, _SECOND_NS)
    ctime, ctime_ns = divmod(inode.ctime_ns, _SECOND_NS)
    wire = abi.ATTR.pack(
        inode.ino & _MASK64, inode.size, inode.blocks, atime, mtime, ctime,
        atime_ns, mtime_ns, ctime_ns, inode.mode, inode.nlink, inode.uid, inode.gid,
        inode.rdev & 0xFFFFFFFF, inode.superblock.block_size, 0,
    )  # fmt: skip
    inode.wire = wire
    return wire


class MountNodes:
    """The nodes of one mount, by dentry (directories) or inode, and how they are presented.

    ``negative`` is the entry of a name that does not exist, empty if the client may not keep it.
    While it has nodes it is in its table, and ``kill`` is one of the mount's pins. ``asks_again``
    tells that a mere lookup may find a name gone, with what was mounted on it.
    """

    __slots__ = (
        "asks_again", "attr_ns", "attr_s", "entry_ns", "entry_s", "ino_base", "keep_unchanged",
        "mount", "negative", "nodes", "policy", "table", "unique_inodes",
    )  # fmt: skip

    def __init__(
        self,
        table: NodeTable,
        mount: Mount,
        policy: CachePolicy,
        ino_base: int,
        unique: bool,
    ) -> None:
        """Borrows ``mount``."""
        self.table = table
        self.mount = mount
        self.nodes: dict[Dentry | Inode, Node] = {}
        self.policy = policy
        self.entry_s, self.entry_ns = divmod(policy.entry_ns, _SECOND_NS)
        self.attr_s, self.attr_ns = divmod(policy.attr_ns, _SECOND_NS)
        seconds, rest = divmod(policy.negative_ns, _SECOND_NS)
        self.negative = (
            abi.ENTRY_OUT.pack(0, 0, seconds, 0, rest, 0, b"") if policy.negative_ns else b""
        )
        self.asks_again = mount.superblock.dcache == DCACHE_REVALIDATE
        self.keep_unchanged = policy.keep_unchanged and mount.superblock.dcache == DCACHE_PINNED
        self.ino_base = ino_base
        self.unique_inodes = unique

    def kill(self) -> None:
        """The mount dies."""
        self.table.end_group(self)


class Node(VirtualDentry):
    """What one node id stands for. Holds a reference on its dentry; the mount outlives it.

    ``wire`` is the ``inode.wire`` from which ``entry`` (fuse_entry_out) and ``attr``
    (fuse_attr_out) were packed: while it *is* the inode's, they are current, and the client, who
    was given one of them, knows the inode as it is.
    """

    __slots__ = ("attr", "entry", "group", "inode", "is_device", "nlookup", "nodeid", "wire")
    inode: Inode

    def __init__(self, nodeid: int, group: MountNodes, dentry: Dentry, is_device: bool) -> None:
        """Takes over the caller's reference on ``dentry``."""
        assert dentry.inode is not None
        self.nodeid = nodeid
        self.nlookup = 1
        self.group = group
        self.mount = group.mount
        self.dentry = dentry
        self.inode = dentry.inode
        self.is_device = is_device
        self.wire: bytes | None = None
        self.entry = b""
        self.attr = b""

    def ino(self) -> int:
        """The inode number that the client sees."""
        group, ino = self.group, self.inode.ino & _MASK64
        if not group.unique_inodes:
            return ino
        if ino >> _INO_SHIFT:
            return _INO_OF_NODE | self.nodeid
        return group.ino_base | ino

    def renew(self, generation: int, submount: bool) -> bytes:
        """Pack ``entry`` and ``attr`` again from the inode; returns ``entry``."""
        inode, group = self.inode, self.group
        wire = inode.wire or pack_attributes(inode)
        attr = wire
        if group.unique_inodes:
            attr = _U64.pack(self.ino()) + attr[8:]
        if submount:
            attr = attr[:84] + _U32.pack(abi.ATTR_SUBMOUNT)
        if self.is_device:
            fields = list(abi.ATTR.unpack(attr))
            fields[1] = fields[2] = fields[13] = 0  # size, blocks, rdev
            fields[9] = S_IFREG | fields[9] & ~S_IFMT
            attr = abi.ATTR.pack(*fields)
        self.wire = wire
        self.attr = abi.ATTR_OUT.pack(group.attr_s, group.attr_ns, 0, attr)
        self.entry = abi.ENTRY_OUT.pack(
            self.nodeid,
            generation,
            group.entry_s,
            group.attr_s,
            group.entry_ns,
            group.attr_ns,
            attr,
        )
        return self.entry

    def __repr__(self) -> str:
        return f"Node({self.nodeid} {self.dentry!r} nlookup={self.nlookup})"


class NodeTable:
    """All nodes of one session. Needs the VFS lock.

    ``emulate_devices`` presents device nodes that have a driver in our registry as regular files.
    ``submounts`` (negotiated) announces mount points; without it one client superblock covers
    everything, and ``unique_inodes`` keeps inode numbers of different superblocks apart.
    ``generation`` tells sessions apart, because each counts its node ids from 1.

    ``by_id`` has the nodes that requests may name, ``stale`` the lookup counts of those whose mount
    is gone. ``next_id`` will be the next node's. Of the mounts only the root's is held, as a task
    holds that of its root.
    """

    __slots__ = (
        "_policy", "_underflows", "by_id", "emulate_devices", "generation", "groups", "next_id",
        "root", "stale", "submounts", "unique_inodes",
    )  # fmt: skip

    def __init__(
        self, policy: Callable[[Superblock], CachePolicy], emulate_devices: bool = False
    ) -> None:
        self._policy = policy
        self.emulate_devices = emulate_devices
        self.submounts = False
        self.unique_inodes = False
        self.generation = 0
        self.by_id = IdTable[Node](errno.ESTALE)
        self.stale: dict[int, int] = {}
        self.groups: dict[Mount, MountNodes] = {}
        self.next_id = abi.ROOT_ID
        self._underflows = 0
        self.root: Node | None = None

    def plant(self, root: VirtualDentry, generation: int) -> None:
        """Start a session: node 1 is ``root``, which is held until ``clear``."""
        self.generation = generation
        dentry = root.dentry.superblock.vfs.dcache.hold(root.dentry)
        self.root = self.enter(self.group(root.mount.get()), dentry)

    def group(self, mount: Mount) -> MountNodes:
        """The nodes of ``mount``; a new group joins the table with its first node."""
        group = self.groups.get(mount)
        if group is None:
            superblock, root = mount.superblock, self.root
            is_first = root is None or root.mount.superblock is superblock
            index = 0 if is_first else minor(superblock.dev)
            base = index << _INO_SHIFT & _INO_OF_NODE - 1
            group = MountNodes(self, mount, self._policy(superblock), base, self.unique_inodes)
        return group

    def enter(self, group: MountNodes, dentry: Dentry) -> Node:
        """Count one lookup of ``dentry``; takes over the caller's reference on it."""
        inode = dentry.inode
        assert inode is not None
        is_dir = inode.mode & S_IFMT == S_IFDIR
        node = group.nodes.get(dentry if is_dir else inode)
        if node is not None:
            node.nlookup += 1
            if node.dentry is dentry:
                dentry.put()
            else:
                # Another name of the file, or a new dentry for the same: the latest is the best
                # known to exist.
                node.dentry.put()
                node.dentry = dentry
            return node
        nodeid = self.next_id
        self.next_id = nodeid + 1
        return self._insert(nodeid, group, dentry, dentry if is_dir else inode)

    def _insert(self, nodeid: int, group: MountNodes, dentry: Dentry, key: Dentry | Inode) -> Node:
        assert dentry.inode is not None
        is_device = self.emulate_devices and self._has_driver(dentry.inode)
        node = Node(nodeid, group, dentry, is_device)
        if not group.nodes:
            self.groups[group.mount] = group
            group.mount.pin(group.kill)
        group.nodes[key] = self.by_id[nodeid] = node
        return node

    def restore(self, nodeid: int, nlookup: int, mount: Mount, dentry: Dentry) -> None:
        """Have a node that the client knows from elsewhere; borrows ``dentry``. ``next_id`` is set
        before.

        Raises: EINVAL if the id or the count cannot be, or the file has a node already.
        """
        inode = dentry.inode
        assert inode is not None
        self._require_free(nodeid, nlookup)
        group = self.group(mount)
        dcache = dentry.superblock.vfs.dcache
        if not inode.is_dir:
            if inode in group.nodes:
                raise oserror(errno.EINVAL)
            self._insert(nodeid, group, dcache.hold(dentry), inode).nlookup = nlookup
            return
        if dentry in group.nodes:
            # A directory that was renamed behind our back: it was looked up again, and had a node
            # under each name.
            dentry = Dentry(dentry.superblock, dentry.parent, dentry.name, inode.get())
        else:
            dcache.hold(dentry)
        self._insert(nodeid, group, dentry, dentry).nlookup = nlookup

    def restore_stale(self, nodeid: int, nlookup: int) -> None:
        """Have a node id that means nothing, and is to be forgotten. Raises: EINVAL."""
        self._require_free(nodeid, nlookup)
        self.stale[nodeid] = nlookup

    def _require_free(self, nodeid: int, nlookup: int) -> None:
        taken = nodeid in self.by_id or nodeid in self.stale
        if taken or not abi.ROOT_ID < nodeid < self.next_id or not 0 < nlookup <= _MASK64:
            raise oserror(errno.EINVAL)

    @staticmethod
    def _has_driver(inode: Inode) -> bool:
        kind = inode.mode & S_IFMT
        if kind not in (S_IFCHR, S_IFBLK):
            return False
        devices = inode.superblock.vfs.devices
        return devices.lookup(kind, major(inode.rdev), minor(inode.rdev)) is not None

    def enter_mounted(self, group: MountNodes, dentry: Dentry) -> Node:
        """As ``enter``, for a dentry that something may be mounted on: crosses onto it."""
        mount, root = traverse_mounts(group.mount, dentry)
        if mount is group.mount:
            return self.enter(group, dentry)
        with dentry:
            assert root.inode is not None
            root.inode.refresh()
            return self.enter(self.group(mount), root.superblock.vfs.dcache.hold(root))

    def entry(self, node: Node) -> bytes:
        """The current fuse_entry_out of ``node``."""
        wire = node.inode.wire
        if wire is not None and wire is node.wire:
            return node.entry
        return self.renew(node)

    def renew(self, node: Node) -> bytes:
        """Pack ``node`` again; returns its entry."""
        submount = (
            self.submounts
            and node is not self.root
            and node.inode.is_dir
            and (node.dentry is node.mount.root or is_host_submount(node.dentry))
        )
        return node.renew(self.generation, submount)

    def name_of(self, mount: Mount, mountpoint: Dentry) -> tuple[int, bytes] | None:
        """Under which name the client sees what is mounted there: its directory's node id, and it.

        None if the client does not know the directory, or sees the place under no name.
        """
        root = self.root
        assert root is not None
        mount, dentry = follow_up(mount, mountpoint, root)
        if dentry is mount.root or root.same(VirtualDentry(mount, dentry)):
            return None
        group = self.groups.get(mount)
        node = None if group is None else group.nodes.get(dentry.parent)
        return None if node is None else (node.nodeid, dentry.name)

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Take ``nlookup`` lookups back. More than were given is the client's error: clamped."""
        node = self.by_id.get(nodeid)
        given = self.stale.get(nodeid, 0) if node is None else node.nlookup - (node is self.root)
        if nlookup > given or (not given and node is None):
            self._underflows += 1
            if self._underflows == 1:
                _log.warning("FORGET of %d lookups of node %d: never given", nlookup, nodeid)
            nlookup = given
        if node is not None:
            node.nlookup -= nlookup
            if not node.nlookup:
                self._drop(node)
        elif given > nlookup:
            self.stale[nodeid] = given - nlookup
        elif given:
            del self.stale[nodeid]

    def _drop(self, node: Node) -> None:
        group, inode = node.group, node.inode
        del self.by_id[node.nodeid]
        del group.nodes[node.dentry if inode.is_dir else inode]
        if not group.nodes:
            del self.groups[group.mount]
            group.mount.unpin(group.kill)
        node.dentry.put()

    def end_group(self, group: MountNodes) -> None:
        """The mount of ``group`` dies: its nodes go stale, and their dentries are given back."""
        del self.groups[group.mount]
        nodes = list(group.nodes.values())
        group.nodes.clear()
        for node in nodes:
            del self.by_id[node.nodeid]
            self.stale[node.nodeid] = node.nlookup
        for node in nodes:
            node.dentry.put()

    def clear(self) -> None:
        """The session ended: every reference is given back; ids start again."""
        nodes = list(self.by_id.values())
        for group in self.groups.values():
            group.mount.unpin(group.kill)
        root, self.root = self.root, None
        self.by_id.clear()
        self.stale.clear()
        self.groups.clear()
        self.next_id = abi.ROOT_ID
        for node in nodes:
            node.dentry.put()
        if root is not None:
            root.mount.put()

    def check(self) -> None:
        """Raises InvariantViolation on the first broken rule of the table."""
        if self.by_id.get(abi.ROOT_ID) is not self.root:
            raise InvariantViolation("node 1 is not the root")
        if self.root is None and (self.by_id or self.stale):
            raise InvariantViolation("there are nodes outside of a session")
        seen = 0
        for mount, group in self.groups.items():
            if group.mount is not mount or not group.nodes:
                raise InvariantViolation(f"{mount!r}: an empty or misplaced group of nodes")
            if mount.count < 1 or group.kill not in mount.pins:
                raise InvariantViolation(f"{mount!r} is dead, or will not say when it is")
            for key, node in group.nodes.items():
                seen += 1
                if self.by_id.get(node.nodeid) is not node or node.group is not group:
                    raise InvariantViolation(f"{node!r} is not where its mount has it")
                if key is not (node.dentry if node.inode.is_dir else node.inode):
                    raise InvariantViolation(f"{node!r} has the wrong key")
                if node.mount is not mount or node.dentry.superblock is not mount.superblock:
                    raise InvariantViolation(f"{node!r} sits on the wrong mount")
                if node.nlookup < 1 or node.nodeid >= self.next_id:
                    raise InvariantViolation(f"{node!r}: a lookup count or id out of range")
                if node.dentry.inode is not node.inode or node.dentry.count < 1:
                    raise InvariantViolation(f"{node!r} holds a dead or foreign dentry")
        if seen != len(self.by_id):
            raise InvariantViolation("a node belongs to no mount")
        for nodeid, nlookup in self.stale.items():
            if nodeid in self.by_id or nlookup < 1 or nodeid >= self.next_id:
                raise InvariantViolation(f"stale node {nodeid}: in use, forgotten or never given")
