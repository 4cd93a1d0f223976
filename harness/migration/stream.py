"""The state as a stream of bytes: sections with checked lengths, and a checksum over all of them.

    magic, version | tag, length, content | ... | "end ", 32, SHA-256 of everything before

Numbers are little-endian. A stream is read by whoever stands at the other end of a pipe, so nothing
in it is believed: no length makes room for more than has arrived, and every number is checked where
it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from struct import Struct
from typing import Final

MAGIC: Final = b"\x89dentry\n"
VERSION: Final = 1
SECTION_MAX: Final = 1 << 20
"""The longest section; a table that is longer comes in several."""

_HEADER: Final = Struct("<8sI")
_SECTION: Final = Struct("<4sI")
_END: Final = b"end "
_U8: Final = Struct("<B")
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_TIME: Final = Struct("<qI")
_NS: Final = 10**9


class StateError(Exception):
    """The state cannot be saved or loaded, and why, in a line for whoever reads the log."""


class Packer:
    """The records of one section, one after another."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    def u8(self, value: int) -> None:
        self.data += _U8.pack(value)

    def u32(self, value: int) -> None:
        self.data += _U32.pack(value)

    def u64(self, value: int) -> None:
        self.data += _U64.pack(value)

    def time(self, time_ns: int) -> None:
        """Seconds and nanoseconds: what SETATTR can set does not fit in 64 bits of nanoseconds."""
        self.data += _TIME.pack(*divmod(time_ns, _NS))

    def blob(self, value: bytes) -> None:
        self.data += _U32.pack(len(value))
        self.data += value


class Unpacker:
    """Takes apart what a ``Packer`` put together. Every method raises StateError at the end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether something is left."""
        return self._at < len(self._data)

    def _take(self, size: int) -> int:
        at = self._at
        if size > len(self._data) - at:
            raise StateError("a record is cut short")
        self._at = at + size
        return at

    def u8(self) -> int:
        return self._data[self._take(1)]

    def u32(self) -> int:
        return int(_U32.unpack_from(self._data, self._take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self._data, self._take(8))[0])

    def time(self) -> int:
        seconds, nanoseconds = _TIME.unpack_from(self._data, self._take(_TIME.size))
        if nanoseconds >= _NS:
            raise StateError("a time of more than a second's nanoseconds")
        return int(seconds * _NS + nanoseconds)

    def blob(self, limit: int) -> bytes:
        """A string of at most ``limit`` bytes."""
        size = self.u32()
        if size > limit:
            raise StateError(f"a string of {size} bytes where {limit} are the most")
        at = self._take(size)
        return self._data[at : at + size]

    def rest(self) -> bytes:
        """What is left."""
        return self._data[self._take(len(self._data) - self._at) :]

    def end(self) -> None:
        """Raises StateError if something is left."""
        if self:
            raise StateError("a record is too long")


class StateWriter:
    """Writes sections to a descriptor, which is borrowed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._digest = hashlib.sha256()
        self._write(_HEADER.pack(MAGIC, VERSION))

    def section(self, tag: bytes, content: bytes | bytearray) -> None:
        """One section. Raises: EPIPE if nobody reads any more."""
        self._write(_SECTION.pack(tag, len(content)))
        self._write(content)

    def table(self, tag: bytes, records: Iterator[Packer]) -> None:
        """Many records, in as many sections as they take; at least one, which may be empty."""
        collected = bytearray()
        written = False
        for record in records:
            if collected and len(collected) + len(record.data) > SECTION_MAX:
                self.section(tag, collected)
                written = True
                collected = bytearray()
            collected += record.data
        if collected or not written:
            self.section(tag, collected)

    def finish(self) -> None:
        """The checksum, and with it the end."""
        digest = self._digest.digest()
        self._write(_SECTION.pack(_END, len(digest)) + digest)

    def _write(self, data: bytes | bytearray) -> None:
        self._digest.update(data)
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]


class StateReader:
    """Reads sections from a descriptor, which is borrowed."""

    def __init__(self, fd: int) -> None:
        """Raises: StateError unless a state of this version begins there."""
        self._fd = fd
        self._digest = hashlib.sha256()
        magic, version = _HEADER.unpack(self._read(_HEADER.size))
        if magic != MAGIC:
            raise StateError("this is no state of a dentry daemon")
        if version != VERSION:
            raise StateError(f"the state is of version {version}, and only {VERSION} is known here")

    def sections(self) -> Iterator[tuple[bytes, bytes]]:
        """(tag, content) of each section. That it ends, without an error, says that all of it came
        as it was sent.
        """
        while True:
            before = self._digest.digest()
            tag, size = _SECTION.unpack(self._read(_SECTION.size))
            if tag == _END:
                break
            if size > SECTION_MAX:
                raise StateError(f"a section of {size} bytes where {SECTION_MAX} are the most")
            yield tag, self._read(size)
        if size != len(before) or self._read(size) != before:
            raise StateError("the checksum of the state is wrong")
        if os.read(self._fd, 1):
            raise StateError("there is more behind the end of the state")

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = os.read(self._fd, size - len(data))
            if not piece:
                raise StateError("the state is cut short")
            data += piece
        self._digest.update(data)
        return bytes(data)
