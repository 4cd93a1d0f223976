"""Names in directories, and the cache of those nobody uses now. Linux: fs/dcache.c.

A dentry is in one of these states:

    positive      it names an inode
    negative      it remembers that the name does not exist (``inode`` is None)
    unhashed      no longer reachable from its parent: unlinked while open, or never named
    disconnected  an unhashed root of its own: O_TMPFILE, a file found by handle

A dentry holds a reference on its parent, and one on its inode. ``count`` counts users: walks,
open files, mounts, children. At zero an unhashed dentry dies; a hashed one of a DCACHE_PINNED
superblock cannot get there, because the cache holds one reference for the name itself; any other
goes to the end of the LRU, from where the shrinker takes it when the cache is over its bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfs.errors import InvariantViolation
from vfs.refs import Ledger, RefCounted
from vfs.superblock import DCACHE_PINNED

if TYPE_CHECKING:
    from vfs.inode import Inode
    from vfs.superblock import Superblock


class Dentry(RefCounted):
    """Linux: ``struct dentry``. ``name`` is bytes; a root's parent is itself.

    ``children`` is made with the first child. ``mounted`` counts the mounts attached here, over
    all namespaces (Linux: DCACHE_MOUNTED).
    """

    __slots__ = ("children", "hashed", "inode", "mounted", "name", "parent", "pinned", "superblock")

    def __init__(
        self, superblock: Superblock, parent: Dentry | None, name: bytes, inode: Inode | None
    ) -> None:
        """Takes over the caller's reference on ``inode``; takes its own on ``parent``.

        The caller receives the first reference. The dentry is not hashed yet.
        """
        RefCounted.__init__(self, superblock.vfs.ledger)
        self.superblock = superblock
        self.parent: Dentry = self if parent is None else parent
        self.name = name
        self.inode = inode
        self.children: dict[bytes, Dentry] | None = None
        self.hashed = False
        self.pinned = False
        self.mounted = 0
        if parent is not None:
            parent.get()

    @classmethod
    def make_root(cls, superblock: Superblock, inode: Inode) -> Dentry:
        """Linux: ``d_make_root``. Hashed by definition; the reference belongs to the superblock."""
        root = cls(superblock, None, b"/", inode)
        root.hashed = True
        return root

    @property
    def is_root(self) -> bool:
        """Linux: ``IS_ROOT``. Disconnected dentries are roots too."""
        return self.parent is self

    @property
    def is_negative(self) -> bool:
        return self.inode is None

    def is_descendant_of(self, ancestor: Dentry) -> bool:
        """Linux: ``is_subdir``: whether ``ancestor`` is this dentry or above it."""
        node = self
        while node is not ancestor:
            if node.parent is node:
                return False
            node = node.parent
        return True

    def release(self) -> None:
        """The last user left: to the LRU if the name may be found again, else gone."""
        if self.hashed and self.parent is not self:
            self.superblock.vfs.dcache.retain(self)
        else:
            self._kill()

    def _kill(self) -> None:
        """Linux: ``dput``'s loop over ``__dentry_kill``: give back the inode, then the parent.

        The parent may die in turn. A loop, because a client can have made a chain of deleted
        directories that is longer than Python's stack.
        """
        dying = self
        while True:
            if dying.children:
                raise InvariantViolation(f"{dying!r} dies with children")
            inode, dying.inode = dying.inode, None
            parent = dying.parent
            dying.hashed = False
            # A root is its own parent: a cycle that would wait for the collector.
            del dying.parent
            RefCounted.release(dying)
            if inode is not None:
                inode.put()
            if parent is dying:
                return
            if parent.hashed or parent.count > 1:
                parent.put()
                return
            parent.count = 0
            if parent.ledger.tracing:
                parent.ledger.gave(parent)
            dying = parent

    def kill_tree(self) -> None:
        """Take the whole pinned tree below apart, leaves first (Linux: ``d_genocide``).

        Only for a superblock's root, when nothing else holds the superblock.
        """
        stack = [self]
        order: list[Dentry] = []
        while stack:
            node = stack.pop()
            order.append(node)
            if node.children:
                stack.extend(node.children.values())
        for node in reversed(order):
            if node is not self:
                self.superblock.vfs.dcache.drop(node)
        self.put()

    def __repr__(self) -> str:
        state = "" if self.hashed else " unhashed"
        state += " negative" if self.inode is None else ""
        return f"Dentry({self.superblock.type.name}:{self.name!r} count={self.count}{state})"


class DentryCache:
    """Linux: the dcache. Hashing, instantiating, moving and dropping dentries, and the LRU.

    ``limit`` bounds how many unused dentries are kept. Every method needs the VFS lock.
    """

    __slots__ = ("ledger", "limit", "lru")

    def __init__(self, ledger: Ledger, limit: int = 65536) -> None:
        self.ledger = ledger
        self.limit = limit
        self.lru: OrderedDict[Dentry, None] = OrderedDict()

    def find(self, parent: Dentry, name: bytes) -> Dentry | None:
        """The hashed child called ``name``, borrowed (no reference is taken)."""
        children = parent.children
        return children.get(name) if children else None

    def hold(self, dentry: Dentry) -> Dentry:
        """Take a reference on a dentry that may be unused (on the LRU); returns it."""
        if not dentry.count:
            self.lru.pop(dentry, None)
        return dentry.get()

    def add(self, parent: Dentry, name: bytes, inode: Inode | None) -> Dentry:
        """Linux: ``d_alloc`` + ``d_add``. A hashed child; the caller receives one reference.

        Takes over the reference on ``inode``. On a DCACHE_PINNED superblock a positive dentry
        gets the reference that stands for the name.
        """
        dentry = Dentry(parent.superblock, parent, name, inode)
        self._hash(dentry)
        if inode is not None:
            self._pin(dentry)
        return dentry

    def instantiate(self, dentry: Dentry, inode: Inode) -> None:
        """Linux: ``d_instantiate``: negative becomes positive. Takes over the inode's reference."""
        if dentry.inode is not None:
            raise InvariantViolation(f"{dentry!r} is positive already")
        dentry.inode = inode
        self._pin(dentry)

    def _pin(self, dentry: Dentry) -> None:
        if dentry.superblock.dcache == DCACHE_PINNED:
            dentry.pinned = True
            dentry.get()

    def _hash(self, dentry: Dentry) -> None:
        parent = dentry.parent
        if parent.children is None:
            parent.children = {}
        if dentry.name in parent.children:
            raise InvariantViolation(f"{dentry.name!r} is in {parent!r} already")
        parent.children[dentry.name] = dentry
        dentry.hashed = True

    def _unhash(self, dentry: Dentry) -> None:
        if dentry.hashed and dentry.parent is not dentry:
            children = dentry.parent.children
            if children is None or children.pop(dentry.name, None) is not dentry:
                raise InvariantViolation(f"{dentry!r} is hashed but not in its parent")
            dentry.hashed = False

    def disconnected(self, superblock: Superblock, name: bytes, inode: Inode) -> Dentry:
        """Linux: ``d_obtain_alias``: an unhashed root of its own, for an inode without a name.

        Takes over the reference on ``inode``; the caller receives one on the dentry.
        """
        return Dentry(superblock, None, name, inode)

    def delete(self, dentry: Dentry) -> None:
        """Linux: ``d_delete``, after the file's name is gone: users keep the unhashed dentry.

        Drops the name's own reference. The caller still holds one.
        """
        self._unhash(dentry)
        self._unpin(dentry)

    def _unpin(self, dentry: Dentry) -> None:
        if dentry.pinned:
            dentry.pinned = False
            dentry.put()

    def drop(self, dentry: Dentry) -> None:
        """Linux: ``d_drop`` of a dentry nobody may find again (stale, shrunk, or unmounted)."""
        self._unhash(dentry)
        if dentry.count:
            self._unpin(dentry)
        else:
            self.lru.pop(dentry, None)
            dentry._kill()

    def move(self, dentry: Dentry, new_parent: Dentry, new_name: bytes) -> None:
        """Linux: ``d_move``: rename in the cache. What stood at the target is unhashed already."""
        self._unhash(dentry)
        old_parent = dentry.parent
        new_parent.get()
        dentry.parent = new_parent
        dentry.name = new_name
        self._hash(dentry)
        old_parent.put()

    def exchange(self, a: Dentry, b: Dentry) -> None:
        """Linux: ``d_exchange``: the two swap parents and names."""
        self._unhash(a)
        self._unhash(b)
        a.parent, b.parent = b.parent, a.parent
        a.name, b.name = b.name, a.name
        self._hash(a)
        self._hash(b)

    def retain(self, dentry: Dentry) -> None:
        """An unused dentry goes to the young end of the LRU; the oldest leave beyond ``limit``."""
        self.lru[dentry] = None
        if len(self.lru) > self.limit:
            self.shrink(len(self.lru) - self.limit)

    def shrink(self, target: int) -> int:
        """Linux: ``prune_dcache_sb``. Drop up to ``target`` unused dentries, oldest first.

        Dropping a child can make its parent unused; that one goes to the young end. Returns how
        many were dropped.
        """
        dropped = 0
        while dropped < target and self.lru:
            dentry, _ = self.lru.popitem(last=False)
            self._unhash(dentry)
            dentry._kill()
            dropped += 1
        return dropped

    def shrink_superblock(self, superblock: Superblock) -> None:
        """Linux: ``shrink_dcache_sb``: drop every unused dentry of ``superblock``."""
        while True:
            mine = [dentry for dentry in self.lru if dentry.superblock is superblock]
            if not mine:
                return
            for dentry in mine:
                if dentry in self.lru:
                    self.drop(dentry)

    def walk(self, root: Dentry) -> Iterator[Dentry]:
        """Every hashed dentry at and below ``root``, parents first."""
        stack = [root]
        while stack:
            dentry = stack.pop()
            yield dentry
            if dentry.children:
                stack.extend(dentry.children.values())

    def check(self, root: Dentry) -> None:
        """Raises InvariantViolation on the first broken rule of the tree below ``root``."""
        for dentry in self.walk(root):
            if not dentry.hashed:
                raise InvariantViolation(f"{dentry!r} is in the tree but unhashed")
            floor = int(dentry.pinned) + (dentry is root)
            for name, child in (dentry.children or {}).items():
                floor += 1
                if child.name != name or child.parent is not dentry:
                    raise InvariantViolation(f"{child!r} sits under {name!r} of {dentry!r}")
            if dentry.count < floor:
                raise InvariantViolation(f"{dentry!r} has fewer references than {floor} holders")
            if (dentry.count == 0) != (dentry in self.lru):
                raise InvariantViolation(f"{dentry!r}: unused and on the LRU must be the same")
            if dentry.children and (dentry.inode is None or not dentry.inode.is_dir):
                raise InvariantViolation(f"{dentry!r} has children but is no directory")
            if dentry.inode is not None and dentry.inode.count < 1:
                raise InvariantViolation(f"{dentry!r} names a dead inode")
