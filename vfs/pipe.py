"""FIFOs: pipes that have a name. Linux: fs/pipe.c, fifo(7), pipe(7).

A pipe is a ring of slots of one page each. Only the newest slot may grow, and only by a write that
fits into it whole; that alone makes writes of up to PIPE_BUF bytes atomic and decides when a pipe
is full, so it is kept as Linux has it.

How an open waits: ``open_fifo`` never does. It returns a file that is counted as a reader or writer
at once, which is what the other end waits for. ``PipeFile.wait_open`` then raises ``WouldBlock``
until the other end has come. A caller that may wait calls it again after each wake-up, and gives
the file a descriptor when it returns; one that gives up (a signal, an interrupted request) puts the
file, which counts it out again. With O_NONBLOCK ``wait_open`` never raises.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from vfs import abi
from vfs.errors import WouldBlock, oserror
from vfs.file import Buffers, FileDescription
from vfs.times import modified
from vfs.wait import WaitQueue

if TYPE_CHECKING:
    from vfs.credentials import Credentials
    from vfs.dentry import Dentry
    from vfs.inode import Inode
    from vfs.mount import Mount

PIPE_BUF: Final = 4096
PIPE_DEF_BUFFERS: Final = 16
PIPE_CAPACITY: Final = PIPE_DEF_BUFFERS * abi.PAGE_SIZE
FIONREAD: Final = 0x541B

_INT = struct.Struct("=i")


class PipeBuffer:
    """Linux: ``struct pipe_inode_info``. The bytes under way, and who is at which end.

    ``readers`` and ``writers`` count open files. ``reader_count`` and ``writer_count`` only grow:
    an open waits for the other one to move, so that a peer that came and went is not missed.
    ``wait`` wakes on every change that a read, write, open or poll may wait for.
    """

    __slots__ = (
        "_head", "_slots", "reader_count", "readers", "wait", "writer_count", "writers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._slots: deque[bytearray] = deque()
        self._head = 0  # bytes of the oldest slot that are read already
        self.readers = self.writers = 0
        self.reader_count = self.writer_count = 0
        self.wait = WaitQueue()

    def __len__(self) -> int:
        return sum(map(len, self._slots)) - self._head

    @property
    def is_full(self) -> bool:
        """Linux: ``pipe_full``: no free slot, though the newest may still have room."""
        return len(self._slots) >= PIPE_DEF_BUFFERS

    def read(self, buffers: Buffers) -> int:
        """Move what there is into ``buffers``; returns the bytes. Linux: ``pipe_read``.

        Raises: WouldBlock if there is nothing and somebody may still write.
        """
        slots = self._slots
        if not slots:
            if self.writers and any(map(len, buffers)):
                raise WouldBlock(self.wait)
            return 0
        was_full = self.is_full
        done = 0
        for buffer in buffers:
            filled = 0
            while slots and filled < len(buffer):
                slot, head = slots[0], self._head
                part = min(len(slot) - head, len(buffer) - filled)
                buffer[filled : filled + part] = memoryview(slot)[head : head + part]
                filled += part
                if head + part == len(slot):
                    slots.popleft()
                    self._head = 0
                else:
                    self._head = head + part
            done += filled
        if was_full and not self.is_full:
            self.wait.wake_all()
        return done

    def write(self, buffers: Buffers) -> int:
        """Take from ``buffers`` as far as there is room; returns the bytes. Linux: ``pipe_write``.

        Up to PIPE_BUF bytes go in whole or not at all. A short count means that the pipe is full:
        a caller that may block goes on with the rest, which will then raise WouldBlock.

        Raises: EPIPE without readers; WouldBlock if there is no room for a first byte.
        """
        if len(buffers) == 1:
            data = buffers[0]
        else:
            data = memoryview(b"".join(buffers))
        total = len(data)
        if not total:
            return 0
        if not self.readers:
            raise oserror(errno.EPIPE)
        slots = self._slots
        was_empty = not slots
        done = 0
        tail = total % abi.PAGE_SIZE
        if slots and tail and len(slots[-1]) + tail <= abi.PAGE_SIZE:
            slots[-1] += data[:tail]
            done = tail
        while done < total and len(slots) < PIPE_DEF_BUFFERS:
            part = data[done : done + abi.PAGE_SIZE]
            slots.append(bytearray(part))
            done += len(part)
        if not done:
            raise WouldBlock(self.wait)
        if was_empty:
            self.wait.wake_all()
        return done


class FifoTable:
    """Which FIFO inodes are open, and their pipes. Linux: ``inode->i_pipe``.

    One per VirtualFilesystem. A pipe lives from the first open to the last close of its inode; what
    was not read by then is lost.
    """

    __slots__ = ("_pipes",)

    def __init__(self) -> None:
        self._pipes: dict[Inode, PipeBuffer] = {}

    def __len__(self) -> int:
        return len(self._pipes)

    def find(self, inode: Inode) -> PipeBuffer | None:
        """The pipe of an open FIFO."""
        return self._pipes.get(inode)

    def open(self, mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> PipeFile:
        """See ``open_fifo``."""
        inode = dentry.inode
        assert inode is not None
        access = flags & abi.O_ACCMODE
        if access == abi.O_ACCMODE:
            raise oserror(errno.EINVAL)
        pipe = self._pipes.get(inode)
        if pipe is None:
            pipe = PipeBuffer()
        if access == abi.O_WRONLY and flags & abi.O_NONBLOCK and not pipe.readers:
            raise oserror(errno.ENXIO)
        self._pipes[inode] = pipe
        return PipeFile(self, pipe, mount, dentry, flags, cred)

    def forget(self, inode: Inode) -> None:
        """The last file of ``inode`` was closed."""
        del self._pipes[inode]


class PipeFile(FileDescription):
    """Linux: ``struct file`` with ``pipefifo_fops``. Counts as reader or writer while it lives."""

    __slots__ = ("_awaited", "_table", "_unseen", "pipe")
    seekable = False

    def __init__(
        self,
        table: FifoTable,
        pipe: PipeBuffer,
        mount: Mount,
        dentry: Dentry,
        flags: int,
        cred: Credentials,
    ) -> None:
        super().__init__(mount, dentry, flags, cred)
        self._table = table
        self.pipe = pipe
        # The count that must move before wait_open lets go; -1: nothing to wait for.
        self._awaited = -1
        # A reader that found no writer sees no hang-up until there has been one (f_pipe in Linux).
        self._unseen = -1
        if self.readable:
            pipe.readers += 1
            pipe.reader_count += 1
            if not self.writable and not pipe.writers:
                if flags & abi.O_NONBLOCK:
                    self._unseen = pipe.writer_count
                else:
                    self._awaited = pipe.writer_count
        if self.writable:
            pipe.writers += 1
            pipe.writer_count += 1
            if not self.readable and not pipe.readers:
                self._awaited = pipe.reader_count
        if pipe.readers == 1 or pipe.writers == 1:
            pipe.wait.wake_all()

    def wait_open(self) -> None:
        """Done when the other end has been opened since. Raises: WouldBlock until then."""
        if self._awaited < 0:
            return
        peers = self.pipe.reader_count if self.writable else self.pipe.writer_count
        if peers == self._awaited:
            raise WouldBlock(self.pipe.wait)
        self._awaited = -1

    def read(self, buffers: Buffers, offset: int, flags: int) -> int:
        """0 is the end: nothing left and no writer. Raises: WouldBlock."""
        return self.pipe.read(buffers)

    def write(self, buffers: Buffers, offset: int, flags: int) -> int:
        """Raises: EPIPE without a reader (no signal is sent); WouldBlock. See PipeBuffer.write."""
        count = self.pipe.write(buffers)
        if count:
            modified(self.inode)
        return count

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        """FIONREAD: the bytes to be read, as an int. Raises: ENOTTY."""
        if command != FIONREAD:
            raise oserror(errno.ENOTTY)
        return _INT.pack(len(self.pipe))

    def fsync(self, datasync: bool) -> None:
        """Raises: EINVAL."""
        raise oserror(errno.EINVAL)

    def poll(self) -> int:
        """Linux: ``pipe_poll``."""
        pipe = self.pipe
        mask = 0
        if self.readable:
            if len(pipe):
                mask |= abi.POLLIN | abi.POLLRDNORM
            if not pipe.writers and pipe.writer_count != self._unseen:
                mask |= abi.POLLHUP
        if self.writable:
            if not pipe.is_full:
                mask |= abi.POLLOUT | abi.POLLWRNORM
            if not pipe.readers:
                mask |= abi.POLLERR
        return mask

    def poll_queue(self) -> WaitQueue | None:
        return self.pipe.wait

    def release(self) -> None:
        pipe = self.pipe
        pipe.readers -= self.readable
        pipe.writers -= self.writable
        if not pipe.readers and not pipe.writers:
            self._table.forget(self.inode)
        elif not pipe.readers or not pipe.writers:
            pipe.wait.wake_all()
        super().release()


def open_fifo(mount: Mount, dentry: Dentry, flags: int, cred: Credentials) -> PipeFile:
    """A new description of the FIFO that ``dentry`` names; the caller receives it, counted already.

    Permissions are checked before. Needs the VFS lock. The caller goes on with
    ``PipeFile.wait_open`` (see above). Linux: ``fifo_open``.

    Raises: EINVAL for access mode 3; ENXIO for O_WRONLY|O_NONBLOCK without a reader.
    """
    return dentry.superblock.vfs.fifos.open(mount, dentry, flags, cred)
