"""The process that the user started: it makes the others, and waits for them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from errno import EACCES, ENODEV, ENOENT
from typing import Final, NamedTuple

from harness import linux
from harness.container.command import Command
from harness.container.errors import EXIT_OURS, ContainerError, tell
from harness.container.init import (
    FROM_TERMINAL,
    SIGNALLED,
    Channels,
    InitOptions,
    run_init,
)
from harness.container.server import run_server
from harness.container.tree import TreeOptions
from harness.container.user_namespace import Identity, enter_user_namespace
from harness.control.server import control_socket
from harness.socket_file import SocketFile
from vfs import abi

_SI_KERNEL: Final = 0x80
# Not SIGCONT: a shell sends it to the whole job, and a second one that comes late would undo the
# next stop.
_FORWARDED: Final = frozenset(
    {
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM,
        signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)  # fmt: skip


class ContainerOptions(NamedTuple):
    """All of a container: whom it is for, what is in it, what it runs."""

    tree: TreeOptions
    init: InitOptions
    identity: Identity
    command: Command
    control: str | None = None


def run_container(options: ContainerOptions) -> int:
    """Run the command to its end, and return its status, as a shell has it.

    Three processes are made: the server of the tree, pid 1, and, below it, the command. Each of
    them dies with this one, and the command with each of them. This process, which must have one
    thread, stays in the new user namespace.

    Raises:
        ContainerError: this host does not let us.
        UsageError: the control socket can't be had.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Here, where the path means what the user means, and the file becomes the user's.
    control = None if options.control is None else control_socket(options.control)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_FORWARDED})
    try:
        enter_user_namespace(options.identity)
        return _Monitor(options, frozenset(mask), control).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if control is not None:
            control.listener.close()
            control.remove()


class _Monitor:
    """The parent of server and pid 1, and on the terminal the job that the shell knows."""

    def __init__(
        self, options: ContainerOptions, mask: frozenset[int], control: SocketFile | None
    ) -> None:
        self._options = options
        self._control = control
        self._mask = mask
        self._terminal = _Terminal()
        self._server = 0
        self._init = 0
        self._status: dict[int, int] = {}

    def run(self) -> int:
        control, lifeline = self._start()
        while self._init not in self._status:
            self._wait(control)
            if self._server in self._status and self._init not in self._status:
                # Without files it can't go on. If it is at its end anyway this changes nothing.
                os.kill(self._init, signal.SIGKILL)
                self._collect(self._init)
        os.close(control)
        os.close(lifeline)
        if self._server not in self._status:
            self._collect(self._server)
        self._terminal.reclaim()
        return self._verdict()

    def _start(self) -> tuple[int, int]:
        """Make the two; return the writing ends of pid 1's signals and the server's lifeline."""
        options = self._options
        fuse = _open_fuse()
        lifeline, ours_to_server = os.pipe()
        control, ours_to_init = os.pipe()
        os.set_blocking(ours_to_init, False)
        to_init, to_server = socket.socketpair()
        parent = os.getpid()
        self._server = os.fork()
        if self._server == 0:
            to_server.close()
            for fd in (ours_to_server, control, ours_to_init):
                os.close(fd)
            run_server(
                options.tree, options.identity, fuse, lifeline, to_init, parent, self._mask,
                self._control,
            )  # fmt: skip
        if self._control is not None:
            self._control.listener.close()
        linux.unshare(abi.CLONE_NEWPID)
        self._init = os.fork()
        if self._init == 0:
            to_init.close()
            for fd in (lifeline, ours_to_server, ours_to_init):
                os.close(fd)
            self._terminal.close()
            channels = Channels(fuse, control, to_server)
            run_init(options.init, options.command, options.identity, channels, self._mask)
        to_init.close()
        to_server.close()
        for fd in (fuse, lifeline, control):
            os.close(fd)
        return ours_to_init, ours_to_server

    def _wait(self, control: int) -> None:
        """Take one signal: note who has ended, or pass it on."""
        info = signal.sigwaitinfo({signal.SIGCHLD, *_FORWARDED})
        if info.si_signo == signal.SIGCHLD:
            for pid in (self._init, self._server):
                self._collect(pid, os.WNOHANG)
            return
        terminal = FROM_TERMINAL if info.si_code == _SI_KERNEL else 0
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(control, bytes([info.si_signo | terminal]))

    def _collect(self, pid: int, flags: int = 0) -> None:
        if pid not in self._status:
            ended, status = os.waitpid(pid, flags)
            if ended:
                self._status[pid] = os.waitstatus_to_exitcode(status)

    def _verdict(self) -> int:
        server, init = self._status[self._server], self._status[self._init]
        if server == 0:
            return init if init >= 0 else SIGNALLED - init
        if server < 0:
            tell(f"the server of the tree was killed by signal {-server}, and so the command")
        elif server != EXIT_OURS:
            tell("the server of the tree died, and so the command; the log is above")
        return EXIT_OURS


class _Terminal:
    """The controlling terminal, if this process is in its foreground."""

    def __init__(self) -> None:
        self._fd = -1
        try:
            fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return
        if os.tcgetpgrp(fd) == os.getpgrp():
            self._fd = fd
        else:
            os.close(fd)

    def close(self) -> None:
        """Forget it. May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def reclaim(self) -> None:
        """Come back to the foreground if the group that the command put there is dead.

        A shell inside can't give it back: our process group has no number there.
        """
        if self._fd >= 0:
            with suppress(OSError):
                _take_from_dead(self._fd)
        self.close()


def _take_from_dead(fd: int) -> None:
    try:
        os.killpg(os.tcgetpgrp(fd), 0)
    except ProcessLookupError:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(fd, os.getpgrp())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _open_fuse() -> int:
    """Open /dev/fuse, in the user namespace that is to mount it."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):
            hint = "it is missing: load the module with `modprobe fuse`"
        elif error.errno == EACCES:
            hint = f"{error.strerror}: its mode must be 666"
        else:
            hint = error.strerror or str(error)
        raise ContainerError(f"/dev/fuse: {hint}") from None
