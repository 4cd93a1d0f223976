"""/dev/tty and /dev/console on a terminal that the host lends. Linux: drivers/tty/tty_io.c; tty(4),
console(4).

There is no line discipline: bytes pass both ways as they are, as with ``stty raw -echo``. Echo,
line editing and signals are left to the terminal at the other end, which has them already.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable
from typing import Final

from vfs import abi
from vfs.device import CharDevice, DeviceFile, scatter, total_length
from vfs.errors import WouldBlock, oserror
from vfs.file import Buffers
from vfs.wait import WaitQueue

TTYAUX_MAJOR: Final = 5
INPUT_LIMIT: Final = 1 << 16  # bytes typed ahead
TCGETS: Final = 0x5401
TIOCGWINSZ: Final = 0x5413
TIOCSWINSZ: Final = 0x5414
FIONREAD: Final = 0x541B

_INT = struct.Struct("=i")
_WINSIZE = struct.Struct("=4H")
# struct termios of the kernel after cfmakeraw: B38400 | CS8 | CREAD, VMIN 1; 19 control characters.
_RAW_TERMIOS = struct.pack("=4IB19s", 0, 0, 0o17 | 0o60 | 0o200, 0, 0, bytes(6) + b"\1" + bytes(12))


class Terminal:
    """Linux: ``tty_struct`` in raw mode. What stands behind /dev/console and /dev/tty.

    ``output`` is called with the bytes that a task wrote, VFS lock held: it must not block for
    long. ``feed`` and ``hang_up`` are called by the host, from any thread. ``window`` is rows,
    columns, and width and height in pixels.
    """

    __slots__ = ("_input", "_lock", "hung_up", "output", "wait", "window")

    def __init__(
        self, output: Callable[[bytes], object], window: tuple[int, int, int, int] = (24, 80, 0, 0)
    ) -> None:
        self.output = output
        self.window = window
        self.hung_up = False
        self.wait = WaitQueue()
        self._input = bytearray()
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> int:
        """Input arrived; returns how many bytes were taken: INPUT_LIMIT may be waiting."""
        with self._lock:
            taken = data[: INPUT_LIMIT - len(self._input)]
            self._input += taken
        self.wait.wake_all()
        return len(taken)

    def hang_up(self) -> None:
        """The other end is gone: what is waiting may be read, then comes the end of file."""
        self.hung_up = True
        self.wait.wake_all()

    def read_iter(self, buffers: Buffers) -> int:
        """What is waiting, as far as ``buffers`` go; 0 after a hang-up. Raises: WouldBlock."""
        with self._lock:
            if self._input:
                count = scatter(self._input, buffers)
                del self._input[:count]
                return count
        if self.hung_up or not total_length(buffers):
            return 0
        raise WouldBlock(self.wait)

    def write_iter(self, buffers: Buffers) -> int:
        """Raises: EIO after a hang-up; what ``output`` raises."""
        if self.hung_up:
            raise oserror(errno.EIO)
        data = b"".join(buffers)
        self.output(data)
        return len(data)

    def poll(self) -> int:
        """Linux: ``n_tty_poll``, ``hung_up_tty_poll``."""
        mask = abi.POLLOUT | abi.POLLWRNORM
        if self._input or self.hung_up:
            mask |= abi.POLLIN | abi.POLLRDNORM
        if self.hung_up:
            mask |= abi.POLLERR | abi.POLLHUP
        return mask

    def ioctl(self, command: int, argument: bytes | memoryview | int) -> bytes:
        """TCGETS, TIOCGWINSZ, TIOCSWINSZ, FIONREAD.

        Raises: EIO after a hang-up; EFAULT for a window size that is too short; ENOTTY.
        """
        if self.hung_up:
            raise oserror(errno.EIO)
        if command == TCGETS:
            return _RAW_TERMIOS
        if command == TIOCGWINSZ:
            return _WINSIZE.pack(*self.window)
        if command == TIOCSWINSZ:
            if isinstance(argument, int) or len(argument) < _WINSIZE.size:
                raise oserror(errno.EFAULT)
            rows, columns, width, height = _WINSIZE.unpack_from(argument)
            self.window = rows, columns, width, height
            return b""
        if command == FIONREAD:
            return _INT.pack(len(self._input))
        raise oserror(errno.ENOTTY)


class TerminalDevice(CharDevice):
    """A device whose files are on the terminal that was ``terminal`` when they were opened."""

    major = TTYAUX_MAJOR
    seekable = False
    missing = errno.ENXIO  # what open fails with while there is no terminal

    def __init__(self, terminal: Terminal | None = None) -> None:
        super().__init__()
        self.terminal = terminal

    def open(self, file: DeviceFile) -> None:
        """Raises: ``missing`` without a terminal; EIO if it hung up (Linux: ``tty_reopen``)."""
        if self.terminal is None:
            raise oserror(self.missing)
        if self.terminal.hung_up:
            raise oserror(errno.EIO)
        file.private_data = self.terminal

    def read_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        return _terminal(file).read_iter(buffers)

    def write_iter(self, file: DeviceFile, buffers: Buffers, offset: int, flags: int) -> int:
        return _terminal(file).write_iter(buffers)

    def poll(self, file: DeviceFile) -> int:
        return _terminal(file).poll()

    def poll_queue(self, file: DeviceFile) -> WaitQueue:
        return _terminal(file).wait

    def removed(self) -> None:
        super().removed()
        if self.terminal is not None:
            self.terminal.wait.wake_all()

    def ioctl(self, file: DeviceFile, command: int, argument: bytes | memoryview | int) -> bytes:
        return _terminal(file).ioctl(command, argument)


def _terminal(file: DeviceFile) -> Terminal:
    terminal = file.private_data
    assert isinstance(terminal, Terminal)
    return terminal


class Tty(TerminalDevice):
    """Linux: ``/dev/tty``, the controlling terminal: ENXIO without one.

    There are no sessions; what ``terminal`` is set to is everybody's controlling terminal.
    """

    name = "tty"
    minor = 0
    mode = 0o666
    driver = "/dev/tty"


class Console(TerminalDevice):
    """Linux: ``/dev/console``: ENODEV while nothing is attached (``tty_lookup_driver``)."""

    name = "console"
    minor = 1
    driver = "/dev/console"
    missing = errno.ENODEV
