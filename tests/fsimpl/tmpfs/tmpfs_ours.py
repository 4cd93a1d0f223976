"""Our tmpfs as the root of a task."""

from __future__ import annotations

import os

from fsimpl.tmpfs import TmpfsSuperblock, TmpfsType
from vfs.clock import VirtualClock
from vfs.virtual_filesystem import VirtualFilesystem

RAM_PAGES = 1 << 20


class Ours:
    """Our tmpfs at the root of a task, with the methods of ``KernelTmpfs``."""

    def __init__(self, options: str = "", ram_pages: int = RAM_PAGES) -> None:
        self.clock = VirtualClock(tick_ns=1)
        self.vfs = VirtualFilesystem(clock=self.clock, tracing=False)
        self.vfs.register(TmpfsType(ram_pages))
        self.namespace = self.vfs.create_namespace("tmpfs", options=options)
        self.task = self.vfs.create_task(self.namespace)
        self.mount = self.task.fs.root.mount
        superblock = self.mount.superblock
        assert isinstance(superblock, TmpfsSuperblock)
        self.superblock = superblock
        self.open, self.lstat, self.mkdir = self.task.open, self.task.lstat, self.task.mkdir
        self.mknod, self.symlink, self.link = self.task.mknod, self.task.symlink, self.task.link
        self.unlink, self.rmdir = self.task.unlink, self.task.rmdir
        self.listdir, self.truncate = self.task.listdir, self.task.truncate

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.task.renameat2(-100, old, -100, new, flags)

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        self.task.setxattr(path, name, value, flags, follow=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return self.task.getxattr(path, name, follow=False)

    def removexattr(self, path: str, name: str) -> None:
        self.task.removexattr(path, name, follow=False)

    def listxattr(self, path: str) -> list[str]:
        return [os.fsdecode(name) for name in self.task.listxattr(path, follow=False)]

    def usage(self) -> tuple[int, int, int, int]:
        figures = self.superblock.statfs()
        return figures.blocks, figures.bfree, figures.files, figures.ffree

    def check(self) -> None:
        with self.vfs.lock:
            self.superblock.check()
        self.vfs.check()

    def close(self) -> None:
        """Everything checks out, and every object goes away with the namespace."""
        self.check()
        superblock = self.superblock
        self.task.exit()
        self.namespace.put()
        self.vfs.shutdown()
        assert (superblock.blocks.used, superblock.ispace.used, superblock.inodes) == (0, 0, set())
