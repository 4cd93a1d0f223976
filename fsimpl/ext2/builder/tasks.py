"""A tree of a VirtualFilesystem as a source, as one of its tasks sees it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from fsimpl.ext2.builder.files import HostFile, HostRoot, SpoolFile
from fsimpl.ext2.builder.options import BLOCK_SIZE
from fsimpl.ext2.builder.tree import Extent, Node, Progress, data_extents
from fsimpl.passthrough.file import PassthroughFile
from vfs import abi
from vfs.errors import oserror
from vfs.task import Task

_CHUNK: Final = 1 << 20
_REPORT: Final = 500
_OPEN: Final = abi.O_RDONLY | abi.O_NOFOLLOW | abi.O_NONBLOCK | abi.O_CLOEXEC
_WANTED: Final = abi.STATX_BASIC_STATS | abi.STATX_BTIME
_NO_XATTRS: Final = (errno.EOPNOTSUPP, errno.ENODATA)


class TaskSource:
    """What ``task`` sees below ``path``, mounts included.

    A file of the host behind a passthrough is read and mapped where it is; everything else is
    copied into memory while the tree is scanned, so that the image has it as it was then. Files
    must be readable for the task.
    """

    __slots__ = ("_files", "_path", "_root", "_spool", "_task")

    def __init__(self, task: Task, path: bytes) -> None:
        """``task`` is borrowed until the scan is over."""
        self._task = task
        self._path = path
        self._spool = SpoolFile.in_memory()
        self._root = HostRoot(b"/")
        self._files = 0

    def close(self) -> None:
        self._spool.close()
        self._root.close()

    def scan(self, progress: Progress) -> Node:
        """Raises: as open(2), statx(2) and read(2), with the name."""
        with self._task.clone() as walker:
            walker.chdir(self._path)
            top, _ = self._node(walker, b".")
            if not top.is_dir:
                raise oserror(errno.ENOTDIR, self._path)
            seen: dict[tuple[int, int], Node] = {}
            here = walker.open(b".", abi.O_PATH | abi.O_DIRECTORY)
            # Without a node: a directory's descriptor that is done with.
            waiting: list[tuple[int, bytes, Node | None]] = [(here, b".", top)]
            while waiting:
                above, name, node = waiting.pop()
                if node is None:
                    walker.close(above)
                    continue
                walker.fchdir(above)
                fd = _open(walker, name, abi.O_DIRECTORY)
                waiting.append((fd, b"", None))
                walker.fchdir(fd)
                for child, below in self._children(walker, fd, node, seen, progress):
                    waiting.append((fd, child, below))
        progress("scan", self._files, self._files)
        return top

    def _children(
        self,
        walker: Task,
        fd: int,
        directory: Node,
        seen: dict[tuple[int, int], Node],
        progress: Progress,
    ) -> list[tuple[bytes, Node]]:
        """Add what is in ``directory``, which ``walker`` is in; return the directories of it."""
        below = []
        while records := walker.getdents64(fd):
            for record in records:
                name = record.d_name
                if name in (b".", b".."):
                    continue
                try:
                    node, identity = self._node(walker, name)
                    if node.is_dir:
                        below.append((name, node))
                    elif node.nlink > 1:
                        node = seen.setdefault(identity, node)
                    if node.is_regular and node.size and node.file is None:
                        self._content(walker, name, node)
                    elif stat.S_ISLNK(node.mode):
                        node.target = walker.readlink(name)
                except OSError as error:
                    if error.errno == errno.ENOENT:
                        continue
                    raise oserror(error.errno or errno.EIO, name) from None
                directory.children[name] = node
                self._files += 1
                if not self._files % _REPORT:
                    progress("scan", self._files, 0)
        return below

    def _node(self, walker: Task, name: bytes) -> tuple[Node, tuple[int, int]]:
        found = walker.statx(abi.AT_FDCWD, name, abi.AT_SYMLINK_NOFOLLOW, _WANTED)
        node = Node(found.stx_mode, found.stx_uid, found.stx_gid)
        node.nlink = found.stx_nlink
        node.size = found.stx_size
        node.rdev = found.stx_rdev
        node.atime_ns = found.stx_atime_ns
        node.mtime_ns = found.stx_mtime_ns
        node.ctime_ns = found.stx_ctime_ns
        node.btime_ns = found.stx_btime_ns
        try:
            names = walker.listxattr(name, follow=False)
            node.xattrs = [(key, walker.getxattr(name, key, follow=False)) for key in names]
        except OSError as error:
            if error.errno not in _NO_XATTRS:
                raise
        return node, (found.stx_dev, found.stx_ino)

    def _content(self, walker: Task, name: bytes, node: Node) -> None:
        fd = _open(walker, name, 0)
        try:
            # A host descriptor that stays open while it is looked at needs no lock.
            file = walker.files.get_file(fd)
            host = self._host_file(file.fd) if isinstance(file, PassthroughFile) else None
            extents = data_extents(
                lambda offset, whence: walker.lseek(fd, offset, whence), node.size
            )
            if host is not None:
                node.size, node.file, node.extents = host.size, host, extents
                return
            node.file = self._spool
            node.extents = [
                self._spooled(walker, fd, offset, length)
                for offset, length, _ in ([(0, node.size, 0)] if extents is None else extents)
            ]
        finally:
            walker.close(fd)

    def _host_file(self, fd: int) -> HostFile | None:
        """The file of ``fd`` by its name on the host; None if it has none there any more."""
        with suppress(OSError):
            path = os.readlink(b"/proc/self/fd/%d" % fd).lstrip(b"/")
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino)
            host = HostFile(self._root, path, identity, status.st_size, status.st_mtime_ns)
            os.close(host.open())
            return host
        return None

    def _spooled(self, walker: Task, fd: int, offset: int, length: int) -> Extent:
        # Where the image can map it.
        self._spool.align(BLOCK_SIZE)
        start = self._spool.append(bytes(offset % BLOCK_SIZE)) + offset % BLOCK_SIZE
        done = 0
        while done < length:
            data = walker.pread64(fd, min(length - done, _CHUNK), offset + done)
            if not data:
                break
            self._spool.append(data)
            done += len(data)
        return offset, done, start


def _open(walker: Task, name: bytes, flags: int) -> int:
    """A descriptor for reading, without leaving an access time where ``walker`` may leave none."""
    try:
        return walker.open(name, _OPEN | abi.O_NOATIME | flags)
    except PermissionError:
        return walker.open(name, _OPEN | flags)
