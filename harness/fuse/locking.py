"""Lock operations, for clients that leave locks to us (FUSE_POSIX_LOCKS, FUSE_FLOCK_LOCKS)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from harness.fuse import abi
from vfs.errors import WouldBlock
from vfs.locks import F_UNLCK, OFFSET_MAX

if TYPE_CHECKING:
    from harness.fuse.buffers import Segments
    from harness.fuse.request import Header
    from harness.fuse.server import FuseServer
    from vfs.file import FileDescription


def _file(server: FuseServer, fh: int) -> FileDescription | None:
    file = server.handles.files.get(fh)
    if file is None:
        # flock(2) takes directories too.
        handle = server.handles.directories.get(fh)
        file = None if handle is None else handle.file
    return file


def getlk(
    server: FuseServer, header: Header, body: bytes, segments: Segments, out: memoryview, at: int
) -> int:
    locks = server.locks
    if locks is None:
        return -errno.ENOSYS
    fh, owner, start, end, kind, _, _, _ = abi.LK_IN.unpack_from(body)
    file = _file(server, fh)
    if file is None:
        return -errno.EBADF
    if kind >= F_UNLCK or not start <= end <= OFFSET_MAX:
        return -errno.EINVAL
    found = locks.test(file.inode, (server, owner), kind, start, end)
    if found is None:
        abi.FILE_LOCK.pack_into(out, at, start, end, F_UNLCK, 0)
    else:
        abi.FILE_LOCK.pack_into(out, at, found.start, found.end, found.kind, found.pid)
    return abi.FILE_LOCK.size


def setlk(
    server: FuseServer, header: Header, body: bytes, segments: Segments, out: memoryview, at: int
) -> int:
    """FUSE_SETLK: now or EAGAIN."""
    try:
        return setlkw(server, header, body, segments, out, at)
    except WouldBlock:
        return -errno.EAGAIN


def setlkw(
    server: FuseServer, header: Header, body: bytes, segments: Segments, out: memoryview, at: int
) -> int:
    """FUSE_SETLKW: waits, parked, until the lock is free or the client interrupts."""
    locks = server.locks
    if locks is None:
        return -errno.ENOSYS
    fh, owner, start, end, kind, pid, lk_flags, _ = abi.LK_IN.unpack_from(body)
    file = _file(server, fh)
    if file is None:
        return -errno.EBADF
    if lk_flags & abi.LK_FLOCK:
        locks.set_flock(file.inode, (server, owner), file, kind)
    else:
        locks.set_record(file.inode, (server, owner), file, kind, start, end, pid)
    return 0
