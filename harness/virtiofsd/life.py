"""A daemon's surroundings: its pid file, systemd, the log."""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EAGAIN, ENOTCONN
from types import TracebackType
from typing import Final, NoReturn, Self

from harness.errors import UsageError
from harness.socket_file import SocketFile

LOG = logging.getLogger(__name__)

ACTIVATED_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
SYSTEM_LOG: Final = "/dev/log"
_OFF: Final = logging.CRITICAL + 1
_LEVELS: Final = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
    "off": _OFF,
}


class PidFile:
    """A file with this process's id, locked as long as anybody holds ``fd``. As daemon(7)'s."""

    def __init__(self, path: str) -> None:
        """Raises: UsageError if it is locked, or can't be made."""
        self.path = os.path.abspath(path)
        try:
            self.fd = _open_locked(path)
        except OSError as error:
            if error.errno == EAGAIN:
                reason = f"the daemon {_read_pid(path)} has it: end it, or choose another socket"
            else:
                reason = error.strerror or str(error)
            raise UsageError(f"{path}: {reason}") from None
        self._stat = os.fstat(self.fd)
        os.ftruncate(self.fd, 0)
        os.write(self.fd, b"%d\n" % os.getpid())

    def remove(self, socket_file: SocketFile | None) -> None:
        """Unlink it and the socket that it is for, unless another daemon has taken over.

        The lock is asked for again: a process that waits outside of a sandbox has lost it.
        """
        with suppress(OSError):
            if not self._holds(self.fd):
                self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._holds(self.fd) and os.path.samestat(os.stat(self.path), self._stat):
                if socket_file is not None:
                    socket_file.remove()
                os.unlink(self.path)

    def close(self) -> None:
        """Let go of the lock."""
        if self._holds(self.fd):
            os.close(self.fd)
        self.fd = -1

    def _holds(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._stat)
        except OSError:
            return False


class Notifier:
    """sd_notify(3): tells systemd about the state of a service, if it wants to know.

    It is connected at once, because a sandbox has neither the path nor the network namespace.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises: UsageError for a NOTIFY_SOCKET to which nothing can be sent."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._sock: socket.socket | None = None
        if not address:
            return
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            self._sock.close()
            raise UsageError(f"NOTIFY_SOCKET={address}: {error.strerror or error}") from None

    def fileno(self) -> int:
        """The descriptor to be kept, or -1."""
        return -1 if self._sock is None else self._sock.fileno()

    def send(self, state: str) -> None:
        """Send ``state``, lines ``NAME=VALUE``. What systemd does not hear is its loss."""
        if self._sock is not None:
            try:
                self._sock.send(state.encode())
            except OSError as error:
                LOG.warning("systemd could not be told %s: %s", state, error.strerror)

    def close(self) -> None:
        """Say no more."""
        if self._sock is not None:
            self._sock.close()


class Signals:
    """What SIGTERM, SIGHUP and SIGINT do: `end` is called, once; without one they raise `Ended`.

    A signal that was ignored, as nohup(1) does, stays so.
    """

    def __init__(self) -> None:
        self.end: Callable[[], None] | None = None
        self.ended = False
        self._before = {
            number: signal.signal(number, self._arrived)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
            if signal.getsignal(number) != signal.SIG_IGN
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, *_: object) -> None:
        if self.ended:
            return
        self.ended = True
        if self.end is None:
            raise Ended
        self.end()


class Ended(BaseException):
    """A signal has asked for the end before there was anything to bring to one."""


def activated_socket(environment: Mapping[str, str], pid: int) -> bool:
    """Whether systemd has opened the socket for the process ``pid``, as sd_listen_fds(3).

    Raises:
        UsageError: it has opened several.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return False
    count = environment.get("LISTEN_FDS", "")
    if count != "1":
        raise UsageError(f"LISTEN_FDS={count}: a device has one socket: write one ListenStream=")
    return True


def inherited_socket(fd: int, option: str) -> tuple[socket.socket, bool]:
    """The socket with the number ``fd`` (taken over), and whether it listens.

    Raises:
        UsageError: no Unix stream socket is there.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(
            f"{option}: {error.strerror}: a Unix stream socket has to be inherited at this number"
        ) from None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise UsageError(f"{option}: this is no Unix stream socket: inherit one")
    os.set_inheritable(fd, False)
    return sock, bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def configure_log(program: str, level: str, syslog: bool) -> int:
    """Log from ``level`` on to stderr or the system log; return a descriptor to be kept, or -1."""
    handler: logging.Handler = logging.StreamHandler()
    layout = f"{program}: %(levelname)s: %(name)s: %(message)s"
    fd, refused = -1, ""
    if syslog:
        try:
            handler = _SystemLog(program)
            layout, fd = "%(name)s: %(message)s", handler.socket.fileno()
        except OSError as error:
            refused = error.strerror or str(error)
    handler.setFormatter(logging.Formatter(layout))
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    if refused:
        LOG.warning("%s: %s: the log goes to stderr", SYSTEM_LOG, refused)
    return fd


class _SystemLog(logging.handlers.SysLogHandler):
    """syslog(3) over a socket that is connected at once: in a sandbox its path is out of reach."""

    socket: socket.socket

    def __init__(self, program: str) -> None:
        """Raises: OSError if no system log is there."""
        super().__init__(SYSTEM_LOG)
        try:
            # The handler itself would try again at every line.
            self.socket.getpeername()
        except OSError:
            self.close()
            raise OSError(ENOTCONN, "nobody listens there", SYSTEM_LOG) from None
        self.ident = f"{program.replace(' ', '-')}[{os.getpid()}]: "


class Background:
    """daemon(3), in two steps: the caller's process ends when `ready` is called in its child.

    If the child ends before, so does the caller, with its status.
    """

    def __init__(self) -> None:
        """Return in the child, in a session of its own, with nothing to read."""
        sys.stdout.flush()
        sys.stderr.flush()
        reader, self._writer = os.pipe()
        # A sandbox has no /dev/null.
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        child = os.fork()
        if child:
            os.close(self._writer)
            self._wait(reader, child)
        os.close(reader)
        os.setsid()
        os.dup2(self._null, 0)

    def filenos(self) -> tuple[int, int]:
        """The descriptors to be kept until `ready`."""
        return self._writer, self._null

    def ready(self) -> None:
        """Let the caller's process end well; say nothing on its terminal from now on."""
        os.chdir("/")
        os.dup2(self._null, 1)
        os.dup2(self._null, 2)
        os.write(self._writer, b"1")
        os.close(self._writer)
        os.close(self._null)

    @staticmethod
    def _wait(reader: int, child: int) -> NoReturn:
        status = 0
        if not os.read(reader, 1):
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(status if status >= 0 else 128 - status)


def _open_locked(path: str) -> int:
    """Raises: OSError, EAGAIN if another process has the lock."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its former owner may have unlinked it before it let go of the lock.
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _read_pid(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(20).decode("ascii", "replace").strip() or "?"
