"""A directory of the host as a source."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from fsimpl.ext2.builder.files import HostFile, HostRoot, open_quietly
from fsimpl.ext2.builder.tree import Extent, Node, Progress, data_extents
from fsimpl.passthrough import oslib
from vfs import abi
from vfs.errors import oserror

_GONE: Final = (errno.ENOENT, errno.ESTALE)
_NO_XATTRS: Final = (errno.EOPNOTSUPP, errno.ENODATA, *_GONE)
_SEEK_FROM: Final = 1 << 20
"""A file of this size may have holes although it has blocks for all its bytes (preallocated)."""
_REPORT: Final = 500
_NS: Final = 10**9
_LINKS: Final = b"/proc/self/fd/"


class HostSource:
    """A host directory, with what is mounted in it unless ``one_file_system``.

    Files may come, go and change meanwhile: one that goes is left out. ``appended`` is as in
    ``HostFile``. Without root, files that can't be read are errors, told before the image is begun.
    """

    __slots__ = ("_appended", "_base", "_files", "_one", "_stat", "_super", "path", "root")

    def __init__(
        self, path: str | bytes, *, one_file_system: bool = False, appended: bool = False
    ) -> None:
        """Raises: as open(2), for ``path``, which is followed."""
        self.path = os.fsencode(path)
        self.root = HostRoot(self.path)
        self._one = one_file_system
        self._appended = appended
        self._stat = oslib.StatBuffer()
        self._files = 0
        self._super = os.geteuid() == 0
        # A process in a jail may have no /proc; its paths begin where it was put.
        self._base = b"" if os.path.isdir(_LINKS) else os.path.abspath(self.path)

    def close(self) -> None:
        self.root.close()

    def scan(self, progress: Progress) -> Node:
        """Raises: EACCES and others of open(2) and statx(2), with the name."""
        fd = self.root.open(b"", os.O_RDONLY | os.O_DIRECTORY)
        try:
            top, _, mount, _ = self._attributes(fd, b"", b"")
        finally:
            os.close(fd)
        seen: dict[tuple[int, int], Node] = {}
        waiting = [(b"", top)]
        while waiting:
            path, node = waiting.pop()
            try:
                fd = self.root.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno in (*_GONE, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise _named(error, path) from None
            try:
                prefix = path + b"/" if path else b""
                for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
                    try:
                        self._add(fd, prefix, name, node, seen, waiting, mount)
                    except OSError as error:
                        if error.errno not in _GONE:
                            raise _named(error, prefix + name) from None
                    self._files += 1
                    if not self._files % _REPORT:
                        progress("scan", self._files, 0)
            finally:
                os.close(fd)
        progress("scan", self._files, self._files)
        return top

    def _add(
        self,
        directory: int,
        prefix: bytes,
        name: bytes,
        parent: Node,
        seen: dict[tuple[int, int], Node],
        waiting: list[tuple[bytes, Node]],
        mount: int,
    ) -> None:
        node, identity, its_mount, blocks = self._attributes(directory, name, prefix)
        if node.is_dir:
            if its_mount == mount or not self._one:
                waiting.append((prefix + name, node))
        elif node.nlink > 1:
            node = seen.setdefault(identity, node)
        known = node.file is not None
        parent.children[name] = node
        if node.is_regular and node.size and not known:
            path = prefix + name
            node.file = HostFile(
                self.root, path, identity, node.size, node.mtime_ns, self._appended
            )
            if not self._super and not os.access(
                name, os.R_OK, dir_fd=directory, effective_ids=True
            ):
                raise oserror(errno.EACCES)
            if blocks * 512 < node.size or node.size >= _SEEK_FROM:
                node.extents = _data(directory, name, node.size)
        elif stat.S_ISLNK(node.mode):
            node.target = os.readlink(name, dir_fd=directory)

    def _attributes(
        self, directory: int, name: bytes, prefix: bytes
    ) -> tuple[Node, tuple[int, int], int, int]:
        """A node, the file's identity, the mount it is on, its 512-byte blocks."""
        flags = abi.AT_SYMLINK_NOFOLLOW | abi.AT_NO_AUTOMOUNT | (0 if name else abi.AT_EMPTY_PATH)
        pointer = self._stat.pointer
        if oslib.statx(directory, name, flags, oslib.STATX_WANTED, pointer):
            raise oserror(ctypes.get_errno(), name)
        (
            _mask, _blksize, _attributes, nlink, uid, gid, mode, ino, size, blocks, _known,
            atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
            rdev_major, rdev_minor, dev_major, dev_minor, mount,
        ) = oslib.STATX.unpack(self._stat.view.raw)  # fmt: skip
        node = Node(mode, uid, gid)
        node.nlink = nlink
        node.size = size
        node.atime_ns = atime * _NS + atime_ns
        node.mtime_ns = mtime * _NS + mtime_ns
        node.ctime_ns = ctime * _NS + ctime_ns
        node.btime_ns = btime * _NS + btime_ns
        node.rdev = abi.makedev(rdev_major, rdev_minor)
        node.xattrs = self._xattrs(directory, name, prefix)
        return node, (abi.makedev(dev_major, dev_minor), ino), mount, blocks

    def _xattrs(self, directory: int, name: bytes, prefix: bytes) -> Sequence[tuple[bytes, bytes]]:
        if self._base:
            path = self._base + b"/" + prefix + name
        else:
            # Without a name the slash at the end has the link to the directory followed.
            path = b"%s%d/%s" % (_LINKS, directory, name)
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_XATTRS:
                return ()
            raise
        if not names:
            return ()
        found = []
        for attribute in names:
            try:
                value = os.getxattr(path, attribute, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_XATTRS:
                    raise
            else:
                found.append((os.fsencode(attribute), value))
        return found


def _data(directory: int, name: bytes, size: int) -> list[Extent] | None:
    fd = open_quietly(directory, name, os.O_RDONLY)
    try:
        return data_extents(lambda offset, whence: os.lseek(fd, offset, whence), size)
    finally:
        os.close(fd)


def _named(error: OSError, path: bytes) -> OSError:
    return oserror(error.errno or errno.EIO, path or b".")
