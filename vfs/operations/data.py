"""Reading, writing, seeking, allocating, copying. Linux: fs/read_write.c, fs/open.c."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vfs import abi
from vfs.errors import oserror
from vfs.file import DirectoryEntry, FileDescription
from vfs.inode import Inode
from vfs.permission import (
    is_dead_directory,
    mode_after_write,
)
from vfs.times import modified, touch_atime

if TYPE_CHECKING:
    from vfs.credentials import Credentials


def verify_area(buffers: Sequence[memoryview], offset: int) -> None:
    """Linux: ``rw_verify_area``. Raises: EINVAL for an end beyond what an offset can say."""
    length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
    if offset < 0 or offset + length > abi.MAX_LFS_FILESIZE:
        raise oserror(errno.EINVAL)


def _content_changed(file: FileDescription, cred: Credentials | None) -> None:
    """Linux: ``file_modified``: set-id bits, security.capability and times after a change that
    ``cred`` made (None: the opener).
    """
    inode = file.inode
    if inode.host_managed:
        return
    if inode.mode & (abi.S_ISUID | abi.S_ISGID):
        kept = mode_after_write(inode, cred or file.cred)
        if kept is not None:
            inode.mode = inode.mode & abi.S_IFMT | kept
    inode.killpriv()
    modified(inode)


def vfs_read(
    file: FileDescription, buffers: Sequence[memoryview], offset: int, flags: int = 0
) -> int:
    """Read at ``offset`` (bytes) into ``buffers``; returns the bytes read. Not under the VFS lock.

    Raises: EBADF (not open for reading), EISDIR, EINVAL, WouldBlock; the filesystem's.
    """
    if file.unlocked_io:
        if not file.readable:
            raise oserror(errno.EBADF)
        verify_area(buffers, offset)
        return file.read(buffers, offset, flags)
    with file.inode.superblock.vfs.lock:
        return read_locked(file, buffers, offset, flags)


def read_locked(
    file: FileDescription, buffers: Sequence[memoryview], offset: int, flags: int = 0
) -> int:
    """``vfs_read`` of a file that is read under the VFS lock, by one who has it."""
    if not file.readable:
        raise oserror(errno.EBADF)
    verify_area(buffers, offset)
    count = file.read(buffers, offset, flags)
    if not file.flags & abi.O_NOATIME:
        touch_atime(file.mount, file.inode)
    return count


def vfs_write(
    file: FileDescription,
    buffers: Sequence[memoryview],
    offset: int,
    flags: int = 0,
    cred: Credentials | None = None,
) -> int:
    """Write ``buffers`` at ``offset``, or at the end for O_APPEND; returns the bytes written.

    Drops set-id bits as ``cred`` says (the writer; None: the opener), moves times, syncs for O_SYNC
    and O_DSYNC. Not under the VFS lock.

    Raises: EBADF, EFBIG, ENOSPC, WouldBlock; the filesystem's.
    """
    if not file.unlocked_io:
        with file.inode.superblock.vfs.lock:
            return write_locked(file, buffers, offset, flags, cred)
    if not file.writable:
        raise oserror(errno.EBADF)
    verify_area(buffers, offset)
    if file.flags & abi.O_APPEND and not flags & abi.RWF_NOAPPEND:
        flags |= abi.RWF_APPEND
    count = file.write(buffers, offset, flags)
    if file.inode.is_regular and (
        file.flags & abi.O_DSYNC or flags & (abi.RWF_DSYNC | abi.RWF_SYNC)
    ):
        _sync_written(file, flags)
    return count


def write_locked(
    file: FileDescription,
    buffers: Sequence[memoryview],
    offset: int,
    flags: int = 0,
    cred: Credentials | None = None,
) -> int:
    """``vfs_write`` to a file that is written under the VFS lock, by one who has it."""
    if not file.writable:
        raise oserror(errno.EBADF)
    verify_area(buffers, offset)
    file_flags = file.flags
    if file_flags & abi.O_APPEND and not flags & abi.RWF_NOAPPEND:
        flags |= abi.RWF_APPEND
    inode = file.inode
    is_regular = inode.mode & abi.S_IFMT == abi.S_IFREG
    start = inode.size if flags & abi.RWF_APPEND else offset
    if is_regular and start >= inode.superblock.max_bytes:
        raise oserror(errno.EFBIG)
    count = file.write(buffers, offset, flags)
    if is_regular:
        if count:
            _content_changed(file, cred)
        if file_flags & abi.O_DSYNC or flags & (abi.RWF_DSYNC | abi.RWF_SYNC):
            _sync_written(file, flags)
    return count


def _sync_written(file: FileDescription, flags: int) -> None:
    """Linux: ``generic_write_sync``."""
    vfs_fsync(file, not (file.flags & abi.O_SYNC == abi.O_SYNC or flags & abi.RWF_SYNC))


def vfs_fsync(file: FileDescription, datasync: bool) -> None:
    """Not under the VFS lock. Raises: EINVAL for what cannot be synced; EIO."""
    if file.unlocked_io:
        file.fsync(datasync)
        return
    with file.inode.superblock.vfs.lock:
        file.fsync(datasync)


def vfs_iterate(file: FileDescription, cookie: int) -> Iterator[DirectoryEntry]:
    """Linux: ``iterate_dir``. Raises: ENOTDIR, ENOENT (the directory is deleted)."""
    if not file.inode.is_dir:
        raise oserror(errno.ENOTDIR)
    if is_dead_directory(file.dentry):
        raise oserror(errno.ENOENT)
    if not file.flags & abi.O_NOATIME:
        touch_atime(file.mount, file.inode)
    return file.iterate(cookie)


def vfs_llseek(file: FileDescription, offset: int, whence: int) -> int:
    """Where a seek from ``file.position`` leads; the caller stores it.

    Raises: EINVAL, ESPIPE, ENXIO (SEEK_DATA and SEEK_HOLE outside of the file).
    """
    if not abi.SEEK_SET <= whence <= abi.SEEK_HOLE:
        raise oserror(errno.EINVAL)
    if not file.seekable:
        raise oserror(errno.ESPIPE)
    return file.llseek(offset, whence)


_FALLOCATE_MODES = (
    abi.FALLOC_FL_KEEP_SIZE | abi.FALLOC_FL_PUNCH_HOLE | abi.FALLOC_FL_COLLAPSE_RANGE
    | abi.FALLOC_FL_ZERO_RANGE | abi.FALLOC_FL_INSERT_RANGE | abi.FALLOC_FL_UNSHARE_RANGE
    | abi.FALLOC_FL_WRITE_ZEROES
)  # fmt: skip


def vfs_fallocate(
    file: FileDescription, mode: int, offset: int, length: int, cred: Credentials | None = None
) -> None:
    """Linux: ``vfs_fallocate``, by ``cred`` (None: the opener).

    Raises: EINVAL, EOPNOTSUPP, EBADF, EPERM, ESPIPE, EISDIR, ENODEV, EFBIG; the filesystem's.
    """
    inode = file.inode
    if offset < 0 or length <= 0:
        raise oserror(errno.EINVAL)
    punch = mode & abi.FALLOC_FL_PUNCH_HOLE
    if mode & ~_FALLOCATE_MODES or (punch and not mode & abi.FALLOC_FL_KEEP_SIZE):
        raise oserror(errno.EOPNOTSUPP)
    if not file.writable:
        raise oserror(errno.EBADF)
    if mode & ~abi.FALLOC_FL_KEEP_SIZE and inode.flags & abi.FS_APPEND_FL:
        raise oserror(errno.EPERM)
    if inode.flags & abi.FS_IMMUTABLE_FL:
        raise oserror(errno.EPERM)
    kind = inode.mode & abi.S_IFMT
    if kind == abi.S_IFIFO:
        raise oserror(errno.ESPIPE)
    if kind == abi.S_IFDIR:
        raise oserror(errno.EISDIR)
    if kind not in (abi.S_IFREG, abi.S_IFBLK):
        raise oserror(errno.ENODEV)
    if offset + length > inode.superblock.max_bytes:
        raise oserror(errno.EFBIG)
    file.fallocate(mode, offset, length)
    _content_changed(file, cred)


_COPY_CHUNK = 1 << 20


def _copyable(a: Inode, offset: int, b: Inode, target_offset: int, length: int) -> int:
    """Linux: ``generic_copy_file_checks``: how much of ``length`` there is to copy.

    Raises: EOVERFLOW (an end beyond 64 bits), EFBIG, EINVAL (overlap; a negative offset).
    """
    wrap = 1 << 64
    if offset % wrap + length >= wrap or target_offset % wrap + length >= wrap:
        raise oserror(errno.EOVERFLOW)
    a.refresh()
    length = max(0, min(length, a.size - offset))
    limit = b.superblock.max_bytes
    if target_offset >= limit:
        raise oserror(errno.EFBIG)
    length = min(length, limit - target_offset, abi.MAX_RW_COUNT)
    if a is b and offset < target_offset + length and target_offset < offset + length:
        raise oserror(errno.EINVAL)
    if offset < 0 or target_offset < 0:
        raise oserror(errno.EINVAL)
    return length


def vfs_copy_file_range(
    source: FileDescription,
    offset: int,
    target: FileDescription,
    target_offset: int,
    length: int,
    cred: Credentials | None = None,
) -> int:
    """Linux: ``vfs_copy_file_range``, by ``cred`` (None: the opener of ``target``).

    Returns the bytes copied. Not under the VFS lock.

    Raises: EISDIR, EINVAL (not regular files), EBADF, EOVERFLOW, EFBIG, EINVAL (overlapping ranges
    of one file; a negative offset); what reading and writing raise, if nothing was copied.
    """
    a, b = source.inode, target.inode
    if a.is_dir or b.is_dir:
        raise oserror(errno.EISDIR)
    if not a.is_regular or not b.is_regular:
        raise oserror(errno.EINVAL)
    if not source.readable or not target.writable or target.flags & abi.O_APPEND:
        raise oserror(errno.EBADF)
    with a.superblock.vfs.lock:
        length = _copyable(a, offset, b, target_offset, length)
    if not length:
        return 0
    if a.superblock is b.superblock:
        with a.superblock.vfs.lock:
            copied = source.copy_range(offset, target, target_offset, length)
            if copied is not None:
                if copied:
                    _content_changed(target, cred)
                return copied
    done = 0
    buffer = memoryview(bytearray(min(length, _COPY_CHUNK)))
    while done < length:
        try:
            count = vfs_read(source, [buffer[: length - done]], offset + done)
            if not count:
                break
            written = vfs_write(target, [buffer[:count]], target_offset + done, 0, cred)
        except OSError:
            if done:
                break
            raise
        done += written
        if written < count:
            break
    return done
