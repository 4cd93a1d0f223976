"""A plan as a plain file: metadata, and content by reflink, in the kernel, or by hand."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from typing import Final

from fsimpl.ext2.builder.errors import ImageError
from fsimpl.ext2.builder.files import SourceFile
from fsimpl.ext2.builder.options import BLOCK_SIZE
from fsimpl.ext2.builder.plan import ImagePlan, Piece, put
from fsimpl.ext2.builder.tree import Progress, ignore
from vfs.errors import oserror

_FICLONERANGE: Final = 0x4020940D
_CLONE: Final = struct.Struct("=qQQQ")
_CANNOT: Final = (
    errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EPERM,
    errno.EIO, errno.ETXTBSY,
)  # fmt: skip
"""What reflinks and copy_file_range(2) say where they can't, so that copying by hand may."""
_SMALL: Final = 128 << 10
"""Below it several pieces are read into one buffer and written at once."""
_GATHER: Final = 1 << 20
_CHUNK: Final = 8 << 20
"""Between two reports of progress."""


def write_image(plan: ImagePlan, path: str | bytes, progress: Progress = ignore) -> None:
    """Write the image to ``path``, which appears, or is replaced, when it is complete.

    Reports bytes of content as "write". A source that changed is in ``plan.changed`` afterwards.

    Raises: ImageError: ``path`` is something else than a file; OSError: as open(2), write(2) and
    rename(2) on it (ENOSPC), nothing is left then; as reading a source does (EIO).
    """
    target = os.path.realpath(os.fsencode(path))
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise ImageError(f"{os.fsdecode(path)}: it is there and no regular file")
    directory, name = os.path.split(target)
    # The longest name that there may be has no room for more.
    temporary = os.path.join(directory, b".%s.%s" % (name[:200], os.urandom(6).hex().encode()))
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise oserror(error.errno or errno.EIO, target) from None
    try:
        try:
            os.ftruncate(fd, plan.size)
            plan.write_metadata(fd)
            _Writer(plan, fd, progress).run()
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


class _Writer:
    """Brings the content of ``plan`` into ``fd``."""

    def __init__(self, plan: ImagePlan, fd: int, progress: Progress) -> None:
        self._plan = plan
        self._fd = fd
        self._progress = progress
        self._total = plan.mapped_bytes + plan.copied_bytes
        self._done = self._told = 0
        self._buffer = memoryview(bytearray(_GATHER))
        self._start = self._end = 0
        # What the file system of the image refused once, it refuses for all files of a device.
        self._no_clone: set[int] = set()
        self._no_range: set[int] = set()

    def run(self) -> None:
        for piece in self._plan.pieces():
            if piece.length < _SMALL:
                self._gather(piece)
            else:
                self._flush()
                self._copy(piece)
            self._tell(piece.length)
        self._flush()
        self._progress("write", self._total, self._total)

    def _tell(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= _CHUNK:
            self._told = self._done
            self._progress("write", self._done, self._total)

    def _gather(self, piece: Piece) -> None:
        end = piece.offset + piece.length
        # Up to the end of a block a gap is to be zeros; beyond it, a hole.
        if piece.offset - self._end >= BLOCK_SIZE or end - self._start > _GATHER:
            self._flush()
            self._start = self._end = piece.offset
        gap = piece.offset - self._end
        at = self._end - self._start
        self._buffer[at : at + gap] = bytes(gap)
        self._plan.fill(piece.file, piece.file_offset, self._buffer[at + gap :][: piece.length])
        self._end = end

    def _flush(self) -> None:
        if self._end > self._start:
            put(self._fd, self._start, self._buffer[: self._end - self._start])
        self._start = self._end = 0

    def _copy(self, piece: Piece) -> None:
        offset, length, file, source = piece
        opened = self._plan.opened(file) if file not in self._plan.changed else None
        if opened is None:
            return
        device = os.fstat(opened.fd).st_dev
        done = 0
        if device not in self._no_clone:
            done = self._clone(opened.fd, device, piece)
        while done < length and device not in self._no_range:
            some = min(length - done, _CHUNK)
            try:
                count = os.copy_file_range(opened.fd, self._fd, some, source + done, offset + done)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self._no_range.add(device)
                break
            if not count:
                break
            done += count
        while done < length:
            part = self._buffer[: min(length - done, _GATHER)]
            self._plan.fill(file, source + done, part)
            put(self._fd, offset + done, part)
            done += len(part)
        if not file.is_unchanged(opened.fd):
            self._discard(file, offset, length)

    def _clone(self, fd: int, device: int, piece: Piece) -> int:
        """Share the piece's blocks; the bytes done, all or none."""
        offset, length, _, source = piece
        if (offset | length | source) % BLOCK_SIZE:
            return 0
        try:
            fcntl.ioctl(self._fd, _FICLONERANGE, _CLONE.pack(fd, source, length, offset))
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self._no_clone.add(device)
            return 0
        return length

    def _discard(self, file: SourceFile, offset: int, length: int) -> None:
        """Nobody knows what was copied while the file changed: zeros instead."""
        self._plan.changed[file] = None
        zeros = memoryview(bytes(_GATHER))
        for done in range(0, length, _GATHER):
            put(self._fd, offset + done, zeros[: min(_GATHER, length - done)])
