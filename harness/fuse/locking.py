"""Lock operations, for clients that leave locks to us (FUSE_POSIX_LOCKS, FUSE_FLOCK_LOCKS)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from harness.fuse import abi
from harness.fuse.request import answer
from vfs.errors import WouldBlock, oserror
from vfs.locks import F_UNLCK, OFFSET_MAX

if TYPE_CHECKING:
    from harness.fuse.request import Header, Reply
    from harness.fuse.server import FuseServer
    from vfs.file import FileDescription
    from vfs.locks import LockManager


def _parse(
    server: FuseServer, body: bytes
) -> tuple[LockManager, FileDescription, tuple[int, ...], tuple[FuseServer, int]]:
    """The locks, the file, the fields of fuse_lk_in, and the owner. Raises: ENOSYS, EBADF."""
    if server.locks is None:
        raise oserror(errno.ENOSYS)
    fields = abi.LK_IN.unpack_from(body)
    handles, fh = server.handles, fields[0]
    # flock(2) takes directories too.
    file = handles.files.get(fh) or handles.directories[fh].file
    return server.locks, file, fields, (server, fields[1])


def getlk(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    locks, file, (_, _, start, end, kind, *_), owner = _parse(server, body)
    if kind >= F_UNLCK or not start <= end <= OFFSET_MAX:
        return -errno.EINVAL
    found = locks.test(file.inode, owner, kind, start, end)
    if found is None:
        return answer(reply, abi.FILE_LOCK, start, end, F_UNLCK, 0)
    return answer(reply, abi.FILE_LOCK, found.start, found.end, found.kind, found.pid)


def setlk(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_SETLK: now or EAGAIN."""
    try:
        return setlkw(server, header, body, reply)
    except WouldBlock:
        return -errno.EAGAIN


def setlkw(server: FuseServer, header: Header, body: bytes, reply: Reply) -> int:
    """FUSE_SETLKW: waits, parked, until the lock is free or the client interrupts."""
    locks, file, (_, _, start, end, kind, pid, lk_flags, _), owner = _parse(server, body)
    if lk_flags & abi.LK_FLOCK:
        locks.set_flock(file.inode, owner, file, kind)
    else:
        locks.set_record(file.inode, owner, file, kind, start, end, pid)
    return 0
