"""Directories: names with cookies. Linux: shmem's directory operations over ``simple_offset``."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from fsimpl.tmpfs.inode import TmpfsInode, TmpfsRegular, TmpfsSymlink
from fsimpl.tmpfs.options import INODE_SPACE
from vfs import abi
from vfs.errors import InvariantViolation, oserror
from vfs.file import DirectoryEntry, FileDescription
from vfs.inode import Inode
from vfs.permission import inode_init_owner

if TYPE_CHECKING:
    from fsimpl.tmpfs.filesystem import TmpfsSuperblock
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.mount import Mount

_ENTRY_SIZE: Final = 20  # what a name adds to st_size. Linux: BOGO_DIRENT_SIZE
FIRST_COOKIE: Final = 3
_RENAME_FLAGS: Final = abi.RENAME_NOREPLACE | abi.RENAME_EXCHANGE | abi.RENAME_WHITEOUT
_DIRECTORY_TYPE: Final = abi.S_IFDIR >> 12


class TmpfsDirectory(TmpfsInode):
    """Linux: ``shmem_dir_inode_operations``. Borrows the inodes; the names' dentries hold them.

    Every name has a cookie, larger than those of all names before it, and keeps it while it is
    there, whatever rename puts behind it. So a reader that comes back with a cookie finds
    everything that stayed, once. Entries come in the order in which names were made (Linux's come
    newest first; POSIX asks for none).

    ``_entries`` is in cookie order because a ``dict`` remembers insertion. ``_order`` is the sorted
    list of cookies that coming back needs, made by the first reader, with the cookies of names
    since removed still in it.
    """

    __slots__ = ("_cookies", "_entries", "_next_cookie", "_order")

    def __init__(self, superblock: TmpfsSuperblock, mode: int, uid: int, gid: int) -> None:
        super().__init__(superblock, mode, uid, gid)
        self._cookies: dict[bytes, int] = {}
        self._entries: dict[int, tuple[bytes, Inode]] = {}
        self._next_cookie = FIRST_COOKIE
        self._order: list[int] | None = None
        self.size = 2 * _ENTRY_SIZE

    def names(self) -> Iterator[tuple[bytes, Inode]]:
        """Every name with its inode, borrowed, without "." and ".."."""
        return iter(self._entries.values())

    @property
    def end(self) -> int:
        """The cookie that the next name will get."""
        return self._next_cookie

    def cookies(self) -> list[tuple[bytes, int, int]]:
        """(name, inode number, cookie) of every name, in cookie order."""
        return [(name, inode.ino, cookie) for cookie, (name, inode) in self._entries.items()]

    def set_names(self, names: Sequence[tuple[bytes, Inode, int]], end: int) -> None:
        """Have exactly these names, (name, inode, cookie) in cookie order, ``end`` being next. Link
        counts and dentries are the caller's to set.
        """
        self._entries = {cookie: (name, inode) for name, inode, cookie in names}
        self._cookies = {name: cookie for name, _, cookie in names}
        self._next_cookie = end
        self._order = None
        self.size = _ENTRY_SIZE * (2 + len(names))

    def entries_after(self, cookie: int, end: int) -> Iterator[DirectoryEntry]:
        """The entries with cookies between ``cookie`` and ``end``, "." and ".." not among them.

        Names may come and go while the iterator lives.
        """
        order = self._order
        if order is None or len(order) > 2 * len(self._entries) + 64:
            order = self._order = list(self._entries)
        entries = self._entries
        position = bisect_right(order, cookie)
        while position < len(order):
            key = order[position]
            if key >= end:
                return
            entry = entries.get(key)
            if entry is not None:
                name, inode = entry
                yield name, inode.ino, inode.mode >> 12 & 0xF, key
            position += 1

    def _add(self, name: bytes, inode: Inode) -> None:
        cookie = self._next_cookie
        self._next_cookie = cookie + 1
        self._cookies[name] = cookie
        self._entries[cookie] = name, inode
        if self._order is not None:
            self._order.append(cookie)
        self.size += _ENTRY_SIZE

    def _remove(self, name: bytes) -> None:
        del self._entries[self._cookies.pop(name)]
        self.size -= _ENTRY_SIZE

    def _replace(self, name: bytes, inode: Inode) -> None:
        self._entries[self._cookies[name]] = name, inode

    def _modified(self, now: int) -> None:
        self.mtime_ns = self.ctime_ns = now
        self.wire = None

    def _enter(self, name: bytes, inode: TmpfsInode) -> Inode:
        """The new ``inode`` gets its name; directory and inode have one time of change."""
        self._add(name, inode)
        self._modified(inode.ctime_ns)
        return inode

    def create(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        """Raises: ENOSPC."""
        return self._enter(name, TmpfsRegular(self.superblock, *inode_init_owner(self, mode, cred)))

    def mkdir(self, name: bytes, mode: int, cred: Credentials) -> Inode:
        """Raises: ENOSPC."""
        inode = TmpfsDirectory(self.superblock, *inode_init_owner(self, mode, cred))
        self.nlink += 1
        return self._enter(name, inode)

    def mknod(self, name: bytes, mode: int, rdev: int, cred: Credentials) -> Inode:
        """Raises: ENOSPC."""
        return self._enter(
            name, TmpfsInode(self.superblock, *inode_init_owner(self, mode, cred), rdev)
        )

    def symlink(self, name: bytes, target: bytes, cred: Credentials) -> Inode:
        """Raises: ENOSPC."""
        owner = inode_init_owner(self, abi.S_IFLNK | abi.S_IRWXUGO, cred)
        return self._enter(name, TmpfsSymlink(self.superblock, *owner, target))

    def tmpfile(self, mode: int, cred: Credentials) -> Inode:
        """Raises: ENOSPC."""
        inode = TmpfsRegular(self.superblock, *inode_init_owner(self, mode, cred))
        inode.nlink = 0
        return inode

    def link(self, name: bytes, inode: Inode, source: Dentry) -> None:
        """Linux: ``shmem_link``. A further name costs inode space; an O_TMPFILE's first does not.

        Raises: ENOSPC.
        """
        assert isinstance(inode, TmpfsInode)
        if inode.nlink and not self.superblock.ispace.take(INODE_SPACE):
            raise oserror(errno.ENOSPC)
        inode.nlink += 1
        inode.stamp(self.superblock.vfs.clock.now_ns())
        self._enter(name, inode)

    def unlink(self, name: bytes, inode: Inode) -> None:
        """Linux: ``shmem_unlink``."""
        assert isinstance(inode, TmpfsInode)
        now = self.superblock.vfs.clock.now_ns()
        self._remove(name)
        self._drop_link(inode, now)
        self._modified(now)

    def rmdir(self, name: bytes, inode: Inode) -> None:
        """Linux: ``shmem_rmdir``. Raises: ENOTEMPTY."""
        assert isinstance(inode, TmpfsDirectory)
        if inode._entries:
            raise oserror(errno.ENOTEMPTY)
        self.unlink(name, inode)

    def _drop_link(self, inode: TmpfsInode, now: int) -> None:
        """One name of ``inode``, in this directory, is gone; a directory's only one."""
        if isinstance(inode, TmpfsDirectory):
            inode.nlink = 0
            self.nlink -= 1
        else:
            if inode.nlink > 1:
                self.superblock.ispace.give(INODE_SPACE)
            inode.nlink -= 1
        inode.stamp(now)

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
        """Linux: ``shmem_rename2``.

        Raises: EINVAL (unknown flags), ENOTEMPTY, ENOSPC (for a whiteout).
        """
        if flags & ~_RENAME_FLAGS:
            raise oserror(errno.EINVAL)
        assert isinstance(new_dir, TmpfsDirectory) and isinstance(inode, TmpfsInode)
        assert new_inode is None or isinstance(new_inode, TmpfsInode)
        whiteout = None
        if flags & abi.RENAME_EXCHANGE:
            assert new_inode is not None
            self._replace(name, new_inode)
            new_dir._replace(new_name, inode)
            self.nlink += new_inode.is_dir - inode.is_dir
            new_dir.nlink += inode.is_dir - new_inode.is_dir
        else:
            if isinstance(new_inode, TmpfsDirectory) and new_inode._entries:
                raise oserror(errno.ENOTEMPTY)
            if flags & abi.RENAME_WHITEOUT:
                owner = inode_init_owner(self, abi.S_IFCHR, cred)
                whiteout = TmpfsInode(self.superblock, *owner, 0)
                self._replace(name, whiteout)
            else:
                self._remove(name)
            if new_inode is None:
                new_dir._add(new_name, inode)
            else:
                new_dir._replace(new_name, inode)
            self.nlink -= inode.is_dir
            new_dir.nlink += inode.is_dir
        now = self.superblock.vfs.clock.now_ns()
        if new_inode is not None:
            new_inode.stamp(now)
            if not flags & abi.RENAME_EXCHANGE:
                new_dir._drop_link(new_inode, now)
        inode.stamp(now)
        self._modified(now)
        new_dir._modified(now)
        return whiteout

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> FileDescription:
        return TmpfsDirectoryFile(mount, dentry, flags, cred)

    def check(self) -> None:
        """Names and cookies map onto each other, cookies ascend, the size follows."""
        if [*self._entries] != sorted(self._entries):
            raise InvariantViolation(f"{self!r}: cookies are out of order")
        if {name: cookie for cookie, (name, _) in self._entries.items()} != self._cookies:
            raise InvariantViolation(f"{self!r}: names and cookies differ")
        if self.size != _ENTRY_SIZE * (2 + len(self._entries)):
            raise InvariantViolation(f"{self!r}: size {self.size}, {len(self._entries)} names")


class TmpfsDirectoryFile(FileDescription):
    """Linux: ``simple_offset_dir_operations``.

    A listing ends with the names that were there when it began (Linux: ``offset_dir_open`` and
    ``offset_dir_llseek``), so that one who adds a name for each that he reads comes to an end:
    ``end`` is the cookie where it does.
    """

    __slots__ = ("end",)
    inode: TmpfsDirectory

    def __init__(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> None:
        super().__init__(mount, dentry, flags, cred)
        self.end = self.inode.end

    def iterate(self, cookie: int) -> Iterator[DirectoryEntry]:
        """Entries after ``cookie``, which is 1 for ".", 2 for "..", 3 and up for names."""
        if cookie < 1:
            self.end = self.inode.end
            yield b".", self.inode.ino, _DIRECTORY_TYPE, 1
        if cookie < 2:
            parent = self.dentry.parent.inode
            assert parent is not None
            yield b"..", parent.ino, _DIRECTORY_TYPE, 2
        yield from self.inode.entries_after(cookie, self.end)
