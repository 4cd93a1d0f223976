"""An image that is not written anywhere yet: its metadata, and where everything else comes from."""

from __future__ import annotations

import bisect
import errno
import heapq
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from fsimpl.ext2.builder.files import OpenFile, SourceFile, read_fully
from fsimpl.ext2.builder.tree import Source
from vfs import abi
from vfs.errors import oserror

_OPEN_FILES: Final = 64
_CHANGED: Final = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.ELOOP,
    errno.ESTALE,
    errno.ENXIO,
)
"""What opening says of a file that was moved away, replaced or forbidden."""
_COPY: Final = 1 << 20

Target = int | bytearray | memoryview
"""A descriptor to pwrite(2) to, or memory, an mmap as a memoryview."""


class Piece(NamedTuple):
    """``length`` bytes at ``offset`` of the image are those of ``file`` at ``file_offset``."""

    offset: int
    length: int
    file: SourceFile
    file_offset: int


class ImagePlan:
    """An image of ``size`` bytes. What none of the following covers reads as zeros.

    ``metadata``: offsets and bytes. ``mappings``: pieces that begin and end at page boundaries in
    the image and in their file. ``copies``: pieces that don't, as the tails of files. All three are
    in the image's order and don't overlap. ``changed`` names the source files that turned out not
    to be any more what they were; what is read of one since then is zeros.

    Owns its source: ``close`` it, or use ``with``. ``read`` may be called from any thread.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        image_uuid: uuid.UUID,
        metadata: list[tuple[int, bytes | memoryview]],
        mappings: list[Piece],
        copies: list[Piece],
    ) -> None:
        self.source = source
        self.size = size
        self.uuid = image_uuid
        self.metadata = metadata
        self.mappings = mappings
        self.copies = copies
        self.changed: dict[SourceFile, None] = {}
        self._starts: tuple[list[int], ...] | None = None
        self._open: OrderedDict[SourceFile, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything that content comes from."""
        with self._lock:
            self._open.clear()
        self.source.close()

    @property
    def mapped_bytes(self) -> int:
        return sum(piece.length for piece in self.mappings)

    @property
    def copied_bytes(self) -> int:
        return sum(piece.length for piece in self.copies)

    def pieces(self) -> Iterator[Piece]:
        """Mappings and copies in the image's order."""
        return heapq.merge(self.mappings, self.copies, key=lambda piece: piece.offset)

    def write_metadata(self, target: Target) -> None:
        """Write the metadata to ``target``, which has zeros where nothing is written.

        Raises: as pwrite(2).
        """
        if not isinstance(target, int):
            for offset, data in self.metadata:
                target[offset : offset + len(data)] = data
            return
        start = end = 0
        parts: list[bytes | memoryview] = []
        for offset, data in self.metadata:
            if offset != end or len(parts) == abi.IOV_MAX:
                _put_all(target, start, parts)
                start, parts = offset, []
            parts.append(data)
            end = offset + len(data)
        _put_all(target, start, parts)

    def write_copies(self, target: Target) -> None:
        """Write what can't be mapped. Raises: as pwrite(2), and as reading a source does."""
        room = memoryview(bytearray(_COPY))
        for piece in self.copies:
            done = 0
            while done < piece.length:
                part = room[: min(_COPY, piece.length - done)]
                self.fill(piece.file, piece.file_offset + done, part)
                put(target, piece.offset + done, part)
                done += len(part)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the image, fewer at its end. Raises: as reading a source does."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` of the image; beyond its end with zeros.

        Raises: as reading a source does: EIO.
        """
        buffer[:] = bytes(len(buffer))
        if self._starts is None:
            self._starts = (
                [start for start, _ in self.metadata],
                [piece.offset for piece in self.mappings],
                [piece.offset for piece in self.copies],
            )
        end = offset + len(buffer)
        of_metadata, *of_pieces = self._starts
        at = max(bisect.bisect_right(of_metadata, offset) - 1, 0)
        while at < len(self.metadata) and self.metadata[at][0] < end:
            start, data = self.metadata[at]
            first, last = max(start, offset), min(start + len(data), end)
            if first < last:
                buffer[first - offset : last - offset] = data[first - start : last - start]
            at += 1
        for starts, pieces in zip(of_pieces, (self.mappings, self.copies), strict=True):
            at = max(bisect.bisect_right(starts, offset) - 1, 0)
            while at < len(pieces) and pieces[at].offset < end:
                piece = pieces[at]
                first = max(piece.offset, offset)
                last = min(piece.offset + piece.length, end)
                if first < last:
                    part = buffer[first - offset : last - offset]
                    self.fill(piece.file, piece.file_offset + first - piece.offset, part)
                at += 1

    def fill(self, file: SourceFile, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` of a source; with zeros once that has changed.

        Raises: OSError: the source can't be read (EIO), or too many files are open.
        """
        if file not in self.changed:
            opened = self.opened(file)
            if opened is not None:
                try:
                    done = read_fully(opened.fd, buffer, offset)
                except OSError as error:
                    raise oserror(error.errno or errno.EIO, file.name) from None
                if done == len(buffer) and file.is_unchanged(opened.fd):
                    return
                self.changed[file] = None
        buffer[:] = bytes(len(buffer))

    def opened(self, file: SourceFile) -> OpenFile | None:
        """A descriptor of ``file``, kept for a while; None if it is not there as it was.

        Raises: OSError: EMFILE and the like.
        """
        with self._lock:
            found = self._open.get(file)
            if found is not None:
                self._open.move_to_end(file)
                return found
        try:
            found = OpenFile(file)
        except OSError as error:
            if error.errno not in _CHANGED:
                raise
            self.changed[file] = None
            return None
        with self._lock:
            self._open[file] = found
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return found


def put(target: Target, offset: int, data: memoryview) -> None:
    """Write all of ``data`` at ``offset``. Raises: as pwrite(2)."""
    if not isinstance(target, int):
        target[offset : offset + len(data)] = data
        return
    while data:
        count = os.pwrite(target, data, offset)
        offset += count
        data = data[count:]


def _put_all(fd: int, offset: int, parts: list[bytes | memoryview]) -> None:
    """Write ``parts`` one after another from ``offset``. Raises: as pwritev(2)."""
    done = os.pwritev(fd, parts, offset) if parts else 0
    for part in parts:
        if done < len(part):
            put(fd, offset + done, memoryview(part)[done:])
        offset += len(part)
        done = max(done - len(part), 0)
