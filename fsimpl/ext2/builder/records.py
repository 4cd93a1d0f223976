"""The inodes of an image: numbers, link counts, and how much room each needs."""

from __future__ import annotations

import stat
from collections import deque
from typing import Final

from fsimpl.ext2.builder.attributes import DiskXattr, pack_xattrs, to_disk
from fsimpl.ext2.builder.block_map import FILE_BLOCKS_MAX, count_indirect
from fsimpl.ext2.builder.directories import Entry, indexed_directory, linear_directory
from fsimpl.ext2.builder.errors import ImageError, printable
from fsimpl.ext2.builder.geometry import Run
from fsimpl.ext2.builder.options import BLOCK_SIZE, Owners
from fsimpl.ext2.builder.tree import Extent, Node
from fsimpl.ext2.layout import (
    EXT2_GOOD_OLD_FIRST_INO,
    EXT2_NAME_LEN,
    EXT2_ROOT_INO,
    EXT4_INDEX_FL,
    FAST_SYMLINK_MAX,
    FILE_TYPES,
)
from fsimpl.ext2.xattrs import XATTR_REFCOUNT_MAX
from vfs import abi

LINK_MAX: Final = 65000
"""What fs/ext4 and e2fsck take; a directory with more subdirectories counts 1 (dir_nlink)."""
LOST_AND_FOUND: Final = b"lost+found"

SharedBlock = tuple[bytes, int]
"""A block of attributes, and the number of the copy of it (XATTR_REFCOUNT_MAX inodes share one)."""


class Record:
    """One inode to be. ``meta`` is the content of a directory or of a symlink that has blocks.

    ``runs`` are the blocks of the file that have data, ``indirect`` how many lead to them.
    """

    __slots__ = ("flags", "indirect", "inline", "meta", "node", "owner", "runs", "shared")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.meta = b""
        self.flags = 0
        self.inline = b""
        self.shared: SharedBlock | None = None
        self.owner = (0, 0)
        self.runs: list[Run] = []
        self.indirect = 0

    @property
    def blocks(self) -> int:
        """Blocks of data, without what leads to them."""
        return sum(count for _, count in self.runs)


class Records:
    """All inodes of a tree, with numbers: ``first`` is inode 2, and the rest go on from 11.

    ``references`` counts the inodes that share a block of attributes. ``many_subdirectories``,
    ``indexed`` and ``largest`` (a file's size) decide about features.
    """

    def __init__(self, root: Node, owners: Owners, seed: bytes | None) -> None:
        """``seed`` is for indexes, None if there are to be none.

        Raises: ImageError: what an ext2 can't hold.
        """
        self.references: dict[SharedBlock, int] = {}
        self.many_subdirectories = self.indexed = False
        self.largest = 0
        self._owners = owners
        self._seed = seed
        self._attributes: dict[tuple[DiskXattr, ...], tuple[bytes, bytes]] = {}
        self._copies: dict[bytes, int] = {}
        self._names: list[tuple[int, bytes]] = []
        self._parents: list[int] = []
        self._nodes: list[Node] = []
        lost_and_found, made = _lost_and_found(root)
        self._number(root, lost_and_found)
        self.all = [Record(node) for node in self._nodes]
        for index, record in enumerate(self.all):
            self._prepare(record, index)
        if made:
            self.all[1].owner = owners.root()

    @property
    def inodes(self) -> int:
        """The number of the last inode."""
        return len(self.all) + EXT2_GOOD_OLD_FIRST_INO - 2

    def data_blocks(self) -> int:
        """How many blocks everything needs but the groups' own tables."""
        return len(self.references) + sum(record.blocks + record.indirect for record in self.all)

    def path(self, index: int) -> bytes:
        """A path of ``all[index]`` from the root, for messages."""
        names: list[bytes] = []
        while index:
            index, name = self._names[index]
            names.append(name)
        return b"/".join(reversed(names)) or b"/"

    def _number(self, root: Node, lost_and_found: Node) -> None:
        root.ino, lost_and_found.ino = EXT2_ROOT_INO, EXT2_GOOD_OLD_FIRST_INO
        root.nlink = 2
        self._nodes += [root, lost_and_found]
        self._names += [(0, b""), (0, LOST_AND_FOUND)]
        self._parents += [EXT2_ROOT_INO, EXT2_ROOT_INO]
        lost_and_found.nlink = 0
        waiting = deque([0])
        numbered = {id(root), id(lost_and_found)}
        while waiting:
            index = waiting.popleft()
            directory = self._nodes[index]
            for name in sorted(directory.children):
                node = directory.children[name]
                if not 0 < len(name) <= EXT2_NAME_LEN:
                    raise ImageError(
                        f"{printable(self.path(index))}: a name in it has {len(name)} bytes; "
                        f"an ext2 has {EXT2_NAME_LEN}"
                    )
                if id(node) not in numbered:
                    numbered.add(id(node))
                    node.ino = len(self._nodes) + EXT2_GOOD_OLD_FIRST_INO - 1
                    node.nlink = 0
                    self._nodes.append(node)
                    self._names.append((index, name))
                    self._parents.append(directory.ino)
                if node.is_dir:
                    waiting.append(1 if node is lost_and_found else len(self._nodes) - 1)
                    node.nlink = 2
                    directory.nlink += 1
                else:
                    node.nlink += 1

    def _prepare(self, record: Record, index: int) -> None:
        node = record.node
        record.owner = self._owners.owner(node.uid, node.gid)
        if node.nlink > LINK_MAX:
            if not node.is_dir:
                raise ImageError(
                    f"{printable(self.path(index))}: it has {node.nlink} names; "
                    f"a file of an ext2 has {LINK_MAX}"
                )
            node.nlink = 1
            self.many_subdirectories = True
        if node.is_dir:
            entries: list[Entry] = [
                (name, child.ino, FILE_TYPES[stat.S_IFMT(child.mode)])
                for name, child in sorted(node.children.items())
            ]
            self._fill_directory(record, self._parents[index], entries)
        elif stat.S_ISLNK(node.mode):
            node.size = len(node.target)
            if not 0 < node.size < abi.PATH_MAX:
                raise ImageError(
                    f"{printable(self.path(index))}: a symlink to {node.size} bytes; "
                    f"it has 1 to {abi.PATH_MAX - 1}"
                )
            if node.size > FAST_SYMLINK_MAX:
                record.meta = node.target.ljust(BLOCK_SIZE, b"\0")
                record.runs = [(0, 1)]
        elif node.is_regular:
            if node.size > FILE_BLOCKS_MAX * BLOCK_SIZE:
                raise ImageError(
                    f"{printable(self.path(index))}: it has {node.size} bytes; "
                    f"a file of an ext2 has {FILE_BLOCKS_MAX * BLOCK_SIZE}"
                )
            self.largest = max(self.largest, node.size)
            record.runs = block_runs(node.extents, node.size)
        else:
            node.size = 0
        record.indirect = count_indirect(record.runs)
        if node.xattrs:
            self._attach(record, index)

    def _fill_directory(self, record: Record, parent: int, entries: list[Entry]) -> None:
        node = record.node
        blocks = None
        if self._seed is not None:
            blocks = indexed_directory(node.ino, parent, entries, self._seed)
            if blocks is not None:
                record.flags |= EXT4_INDEX_FL
                self.indexed = True
        record.meta = linear_directory(node.ino, parent, entries) if blocks is None else blocks
        node.size = len(record.meta)
        record.runs = [(0, node.size // BLOCK_SIZE)]

    def _attach(self, record: Record, index: int) -> None:
        try:
            key = tuple(to_disk(record.node.xattrs, self._owners))
        except OSError as error:
            raise ImageError(
                f"{printable(self.path(index))}: its ACL or capabilities: {error.strerror}"
            ) from None
        if not key:
            return
        packed = self._attributes.get(key)
        if packed is None:
            packed = self._attributes[key] = pack_xattrs(list(key), self.path(index))
        record.inline, block = packed
        if block:
            shared = (block, self._copies.get(block, 0))
            if self.references.get(shared) == XATTR_REFCOUNT_MAX:
                shared = (block, shared[1] + 1)
            self._copies[block] = shared[1]
            self.references[shared] = self.references.get(shared, 0) + 1
            record.shared = shared


def _lost_and_found(root: Node) -> tuple[Node, bool]:
    """The directory of that name, and whether it was made for this, as root's."""
    node = root.children.get(LOST_AND_FOUND)
    if node is None:
        made = Node(stat.S_IFDIR | 0o700)
        made.atime_ns = made.mtime_ns = made.ctime_ns = made.btime_ns = root.mtime_ns
        root.children[LOST_AND_FOUND] = made
        return made, True
    if not node.is_dir:
        raise ImageError("lost+found is no directory, as it is in every ext2: rename it")
    return node, False


def block_runs(extents: list[Extent] | None, size: int) -> list[Run]:
    """The blocks of a file that its ``extents`` (None: all ``size`` bytes) touch."""
    if extents is None:
        return [(0, -(-size // BLOCK_SIZE))] if size else []
    runs: list[Run] = []
    done = 0
    for offset, length, _ in extents:
        first, end = max(offset // BLOCK_SIZE, done), -(-(offset + length) // BLOCK_SIZE)
        if end <= first:
            continue
        if runs and first == done:
            runs[-1] = (runs[-1][0], end - runs[-1][0])
        else:
            runs.append((first, end - first))
        done = end
    return runs
