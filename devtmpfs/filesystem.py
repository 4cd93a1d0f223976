"""devtmpfs: a tmpfs whose nodes come and go with the devices. Linux: drivers/base/devtmpfs.c."""

from __future__ import annotations

import logging
import os
from typing import Final

from fsimpl.tmpfs import TmpfsSuperblock, TmpfsType
from fsimpl.tmpfs.options import TmpfsOptions
from vfs import abi
from vfs.credentials import Credentials
from vfs.dentry import Dentry
from vfs.device import Device
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode, SetAttributes
from vfs.mount import Mount, VirtualDentry
from vfs.operations import vfs_mkdir, vfs_mknod, vfs_rmdir, vfs_setattr, vfs_symlink, vfs_unlink
from vfs.superblock import Superblock

# What Linux leaves to user space (systemd, udev); here nobody else would make it.
LINKS: Final = (
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
)
DIRECTORIES: Final = ((b"pts", 0o755), (b"shm", 0o1777))

_DEFAULT_MODE: Final = 0o755
_logger = logging.getLogger(__name__)


class DevtmpfsType(TmpfsType):
    """Linux: ``dev_fs_type``. One superblock for all mounts in a VirtualFilesystem.

    It lives from the first mount to the last umount (Linux: for ever), and is made anew from the
    registry by the next mount.
    """

    name = "devtmpfs"
    userns_mount = False

    def get_tree(self, context: FilesystemContext) -> Superblock:
        """The first mount's options hold; later ones are checked and ignored, and read-only is
        always a matter of the mount alone. There is only one superblock to have, so
        FSCONFIG_CMD_CREATE_EXCL may have it, too; all as on Linux.

        Raises: ENOSPC if the options leave no room for the links.
        """
        for superblock in context.vfs.superblocks:
            if superblock.type is self:
                return superblock.get()
        options = TmpfsOptions.of(context)
        options.mode = _DEFAULT_MODE if options.mode is None else options.mode
        options.uid = options.uid or 0
        options.gid = options.gid or 0
        context.flags &= ~abi.MS_RDONLY
        made = DevtmpfsSuperblock(context, options)
        try:
            made.populate()
        except BaseException:
            made.put()
            raise
        return made


class DevtmpfsSuperblock(TmpfsSuperblock):
    """Linux: the superblock that kdevtmpfs works on; a ``DeviceListener``.

    ``_made`` are the nodes and directories that exist because of a device, by path. Only these are
    removed again, and only while they are what they were (Linux marks their ``i_private``).
    """

    __slots__ = ("_made",)

    def __init__(self, context: FilesystemContext, options: TmpfsOptions) -> None:
        super().__init__(context, options)
        self._made: dict[bytes, Inode] = {}
        self.vfs.devices.add_listener(self)

    def populate(self) -> None:
        """Make the directories, the links, and a node for each device. Raises: ENOSPC."""
        cred = Credentials.root()
        with Mount(self, b"devtmpfs") as mount:
            root = VirtualDentry(mount, mount.root)
            for name, mode in DIRECTORIES:
                vfs_mkdir(root, name, mode, cred).put()
            for name, target in LINKS:
                vfs_symlink(root, name, target, cred).put()
        for device in self.vfs.devices:
            self.device_added(device)

    def release(self) -> None:
        self.vfs.devices.remove_listener(self)
        self._made.clear()
        super().release()

    def device_added(self, device: Device) -> None:
        """Make ``device``'s node and the directories above it (Linux: ``handle_create``).

        A name that is taken stays what it is. The device works without its node, so a failure is
        told to the log.
        """
        with self.vfs.lock, Mount(self, b"devtmpfs") as mount:
            try:
                self._make_node(mount, device)
            except OSError as error:
                _logger.warning("no node for %r: %s", device, error)

    def _make_node(self, mount: Mount, device: Device) -> None:
        cred = Credentials.root()
        path = os.fsencode(device.name)
        parent = self._make_directories(mount, path)
        name = path.rpartition(b"/")[2]
        node = VirtualDentry(mount, parent)
        with vfs_mknod(node, name, device.kind | device.mode, device.rdev, cred) as dentry:
            attributes = SetAttributes(mode=device.mode, uid=device.uid, gid=device.gid)
            vfs_setattr(mount, dentry, attributes, cred)
            assert dentry.inode is not None
            self._made[path] = dentry.inode

    def _make_directories(self, mount: Mount, path: bytes) -> Dentry:
        """The parent of ``path``, made where it is missing; borrowed (names are pinned)."""
        parent = mount.root
        for end in _slashes(path):
            name = path[:end].rpartition(b"/")[2]
            child = self.vfs.dcache.find(parent, name)
            if child is None:
                child = vfs_mkdir(VirtualDentry(mount, parent), name, 0o755, Credentials.root())
                child.put()
                assert child.inode is not None
                self._made[path[:end]] = child.inode
            parent = child
        return parent

    def device_removed(self, device: Device) -> None:
        """Remove ``device``'s node, and the directories made for it that are empty now.

        Linux: ``handle_remove``, ``delete_path``. What a user made or replaced stays. A hard link
        made by a user loses its permission bits and its owner, so that it opens nothing later.
        """
        path = os.fsencode(device.name)
        dentry = self._find_made(path)
        if dentry is None:
            return
        cred = Credentials.root()
        with self.vfs.lock, Mount(self, b"devtmpfs") as mount:
            try:
                vfs_setattr(mount, dentry, SetAttributes(mode=0, uid=0, gid=0), cred)
                vfs_unlink(VirtualDentry(mount, dentry.parent), dentry.name, cred)
                del self._made[path]
                for end in reversed(_slashes(path)):
                    directory = self._find_made(path[:end])
                    if directory is None or directory.children:
                        break
                    vfs_rmdir(VirtualDentry(mount, directory.parent), directory.name, cred)
                    del self._made[path[:end]]
            except OSError as error:
                _logger.warning("node of %r stays: %s", device, error)

    def _find_made(self, path: bytes) -> Dentry | None:
        """What stands at ``path`` if we made it, borrowed (Linux: ``dev_mynode``)."""
        dentry = self.root
        for name in path.split(b"/"):
            if dentry is not None:
                dentry = self.vfs.dcache.find(dentry, name)
        if dentry is None or dentry.inode is None or dentry.inode is not self._made.get(path):
            return None
        return dentry


def _slashes(path: bytes) -> list[int]:
    """Where the names of the directories above ``path`` end."""
    return [index for index, byte in enumerate(path) if byte == ord("/")]
