"""Framing of vhost-user messages on a Unix stream socket, with ownership of descriptors."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Final

from harness.vhost_user.message import HEADER, MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION, VERSION_MASK

_ANCILLARY_FDS: Final = 32
_ANCILLARY: Final = socket.CMSG_SPACE(_ANCILLARY_FDS * 4)


class ProtocolError(Exception):
    """The peer broke the protocol in a way that costs it the connection."""


class Message:
    """One message. It owns the descriptors that came with it until `take_fds`."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = fds

    @property
    def need_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement (REPLY_ACK)."""
        return bool(self.flags & NEED_REPLY)

    def take_fds(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close the descriptors nobody took."""
        for fd in self.take_fds():
            os.close(fd)

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Connection:
    """A socket that carries messages. Works with blocking and non-blocking sockets alike.

    A header and its payload are read separately, never past a message's end, so descriptors
    belong to the message that is being read when they arrive.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes over `sock`, a connected Unix stream socket."""
        self._socket = sock
        self._head = bytearray()
        self._body = bytearray()
        self._size = 0
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def receive(self) -> Message | None:
        """The next message, or None when the rest of it has not arrived (non-blocking socket).

        Raises:
            EOFError: the peer closed.
            ProtocolError: another version, a payload of more than MAX_PAYLOAD bytes, or more
                descriptors than any message has.
            OSError: from recvmsg(2).
        """
        while len(self._head) < HEADER.size:
            if not self._read(self._head, HEADER.size - len(self._head)):
                return None
            if len(self._head) == HEADER.size:
                _, flags, self._size = HEADER.unpack(self._head)
                if flags & VERSION_MASK != VERSION:
                    raise ProtocolError(f"vhost-user version {flags & VERSION_MASK}")
                if self._size > MAX_PAYLOAD:
                    raise ProtocolError(f"payload of {self._size} bytes")
        while len(self._body) < self._size:
            if not self._read(self._body, self._size - len(self._body)):
                return None
        request, flags, _ = HEADER.unpack(self._head)
        message = Message(request, flags, bytes(self._body), self._fds)
        self._head.clear()
        self._body.clear()
        self._fds = []
        return message

    def send(
        self, request: int, payload: bytes = b"", *, flags: int = REPLY, fds: Sequence[int] = ()
    ) -> None:
        """Send one message; `fds` are borrowed.

        Raises:
            ProtocolError: the peer does not read, and the socket is non-blocking and full.
            OSError: from sendmsg(2).
        """
        data = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        ancillary = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
        try:
            sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError as error:
            raise ProtocolError("the peer does not read its replies") from error
        if sent != len(data):
            raise ProtocolError("the peer does not read its replies")

    def close(self) -> None:
        """Close the socket and the descriptors of a message that never became whole."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
        self._socket.close()

    def _read(self, into: bytearray, length: int) -> bool:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                length, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._fds.extend(received)
        if flags & socket.MSG_CTRUNC or len(self._fds) > _ANCILLARY_FDS:
            raise ProtocolError("more descriptors than any message has")
        if not data:
            raise EOFError("the peer closed the connection")
        into += data
        return True
