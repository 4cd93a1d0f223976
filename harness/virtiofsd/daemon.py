"""Runs what a command line asks for: one frontend, one shared directory, and then the end."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack
from typing import Final

from harness.cli.options import prepare_daemon
from harness.compose import Tree
from harness.errors import UsageError
from harness.fuse.server import FuseServer
from harness.fuse.trace import TracingHandler
from harness.migration import ServerState
from harness.sandbox import SandboxError, enter
from harness.socket_file import SocketFile
from harness.virtiofs import VirtioFsDevice
from harness.virtiofsd import seams
from harness.virtiofsd.allowlist import AllowlistServer
from harness.virtiofsd.config import Config
from harness.virtiofsd.life import (
    ACTIVATED_FD,
    Background,
    Ended,
    Notifier,
    PidFile,
    Signals,
    configure_log,
    inherited_socket,
)
from harness.wire import FuseHandler

LOG = logging.getLogger(__name__)

EXIT_FAILURE: Final = 1


def run(config: Config) -> int:
    """Serve one frontend; return the exit status when it has gone, or a signal has come.

    In a sandbox of mode namespace the calling process ends with that status, and a child returns.

    Raises:
        UsageError: what was asked for can't be had.
    """
    seams.check_shared_directory(config)
    background = Background() if config.daemonize else None
    log_fd = configure_log(config.program, config.log_level, config.syslog)
    for line in config.deprecated:
        LOG.warning("%s", line)
    notifier = Notifier(os.environ)
    with ExitStack() as stack, Signals() as signals:
        stack.callback(notifier.close)
        try:
            _Daemon(config, stack, signals, notifier, background, log_fd).serve()
        except Ended:
            LOG.info("ended by a signal before a frontend came")
        except SandboxError as error:
            raise UsageError(str(error)) from None
    return 0


class _Daemon:
    """The steps of a life, in their order; ``stack`` undoes them."""

    def __init__(
        self,
        config: Config,
        stack: ExitStack,
        signals: Signals,
        notifier: Notifier,
        background: Background | None,
        log_fd: int,
    ) -> None:
        self._config = config
        self._stack = stack
        self._signals = signals
        self._notifier = notifier
        self._background = background
        self._log_fd = log_fd
        self._socket_file: SocketFile | None = None
        self._allowlist_file: SocketFile | None = None
        self._pid_file: PidFile | None = None
        self._listens = True
        self._owner = os.getpid()

    def serve(self) -> None:
        """From the socket to the end."""
        config = self._config
        sock, kept = self._open_socket()
        self._stack.callback(sock.close)
        options = seams.sandbox_options(config, kept)
        # Of a service systemd hears only the process that it has started, which stays outside.
        outside = config.sandbox == "namespace"
        if outside:
            self._notifier.send("READY=1")
        sandboxed = enter(options, at_end=self._remove_files)
        seams.check_descriptors(config, sandboxed.nofile)
        root = seams.root_mount(config, sandboxed.root)
        tree = self._stack.enter_context(Tree([root], links=sandboxed.proc_self_fd))
        prepare_daemon(tree, raise_limit=False)
        server = FuseServer(tree.vfs, tree.root, local_locks=True)
        state = ServerState(server, seams.migration_options(config))
        traced = config.log_level == "trace"
        handler: FuseHandler = TracingHandler(server) if traced else server
        try:
            device = VirtioFsDevice(
                handler, config.tag, threads=config.thread_pool_size, state=state
            )
        except (OSError, RuntimeError) as error:
            raise UsageError(f"--thread-pool-size {config.thread_pool_size}: {error}") from None
        allowlist = seams.allowlist_of(tree.root)
        with device:
            if self._background is not None:
                self._background.ready()
            sandboxed.apply_seccomp()
            if self._allowlist_file is not None and allowlist is not None:
                AllowlistServer(self._allowlist_file.listener, allowlist).start()
            if not outside:
                self._notifier.send("READY=1")
            connection = self._accept(sock)
            self._signals.end = device.stop
            if self._signals.ended:
                device.stop()
            device.serve_connection(connection)
            self._notifier.send("STOPPING=1")
        LOG.info("ended by a signal" if self._signals.ended else "the frontend has gone")

    def _open_socket(self) -> tuple[socket.socket, tuple[int, ...]]:
        """The socket, and every descriptor that is needed inside the sandbox."""
        config = self._config
        kept = [self._notifier.fileno(), self._log_fd]
        if self._background is not None:
            kept += self._background.filenos()
        self._stack.callback(self._remove_files)
        if config.socket_path is not None:
            if config.pid_file:
                self._pid_file = PidFile(config.socket_path + ".pid")
                kept.append(self._pid_file.fd)
            self._socket_file = SocketFile(config.socket_path, config.socket_group)
            sock = self._socket_file.listener
        elif config.fd is not None:
            sock, self._listens = inherited_socket(config.fd, f"--fd {config.fd}")
        else:
            sock, self._listens = inherited_socket(ACTIVATED_FD, "LISTEN_FDS=1")
        kept.append(sock.fileno())
        if config.allowlist_socket_path is not None:
            option = "--allowlist-socket-path"
            path, kind = config.allowlist_socket_path, socket.SOCK_SEQPACKET
            self._allowlist_file = SocketFile(path, option=option, kind=kind)
            kept.append(self._allowlist_file.listener.fileno())
        return sock, tuple(fd for fd in kept if fd >= 0)

    def _accept(self, sock: socket.socket) -> socket.socket:
        if not self._listens:
            return socket.socket(fileno=sock.detach())
        LOG.info("waiting for a frontend")
        sock.setblocking(True)
        try:
            connection, _ = sock.accept()
        except OSError as error:
            # A listening socket has no other reason to refuse one than want of something.
            raise UsageError(f"no frontend can be accepted: {error.strerror}") from None
        LOG.info("a frontend has connected")
        # Nobody else is served: whoever connects is to be refused at once, and not to wait.
        sock.close()
        return connection

    def _remove_files(self) -> None:
        # In a sandbox the names lead elsewhere, and who waits outside does it.
        if os.getpid() != self._owner:
            return
        if self._allowlist_file is not None:
            self._allowlist_file.remove()
        if self._pid_file is not None:
            self._pid_file.remove(self._socket_file)
            self._pid_file.close()
        elif self._socket_file is not None:
            self._socket_file.remove()
