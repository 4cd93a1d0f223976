"""Files that stand for namespaces: what /proc/PID/ns/mnt leads to. Linux: fs/nsfs.c.

A namespace has one inode and one dentry while somebody uses them, so that its file is the same for
everybody who looks. They hold the namespace: an open file or a bind mount of it keeps a mount
namespace alive after its last task has left.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from vfs import abi
from vfs.credentials import CAP_SYS_ADMIN, Credentials
from vfs.dentry import Dentry
from vfs.errors import oserror
from vfs.file import FileDescription
from vfs.fs_context import FilesystemContext
from vfs.inode import Inode
from vfs.mount import Mount, VirtualDentry
from vfs.superblock import DCACHE_VALID, FilesystemType, Superblock
from vfs.user_namespace import INITIAL_USER_NAMESPACE, UserNamespace

if TYPE_CHECKING:
    from vfs.namespace import MountNamespace
    from vfs.virtual_filesystem import VirtualFilesystem

    Namespace: TypeAlias = MountNamespace | UserNamespace

# linux/nsfs.h. The last three take a struct that may grow: their size is part of the command.
NS_GET_USERNS: Final = 0xB701
NS_GET_PARENT: Final = 0xB702
NS_GET_NSTYPE: Final = 0xB703
NS_GET_OWNER_UID: Final = 0xB704
NS_GET_MNTNS_ID: Final = 0x8008B705
NS_GET_ID: Final = 0x8008B70D
NS_MNT_GET_INFO: Final = 0x8010B70A
NS_MNT_GET_NEXT: Final = 0x8010B70B
NS_MNT_GET_PREV: Final = 0x8010B70C

_SIZE_MASK = 0x3FFF << 16
_INT = struct.Struct("=i")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_MNT_NS_INFO = struct.Struct("=IIQ")  # size, nr_mounts, mnt_ns_id


class NamespaceFile(FileDescription):
    """Linux: ``struct file`` with ``ns_file_operations``. There is nothing to read, only ioctls."""

    __slots__ = ()

    @property
    def namespace(self) -> Namespace:
        inode = self.inode
        assert isinstance(inode, NamespaceInode)
        return inode.namespace

    def llseek(self, offset: int, whence: int) -> int:
        """Raises: ESPIPE, although pread(2) gets as far as EINVAL."""
        raise oserror(errno.ESPIPE)

    def fsync(self, datasync: bool) -> None:
        """Raises: EINVAL."""
        raise oserror(errno.EINVAL)

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        """ioctl_ns(2), as far as no descriptor is made. What Linux returns as the call's value
        comes back as an int.

        NS_GET_NSTYPE: CLONE_NEWNS or CLONE_NEWUSER. NS_GET_OWNER_UID, NS_GET_MNTNS_ID: a number.
        NS_GET_ID: the same, of a mount namespace. NS_MNT_GET_INFO: ``struct mnt_ns_info``, with
        zeros behind it up to the size that the command says.

        Raises: EINVAL (a namespace of the other kind; no argument), ENOTTY.
        """
        namespace = self.namespace
        if isinstance(namespace, UserNamespace):
            if command == NS_GET_NSTYPE:
                return _INT.pack(abi.CLONE_NEWUSER)
            if command == NS_GET_OWNER_UID:
                return _U32.pack(namespace.owner_uid)
            if command == NS_GET_MNTNS_ID or _is_extensible(command, NS_MNT_GET_INFO):
                raise oserror(errno.EINVAL)
            raise oserror(errno.ENOTTY)
        if command == NS_GET_NSTYPE:
            return _INT.pack(abi.CLONE_NEWNS)
        if command == NS_GET_OWNER_UID:
            raise oserror(errno.EINVAL)
        if command in (NS_GET_MNTNS_ID, NS_GET_ID):
            return _U64.pack(namespace.id)
        if _is_extensible(command, NS_MNT_GET_INFO):
            if argument == 0:
                raise oserror(errno.EINVAL)
            # The absolute root, which nobody sees, is not counted.
            info = _MNT_NS_INFO.pack(_MNT_NS_INFO.size, len(namespace.mounts) - 1, namespace.id)
            return info.ljust((command & _SIZE_MASK) >> 16, b"\0")
        raise oserror(errno.ENOTTY)

    def ioctl_open(
        self, command: int, argument: bytes | memoryview | int, cred: Credentials
    ) -> FileDescription | None:
        """NS_GET_USERNS: the user namespace that owns this one. NS_GET_PARENT: the one above.
        NS_MNT_GET_NEXT and NS_MNT_GET_PREV: the mount namespace made after or before this one;
        nothing is written to their argument.

        Raises: EPERM (outside of the caller's user namespace; NEXT and PREV want CAP_SYS_ADMIN in
        the initial one), EINVAL (a namespace of the other kind), ENOENT (there is none).
        """
        namespace = self.namespace
        vfs = self.inode.superblock.vfs
        if command in (NS_GET_USERNS, NS_GET_PARENT):
            if isinstance(namespace, UserNamespace):
                owner = namespace.parent
            elif command == NS_GET_PARENT:
                raise oserror(errno.EINVAL)
            else:
                owner = namespace.user_ns
            if owner is None or not owner.is_at_or_below(cred.user_ns):
                raise oserror(errno.EPERM)
            return open_namespace(vfs, owner, cred)
        following = _is_extensible(command, NS_MNT_GET_NEXT)
        if not following and not _is_extensible(command, NS_MNT_GET_PREV):
            return None
        cred.ns_require(INITIAL_USER_NAMESPACE, CAP_SYS_ADMIN)
        if isinstance(namespace, UserNamespace):
            raise oserror(errno.EINVAL)
        found: MountNamespace | None = None
        for other in vfs.namespaces:
            if following:
                nearer = namespace.id < other.id and (found is None or other.id < found.id)
            else:
                nearer = other.id < namespace.id and (found is None or found.id < other.id)
            if nearer:
                found = other
        if found is None:
            raise oserror(errno.ENOENT)
        return open_namespace(vfs, found, cred)


def _is_extensible(command: int, known: int) -> bool:
    """Linux: ``extensible_ioctl_valid``: ``known``, for a struct of its size or a larger one."""
    return command & ~_SIZE_MASK == known & ~_SIZE_MASK and (
        command & _SIZE_MASK >= known & _SIZE_MASK
    )


class NamespaceInode(Inode):
    """The file of ``namespace``, on which it holds a reference. Its number is the namespace's."""

    __slots__ = ("namespace",)
    shows_flags = False

    def __init__(self, superblock: Superblock, namespace: Namespace) -> None:
        super().__init__(superblock, abi.S_IFREG | 0o444, ino=namespace.inum)
        self.flags = abi.FS_IMMUTABLE_FL
        self.btime_ns = 0  # not answered
        if not isinstance(namespace, UserNamespace):
            namespace.get()
        self.namespace = namespace

    @property
    def text(self) -> bytes:
        """ "mnt:[4026531832]"."""
        kind = "user" if isinstance(self.namespace, UserNamespace) else "mnt"
        return f"{kind}:[{self.ino}]".encode()

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> NamespaceFile:
        """Raises: EINVAL for O_DIRECT."""
        if flags & abi.O_DIRECT:
            raise oserror(errno.EINVAL)
        return NamespaceFile(mount, dentry, flags, cred)

    def evict(self) -> None:
        """Linux: ``nsfs_evict``."""
        self.superblock.vfs.nsfs.forget(self.namespace)


class NamespaceSuperblock(Superblock):
    """Linux: nsfs's only ``super_block``."""

    __slots__ = ("_own_dev",)

    def __init__(self, context: FilesystemContext) -> None:
        super().__init__(context, magic=abi.NSFS_MAGIC, dcache=DCACHE_VALID)
        self._own_dev, self.dev = self.dev, self.vfs.nsfs.dev

    def show_path(self, root: Dentry) -> bytes:
        """Linux: ``nsfs_show_path``."""
        return root.name

    def dname(self, dentry: Dentry) -> bytes | None:
        """Linux: ``ns_dname``."""
        return dentry.name if isinstance(dentry.inode, NamespaceInode) else None

    def release(self) -> None:
        # nsfs.dev stays with NamespaceFilesystem: what goes back is the number we were born with.
        self.dev = self._own_dev
        super().release()


class NamespaceFilesystemType(FilesystemType):
    """Linux: ``nsfs``. Not registered: tasks cannot mount it."""

    name = "nsfs"

    def get_tree(self, context: FilesystemContext) -> Superblock:
        """Linux: ``init_pseudo``: the root is there because every superblock has one."""
        superblock = NamespaceSuperblock(context)
        superblock.root = Dentry.make_root(superblock, Inode(superblock, abi.S_IFDIR | 0o600))
        return superblock


class NamespaceFilesystem:
    """Linux: ``nsfs_mnt``, the kernel's own mount of nsfs, and the dentries stashed in namespaces.

    The mount is in no namespace. Unlike Linux's it is made when the first file is wanted and ends
    with the last one, so that nothing is left when nobody uses anything; its id is another one
    then. The device number stays the same.
    """

    __slots__ = ("_dentries", "_dev", "_mount", "_vfs")

    def __init__(self, vfs: VirtualFilesystem) -> None:
        self._vfs = vfs
        self._mount: Mount | None = None
        self._dentries: dict[Namespace, Dentry] = {}
        self._dev = 0

    @property
    def dev(self) -> int:
        """The device number of nsfs, from its first use on."""
        if not self._dev:
            self._dev = self._vfs.allocate_anonymous_dev()
        return self._dev

    def path(self, namespace: Namespace) -> VirtualDentry:
        """See ``nsfs_path``."""
        mount = self._mount
        if mount is None:
            mount = self._mount = self._make_mount()
        dentry = self._dentries.get(namespace)
        if dentry is not None:
            return VirtualDentry(mount, dentry).get()
        inode = NamespaceInode(mount.superblock, namespace)
        dentry = Dentry(mount.superblock, None, inode.text, inode)
        # It never had a name that it could lose: not "(deleted)".
        dentry.hashed = True
        self._dentries[namespace] = dentry
        return VirtualDentry(mount.get(), dentry)

    def _make_mount(self) -> Mount:
        """Linux: ``kern_mount``."""
        fstype = NamespaceFilesystemType()
        with (
            FilesystemContext(self._vfs, fstype, Credentials.root()) as context,
            fstype.get_tree(context) as superblock,
        ):
            return Mount(superblock, b"nsfs")

    def forget(self, namespace: Namespace) -> None:
        """The file of ``namespace`` has no users left: give back its reference."""
        del self._dentries[namespace]
        if not isinstance(namespace, UserNamespace):
            namespace.put()
        mount = self._mount
        if mount is not None and not self._dentries:
            self._mount = None
            mount.put()


def nsfs_path(vfs: VirtualFilesystem, namespace: Namespace) -> VirtualDentry:
    """Where the file of ``namespace`` is; the caller receives the references. Linux:
    ``path_from_stashed``.
    """
    return vfs.nsfs.path(namespace)


def open_namespace(
    vfs: VirtualFilesystem, namespace: Namespace, cred: Credentials
) -> FileDescription:
    """A description of the file of ``namespace``, open for reading, which the caller receives.
    Linux: ``open_namespace``.
    """
    with vfs.nsfs.path(namespace) as path:
        return NamespaceFile(path.mount, path.dentry, abi.O_RDONLY, cred)


def namespace_of(file: FileDescription) -> Namespace | None:
    """What ``file`` stands for, borrowed; None if for none, or opened with O_PATH. Linux:
    ``get_proc_ns``.
    """
    return file.namespace if isinstance(file, NamespaceFile) else None
