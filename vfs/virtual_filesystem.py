"""The root object: everything that is global in a kernel belongs to one of these.

Two ``VirtualFilesystem`` objects in one process share nothing and never meet.
"""

from __future__ import annotations

import errno
import threading

from vfs import abi
from vfs.clock import Clock, SystemClock
from vfs.credentials import Credentials
from vfs.dentry import Dentry, DentryCache
from vfs.device import DeviceRegistry
from vfs.errors import InvariantViolation, oserror
from vfs.locks import LockManager
from vfs.mount import Mount
from vfs.namespace import MountNamespace
from vfs.pipe import FifoTable
from vfs.refs import Ledger
from vfs.rootfs import RootfsType
from vfs.superblock import FilesystemContext, FilesystemType, Superblock
from vfs.syscalls.mounts import mount_flags_of
from vfs.task import Task


class VirtualFilesystem:
    """Linux: the kernel's global VFS state.

    ``lock`` is the one lock (its rule stands in ``vfs/__init__.py``). ``protected_*`` are the
    sysctls fs.protected_*, with the values systemd sets. ``mount_max`` is fs.mount-max.
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
        self.protected_symlinks = 1
        self.protected_hardlinks = 1
        self.protected_regular = 1
        self.protected_fifos = 1
        self.mount_max = 100_000
        self._tasks: list[Task] = []
        self._next_mount_id = 1
        self._next_namespace_id = 1
        self._next_pid = 1
        self._anonymous_minors: set[int] = set()

    def register(self, fstype: FilesystemType) -> None:
        """Linux: ``register_filesystem``. Raises: EBUSY if the name is taken."""
        if fstype.name in self.filesystem_types:
            raise oserror(errno.EBUSY, fstype.name.encode())
        self.filesystem_types[fstype.name] = fstype

    def filesystem_type(self, name: str) -> FilesystemType:
        """Linux: ``get_fs_type``. Raises: ENODEV."""
        fstype = self.filesystem_types.get(name)
        if fstype is None:
            raise oserror(errno.ENODEV, name.encode())
        return fstype

    def allocate_anonymous_dev(self) -> int:
        """Linux: ``get_anon_bdev``: the lowest free minor of major 0, as a device number."""
        minor = 1
        while minor in self._anonymous_minors:
            minor += 1
        self._anonymous_minors.add(minor)
        return abi.makedev(0, minor)

    def free_anonymous_dev(self, dev: int) -> None:
        self._anonymous_minors.discard(abi.minor(dev))

    def allocate_mount_id(self) -> int:
        """Never given twice, so that runs repeat and an id in a log names one mount."""
        mount_id = self._next_mount_id
        self._next_mount_id = mount_id + 1
        return mount_id

    def allocate_namespace_id(self) -> int:
        namespace_id = self._next_namespace_id
        self._next_namespace_id = namespace_id + 1
        return namespace_id

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
            with below.mount(FilesystemContext(self, below, cred, b"rootfs")) as superblock:
                base = Mount(superblock, b"rootfs")
            parsed = FilesystemContext.parse_options(options)
            context = FilesystemContext(self, kind, cred, source, flags, parsed)
            try:
                superblock = kind.mount(context)
            except BaseException:
                base.put()
                raise
            with superblock:
                root = Mount(superblock, source, mount_flags_of(flags))
            root.attach(base, base.root, None)
            return MountNamespace(self, base)

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

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(self._tasks)

    def detach_mounts(self, dentry: Dentry) -> None:
        """Linux: ``detach_mounts``: what is mounted on ``dentry``, in any namespace, leaves."""
        for namespace in list(self.namespaces):
            for mount in list(namespace.mounts.values()):
                child = mount.children.get(dentry)
                if child is not None:
                    child.dissolve()

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
