"""The person's terminal, lent to a guest."""

from __future__ import annotations

import os
import signal
import socket
import termios
import tty
from types import FrameType, TracebackType
from typing import Any, Final

from harness.guest.errors import GuestQuit

ESCAPE: Final = 0x01
"""Ctrl-A, as on QEMU's own console: `Ctrl-A x` ends the guest, `Ctrl-A Ctrl-A` sends a Ctrl-A."""

_QUIT: Final = ord("x")


class EscapeFilter:
    """Finds the escape sequences in what is typed. Analogous to QEMU's mux_proc_byte."""

    __slots__ = ("_escaped",)

    def __init__(self) -> None:
        self._escaped = False

    def __call__(self, typed: bytes) -> bytes:
        """Return what the guest gets of `typed`.

        Raises: GuestQuit.
        """
        passed = bytearray()
        for byte in typed:
            if self._escaped:
                self._escaped = False
                if byte == _QUIT:
                    raise GuestQuit("the guest was ended by Ctrl-A x")
                passed.append(byte)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                passed.append(byte)
        return bytes(passed)


class RawTerminal:
    """A context in which `fd` hands over every key unprocessed, and `resized` tells of SIGWINCH.

    `resized` becomes readable when the window has changed its size; for a selector. Outside the
    main thread, where Python takes no signals, it never does.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] = []
        self._handler: Any = None

    def __enter__(self) -> RawTerminal:
        self._saved = termios.tcgetattr(self._fd)
        self.resized, self._signals = socket.socketpair()
        self.resized.setblocking(False)
        self._signals.setblocking(False)
        try:
            self._handler = signal.signal(signal.SIGWINCH, self._on_resize)
        except ValueError:
            self._handler = None
        tty.setraw(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._saved)
        if self._handler is not None:
            signal.signal(signal.SIGWINCH, self._handler)
        self.resized.close()
        self._signals.close()

    def size(self) -> tuple[int, int]:
        """Return (rows, columns), and forget earlier changes of it."""
        try:
            self.resized.recv(4096)
        except BlockingIOError:
            pass
        columns, rows = os.get_terminal_size(self._fd)
        return rows, columns

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        try:
            self._signals.send(b"\0")
        except BlockingIOError:
            # Enough notices are waiting already.
            return
