"""What a handler is given and what it gives back.

A handler is one row's work: ``handler(server, header, body, reply)``, called under the VFS lock.

``header``
    the fields of fuse_in_header, as ``abi.IN_HEADER`` unpacks them.
``body``
    everything after the header, copied once, so that a client that rewrites its request while it
    is read confuses nobody. For WRITE it is the arguments, without the data.
``reply``
    ``(segments, out, at)``: the reply's writable segments, whole (for WRITE the data, as long as
    the header says), and where its arguments start. The result bytes of the row fit there in one
    piece.

Returns the bytes of reply arguments, ``-errno``, or ``NO_REPLY``. Raises: OSError, which is turned
into an errno; WouldBlock parks the request, and the handler is called again with the same
arguments when it may succeed, so nothing may have happened yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from harness.fuse.buffers import Segments

if TYPE_CHECKING:
    from struct import Struct

    from harness.fuse.server import FuseServer

# len opcode unique nodeid uid gid pid total_extlen padding
Header = tuple[int, int, int, int, int, int, int, int, int]
Reply = tuple[Segments, memoryview, int]
Handler = Callable[["FuseServer", Header, bytes, Reply], int]

NO_REPLY: Final = -(1 << 16)
"""What a handler returns for a request that is answered by silence."""


def answer(reply: Reply, layout: Struct, *fields: int) -> int:
    """Reply with one structure; returns its size."""
    layout.pack_into(reply[1], reply[2], *fields)
    return layout.size


def room_of(reply: Reply) -> Segments:
    """All that may be written after the header."""
    segments, out, at = reply
    return [out[at:], *segments[1:]] if at else segments[1:]
