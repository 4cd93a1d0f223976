"""What the builder of an image and its user say to each other, on a SOCK_SEQPACKET socket.

A message is a record, little-endian and of 4-byte alignment, whose first word tells its kind, and
perhaps descriptors (SCM_RIGHTS). A monitor that maps an image can take the user's place: it is
given the user's end of the socket.

    PROGRESS  builder: what (0 scan, in files; 1 copy, in bytes), done, of how many (0: unknown)
    READY     builder: bytes of the image, UUID, mappings, files; two descriptors if the content is
              to be mapped: metadata with everything that can't be mapped, as long as the image, and
              the table of mappings. Both are sealed memfds
    FAILED    builder: why (an errno, or one of the words below), then text; it ends
    OPEN      user: up to ``DESCRIPTORS_MAX`` numbers of files
    OPENED    builder: an errno for each of them, 0 for those whose descriptors come along

Of the image's bytes those that a mapping names are its file's; all others are the metadata's.
"""

from __future__ import annotations

import array
import socket
import struct
from typing import Final

DESCRIPTORS_MAX: Final = 253
"""Linux: SCM_MAX_FD, descriptors in one message."""

PROGRESS: Final = 1
READY: Final = 2
FAILED: Final = 3
OPEN: Final = 4
OPENED: Final = 5

FAILED_IMAGE: Final = 0
"""The tree can't become such an image: an ImageError's text."""
FAILED_SANDBOX: Final = 0xFFFFFFFF
"""The jail could not be made: a SandboxError's text."""

WHAT: Final = ("scan", "copy")

KIND: Final = struct.Struct("<I")
PROGRESS_RECORD: Final = struct.Struct("<IIQQ")
READY_RECORD: Final = struct.Struct("<IIQ16sQQ")
FAILED_RECORD: Final = struct.Struct("<II")
MAPPING: Final = struct.Struct("<QQQQ")
"""In the table: offset in the image, length, offset in the file (all multiples of 4096), file."""

MESSAGE_MAX: Final = 16384


def receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """The next message, b"" at the end, and descriptors that the caller owns.

    Raises: as recvmsg(2): BlockingIOError, ECONNRESET.
    """
    # socket.recv_fds of Python 3.11 takes flags and passes on none.
    flags |= socket.MSG_CMSG_CLOEXEC
    fds = array.array("i")
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_MAX, room, flags)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return data, list(fds)
