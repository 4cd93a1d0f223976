"""The root object: everything that is global in a kernel belongs to one of these.

Two ``VirtualFilesystem`` objects in one process share nothing and never meet.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable

from vfs import abi
from vfs.anon_inode import AnonInodes
from vfs.clock import Clock, SystemClock
from vfs.credentials import Credentials
from vfs.dentry import Dentry, DentryCache
from vfs.device import DeviceRegistry
from vfs.errors import InvariantViolation, oserror
from vfs.fs_context import FilesystemContext
from vfs.ids import IdAllocator
from vfs.locks import LockManager
from vfs.mount import Mount
from vfs.namespace import MountNamespace
from vfs.nsfs import NamespaceFilesystem
from vfs.pipe import FifoTable
from vfs.refs import Ledger
from vfs.rootfs import RootfsType
from vfs.superblock import FilesystemType, Superblock
from vfs.syscalls.base import SyscallBase
from vfs.syscalls.mount_base import mount_flags_of
from vfs.task import Task

MountWatcher = Callable[[Mount, Dentry], None]

_FIRST_NAMESPACE_INUM = 0xF0000001  # above PROC_DYNAMIC_FIRST in fs/proc


class VirtualFilesystem:
    """Linux: the kernel's global VFS state.

    ``lock`` is the one lock (its rule stands in ``vfs/__init__.py``). ``protected_*`` are the
    sysctls fs.protected_*, with the values systemd sets. ``mount_max`` is fs.mount-max.
    ``mountpoints`` tells which mounts, of any namespace, are on a dentry (Linux: mountpoint_hash).
    ``current`` is the task whose call holds the lock; None where a transport holds it.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        tracing: bool = False,
        dcache_limit: int = 65536,
    ) -> None:
        self.lock = threading.RLock()
        self.clock: Clock = SystemClock() if clock is None else clock
        self.ledger = Ledger(tracing)
        self.dcache = DentryCache(self.ledger, dcache_limit)
        self.devices = DeviceRegistry(self.lock)
        self.fifos = FifoTable()
        self.locks = LockManager()
        self.filesystem_types: dict[str, FilesystemType] = {}
        self.superblocks: list[Superblock] = []
        self.namespaces: list[MountNamespace] = []
        self.mountpoints: dict[Dentry, dict[Mount, None]] = {}
        self.unstuck_mounts: deque[Mount] = deque()
        self.peer_group_ids = IdAllocator()
        self.anon_inodes = AnonInodes(self)
        self.nsfs = NamespaceFilesystem(self)
        self.protected_symlinks = 1
        self.protected_hardlinks = 1
        self.protected_regular = 1
        self.protected_fifos = 1
        self.mount_max = 100_000
        self.current: SyscallBase | None = None
        self._tasks: list[Task] = []
        self._exit_watchers: list[Callable[[Task], None]] = []
        self._next_mount_id = 1
        self._next_namespace_id = 1
        self._next_pid = 1
        self._next_inum = _FIRST_NAMESPACE_INUM
        self._anonymous_minors = IdAllocator()
        self._mount_watchers: list[MountWatcher] = []

    def register(self, fstype: FilesystemType) -> None:
        """Linux: ``register_filesystem``. Raises: EBUSY if the name is taken."""
        if fstype.name in self.filesystem_types:
            raise oserror(errno.EBUSY, fstype.name.encode())
        self.filesystem_types[fstype.name] = fstype

    def filesystem_type(self, name: str) -> FilesystemType:
        """Linux: ``get_fs_type``. Raises: ENODEV."""
        fstype = self.filesystem_types.get(name)
        if fstype is None:
            raise oserror(errno.ENODEV, os.fsencode(name))
        return fstype

    def allocate_anonymous_dev(self) -> int:
        """Linux: ``get_anon_bdev``: the lowest free minor of major 0, as a device number."""
        return abi.makedev(0, self._anonymous_minors.allocate())

    def free_anonymous_dev(self, dev: int) -> None:
        self._anonymous_minors.free(abi.minor(dev))

    def allocate_mount_id(self) -> int:
        """Never given twice, so that runs repeat and an id in a log names one mount."""
        mount_id = self._next_mount_id
        self._next_mount_id = mount_id + 1
        return mount_id

    def allocate_namespace_id(self) -> int:
        """The sequence number of a mount namespace: later ones have larger ones."""
        namespace_id = self._next_namespace_id
        self._next_namespace_id = namespace_id + 1
        return namespace_id

    def allocate_namespace_inum(self) -> int:
        """The inode number that /proc/PID/ns shows for a mount or user namespace."""
        inum = self._next_inum
        self._next_inum = inum + 1
        return inum

    def watch_mounts(self, watcher: MountWatcher) -> None:
        """Have ``watcher(parent, mountpoint)`` called whenever something was mounted on or taken
        off ``mountpoint`` (borrowed) of a mount in a namespace: under the lock, in the middle of
        the operation, so it may take notes but not call the VFS.
        """
        self._mount_watchers.append(watcher)

    def unwatch_mounts(self, watcher: MountWatcher) -> None:
        self._mount_watchers.remove(watcher)

    def notify_mount(self, parent: Mount, mountpoint: Dentry) -> None:
        for watcher in self._mount_watchers:
            watcher(parent, mountpoint)

    def create_namespace(
        self, fstype: str, source: bytes = b"none", flags: int = 0, options: str = ""
    ) -> MountNamespace:
        """A new mount namespace whose root mount is a fresh ``fstype``; the caller receives one
        reference. Linux: ``init_mount_tree``.

        Raises: ENODEV for an unknown type; what the type's mount() raises.
        """
        with self.lock:
            kind = self.filesystem_type(fstype)
            cred = Credentials.root()
            below = RootfsType()
            with (
                FilesystemContext(self, below, cred) as context,
                context.get_tree() as superblock,
            ):
                base = Mount(superblock, b"rootfs", abi.MS_RDONLY)
            try:
                with FilesystemContext(self, kind, cred, flags) as context:
                    context.old_api = True
                    context.parse_string("source", source)
                    context.parse_monolithic(options)
                    superblock = context.get_tree()
            except BaseException:
                base.put()
                raise
            with superblock:
                root = Mount(superblock, source, mount_flags_of(flags))
            root.attach(base, base.root)
            return MountNamespace(self, base, cred.user_ns)

    def create_task(self, namespace: MountNamespace, cred: Credentials | None = None) -> Task:
        """A task at the root of ``namespace``, with an empty fd table; ``exit()`` ends it."""
        with self.lock:
            pid = self._next_pid
            self._next_pid = pid + 1
            task = Task.create(self, pid, namespace, cred or Credentials.root())
            self._tasks.append(task)
            return task

    def adopt_task(self, task: Task) -> None:
        """A clone's child joins the tasks that ``shutdown`` ends; gives it the next pid."""
        task.pid = self._next_pid
        self._next_pid += 1
        self._tasks.append(task)

    def forget_task(self, task: Task) -> None:
        self._tasks.remove(task)
        for callback in tuple(self._exit_watchers):
            callback(task)

    def watch_exits(self, callback: Callable[[Task], None]) -> None:
        """Call ``callback``, under the VFS lock, with each task that has exited."""
        self._exit_watchers.append(callback)

    def unwatch_exits(self, callback: Callable[[Task], None]) -> None:
        self._exit_watchers.remove(callback)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(self._tasks)

    def check(self) -> None:
        """Every invariant of dentry and mount trees. Raises: InvariantViolation."""
        with self.lock:
            for superblock in self.superblocks:
                if superblock.root is not None:
                    self.dcache.check(superblock.root)
                    superblock.check()
            for namespace in self.namespaces:
                namespace.check()

    def shutdown(self) -> None:
        """End all tasks, then verify that every reference came back.

        References on namespaces, files and dentries that the caller took are the caller's to put
        first. Raises InvariantViolation naming what is still alive (and, under tracing, who holds
        it).
        """
        with self.lock:
            for task in self.tasks:
                task.exit()
            if self.ledger.live:
                raise InvariantViolation("still alive at shutdown:\n" + self.ledger.report())
