"""What commands read and write: files of the VFS, the terminal, and pipes between commands."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Protocol, Self

CHUNK: Final = 1 << 16
_PIPE_CHUNKS: Final = 16
_LOOK_SECONDS: Final = 0.2


class Reader(Protocol):
    """Where a command reads from."""

    def read(self) -> bytes:
        """Some bytes; none at the end."""
        ...

    def close(self) -> None:
        """No more is wanted."""
        ...


class Writer(Protocol):
    """Where a command writes to."""

    is_terminal: bool

    def write(self, data: bytes) -> None:
        """Raises: EPIPE if nobody reads any more; what the file raises."""
        ...

    def flush(self) -> None:
        """Have all that was written be where it belongs."""
        ...

    def close(self) -> None:
        """`flush`, and no more comes."""
        ...


def lines_of(reader: Reader) -> Iterator[bytes]:
    """The lines that are read, with their ends; the last one may have none."""
    rest = b""
    while data := reader.read():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def read_all(reader: Reader) -> bytes:
    """All that is to be read."""
    return b"".join(iter(reader.read, b""))


class Bytes:
    """A `Reader` of bytes that are there: a here-document, an empty input."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None:
        self._data = b""


class HostReader:
    """A `Reader` of a file of this process. It belongs to the caller. `read` raises
    KeyboardInterrupt once `interrupted` is set, which a session does for its threads.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self.interrupted = threading.Event()
        self._is_terminal = file.isatty()

    def read(self) -> bytes:
        while self._is_terminal and not select.select([self._fd], [], [], _LOOK_SECONDS)[0]:
            if self.interrupted.is_set():
                raise KeyboardInterrupt
        return os.read(self._fd, CHUNK)

    def close(self) -> None:
        """The file stays open for the commands to come."""


class HostWriter:
    """A `Writer` to a file of this process. It belongs to the caller."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.is_terminal = file.isatty()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


class Pipe:
    """What one command writes and the next one reads, in threads of their own. Linux: pipe(7)."""

    is_terminal = False

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._written = False
        self.reader = _PipeReader(self)
        self._abandoned = False

    def write(self, data: bytes) -> None:
        with self._changed:
            while len(self._chunks) >= _PIPE_CHUNKS and not self._abandoned:
                self._changed.wait()
            if self._abandoned:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            if data:
                self._chunks.append(bytes(data))
                self._changed.notify_all()

    def flush(self) -> None:
        """There is nothing to do: what is written can be read."""

    def close(self) -> None:
        with self._changed:
            self._written = True
            self._changed.notify_all()

    def _read(self) -> bytes:
        with self._changed:
            while not self._chunks and not self._written:
                self._changed.wait()
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._changed.notify_all()
            return data

    def _abandon(self) -> None:
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


class _PipeReader:
    """The other end."""

    def __init__(self, pipe: Pipe) -> None:
        self.read: Callable[[], bytes] = pipe._read
        self.close: Callable[[], None] = pipe._abandon


class BufferedWriter:
    """A `Writer` that collects what is written for `send`, which takes bytes and tells how many
    it took. A context manager that closes it.
    """

    is_terminal = False

    def __init__(
        self, send: Callable[[bytes], int], end: Callable[[], None] = lambda: None
    ) -> None:
        self._send = send
        self._end = end
        self._pending = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        while self._pending:
            try:
                sent = self._send(bytes(self._pending))
            except BaseException:
                self._pending.clear()
                raise
            del self._pending[:sent]

    def close(self) -> None:
        try:
            self.flush()
        finally:
            end, self._end = self._end, lambda: None
            end()
