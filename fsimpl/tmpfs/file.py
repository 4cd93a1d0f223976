"""An open regular file. Linux: ``shmem_file_operations``."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfs import abi
from vfs.errors import oserror
from vfs.file import Buffers, FileDescription

if TYPE_CHECKING:
    from fsimpl.tmpfs.inode import TmpfsRegular

_FALLOCATE_MODES = abi.FALLOC_FL_KEEP_SIZE | abi.FALLOC_FL_PUNCH_HOLE
_COPY_SIZE = 1 << 18


class TmpfsFile(FileDescription):
    """Linux: ``struct file`` of a shmem inode. fsync is a no-op: memory is the store."""

    __slots__ = ()
    inode: TmpfsRegular

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Linux: ``shmem_file_read_iter``. One copy, from the store to ``buffers``."""
        inode = self.inode
        store = inode.store
        left = inode.size - offset
        if len(buffers) == 1:
            buffer = buffers[0]
            done = len(buffer)
            if done <= left:
                store.read(buffer, offset)
                return done
        done = 0
        for buffer in buffers:
            if left <= 0:
                break
            length = len(buffer)
            if length > left:
                length = left
                buffer = buffer[:length]
            store.read(buffer, offset + done)
            done += length
            left -= length
        return done

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Linux: ``shmem_file_write_iter``. Raises: ENOSPC when not one byte fits."""
        inode = self.inode
        store = inode.store
        if flags & abi.RWF_APPEND:
            offset = inode.size
        done = 0
        for buffer in buffers:
            stored = store.write(buffer, offset + done)
            done += stored
            if stored < len(buffer):
                if not done:
                    raise oserror(errno.ENOSPC)
                break
        if not done:
            return 0
        if offset + done > inode.size:
            inode.size = offset + done
        inode.blocks = store.pages << 3
        inode.wire = None
        return done

    def seek_data(self, offset: int) -> int:
        """Raises: ENXIO."""
        found = self.inode.store.seek_data(offset)
        if found is None or found >= self.inode.size:
            raise oserror(errno.ENXIO)
        return found

    def seek_hole(self, offset: int) -> int:
        return min(self.inode.store.seek_hole(offset), self.inode.size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Linux: ``shmem_fallocate``. Raises: EOPNOTSUPP, ENOSPC."""
        if mode & ~_FALLOCATE_MODES:
            raise oserror(errno.EOPNOTSUPP)
        inode = self.inode
        if mode & abi.FALLOC_FL_PUNCH_HOLE:
            self.inode.store.punch(offset, length)
        else:
            self.inode.store.allocate(offset, length)
            if not mode & abi.FALLOC_FL_KEEP_SIZE and offset + length > inode.size:
                inode.size = offset + length
        inode.blocks = self.inode.store.pages << 3
        inode.wire = None

    def copy_range(
        self, offset: int, target: FileDescription, target_offset: int, length: int
    ) -> int | None:
        """Between two tmpfs files. As on Linux, the holes of the source become pages of zeros."""
        if not isinstance(target, TmpfsFile):
            return None
        length = min(length, self.inode.size - offset)
        buffer = memoryview(bytearray(min(length, _COPY_SIZE)))
        done = 0
        while done < length:
            piece = buffer[: length - done]
            self.inode.store.read(piece, offset + done)
            try:
                stored = target.write((piece,), target_offset + done, 0)
            except OSError:
                if done:
                    break
                raise
            done += stored
            if stored < len(piece):
                break
        return done
