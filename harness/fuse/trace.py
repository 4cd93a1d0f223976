"""Requests in the style of strace(1), on a logger. Linux: the fuse_request_* tracepoints.

A tracer stands between a transport and its server, so a server that is not traced pays nothing.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Final

from harness.fuse import abi
from harness.fuse.buffers import Segments, gather, length_of
from harness.fuse.opcodes import BY_NUMBER, DATA_IN
from harness.wire import PENDING, WITHDRAWN, FuseHandler

_log = logging.getLogger(__name__)
# As much of a request as is printed; a name and a half.
_SHOWN: Final = 512
# The fields worth printing, by opcode: what of the unpacked arguments, under which name.
_FIELDS: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    "FORGET": ((0, "nlookup"),),
    "MKNOD": ((0, "mode"), (1, "rdev")),
    "MKDIR": ((0, "mode"),),
    "RENAME": ((0, "newdir"),),
    "RENAME2": ((0, "newdir"), (1, "flags")),
    "LINK": ((0, "oldnode"),),
    "SETATTR": ((0, "valid"),),
    "OPEN": ((0, "flags"),),
    "OPENDIR": ((0, "flags"),),
    "CREATE": ((0, "flags"), (1, "mode")),
    "TMPFILE": ((0, "flags"), (1, "mode")),
    "READ": ((0, "fh"), (1, "offset"), (2, "size")),
    "READDIR": ((0, "fh"), (1, "offset"), (2, "size")),
    "READDIRPLUS": ((0, "fh"), (1, "offset"), (2, "size")),
    "WRITE": ((0, "fh"), (1, "offset"), (2, "size")),
    "RELEASE": ((0, "fh"),),
    "RELEASEDIR": ((0, "fh"),),
    "FLUSH": ((0, "fh"),),
    "FSYNC": ((0, "fh"), (1, "flags")),
    "FSYNCDIR": ((0, "fh"), (1, "flags")),
    "SETXATTR": ((0, "size"), (1, "flags")),
    "GETXATTR": ((0, "size"),),
    "LISTXATTR": ((0, "size"),),
    "GETLK": ((0, "fh"), (2, "start"), (3, "end"), (4, "type")),
    "SETLK": ((0, "fh"), (2, "start"), (3, "end"), (4, "type")),
    "SETLKW": ((0, "fh"), (2, "start"), (3, "end"), (4, "type")),
    "ACCESS": ((0, "mask"),),
    "INIT": ((0, "major"), (1, "minor"), (3, "flags")),
    "INTERRUPT": ((0, "unique"),),
    "BATCH_FORGET": ((0, "count"),),
    "IOCTL": ((0, "fh"), (2, "cmd")),
    "POLL": ((0, "fh"), (3, "events")),
    "FALLOCATE": ((0, "fh"), (1, "offset"), (2, "length"), (3, "mode")),
    "LSEEK": ((0, "fh"), (1, "offset"), (2, "whence")),
    "COPY_FILE_RANGE": ((0, "fh"), (1, "offset"), (3, "fh_out"), (4, "off_out"), (5, "len")),
    "COPY_FILE_RANGE_64": ((0, "fh"), (1, "offset"), (3, "fh_out"), (4, "off_out"), (5, "len")),
}
_OCTAL: Final = frozenset(("mode",))
_HEX: Final = frozenset(("flags", "valid", "cmd", "events", "mask"))


def describe_request(request: Segments) -> str:
    """One request as ``#14 LOOKUP node=1 "etc" uid=0``; never raises, whatever was sent."""
    front = gather(request, _SHOWN)
    if len(front) < abi.IN_HEADER_SIZE:
        return f"a request of {length_of(request)} bytes"
    _, opcode, unique, nodeid, uid, _, _, _, _ = abi.IN_HEADER.unpack_from(front)
    row = BY_NUMBER.get(opcode)
    if row is None:
        return f"#{unique} opcode {opcode} node={nodeid} uid={uid}"
    words = [f"#{unique} {row.name} node={nodeid}"]
    start = abi.IN_HEADER_SIZE
    arguments = abi.WRITE_IN if row.kind == DATA_IN else row.arguments
    if arguments is not None:
        if len(front) < start + arguments.size:
            return f"{words[0]} (truncated)"
        values = arguments.unpack_from(front, start)
        words += [_word(name, values[index]) for index, name in _FIELDS.get(row.name, ())]
        start += arguments.size
    if row.names:
        strings = front[start:].split(b"\0")[: row.names]
        words += [f'"{string.decode(errors="backslashreplace")}"' for string in strings]
    words.append(f"uid={uid}")
    return " ".join(words)


def _word(name: str, value: int) -> str:
    if name in _OCTAL:
        return f"{name}={value:#o}"
    return f"{name}={value:#x}" if name in _HEX else f"{name}={value}"


def describe_reply(reply: Segments, length: int) -> str:
    """One reply as ``ENOENT`` or ``ok 128``."""
    if not length:
        return "no reply"
    front = gather(reply, abi.OUT_HEADER_SIZE)
    if len(front) < abi.OUT_HEADER_SIZE:
        return f"{length} bytes"
    error = -abi.OUT_HEADER.unpack(front)[1]
    if error:
        return errno.errorcode.get(error, str(error))
    return f"ok {length - abi.OUT_HEADER_SIZE}"


class TracingHandler:
    """A ``FuseHandler`` in front of another one; every request is a line at level INFO.

    A request that waits is two lines, as strace shows an unfinished call.
    """

    __slots__ = ("_handler", "_logger")

    def __init__(self, handler: FuseHandler, logger: logging.Logger = _log) -> None:
        self._handler = handler
        self._logger = logger

    def handle(self, request: Segments, reply: Segments, completion: Callable[[int], None]) -> int:
        """See ``harness.wire.FuseHandler``."""
        text = describe_request(request)
        begun = time.perf_counter_ns()

        def finished(length: int) -> None:
            if length != WITHDRAWN:
                self._line("... " + text, reply, length, begun)
            completion(length)

        length = self._handler.handle(request, reply, finished)
        if length == PENDING:
            self._logger.info("%s <waits ...>", text)
        else:
            self._line(text, reply, length, begun)
        return length

    def _line(self, text: str, reply: Segments, length: int, begun: int) -> None:
        microseconds = (time.perf_counter_ns() - begun) / 1000
        self._logger.info("%s = %s <%.1f us>", text, describe_reply(reply, length), microseconds)

    def drain(self) -> None:
        self._handler.drain()

    def withdraw(self) -> None:
        self._handler.withdraw()

    def reset(self) -> None:
        self._logger.info("the session ends")
        self._handler.reset()
