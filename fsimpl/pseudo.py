"""What trees of generated files are built from. Linux: fs/libfs.c, fs/seq_file.c, fs/kernfs.

A tree is a ``PseudoDirectory`` with a table of rows, one row a name::

    class Battery(PseudoDirectory):
        table = {
            b"level": text(show_level),                     # a function: directory -> bytes
            b"limit": text(show_limit, store_limit),        # writable: (directory, bytes, cred)
            b"device": symlink(b"../../devices/bat0"),
            b"cells": directory(Cells),                     # a subclass, or a table: {b"1": ...}
        }

Names that come and go are a directory's ``names`` and ``find``. A file that is more than a function
is a subclass of ``PseudoFile``, ``PseudoSymlink`` or ``MagicLink``, in a ``Row(kind, class)``.
Inodes are made by lookups and dropped with their dentries, so what lasts is kept outside of them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from vfs import abi
from vfs.dentry import Dentry
from vfs.device import scatter, total_length
from vfs.errors import oserror
from vfs.file import Buffers, DirectoryEntry, FileDescription
from vfs.inode import Inode, SetAttributes
from vfs.mount_tree import detach_mounts
from vfs.namei import step
from vfs.superblock import DCACHE_REVALIDATE, Superblock

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.fs_context import FilesystemContext
    from vfs.mount import Mount, VirtualDentry


class PseudoSuperblock(Superblock):
    """A superblock around a generated root.

    ``dcache`` is DCACHE_VALID for a tree that changes only where ``invalidate`` is called, and
    DCACHE_REVALIDATE if names vanish by themselves: then each step asks the directory.
    """

    __slots__ = ()

    def __init__(
        self,
        context: FilesystemContext,
        root: Callable[[Any], PseudoDirectory],
        *,
        magic: int,
        dcache: int = DCACHE_REVALIDATE,
    ) -> None:
        """``root`` is called with the superblock: a subclass of ``PseudoDirectory``, mostly."""
        super().__init__(context, magic=magic, dcache=dcache)
        try:
            self.root = Dentry.make_root(self, root(self))
        except BaseException:
            self.put()
            raise

    def invalidate(self, parent: Dentry, name: bytes) -> None:
        """Linux: ``d_invalidate``: forget what the cache knows of a ``name`` that is gone,
        or new where a miss is remembered.

        Mounts on and below it leave, unused dentries below it go. Needs the VFS lock.
        """
        dcache = self.vfs.dcache
        dentry = dcache.find(parent, name)
        if dentry is None:
            return
        with dcache.hold(dentry):
            below = list(dcache.walk(dentry))
            for node in below:
                if node.mounted:
                    detach_mounts(node)
            for node in reversed(below):
                if not node.count:
                    dcache.drop(node)
            dcache.delete(dentry)


class PseudoInode(Inode):
    """An inode of a generated tree; ``directory`` is the one it was found in, None for the root.

    It belongs to whom its directory belongs to. Modes and owners cannot be changed, for there is
    nothing that would keep the change.
    """

    __slots__ = ("directory",)

    def __init__(self, above: PseudoDirectory | Superblock, mode: int) -> None:
        """``above`` is the directory, or the superblock for a root. ``mode`` has type bits."""
        if isinstance(above, Superblock):
            super().__init__(above, mode)
            self.directory: PseudoDirectory | None = None
        else:
            super().__init__(above.superblock, mode)
            self.directory = above
            self.update()

    def update(self) -> None:
        """Bring owner, mode, size and the like up to date; at each lookup and before each use."""
        directory = self.directory
        if directory is not None:
            directory.update()
            self.set_owner(directory.uid, directory.gid)

    def set_owner(self, uid: int, gid: int) -> None:
        if uid != self.uid or gid != self.gid:
            self.uid = uid
            self.gid = gid
            self.changed()

    def refresh(self) -> None:
        self.update()

    def permission(self, cred: Credentials, mask: int) -> None:
        """Raises: EACCES."""
        self.update()
        super().permission(cred, mask)

    def setattr(self, attributes: SetAttributes, cred: Credentials) -> None:
        """Times may change; a size is ignored, because O_TRUNC comes with every shell's ``>``.

        Raises: EPERM for modes and owners.
        """
        if any(new is not None for new in (attributes.mode, attributes.uid, attributes.gid)):
            raise oserror(errno.EPERM)
        self.copy_attributes(attributes)


class Row(NamedTuple):
    """How one name of a directory comes to be: its type (S_IF*) and what makes the inode."""

    kind: int
    make: Callable[[Any], Inode]


Table = Mapping[bytes, Row]


class PseudoDirectory(PseudoInode):
    """A directory with the names of its ``table``, and those that ``names`` computes."""

    __slots__ = ("entries",)
    table: ClassVar[Table] = {}
    default_mode: ClassVar[int] = 0o555

    def __init__(
        self,
        above: PseudoDirectory | Superblock,
        entries: Table | None = None,
        mode: int | None = None,
    ) -> None:
        """``entries`` stands in for the class's ``table``, ``mode`` for its ``default_mode``."""
        self.entries = self.table if entries is None else entries
        super().__init__(above, abi.S_IFDIR | (self.default_mode if mode is None else mode))
        self.nlink = 2 + sum(row.kind == abi.S_IFDIR for row in self.entries.values())

    # What a subclass computes

    def names(self) -> Iterable[bytes]:
        """The names that are there now beside the table's, in the order of a listing."""
        return ()

    def find(self, name: bytes) -> Inode | None:
        """A new inode for one of ``names``; None if there is no such name."""
        return None

    def still(self, name: bytes, inode: Inode) -> bool:
        """DCACHE_REVALIDATE: whether ``name``, found by ``find`` before, still means ``inode``."""
        return name in self.names()

    # What the VFS asks

    def listing(self) -> list[bytes]:
        """All names. Raises: ENOENT if the directory stands for something that is gone."""
        return [*self.entries, *self.names()]

    def lookup(self, name: bytes) -> Inode | None:
        found = self.entries.get(name)
        return self.find(name) if found is None else found.make(self)

    def revalidate(self, dentry: Dentry) -> bool:
        inode = dentry.inode
        if inode is None:
            return False
        if dentry.name not in self.entries and not self.still(dentry.name, inode):
            return False
        if isinstance(inode, PseudoInode):
            inode.update()
        else:
            inode.refresh()
        return True

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return PseudoDirectoryFile(mount, dentry, flags, cred)


class PseudoDirectoryFile(FileDescription):
    """An open generated directory. Linux: ``dcache_readdir``, but for names that nobody looked up.

    ``_places`` gives each name that was seen its number for as long as it is there, so that cookies
    hold while others come and go; a listing from the start numbers them anew.
    """

    __slots__ = ("_next", "_places")
    inode: PseudoDirectory

    def __init__(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> None:
        super().__init__(mount, dentry, flags, cred)
        self._places: dict[bytes, int] = {}
        self._next = 2  # after "." and ".."

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        """Raises: ENOENT if the directory stands for something that is gone."""
        names = self.inode.listing()
        return self._entries(names, cookie)

    def _entries(self, names: list[bytes], cookie: int) -> Iterator[DirectoryEntry]:
        self._number(names, anew=not cookie)
        directory = abi.S_IFDIR >> 12
        if cookie < 1:
            yield b".", self.inode.ino, directory, 1
        if cookie < 2:
            above = self.dentry.parent.inode
            yield b"..", self.inode.ino if above is None else above.ino, directory, 2
        for name, place in list(self._places.items()):
            if place < cookie:
                continue
            try:
                child = step(self.dentry, name)
            except FileNotFoundError:
                continue
            if child is None:
                continue
            with child:
                assert child.inode is not None
                entry = name, child.inode.ino, child.inode.mode >> 12, place + 1
            yield entry

    def _number(self, names: list[bytes], anew: bool) -> None:
        places = {} if anew else self._places
        if anew:
            self._next = 2
        there = set(names)
        self._places = {name: place for name, place in places.items() if name in there}
        for name in names:
            if name not in self._places:
                self._places[name] = self._next
                self._next += 1


class PseudoFile(PseudoInode):
    """A file whose text is made when it is read. A subclass says what ``show`` shows; one that can
    be written, what ``store`` does with the bytes of one write(2), whatever its offset.
    """

    __slots__ = ()
    default_mode: ClassVar[int] = 0o444

    def __init__(self, above: PseudoDirectory | Superblock, mode: int | None = None) -> None:
        super().__init__(above, abi.S_IFREG | (self.default_mode if mode is None else mode))

    def show(self) -> bytes:
        """The whole text as it is now. Raises: EINVAL where there is nothing to read."""
        raise oserror(errno.EINVAL)

    def store(self, data: bytes, cred: Credentials) -> int:
        """Take what the opener ``cred`` wrote; returns the bytes taken.

        Raises: EINVAL where nothing can be written.
        """
        raise oserror(errno.EINVAL)

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return SeqFile(mount, dentry, flags, cred)


class SeqFile(FileDescription):
    """Linux: ``struct seq_file``. One text from the first read until a read at 0 makes a new one,
    so that a reader in pieces sees one state. (Linux keeps what is in its buffer only: a pread at
    another place than the last one's end makes the text anew there.)
    """

    __slots__ = ("text",)
    generated = True
    inode: PseudoFile

    def __init__(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> None:
        super().__init__(mount, dentry, flags, cred)
        self.text: bytes | None = None

    def generate(self) -> bytes:
        return self.inode.show()

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Linux: ``seq_read_iter``. Raises: what ``show`` raises."""
        if not total_length(buffers):
            return 0
        if self.text is None or not offset:
            self.text = self.generate()
        return scatter(memoryview(self.text)[offset:], buffers)

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        return self.inode.store(b"".join(buffers), self.cred)

    def llseek(self, offset: int, whence: int) -> int:
        """Linux: ``seq_lseek``: anywhere from 0 on. Raises: EINVAL, also for SEEK_END."""
        if whence == abi.SEEK_CUR:
            offset += self.position
        elif whence != abi.SEEK_SET:
            raise oserror(errno.EINVAL)
        if not 0 <= offset <= abi.MAX_LFS_FILESIZE:
            raise oserror(errno.EINVAL)
        return offset


class PseudoSymlink(PseudoInode):
    """A symlink whose text is made when it is read: ``readlink`` is the subclass's."""

    __slots__ = ()

    def __init__(self, above: PseudoDirectory | Superblock, mode: int = 0o777) -> None:
        super().__init__(above, abi.S_IFLNK | mode)


class MagicLink(PseudoSymlink):
    """A symlink that leads to an object instead of a path: ``follow_magic_link`` is the subclass's.

    ``readlink`` is, too: a text for people, which need not lead anywhere.
    """

    __slots__ = ()

    @property
    def has_magic_link(self) -> bool:
        return True

    def follow_magic_link(self, cred: Credentials) -> VirtualDentry:
        raise oserror(errno.ENOENT)


# Rows

D = TypeVar("D", bound=PseudoDirectory)
Show = Callable[[D], bytes]
Store = Callable[[D, bytes, "Credentials"], None]


class _TextFile(PseudoFile):
    """``text``'s file."""

    __slots__ = ("_show", "_store")

    def __init__(
        self, above: PseudoDirectory, mode: int, show: Show[Any] | None, store: Store[Any] | None
    ) -> None:
        super().__init__(above, mode)
        self._show = show
        self._store = store

    def show(self) -> bytes:
        return super().show() if self._show is None else self._show(self.directory)

    def store(self, data: bytes, cred: Credentials) -> int:
        if self._store is None:
            return super().store(data, cred)
        self._store(self.directory, data, cred)
        return len(data)


class _TextLink(PseudoSymlink):
    """``symlink``'s symlink."""

    __slots__ = ("_target",)

    def __init__(self, above: PseudoDirectory, target: bytes | Show[Any]) -> None:
        super().__init__(above)
        self._target = target
        if isinstance(target, bytes):
            self.size = len(target)

    def readlink(self) -> bytes:
        target = self._target
        return target if isinstance(target, bytes) else target(self.directory)


def text(show: Show[D] | None, store: Store[D] | None = None, mode: int | None = None) -> Row:
    """A file that shows what ``show`` returns, and gives each write(2), whole, to ``store``.

    Both are called with the file's directory. ``mode`` follows from which of them there are.
    """
    if mode is None:
        mode = (0o444 if show else 0) | (0o200 if store else 0)
    permissions = mode
    return Row(abi.S_IFREG, lambda above: _TextFile(above, permissions, show, store))


def symlink(target: bytes | Show[D]) -> Row:
    """A symlink to a fixed text, or to what ``target`` returns for the link's directory."""
    return Row(abi.S_IFLNK, lambda above: _TextLink(above, target))


def directory(
    content: Table | type[PseudoDirectory], mode: int | None = None, base: Any = PseudoDirectory
) -> Row:
    """A directory: a subclass of ``PseudoDirectory``, or a ``base`` with its own table."""
    if isinstance(content, Mapping):
        return Row(abi.S_IFDIR, lambda above: base(above, content, mode))
    return Row(abi.S_IFDIR, lambda above: content(above, None, mode))
