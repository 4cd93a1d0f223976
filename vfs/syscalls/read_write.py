"""read, write and their vector and positioned forms; seeking, space, syncing, copying."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

from vfs import abi
from vfs.errors import WouldBlock, oserror
from vfs.file import FileDescription
from vfs.inode import SetAttributes
from vfs.namei import FOLLOW
from vfs.operations import (
    verify_area,
    vfs_copy_file_range,
    vfs_fallocate,
    vfs_fsync,
    vfs_llseek,
    vfs_read,
    vfs_setattr,
    vfs_write,
)
from vfs.pipe import PipeFile
from vfs.syscalls.base import Path, SyscallBase

ReadableBuffer = bytes | bytearray | memoryview
WritableBuffer = bytearray | memoryview


class ReadWriteSyscalls(SyscallBase):
    """Linux: fs/read_write.c, fs/sync.c, and the data half of fs/open.c."""

    def read(self, fd: int, count: int) -> bytes:
        """read(2): at most ``count`` bytes at the file position."""
        return self._read_bytes(fd, count, None)

    def pread64(self, fd: int, count: int, offset: int) -> bytes:
        """pread(2). Raises: EINVAL (a negative offset), ESPIPE, and as ``vfs_read``."""
        if offset < 0:
            raise oserror(errno.EINVAL)
        return self._read_bytes(fd, count, offset)

    def _read_bytes(self, fd: int, count: int, offset: int | None) -> bytes:
        if count < 0:
            raise oserror(errno.EINVAL)
        buffer = bytearray(min(count, abi.MAX_RW_COUNT))
        view = memoryview(buffer)
        done = self._transfer(fd, [view], offset, 0, False)
        view.release()
        del buffer[done:]
        return bytes(buffer)

    def readv(self, fd: int, buffers: Sequence[WritableBuffer]) -> int:
        """readv(2) into the caller's buffers; returns the bytes read."""
        return self._transfer(fd, _views(buffers), None, 0, False)

    def preadv2(
        self, fd: int, buffers: Sequence[WritableBuffer], offset: int, flags: int = 0
    ) -> int:
        """preadv2(2); offset -1 means the file position. Raises: EOPNOTSUPP for other RWF flags."""
        return self._transfer(fd, _views(buffers), _offset_or_position(offset), flags, False)

    def write(self, fd: int, data: ReadableBuffer) -> int:
        """write(2) at the file position."""
        return self._transfer(fd, _views([data]), None, 0, True)

    def pwrite64(self, fd: int, data: ReadableBuffer, offset: int) -> int:
        """pwrite(2). As on Linux, a description with O_APPEND appends whatever ``offset`` says."""
        if offset < 0:
            raise oserror(errno.EINVAL)
        return self._transfer(fd, _views([data]), offset, 0, True)

    def writev(self, fd: int, buffers: Sequence[ReadableBuffer]) -> int:
        """writev(2)."""
        return self._transfer(fd, _views(buffers), None, 0, True)

    def pwritev2(
        self, fd: int, buffers: Sequence[ReadableBuffer], offset: int, flags: int = 0
    ) -> int:
        """pwritev2(2); offset -1 means the file position."""
        return self._transfer(fd, _views(buffers), _offset_or_position(offset), flags, True)

    def _transfer(
        self,
        fd: int,
        buffers: list[memoryview],
        offset: int | None,
        flags: int,
        writing: bool,
    ) -> int:
        """Read or write at ``offset``, or at the position (None), which then moves."""
        with self._held_file(fd) as file:
            if offset is not None and not file.seekable:
                raise oserror(errno.ESPIPE)
            position = file.position if file.seekable else 0
            start = position if offset is None else offset
            if flags:
                if not (file.writable if writing else file.readable):
                    raise oserror(errno.EBADF)
                if not any(map(len, buffers)):
                    return 0
                verify_area(buffers, start)
                _check_rw_flags(file, flags)
            nonblocking = bool(file.flags & abi.O_NONBLOCK or flags & abi.RWF_NOWAIT or self.nowait)
            cred = self.cred

            def transfer() -> int:
                if writing:
                    return vfs_write(file, buffers, start, flags, cred)
                return vfs_read(file, buffers, start, flags)

            def operation() -> int:
                if file.unlocked_io:
                    return transfer()
                with self.lock:
                    return transfer()

            count = self._wait(nonblocking, operation)
            if writing and isinstance(file, PipeFile) and not nonblocking:
                count = self._write_rest(file, b"".join(buffers), count)
            if offset is None and file.seekable:
                appends = writing and (
                    flags & abi.RWF_APPEND
                    or (file.flags & abi.O_APPEND and not flags & abi.RWF_NOAPPEND)
                )
                if appends and file.inode.is_regular:
                    with self.lock:
                        file.inode.refresh()
                        file.position = file.inode.size
                else:
                    file.position = start + count
            return count

    def _write_rest(self, file: PipeFile, data: bytes, done: int) -> int:
        """A blocking write to a pipe returns when all is in, or its readers are gone."""
        view = memoryview(data)
        while done < len(view):
            rest = [view[done:]]
            try:
                done += self._wait(False, lambda rest=rest: vfs_write(file, rest, 0))  # type: ignore[misc]
            except BrokenPipeError:
                break
        return done

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2), with SEEK_DATA and SEEK_HOLE. Raises: EBADF, and as ``vfs_llseek``."""
        with self.lock:
            file = self._file(fd)
            file.position = vfs_llseek(file, offset, whence)
            return file.position

    def truncate(self, path: Path, length: int) -> None:
        """truncate(2). Raises: EINVAL, and as ``Walk`` and ``vfs_setattr``."""
        if length < 0:
            raise oserror(errno.EINVAL)
        with self.lock, self._lookup(abi.AT_FDCWD, path, FOLLOW) as target:
            vfs_setattr(target.mount, target.dentry, SetAttributes(size=length), self.cred)

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2). Raises: EINVAL (negative; not open for writing; no regular file), EBADF."""
        if length < 0:
            raise oserror(errno.EINVAL)
        with self.lock:
            file = self._file(fd)
            if not file.writable or not file.inode.is_regular:
                raise oserror(errno.EINVAL)
            vfs_setattr(file.mount, file.dentry, SetAttributes(size=length, file=file), self.cred)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Raises: EBADF, and as ``vfs_fallocate``."""
        with self.lock:
            vfs_fallocate(self._file(fd), mode, offset, length, self.cred)

    def fsync(self, fd: int) -> None:
        """fsync(2)."""
        with self._held_file(fd) as file:
            vfs_fsync(file, False)

    def fdatasync(self, fd: int) -> None:
        """fdatasync(2)."""
        with self._held_file(fd) as file:
            vfs_fsync(file, True)

    def sync(self) -> None:
        """sync(2): every superblock; errors are not told, as on Linux."""
        with self.lock:
            for superblock in list(self.vfs.superblocks):
                try:
                    superblock.sync()
                except OSError:
                    continue

    def syncfs(self, fd: int) -> None:
        """syncfs(2). Raises: EBADF, EIO."""
        with self.lock:
            self._file(fd).dentry.superblock.sync()

    def copy_file_range(
        self,
        fd_in: int,
        offset_in: int | None,
        fd_out: int,
        offset_out: int | None,
        length: int,
        flags: int = 0,
    ) -> int:
        """copy_file_range(2); an offset of None uses and moves the file position.

        Raises: EBADF, EINVAL, and as ``vfs_copy_file_range``.
        """
        with self._held_file(fd_in) as source, self._held_file(fd_out) as target:
            if flags:
                raise oserror(errno.EINVAL)
            start_in = source.position if offset_in is None else offset_in
            start_out = target.position if offset_out is None else offset_out
            count = vfs_copy_file_range(source, start_in, target, start_out, length, self.cred)
            if offset_in is None:
                source.position += count
            if offset_out is None:
                target.position += count
            return count

    def ioctl(self, fd: int, command: int, argument: bytes | memoryview | int = 0) -> bytes:
        """ioctl(2); returns what the driver writes back. A new descriptor, which is closed on exec,
        comes back as an int. Raises: EBADF, ENOTTY, EMFILE; the driver's.
        """
        with self._held_file(fd) as file:
            with self.lock:
                opened = file.ioctl_open(command, argument, self.cred)
                if opened is not None:
                    try:
                        return struct.pack("=i", self.files.install(opened, True))
                    except OSError:
                        opened.put()
                        raise

            def operation() -> bytes:
                with self.lock:
                    return file.ioctl(command, argument)

            return self._wait(bool(file.flags & abi.O_NONBLOCK), operation)

    def poll_now(self, fd: int) -> int:
        """The POLL* bits that hold for ``fd`` now (poll(2) with a timeout of 0)."""
        with self.lock:
            return self._file(fd).poll()

    def poll(self, fd: int, events: int) -> int:
        """poll(2) on one descriptor, without a timeout: waits until one of ``events``, or POLLERR
        or POLLHUP, holds.
        """
        with self._held_file(fd) as file:

            def operation() -> int:
                with self.lock:
                    ready = file.poll() & (events | abi.POLLERR | abi.POLLHUP)
                    queue = file.poll_queue()
                    if not ready and queue is not None:
                        raise WouldBlock(queue)
                    return ready

            return self._wait(False, operation)


def _views(buffers: Sequence[bytes | bytearray | memoryview]) -> list[memoryview]:
    """Raises: EINVAL for more than IOV_MAX buffers."""
    if len(buffers) > abi.IOV_MAX:
        raise oserror(errno.EINVAL)
    return [memoryview(buffer).cast("B") for buffer in buffers]


def _offset_or_position(offset: int) -> int | None:
    if offset < -1:
        raise oserror(errno.EINVAL)
    return None if offset == -1 else offset


def _check_rw_flags(file: FileDescription, flags: int) -> None:
    """Linux: ``kiocb_set_rw_flags``. Raises: EOPNOTSUPP, EINVAL."""
    supported = abi.RWF_HIPRI if file.inode.is_dir else abi.RWF_SUPPORTED
    if not file.nowait:
        supported &= ~abi.RWF_NOWAIT
    if flags & ~supported:
        raise oserror(errno.EOPNOTSUPP)
    if flags & abi.RWF_APPEND and flags & abi.RWF_NOAPPEND:
        raise oserror(errno.EINVAL)
