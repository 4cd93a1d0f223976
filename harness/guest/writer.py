"""Sends to a chardev of QEMU's from an event loop."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from typing import Final

_CHUNK: Final = 1 << 16


class Writer:
    """The sending side of a non-blocking socket, with what could not be sent yet.

    `selector` keys carry a callable for their data, here and in everything that shares it.
    Holds its own duplicate of `sock`, so that the reading side can be registered on its own.
    """

    __slots__ = ("_pending", "_selector", "_sock", "_source", "_transform")

    def __init__(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        self._selector = selector
        self._sock = sock.dup()
        self._pending = bytearray()
        self._source: int | None = None
        self._transform: Callable[[bytes], bytes] | None = None

    def send(self, data: bytes) -> None:
        """Queue `data`; it leaves as the event loop turns."""
        if not self._pending and data:
            self._selector.register(self._sock, selectors.EVENT_WRITE, self._on_writable)
        self._pending += data

    def feed_from(self, source: int, transform: Callable[[bytes], bytes] | None = None) -> None:
        """Send what comes out of descriptor `source`, through `transform`, until its end.

        The end of `source` is passed on, by shutting the socket down. `source` stays the
        caller's, and is no more read after `detach`.
        """
        self._source = source
        self._transform = transform
        self._selector.register(source, selectors.EVENT_READ, self._on_readable)

    def detach(self) -> None:
        """Stop reading the source of `feed_from`. Harmless without one."""
        if self._source is not None and self._source in self._selector.get_map():
            self._selector.unregister(self._source)
        self._source = None

    def close(self) -> None:
        self.detach()
        if self._sock.fileno() in self._selector.get_map():
            self._selector.unregister(self._sock)
        self._sock.close()

    def _on_readable(self) -> None:
        assert self._source is not None
        data = os.read(self._source, _CHUNK)
        # Read no further before this is sent: the queue stays short, the source feels it.
        self._selector.unregister(self._source)
        if not data:
            self._source = None
            self._sock.shutdown(socket.SHUT_WR)
            return
        if self._transform is not None:
            data = self._transform(data)
        if data:
            self.send(data)
        else:
            self._resume()

    def _on_writable(self) -> None:
        try:
            sent = self._sock.send(self._pending)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            # QEMU has ended, and the event loop is about to learn it by the pidfd.
            self._pending.clear()
            self._selector.unregister(self._sock)
            self.detach()
            return
        del self._pending[:sent]
        if not self._pending:
            self._selector.unregister(self._sock)
            self._resume()

    def _resume(self) -> None:
        if self._source is not None and self._source not in self._selector.get_map():
            self._selector.register(self._source, selectors.EVENT_READ, self._on_readable)
