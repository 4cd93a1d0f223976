"""The one path walk: from a name to a dentry, one component at a time. Linux: fs/namei.c.

Everything that takes a path comes through ``Walk``; a transport that has node ids instead of paths
takes single steps with ``step``. The VFS lock is held for a whole walk. What is under the walker's
feet is held too: a lookup may push unused dentries out of the cache, and unmount what lies below a
name that went away.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi
from vfs.errors import oserror
from vfs.mount import Mount, VirtualDentry
from vfs.mount_tree import detach_mounts
from vfs.permission import inode_permission, is_dead_directory
from vfs.superblock import DCACHE_PINNED, DCACHE_REVALIDATE, DCACHE_VALID
from vfs.times import touch_atime

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.virtual_filesystem import VirtualFilesystem

# Linux: LOOKUP_* in include/linux/namei.h.
FOLLOW = 1  # a symlink at the end is followed
DIRECTORY = 2  # the end must be a directory
EMPTY = 4  # an empty path means the start itself (AT_EMPTY_PATH)

_SCOPED = abi.RESOLVE_BENEATH | abi.RESOLVE_IN_ROOT
_STICKY_WORLD_WRITABLE = abi.S_ISVTX | 0o002


def step(parent: Dentry, name: bytes) -> Dentry | None:
    """Look ``name`` up in one directory, through the cache. Not for "." and "..".

    Returns a positive dentry, held for the caller, or None if there is no such name. Permissions
    and mounts are the caller's.

    Raises: ENOTDIR, ENAMETOOLONG; what the filesystem's lookup raises.
    """
    children = parent.children
    child = children.get(name) if children else None
    superblock = parent.superblock
    if child is not None:
        inode = child.inode
        if superblock.dcache != DCACHE_REVALIDATE:
            if inode is None:
                return None
            return child.get() if child.count else superblock.vfs.dcache.hold(child)
        assert parent.inode is not None
        if child.count:
            child.get()
        else:
            superblock.vfs.dcache.hold(child)
        try:
            holds = parent.inode.revalidate(child)
        except BaseException:
            child.put()
            raise
        if holds and inode is not None:
            return child
        try:
            if holds:
                return None
            _invalidate(child)
        finally:
            child.put()
    directory = parent.inode
    if directory is None or directory.mode & abi.S_IFMT != abi.S_IFDIR:
        raise oserror(errno.ENOTDIR)
    if len(name) > abi.NAME_MAX:
        raise oserror(errno.ENAMETOOLONG)
    # A name cannot come to be in a deleted directory (Linux: IS_DEADDIR in lookup_slow).
    if superblock.dcache == DCACHE_PINNED or is_dead_directory(parent):
        return None
    found = directory.lookup(name)
    if found is not None:
        return superblock.vfs.dcache.add(parent, name, found)
    if superblock.dcache == DCACHE_VALID:
        superblock.vfs.dcache.add(parent, name, None).put()
    return None


def _invalidate(dentry: Dentry) -> None:
    """Linux: ``d_invalidate``: the name went away under us; so do the mounts on and below it."""
    vfs = dentry.superblock.vfs
    for below in list(vfs.dcache.walk(dentry)):
        if below.mounted:
            detach_mounts(below)
    vfs.dcache.delete(dentry)


def traverse_mounts(mount: Mount, dentry: Dentry) -> tuple[Mount, Dentry]:
    """Linux: ``traverse_mounts``: cross onto the topmost mount on ``dentry``. All borrowed."""
    while dentry.mounted:
        child = mount.children.get(dentry)
        if child is None:
            break
        mount, dentry = child, child.root
    return mount, dentry


def follow_up(mount: Mount, dentry: Dentry, root: VirtualDentry) -> tuple[Mount, Dentry]:
    """Linux: ``choose_mountpoint``: from a mount's root to its mount point; never past ``root``."""
    while dentry is mount.root and mount.mountpoint is not None:
        if mount is root.mount and dentry is root.dentry:
            break
        dentry = mount.mountpoint
        mount = mount.parent
    return mount, dentry


def follow_dotdot(mount: Mount, dentry: Dentry, root: VirtualDentry) -> tuple[Mount, Dentry]:
    """Linux: ``follow_dotdot``: the parent directory, never above ``root``. All borrowed.

    Raises: ENOENT if the parent has left the part of the tree that the mount shows.
    """
    if not (mount is root.mount and dentry is root.dentry):
        mount, dentry = follow_up(mount, dentry, root)
        if dentry is not mount.root and not (mount is root.mount and dentry is root.dentry):
            dentry = dentry.parent
            if mount.root is not mount.superblock.root and not dentry.is_descendant_of(mount.root):
                raise oserror(errno.ENOENT)
    return traverse_mounts(mount, dentry)


class Walk:
    """Linux: ``struct nameidata``. One resolution of one path by one caller.

    ``mount`` and ``dentry`` are where the walk stands, both held. After ``descend`` that is
    the parent of the last component, which ``last`` names: b"" (the path was all slashes), b".",
    b".." or a name; ``trailing`` tells that slashes follow it. End with ``take`` or ``abandon``.
    """

    __slots__ = (
        "cred", "dentry", "last", "links", "mount", "resolve", "root", "rooted", "trailing", "vfs",
    )  # fmt: skip

    def __init__(
        self,
        vfs: VirtualFilesystem,
        cred: Credentials,
        root: VirtualDentry,
        start: VirtualDentry,
        resolve: int = 0,
    ) -> None:
        """Stand at ``start``, borrowed, as ``root``. ``resolve`` is RESOLVE_* of openat2(2)."""
        self.vfs = vfs
        self.cred = cred
        self.root = start if resolve & _SCOPED else root
        self.resolve = resolve
        # Whether the walk has asked for the root yet (Linux: nd->root.mnt is set).
        self.rooted = bool(resolve & _SCOPED)
        self.mount = start.mount.get()
        self.dentry = vfs.dcache.hold(start.dentry)
        self.last = b""
        self.trailing = False
        self.links = 0

    def stand_at(self, mount: Mount, dentry: Dentry) -> None:
        """Move to ``dentry`` (borrowed), giving back where the walk stood."""
        held = self.vfs.dcache.hold(dentry)
        self.dentry.put()
        self.dentry = held
        if mount is not self.mount:
            mount.get()
            # On Linux a walk in RCU mode leaves no traces either.
            self.mount.put_no_expire()
            self.mount = mount

    def take(self) -> VirtualDentry:
        """End the walk: the caller receives where it stands, with both references."""
        return VirtualDentry(self.mount, self.dentry)

    def abandon(self) -> None:
        """End the walk with nothing."""
        self.dentry.put()
        self.mount.put_no_expire()

    @property
    def inode(self) -> Inode:
        inode = self.dentry.inode
        if inode is None:
            raise oserror(errno.ENOENT)
        return inode

    def descend(self, path: bytes, is_link: bool = False) -> None:
        """Linux: ``path_init`` + ``link_path_walk``: walk all but the last component of ``path``.

        ``path`` is not empty; ``is_link`` says that it is a symlink's text.

        Raises: ENAMETOOLONG, ENOTDIR, EACCES, ENOENT, ELOOP, EXDEV, EAGAIN.
        """
        if path.startswith(b"/"):
            self._jump_to_root(is_link)
        elif not self.inode.is_dir:
            raise oserror(errno.ENOTDIR)
        pending = _components(path)
        self.trailing = path.endswith(b"/")
        while True:
            if not pending:
                self.last = b""
                return
            self._may_lookup()
            name = pending.pop()
            if not pending:
                self.last = name
                return
            link = self._walk_component(name, follow=True)
            if link is not None:
                if link.startswith(b"/"):
                    self._jump_to_root(is_link=True)
                if not self.inode.is_dir:
                    raise oserror(errno.ENOTDIR)
                pending.extend(_components(link))
            elif not self.inode.is_dir:
                raise oserror(errno.ENOTDIR)

    def finish(self, flags: int) -> None:
        """Linux: ``lookup_last`` and ``complete_walk``: walk the last component too.

        Raises: as ``descend``; ENOTDIR if a directory was asked for (DIRECTORY, a slash behind).
        """
        while True:
            if self.trailing:
                flags |= FOLLOW | DIRECTORY
            if not self.last:
                break
            link = self._walk_component(self.last, follow=bool(flags & FOLLOW), last=True)
            if link is None:
                break
            self.descend(link, is_link=True)
        if flags & DIRECTORY and not self.inode.is_dir:
            raise oserror(errno.ENOTDIR)

    def peek_last(self) -> Dentry | None:
        """The dentry of ``last`` (a plain name), held for the caller; mounts are not crossed."""
        self._check_cached()
        return step(self.dentry, self.last)

    def follow_last(self, dentry: Dentry) -> bool:
        """Enter what ``peek_last`` found (borrowed); for a symlink, ``descend`` its target.

        Returns whether it was a symlink, so that there is a new ``last`` to look at.
        """
        parent = self.inode
        mount, dentry = traverse_mounts(self.mount, dentry)
        self._may_cross(mount)
        inode = dentry.inode
        assert inode is not None
        if not inode.is_symlink:
            self.stand_at(mount, dentry)
            return False
        link = self._follow_link(mount, dentry, parent, last=True)
        if link is None:
            self.last = b""
            self.trailing = False
            return False
        self.descend(link, is_link=True)
        return True

    def _may_lookup(self) -> None:
        inode = self.dentry.inode
        assert inode is not None
        inode_permission(inode, self.cred, abi.X_OK)

    def _check_cached(self) -> None:
        """RESOLVE_CACHED: only what the cache knows for sure. Raises: EAGAIN."""
        if self.resolve & abi.RESOLVE_CACHED:
            dentry = self.dentry
            policy = dentry.superblock.dcache
            if policy == DCACHE_REVALIDATE or (
                policy != DCACHE_PINNED and self.last not in (dentry.children or {})
            ):
                raise oserror(errno.EAGAIN)

    def _may_cross(self, mount: Mount) -> None:
        if mount is not self.mount and self.resolve & abi.RESOLVE_NO_XDEV:
            raise oserror(errno.EXDEV)

    def _jump_to_root(self, is_link: bool) -> None:
        """Linux: ``nd_jump_root``.

        Raises: EXDEV: RESOLVE_BENEATH; with RESOLVE_NO_XDEV a symlink to another mount, and also
        one to this mount's root if the walk has not come across the root before.
        """
        if self.resolve & abi.RESOLVE_BENEATH:
            raise oserror(errno.EXDEV)
        if is_link and self.resolve & abi.RESOLVE_NO_XDEV:
            if not self.rooted:
                raise oserror(errno.EXDEV)
            self._may_cross(self.root.mount)
        self.rooted = True
        self.stand_at(self.root.mount, self.root.dentry)

    def _walk_component(self, name: bytes, follow: bool, last: bool = False) -> bytes | None:
        """Linux: ``walk_component``: stand at ``name``, or return the text of a link to follow."""
        if name == b".":
            return None
        if name == b"..":
            self._dotdot()
            return None
        if self.resolve & abi.RESOLVE_CACHED:
            self.last = name
            self._check_cached()
        found = step(self.dentry, name)
        if found is None:
            raise oserror(errno.ENOENT)
        try:
            mount, dentry = traverse_mounts(self.mount, found)
            if mount is not self.mount:
                self._may_cross(mount)
            inode = dentry.inode
            assert inode is not None
            if follow and inode.mode & abi.S_IFMT == abi.S_IFLNK:
                return self._follow_link(mount, dentry, self.inode, last)
            self.stand_at(mount, dentry)
        finally:
            found.put()
        return None

    def _dotdot(self) -> None:
        at_root = self.mount is self.root.mount and self.dentry is self.root.dentry
        if at_root and self.resolve & abi.RESOLVE_BENEATH:
            raise oserror(errno.EXDEV)
        self.rooted = True
        mount, dentry = follow_dotdot(self.mount, self.dentry, self.root)
        self._may_cross(mount)
        self.stand_at(mount, dentry)

    def _follow_link(self, mount: Mount, dentry: Dentry, parent: Inode, last: bool) -> bytes | None:
        """Linux: ``pick_link``: the text to walk on from here, or None after a magic link's jump.

        Raises: ELOOP (40 links, RESOLVE_NO_SYMLINKS, nosymfollow), EACCES (fs.protected_symlinks).
        """
        inode = dentry.inode
        assert inode is not None
        self.links += 1
        if self.links > abi.MAXSYMLINKS:
            raise oserror(errno.ELOOP)
        if last:
            self._may_follow_link(parent, inode)
        if self.resolve & abi.RESOLVE_NO_SYMLINKS or mount.flags & abi.MS_NOSYMFOLLOW:
            raise oserror(errno.ELOOP)
        touch_atime(mount, inode)
        if not inode.has_magic_link:
            return inode.readlink()
        if self.resolve & abi.RESOLVE_NO_MAGICLINKS:
            raise oserror(errno.ELOOP)
        with inode.follow_magic_link(self.cred) as target:
            self._may_cross(target.mount)
            if self.resolve & _SCOPED:
                raise oserror(errno.EXDEV)
            self.stand_at(target.mount, target.dentry)
        return None

    def _may_follow_link(self, parent: Inode, link: Inode) -> None:
        """Linux: ``may_follow_link`` (fs.protected_symlinks). Raises: EACCES."""
        if not self.vfs.protected_symlinks or link.uid == self.cred.fsuid:
            return
        if parent.mode & _STICKY_WORLD_WRITABLE != _STICKY_WORLD_WRITABLE:
            return
        if parent.uid != link.uid:
            raise oserror(errno.EACCES)


def _components(path: bytes) -> list[bytes]:
    """The names in ``path``, last first, for the walk to pop; repeated slashes count once."""
    names = [name for name in path.split(b"/") if name]
    names.reverse()
    return names


def get_name(path: bytes, flags: int = 0) -> None:
    """Linux: ``getname_flags``, before anything else is looked at.

    Raises: ENOENT (empty without EMPTY in ``flags``), ENAMETOOLONG; EINVAL for a NUL, which no C
    string can carry.
    """
    if not path and not flags & EMPTY:
        raise oserror(errno.ENOENT, path)
    if len(path) >= abi.PATH_MAX:
        raise oserror(errno.ENAMETOOLONG, path)
    if b"\0" in path:
        raise oserror(errno.EINVAL, path)


def filename_lookup(
    vfs: VirtualFilesystem,
    cred: Credentials,
    root: VirtualDentry,
    start: VirtualDentry,
    path: bytes,
    flags: int,
    resolve: int = 0,
) -> VirtualDentry:
    """Linux: ``filename_lookup``. Resolve ``path`` from ``start`` (used if it is relative).

    ``get_name`` has passed ``path``. The caller receives both references. Raises: as ``Walk``.
    """
    walk = Walk(vfs, cred, root, start, resolve)
    try:
        if path:
            walk.descend(path)
            walk.finish(flags)
        return walk.take()
    except OSError as error:
        walk.abandon()
        if error.filename is None:
            error.filename = path.decode("utf-8", "surrogateescape")
        raise
    except BaseException:
        walk.abandon()
        raise


def filename_parent(
    vfs: VirtualFilesystem,
    cred: Credentials,
    root: VirtualDentry,
    start: VirtualDentry,
    path: bytes,
) -> tuple[VirtualDentry, bytes, bool]:
    """Linux: ``filename_parentat``: the parent (received with references), the last name, and
    whether slashes follow it. The name is b"" for the root, and can be b"." or b"..".

    ``get_name`` has passed ``path``. Raises: as ``Walk``.
    """
    walk = Walk(vfs, cred, root, start)
    try:
        walk.descend(path)
        return walk.take(), walk.last, walk.trailing
    except OSError as error:
        walk.abandon()
        if error.filename is None:
            error.filename = path.decode("utf-8", "surrogateescape")
        raise
    except BaseException:
        walk.abandon()
        raise
