"""The content of a tmpfs as plain records, to be taken from one superblock and given to another.

``TmpfsImage.take`` describes a superblock, ``put`` fills another from a description that ``check``
has found to be a file system, wherever it came from. Files' bytes are not in the description: they
are read from the stores that ``take`` shares, and written to the stores that ``put`` hands over.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from fsimpl.tmpfs.directory import FIRST_COOKIE, TmpfsDirectory
from fsimpl.tmpfs.inode import TmpfsInode, TmpfsRegular, TmpfsSymlink
from fsimpl.tmpfs.limits import Limit
from fsimpl.tmpfs.options import INODE_SPACE
from fsimpl.tmpfs.store import PageStore
from fsimpl.tmpfs.xattrs import SimpleXattrs, check_name, xattr_space
from vfs import abi
from vfs.dentry import Dentry
from vfs.errors import InvariantViolation

if TYPE_CHECKING:
    from fsimpl.tmpfs.filesystem import TmpfsSuperblock
    from vfs.inode import Inode

_NUMBER_MAX: Final = (1 << 63) - 1
_TYPES: Final = (
    abi.S_IFREG, abi.S_IFDIR, abi.S_IFLNK, abi.S_IFCHR, abi.S_IFBLK, abi.S_IFIFO, abi.S_IFSOCK,
)  # fmt: skip
_SPECIAL: Final = (abi.S_IFCHR, abi.S_IFBLK)


class InodeImage:
    """One inode. ``names`` are a directory's, as (name, inode number, cookie) in cookie order, and
    ``next_cookie`` follows them; ``store`` is a regular file's, ``target`` a symlink's.
    """

    __slots__ = (
        "atime_ns", "btime_ns", "ctime_ns", "flags", "generation", "gid", "ino", "linkable",
        "mode", "mtime_ns", "names", "next_cookie", "rdev", "size", "store", "target", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, store: PageStore) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = self.gid = self.rdev = self.size = self.flags = self.generation = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = 0
        self.linkable = False
        self.xattrs: dict[bytes, bytes] = {}
        self.target = b""
        self.names: list[tuple[bytes, int, int]] = []
        self.next_cookie = FIRST_COOKIE
        self.store = store

    @property
    def kind(self) -> int:
        return self.mode & abi.S_IFMT

    @property
    def is_dir(self) -> bool:
        return self.kind == abi.S_IFDIR

    @classmethod
    def of(cls, inode: TmpfsInode) -> InodeImage:
        """Shares the store of ``inode``."""
        store = inode.store if isinstance(inode, TmpfsRegular) else PageStore(Limit())
        image = cls(inode.ino, inode.mode, store)
        image.uid, image.gid, image.rdev = inode.uid, inode.gid, inode.rdev
        image.size, image.flags, image.generation = inode.size, inode.flags, inode.generation
        image.atime_ns, image.mtime_ns = inode.atime_ns, inode.mtime_ns
        image.ctime_ns, image.btime_ns = inode.ctime_ns, inode.btime_ns
        image.linkable = inode.linkable
        if inode.xattrs is not None:
            image.xattrs = {name: inode.xattrs.get(name) for name in inode.xattrs.names()}
        if isinstance(inode, TmpfsSymlink):
            image.target = inode.target
        elif isinstance(inode, TmpfsDirectory):
            image.names = inode.cookies()
            image.next_cookie = inode.end
        return image

    def check(self) -> None:
        """Raises: ValueError unless an inode can be like this."""
        if not 0 < self.ino <= _NUMBER_MAX or self.kind not in _TYPES or self.mode >> 16:
            raise ValueError(f"inode {self.ino} of mode {self.mode:o}")
        if not 0 <= self.size <= abi.MAX_LFS_FILESIZE:
            raise ValueError(f"inode {self.ino} has {self.size} bytes")
        if self.kind == abi.S_IFLNK:
            if not 0 < len(self.target) < abi.PATH_MAX or b"\0" in self.target:
                raise ValueError(f"inode {self.ino}: no target of a symbolic link")
        elif self.target:
            raise ValueError(f"inode {self.ino} has a target and is no symbolic link")
        if self.names and not self.is_dir:
            raise ValueError(f"inode {self.ino} has names in it and is no directory")
        if self.store.pages and self.kind != abi.S_IFREG:
            raise ValueError(f"inode {self.ino} has data and is no regular file")
        try:
            self.store.check()
        except InvariantViolation as error:
            raise ValueError(f"inode {self.ino}: {error}") from None
        for name, value in self.xattrs.items():
            try:
                check_name(name)
            except OSError:
                raise ValueError(f"inode {self.ino}: attribute {name!r}") from None
            if len(name) > abi.XATTR_NAME_MAX or len(value) > abi.XATTR_SIZE_MAX or b"\0" in name:
                raise ValueError(f"inode {self.ino}: attribute {name!r}")
        self._check_names()

    def _check_names(self) -> None:
        last = FIRST_COOKIE - 1
        seen = set()
        for name, _, cookie in self.names:
            if not 0 < len(name) <= abi.NAME_MAX or name in (b".", b"..") or name in seen:
                raise ValueError(f"directory {self.ino}: the name {name!r}")
            if b"/" in name or b"\0" in name:
                raise ValueError(f"directory {self.ino}: the name {name!r}")
            if cookie <= last:
                raise ValueError(f"directory {self.ino}: cookies are out of order")
            last = cookie
            seen.add(name)
        if not last < self.next_cookie <= _NUMBER_MAX:
            raise ValueError(f"directory {self.ino}: cookies are out of order")


class TmpfsImage:
    """A whole superblock. ``blocks`` and ``ispace`` are its limits, in pages and bytes: None where
    they are the default, a part of the machine's memory.

    ``room`` counts the pages of files that come from elsewhere.
    """

    __slots__ = ("_before", "blocks", "inodes", "ispace", "next_ino", "room", "root")

    def __init__(self, room: int = 0) -> None:
        """``room`` is how many pages there may be; 0 for any number."""
        self.room = Limit(room)
        self._before: _Before | None = None
        self.inodes: dict[int, InodeImage] = {}
        self.root = 0
        self.next_ino = 1
        self.blocks: int | None = None
        self.ispace: int | None = None

    @classmethod
    def take(cls, superblock: TmpfsSuperblock) -> TmpfsImage:
        """Describe ``superblock``. Needs the VFS lock. Stores are shared: those of files that go
        away are empty from then on.
        """
        image = cls()
        assert superblock.root is not None and superblock.root.inode is not None
        image.root = superblock.root.inode.ino
        image.next_ino = superblock.next_ino
        default = superblock.ram_pages // 2
        if superblock.blocks.maximum != default:
            image.blocks = superblock.blocks.maximum
        if superblock.ispace.maximum != default * INODE_SPACE:
            image.ispace = superblock.ispace.maximum
        for inode in sorted(superblock.inodes, key=lambda inode: inode.ino):
            image.inodes[inode.ino] = InodeImage.of(inode)
        return image

    # What came from elsewhere

    def add(self, ino: int, mode: int) -> InodeImage:
        """A new inode, all of whose fields are still to be set. Raises: ValueError."""
        if ino in self.inodes:
            raise ValueError(f"inode {ino} comes twice")
        inode = self.inodes[ino] = InodeImage(ino, mode, PageStore(self.room))
        return inode

    def links(self) -> dict[int, int]:
        """How many names each inode has. Raises: ValueError for a name of what is not there."""
        links = dict.fromkeys(self.inodes, 0)
        for inode in self.inodes.values():
            for name, ino, _ in inode.names:
                if ino not in links:
                    raise ValueError(f"{name!r} names inode {ino}, which is not there")
                links[ino] += 1
        return links

    def check(self) -> None:
        """Raises: ValueError unless it is one tree, with nothing else but what has no name."""
        for inode in self.inodes.values():
            inode.check()
            if inode.ino >= self.next_ino:
                raise ValueError(f"inode {inode.ino} has not been given out")
        root = self.inodes.get(self.root)
        if root is None or not root.is_dir:
            raise ValueError("there is no root directory")
        if not 0 < self.next_ino <= _NUMBER_MAX:
            raise ValueError("inode numbers are used up")
        links = self.links()
        if links[self.root]:
            raise ValueError("the root directory has a name")
        reached = {self.root}
        stack = [root]
        while stack:
            for _, ino, _ in stack.pop().names:
                inode = self.inodes[ino]
                if inode.is_dir:
                    if ino in reached:
                        raise ValueError(f"directory {ino} has two names")
                    reached.add(ino)
                    stack.append(inode)
        for ino, inode in self.inodes.items():
            if inode.is_dir and ino not in reached and (links[ino] or inode.names):
                raise ValueError(f"directory {ino} is in use, and not in the tree")

    def find(self, path: Iterable[bytes]) -> InodeImage | None:
        """What is at the end of ``path``, from the root."""
        inode = self.inodes.get(self.root)
        for name in path:
            if inode is None:
                return None
            ino = next((ino for known, ino, _ in inode.names if known == name), 0)
            inode = self.inodes.get(ino)
        return inode

    def put(self, superblock: TmpfsSuperblock) -> dict[int, TmpfsInode]:
        """Make ``superblock`` what is described; every inode by its number, each with a reference
        that the caller receives. Needs the VFS lock; ``check`` comes first.

        Directories by the same name stay what they are, because something may be mounted on
        them; so do device nodes and symbolic links that are the same. All else that was there is
        gone. Nothing that is left after an error is of use: ``undo`` comes next.

        Raises: ENOSPC; ValueError (no directory where there is a mount point; larger limits).
        """
        filling = _Filling(self, superblock)
        filling.find_kept()
        self._before = _Before(superblock, filling.kept.values())
        return filling.fill()

    def undo(self, superblock: TmpfsSuperblock) -> None:
        """``put`` or what came after it has failed: nothing is left but what stayed, and that is as
        it was. Needs the VFS lock.
        """
        before, self._before = self._before, None
        if before is not None:
            before.restore(superblock)


def _keep_mountpoints(superblock: TmpfsSuperblock) -> set[Dentry]:
    """The mount points on ``superblock`` and their ancestors."""
    kept: set[Dentry] = set()
    for mountpoint in superblock.vfs.mountpoints:
        dentry = mountpoint
        while dentry.superblock is superblock and dentry not in kept:
            kept.add(dentry)
            dentry = dentry.parent
    return kept


def _prune(root: Dentry, kept: set[Dentry]) -> None:
    """Take every name out of the tree below ``root`` whose dentry is not in ``kept``, leaves first;
    what is above a kept one is kept.
    """
    dcache = root.superblock.vfs.dcache
    for dentry in reversed(list(dcache.walk(root))):
        parent = dentry.parent.inode
        if dentry is root or dentry in kept or dentry.inode is None:
            continue
        assert isinstance(parent, TmpfsDirectory)
        with dentry.get():
            if dentry.inode.is_dir:
                parent.rmdir(dentry.name, dentry.inode)
            else:
                parent.unlink(dentry.name, dentry.inode)
            dcache.delete(dentry)


class _Filling:
    """One ``put``."""

    def __init__(self, image: TmpfsImage, superblock: TmpfsSuperblock) -> None:
        assert superblock.root is not None
        self.image = image
        self.superblock = superblock
        self.root: Dentry = superblock.root
        self.made: dict[int, TmpfsInode] = {}
        self.kept: dict[int, Dentry] = {image.root: superblock.root}

    def fill(self) -> dict[int, TmpfsInode]:
        image, superblock = self.image, self.superblock
        _prune(self.root, set(self.kept.values()))
        self._set_limits()
        try:
            for ino, dentry in self.kept.items():
                inode = dentry.inode
                assert isinstance(inode, TmpfsInode)
                inode.get()
                self.made[ino] = inode
            for record in image.inodes.values():
                if record.ino not in self.made:
                    self.made[record.ino] = self._make(record)
            mine = set(self.made.values())
            superblock.next_ino = image.next_ino
            for inode in superblock.inodes - mine:
                # Somebody here still has it open; the numbers are the image's now.
                inode.ino = superblock.allocate_ino()
                inode.changed()
            self._require_space()
            self._link()
            for record in image.inodes.values():
                _set_attributes(self.made[record.ino], record)
        except BaseException:
            for inode in self.made.values():
                inode.put()
            raise
        return self.made

    def find_kept(self) -> None:
        """Which dentries stay, by the inode number that they get. Raises: ValueError."""
        image = self.image
        links = image.links()
        stack = [(self.root, image.inodes[image.root])]
        while stack:
            dentry, record = stack.pop()
            children = dentry.children or {}
            for name, ino, _ in record.names:
                child = children.get(name)
                new = image.inodes[ino]
                old = None if child is None else child.inode
                if child is None or old is None or old.mode & abi.S_IFMT != new.kind:
                    continue
                if new.is_dir:
                    self.kept[ino] = child
                    stack.append((child, new))
                elif _is_same(old, new) and old.nlink == links[ino] == 1:
                    self.kept[ino] = child
        for dentry in _keep_mountpoints(self.superblock) - set(self.kept.values()):
            raise ValueError(f"{dentry.name!r} leads to a mount here, and is no directory there")

    def _set_limits(self) -> None:
        image, superblock = self.image, self.superblock
        for limit, asked, what in (
            (superblock.blocks, image.blocks, "size"),
            (superblock.ispace, image.ispace, "nr_inodes"),
        ):
            if asked is None:
                continue
            if limit.maximum and (not asked or asked > limit.maximum):
                raise ValueError(f"a tmpfs has a larger {what} there than it may have here")
            limit.maximum = asked

    def _make(self, record: InodeImage) -> TmpfsInode:
        """A new inode; the caller receives its one reference. Raises: ENOSPC."""
        superblock = self.superblock
        owner = (superblock, record.mode, record.uid, record.gid)
        kind = record.kind
        if kind == abi.S_IFDIR:
            return TmpfsDirectory(*owner)
        if kind == abi.S_IFLNK:
            return TmpfsSymlink(*owner, record.target)
        if kind == abi.S_IFREG:
            inode = TmpfsRegular(*owner)
            try:
                inode.take_store(record.store)
            except BaseException:
                inode.put()
                raise
            return inode
        return TmpfsInode(*owner, record.rdev)

    def _require_space(self) -> None:
        """For further names and attributes. Raises: ENOSPC."""
        space = self.superblock.ispace
        more = sum(max(links - 1, 0) * INODE_SPACE for links in self.image.links().values())
        for ino, record in self.image.inodes.items():
            xattrs = self.made[ino].xattrs
            more += sum(xattr_space(*pair) for pair in record.xattrs.items())
            more -= 0 if xattrs is None else xattrs.space
        if space.maximum and more > space.free:
            raise OSError(errno.ENOSPC, "a tmpfs is too small here for what is on it there")

    def _link(self) -> None:
        """The names, and what counts them."""
        dcache = self.superblock.vfs.dcache
        links = self.image.links()
        dentries = dict(self.kept)
        stack = [self.image.inodes[self.image.root]]
        while stack:
            record = stack.pop()
            directory, parent = self.made[record.ino], dentries[record.ino]
            assert isinstance(directory, TmpfsDirectory)
            directory.nlink = 2
            for name, ino, _ in record.names:
                inode = self.made[ino]
                if ino not in self.kept:
                    dentry = dcache.add(parent, name, inode.get())
                    if inode.is_dir:
                        dentries[ino] = dentry
                    dentry.put()
                if inode.is_dir:
                    directory.nlink += 1
                    stack.append(self.image.inodes[ino])
            names = [(name, self.made[ino], cookie) for name, ino, cookie in record.names]
            directory.set_names(names, record.next_cookie)
        space = self.superblock.ispace
        for ino, inode in self.made.items():
            if not inode.is_dir:
                more = max(links[ino] - 1, 0) * INODE_SPACE
                space.take(more)
                inode.nlink = links[ino]
            elif ino != self.image.root and not links[ino]:
                inode.nlink = 0


class _Before:
    """What stays where an image is put, as it was."""

    def __init__(self, superblock: TmpfsSuperblock, dentries: Iterable[Dentry]) -> None:
        self._limits = superblock.blocks.maximum, superblock.ispace.maximum
        self._next_ino = superblock.next_ino
        self._stayed: list[tuple[Dentry, InodeImage]] = []
        for dentry in dentries:
            assert isinstance(dentry.inode, TmpfsInode)
            self._stayed.append((dentry, InodeImage.of(dentry.inode)))

    def restore(self, superblock: TmpfsSuperblock) -> None:
        assert superblock.root is not None
        _prune(superblock.root, {dentry for dentry, _ in self._stayed})
        for dentry, record in self._stayed:
            assert isinstance(dentry.inode, TmpfsInode)
            _set_attributes(dentry.inode, record)
        superblock.blocks.maximum, superblock.ispace.maximum = self._limits
        superblock.next_ino = max(superblock.next_ino, self._next_ino)


def _is_same(old: Inode, new: InodeImage) -> bool:
    """Whether it is a device node or symbolic link like the other."""
    if isinstance(old, TmpfsSymlink):
        return old.target == new.target
    return new.kind in _SPECIAL and old.rdev == new.rdev


def _set_attributes(inode: TmpfsInode, record: InodeImage) -> None:
    inode.ino = record.ino
    inode.mode, inode.uid, inode.gid = record.mode, record.uid, record.gid
    inode.rdev, inode.flags, inode.generation = record.rdev, record.flags, record.generation
    inode.linkable = record.linkable
    inode.atime_ns, inode.mtime_ns = record.atime_ns, record.mtime_ns
    inode.ctime_ns, inode.btime_ns = record.ctime_ns, record.btime_ns
    if record.kind == abi.S_IFREG:
        inode.size = record.size
    space = inode.superblock.ispace
    if inode.xattrs is not None:
        space.give(inode.xattrs.space)
        inode.xattrs = None
    if record.xattrs:
        space.take(sum(xattr_space(*pair) for pair in record.xattrs.items()))
        inode.xattrs = SimpleXattrs()
        for name, value in record.xattrs.items():
            inode.xattrs.set(name, value, 0)
    inode.changed()
