"""Where the files of a passthrough are on the host, whatever the dentry cache still believes."""

from __future__ import annotations

import os
from typing import Final

from fsimpl.passthrough import PassthroughSuperblock, oslib
from fsimpl.passthrough.descriptors import open_directory
from fsimpl.passthrough.inode import PassthroughInode
from harness.migration.mounts import names_of
from vfs import abi
from vfs.dentry import Dentry
from vfs.namei import step

HANDLE_MAX: Final = 8 + 128  # struct file_handle with the longest handle
_DELETED: Final = b" (deleted)"
_DIRECTORY: Final = abi.S_IFDIR >> 12


class HostPaths:
    """Finds the dentries of one passthrough's inodes. Needs the VFS lock.

    The dentries that it had to look up are held until ``close``. ``confirm`` asks the host for the
    path of everything (readlink of /proc/self/fd), where otherwise it is enough that each directory
    on the way has the next by that name.
    """

    def __init__(self, superblock: PassthroughSuperblock, confirm: bool = False) -> None:
        self._superblock = superblock
        self._confirm = confirm
        self._root = self._link(superblock.root_inode).rstrip(b"/")
        self._stands: dict[Dentry, bool] = {}
        self._held: list[Dentry] = []
        self._anchors: dict[Dentry, int] = {}

    def close(self) -> None:
        held, self._held = self._held, []
        for dentry in held:
            dentry.put()
        anchors, self._anchors = self._anchors, {}
        for fd in anchors.values():
            os.close(fd)

    def place(self, dentry: Dentry, *, search: bool) -> Dentry | None:
        """A dentry of the same file whose names lead there now, borrowed; None if there is none.

        With ``search`` the whole directory is looked through for a file whose known name is gone
        while it has others. A dentry's parents come before it.
        """
        if self.stands(dentry):
            return dentry
        found = self._by_link(dentry)
        if found is None and search:
            found = self._by_search(dentry)
        return found

    def stands(self, dentry: Dentry) -> bool:
        """Whether its names, as they are known, lead to it."""
        known = self._stands.get(dentry)
        if known is None:
            known = self._stands[dentry] = self._check(dentry)
        return known

    def _check(self, dentry: Dentry) -> bool:
        if dentry is self._superblock.root:
            return True
        parent, inode = dentry.parent, dentry.inode
        if not dentry.hashed or parent.inode is None or not self.stands(parent):
            return False
        assert isinstance(inode, PassthroughInode)
        try:
            if not parent.inode.revalidate(dentry):
                return False
            return not self._confirm or self._confirmed(dentry, inode)
        except OSError:
            return False

    def _confirmed(self, dentry: Dentry, inode: PassthroughInode) -> bool:
        # What was found under one of its names answers with that one.
        return self.names(inode) == names_of(dentry) or (not inode.is_dir and inode.nlink > 1)

    def _by_link(self, dentry: Dentry) -> Dentry | None:
        inode = dentry.inode
        if not isinstance(inode, PassthroughInode):
            return None
        try:
            names = self.names(inode)
        except OSError:
            return None
        return None if names is None else self.walk(names, inode)

    def walk(self, names: list[bytes], inode: PassthroughInode) -> Dentry | None:
        """The dentry at the end of ``names``, if that is ``inode``; borrowed."""
        superblock = self._superblock
        assert superblock.root is not None
        dentry: Dentry = superblock.vfs.dcache.hold(superblock.root)
        for name in names:
            try:
                child = step(dentry, name)
            except OSError:
                child = None
            dentry.put()
            if child is None:
                return None
            dentry = child
        if dentry.inode is not inode:
            dentry.put()
            return None
        self._held.append(dentry)
        node = dentry
        while node not in self._stands:
            self._stands[node] = True
            node = node.parent
        return dentry

    def _by_search(self, wanted: Dentry) -> Dentry | None:
        inode = wanted.inode
        if not isinstance(inode, PassthroughInode):
            return None
        try:
            inode.refresh()
        except OSError:
            return None
        # A directory has but one name.
        if not inode.nlink or inode.is_dir:
            return None
        superblock = self._superblock
        assert superblock.root is not None
        stack = [superblock.vfs.dcache.hold(superblock.root)]
        try:
            while stack:
                with stack.pop() as directory:
                    for name, ino, kind in _list(superblock, directory):
                        if ino != inode.ino and kind not in (_DIRECTORY, 0):
                            continue
                        try:
                            child = step(directory, name)
                        except OSError:
                            continue
                        if child is None:
                            continue
                        if child.inode is inode:
                            self._held.append(child)
                            return child
                        if child.inode is not None and child.inode.is_dir:
                            stack.append(child)
                        else:
                            child.put()
        finally:
            for dentry in stack:
                dentry.put()
        return None

    def is_deleted_here(self, inode: PassthroughInode) -> bool:
        """Whether it was in the directory until its last name went."""
        path = self._link(inode)
        return path.startswith(self._root + b"/") and path.endswith(_DELETED) and not inode.nlink

    def names(self, inode: PassthroughInode) -> list[bytes] | None:
        """What the host says; None if that is outside of the directory."""
        path = self._link(inode)
        if not path.startswith(self._root + b"/"):
            return None
        return [name for name in path[len(self._root) :].split(b"/") if name]

    def _link(self, inode: PassthroughInode) -> bytes:
        fd = inode.handle.descriptor()
        return os.readlink(b"%d" % fd, dir_fd=self._superblock.budget.links)

    # File handles

    def file_handle(self, dentry: Dentry) -> bytes:
        """Raises: EOPNOTSUPP; ENFILE."""
        assert isinstance(dentry.inode, PassthroughInode)
        return oslib.name_to_handle_at(dentry.inode.handle.descriptor(), b"")

    def mount_top(self, dentry: Dentry) -> Dentry:
        """The highest directory above ``dentry`` that is on the same mount of the host."""
        top = dentry
        while top.parent is not top:
            above, inode = top.parent.inode, top.inode
            assert isinstance(inode, PassthroughInode) and isinstance(above, PassthroughInode)
            if above.host_mount != inode.host_mount:
                break
            top = top.parent
        return top

    def open_handle(self, anchor: Dentry, handle: bytes) -> PassthroughInode:
        """The file that ``handle`` names on the mount of the host that the directory ``anchor`` is
        on; the caller receives a reference. It may be outside of the directory that is shared.

        Raises: ESTALE, EPERM, EOPNOTSUPP, EINVAL, ENFILE.
        """
        superblock = self._superblock
        budget = superblock.budget
        fd = self._anchors.get(anchor)
        if fd is None:
            assert isinstance(anchor.inode, PassthroughInode)
            with anchor.inode.handle.pinned() as place:
                fd = budget.make(open_directory, place, budget.links)
            self._anchors[anchor] = fd
        return superblock.adopt(budget.make(oslib.open_by_handle_at, fd, handle))


def _list(superblock: PassthroughSuperblock, directory: Dentry) -> list[tuple[bytes, int, int]]:
    """(name, inode number, type) of what is in ``directory``, as far as it can be read."""
    assert isinstance(directory.inode, PassthroughInode)
    found: list[tuple[bytes, int, int]] = []
    buffer = oslib.DirentBuffer()
    try:
        fd = superblock.budget.open(directory.inode.handle, abi.O_RDONLY | abi.O_DIRECTORY)
    except OSError:
        return found
    try:
        while chunk := buffer.read(fd):
            entries = oslib.dirents(chunk, 0)
            found += [entry[:3] for entry in entries if entry[0] not in (b".", b"..")]
    except OSError:
        return found
    finally:
        os.close(fd)
    return found
