"""Pid 1 of a container: makes its mounts, starts the command, reaps, passes signals on.

Nothing here may import anything late: after the change of root there is no Python to be found.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import stat
from contextlib import suppress
from errno import EPERM
from typing import Final, NamedTuple, NoReturn

from harness import linux
from harness.container.command import Command, become
from harness.container.errors import EXIT_OURS, ContainerError, tell
from harness.container.network import raise_loopback
from harness.container.tree import CONSOLE, DEVICES
from harness.container.user_namespace import Identity, drop_capabilities
from vfs import abi

LOG = logging.getLogger(__name__)

FROM_TERMINAL: Final = 0x80
"""Added to the number of a signal that the kernel sent to the whole foreground process group."""
SIGNALLED: Final = 128
READY: Final = b"r"
MOUNTED: Final = b"m"

# A directory that there is: it was needed for the maps of ids.
_STAGE: Final = "/proc"


class InitOptions(NamedTuple):
    """`devices` are paths of the host's devices; `network` is whether to keep the host's, and
    `proc` whether to mount one.
    """

    devices: tuple[str, ...]
    hostname: str | None
    network: bool
    proc: bool


class Channels(NamedTuple):
    """Descriptors of pid 1: of /dev/fuse, signals from the monitor, and the server's socket."""

    fuse: int
    control: int
    server: socket.socket


def run_init(
    options: InitOptions,
    command: Command,
    identity: Identity,
    channels: Channels,
    mask: frozenset[int],
) -> NoReturn:
    """Be pid 1 until the command ends; its status is ours.

    Our end takes all that the command has left behind with it. The monitor's end is ours.
    """
    status = EXIT_OURS
    try:
        linux.die_with_parent(signal.SIGKILL)
        status = _Init(options, command, identity, channels, mask).run()
    except ContainerError as error:
        tell(str(error))
    except _Interrupted as interruption:
        status = SIGNALLED + interruption.number
    except _Abandoned:
        pass
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        tell(f"can't set up the container: {where}{error.strerror}")
    except BaseException:
        LOG.exception("pid 1 of the container died")
    finally:
        os._exit(status)


class _Interrupted(Exception):
    """A signal came before there was a command that could get it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Abandoned(Exception):
    """The monitor or the server is gone."""


class _Init:
    """The work of pid 1. Linux: what init(8) does, for one command."""

    def __init__(
        self,
        options: InitOptions,
        command: Command,
        identity: Identity,
        channels: Channels,
        mask: frozenset[int],
    ) -> None:
        self._options = options
        self._command = command
        self._identity = identity
        self._channels = channels
        self._mask = mask

    def run(self) -> int:
        """Return the command's status, as a shell has it."""
        flags = abi.CLONE_NEWNS | abi.CLONE_NEWUTS | abi.CLONE_NEWIPC
        linux.unshare(flags if self._options.network else flags | abi.CLONE_NEWNET)
        linux.mount("none", "/", "", abi.MS_REC | abi.MS_PRIVATE)
        if not self._options.network:
            raise_loopback()
        if self._options.hostname is not None:
            socket.sethostname(self._options.hostname)
        self._await_server()
        self._mount_tree()
        self._mount_devices()
        if self._options.proc:
            self._mount_proc()
        os.chdir(_STAGE)
        linux.pivot_root(".", ".")
        linux.umount2(".", abi.MNT_DETACH)
        os.chdir("/")
        child, woken = self._start_command()
        if not self._identity.every_id:
            drop_capabilities()
        return self._watch(child, woken)

    # Set-up

    def _await_server(self) -> None:
        """Return when the tree is there."""
        control, server = self._channels.control, self._channels.server
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(server, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if control in ready:
                numbers = os.read(control, 1)
                if not numbers:
                    raise _Abandoned
                self._forward_early(numbers[0])
            if server.fileno() in ready:
                if server.recv(1) != READY:
                    raise _Abandoned
                return

    def _forward_early(self, code: int) -> None:
        number = code & ~FROM_TERMINAL
        if number in _FATAL and signal.getsignal(number) != signal.SIG_IGN:
            raise _Interrupted(number)

    def _mount_tree(self) -> None:
        fuse = self._channels.fuse
        data = f"fd={fuse},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
        flags = abi.MS_NOSUID | abi.MS_NODEV
        try:
            linux.mount(
                "dentry", _STAGE, "fuse.dentry", flags, data + ",allow_other,default_permissions"
            )
        except OSError as error:
            raise ContainerError(f"can't mount the tree over /dev/fuse: {error.strerror}") from None
        os.close(fuse)
        with self._channels.server as server:
            server.send(MOUNTED)

    def _mount_devices(self) -> None:
        """The kernel opens no device node of a FUSE mount in a user namespace; its own it does."""
        for name in DEVICES:
            self._bind(f"/dev/{name}", f"/dev/{name}", missing=True)
        for path in self._options.devices:
            self._bind(path, path)
        terminal = next((os.ttyname(fd) for fd in (0, 1, 2) if os.isatty(fd)), None)
        if terminal is not None:
            self._bind(terminal, f"/dev/{CONSOLE}", missing=True)
        if os.path.isdir(_STAGE + "/dev/pts"):
            flags = abi.MS_NOSUID | abi.MS_NOEXEC
            data = "newinstance,ptmxmode=0666,mode=620"
            linux.mount("devpts", _STAGE + "/dev/pts", "devpts", flags, data)

    def _bind(self, source: str, target: str, *, missing: bool = False) -> None:
        """Bind a device of the host; with `missing`, where both sides have a place for it."""
        place = _STAGE + target
        if missing and not (os.path.exists(source) and _is_file(place)):
            return
        try:
            linux.mount(source, place, "", abi.MS_BIND)
        except OSError as error:
            raise ContainerError(f"--device {source}: {error.strerror}") from None

    def _mount_proc(self) -> None:
        flags = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
        try:
            linux.mount("proc", _STAGE + "/proc", "proc", flags)
        except OSError as error:
            hint = ""
            if error.errno == EPERM:
                hint = ": parts of this one are covered; a --mount at /proc takes its place"
            raise ContainerError(f"can't mount a fresh /proc: {error.strerror}{hint}") from None

    # Afterwards

    def _start_command(self) -> tuple[int, int]:
        """Return the child's pid, and a descriptor that is readable after a child has ended."""
        woken, wake = os.pipe()
        for fd in (woken, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _do_nothing)
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            become(self._command, self._identity, self._mask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        return child, woken

    def _watch(self, child: int, woken: int) -> int:
        control = self._channels.control
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        while True:
            status = _reap(child)
            if status is not None:
                return status if status >= 0 else SIGNALLED - status
            ready = {fd for fd, _ in poll.poll()}
            if woken in ready:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
            if control in ready:
                codes = os.read(control, 4096)
                if not codes:
                    raise _Abandoned
                self._forward(child, codes)

    def _forward(self, child: int, codes: bytes) -> None:
        for code in codes:
            number = code & ~FROM_TERMINAL
            with suppress(ProcessLookupError):
                if not code & FROM_TERMINAL:
                    os.kill(child, number)
                elif self._command.new_session:
                    # As a terminal does: a shell waits for what it runs, which has to hear it too.
                    os.killpg(child, number)
                # Otherwise the command is in the foreground with us, and got it itself.


_FATAL: Final = frozenset(
    {
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM,
        signal.SIGUSR1, signal.SIGUSR2,
    }
)  # fmt: skip


def _do_nothing(number: int, frame: object) -> None:
    """The wake-up descriptor has what counts."""


def _is_file(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode)


def _reap(child: int) -> int | None:
    """Collect who has ended; return the exit code of `child` if it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)
